"""Convolution and max-pooling whose gradients are fast on a CPU too.

XLA runs a convolution forwards, and its gradient with respect to the images, at
the speed of a matrix product. Two other gradients it does badly on a CPU; here
they are written out, with the same values:

  * of the kernel, above a batch of some 32 images: summed over groups of
    images, each of them fast (on one core, 256 images of 14x14x32 to 64
    channels: 100 ms as one, 23 ms in groups);
  * of max-pooling, a `select_and_scatter`: the forward pass keeps which entry
    of each window won, one byte of it, and the backward pass reads nothing else
    (257 ms against 10 ms on 256 images of 28x28x32).

These functions have a custom reverse rule, so `jax.jvp` does not apply to them.
On a CPU the kernel's gradient runs some twenty times slower inside `lax.scan`,
`map` or `while_loop` than outside: keep the training step out of such a loop.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from retrieval_jax.core import backend

# Groups of the kernel's gradient: as fast as 8 and 32. A larger batch takes
# larger groups, so that the compiled program stays small.
_GROUP_SIZE = 16
_MAX_GROUPS = 16


def conv2d(images: jax.Array, kernel: jax.Array) -> jax.Array:
  """Convolves with stride 1 and zero padding that keeps the size (SAME).

  y[b, h, w, o] = sum_{i, j, c} x[b, h + i - kh // 2, w + j - kw // 2, c]
  k[i, j, c, o], for a kernel of odd size.

  Args:
    images: [B, H, W, Cin] any float dtype.
    kernel: [kh, kw, Cin, Cout] of the same dtype, as in `nn.Conv`.

  Returns:
    [B, H, W, Cout] of that dtype.

  Example:
    >>> conv2d(jnp.ones((1, 3, 3, 1)), jnp.ones((3, 3, 1, 1)))[0, :, :, 0]
    Array([[4., 6., 4.],
           [6., 9., 6.],
           [4., 6., 4.]], dtype=float32)
  """
  # Other backends have fast kernels for every gradient of a convolution.
  if backend.name() == 'cpu':
    return _grouped_conv2d(images, kernel)
  return _conv2d(images, kernel)


def _conv2d(images, kernel):
  return lax.conv_general_dilated(
    images,
    kernel,
    window_strides=(1, 1),
    padding='SAME',
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
  )


@jax.custom_vjp
def _grouped_conv2d(images, kernel):
  return _conv2d(images, kernel)


def _grouped_conv2d_forward(images, kernel):
  return _conv2d(images, kernel), (images, kernel)


def _grouped_conv2d_backward(residuals, gradient):
  images, kernel = residuals
  # Compiled only if the images need a gradient, which a first layer's do not.
  to_images = jax.linear_transpose(lambda x: _conv2d(x, kernel), images)
  size = max(_GROUP_SIZE, -(-len(images) // _MAX_GROUPS))
  kernel_gradient = jnp.zeros(kernel.shape, jnp.float32)
  for start in range(0, len(images), size):
    group = images[start : start + size]
    to_kernel = jax.linear_transpose(lambda k, x=group: _conv2d(x, k), kernel)
    (term,) = to_kernel(gradient[start : start + size])
    kernel_gradient += term.astype(jnp.float32)
  return *to_images(gradient), kernel_gradient.astype(kernel.dtype)


_grouped_conv2d.defvjp(_grouped_conv2d_forward, _grouped_conv2d_backward)


@jax.custom_vjp
def max_pool(x: jax.Array) -> jax.Array:
  """Takes the largest of each 2x2 window, stride 2; an odd last row is dropped.

  Equal to `nn.max_pool(x, (2, 2), (2, 2))`, also in its gradient, which goes to
  the first of equal entries.

  Args:
    x: [B, H, W, C] any float dtype.

  Returns:
    [B, H // 2, W // 2, C] of that dtype.

  Example:
    >>> max_pool(jnp.arange(16.0).reshape(1, 4, 4, 1))[0, :, :, 0]
    Array([[ 5.,  7.],
           [13., 15.]], dtype=float32)
  """
  return _max_pool_forward(x)[0]


def _max_pool_forward(x):
  height, width = x.shape[1] // 2 * 2, x.shape[2] // 2 * 2
  # The four entries of every window, [B, H // 2, W // 2, C] each.
  a, b, c, d = (
    x[:, row:height:2, column:width:2] for row in (0, 1) for column in (0, 1)
  )
  top, bottom = jnp.maximum(a, b), jnp.maximum(c, d)
  winner = jnp.where(
    bottom > top, jnp.where(d > c, 3, 2), jnp.where(b > a, 1, 0)
  )
  odd = (x.shape[1] - height, x.shape[2] - width)
  return jnp.maximum(top, bottom), (winner.astype(jnp.int8), odd)


def _max_pool_backward(residuals, gradient):
  winner, odd = residuals
  batch, height, width, channels = gradient.shape
  entry = jnp.arange(4, dtype=jnp.int8).reshape(1, 1, 2, 1, 2, 1)
  spread = jnp.where(
    winner[:, :, None, :, None] == entry, gradient[:, :, None, :, None], 0
  ).reshape(batch, 2 * height, 2 * width, channels)
  return (jnp.pad(spread, ((0, 0), (0, odd[0]), (0, odd[1]), (0, 0))),)


max_pool.defvjp(_max_pool_forward, _max_pool_backward)


class Conv(nn.Module):
  """`nn.Conv` with stride 1 and SAME padding, by `conv2d`; 2-D images only.

  Its parameters have the names, shapes and initial values of `nn.Conv`:
  `kernel [kh, kw, Cin, Cout]` and `bias [Cout]`.

  Attributes:
    features: the number of channels Cout that come out.
    kernel_size: height and width of the kernel, (3, 3) by default.
    max_pool: whether to max-pool 2x2 too, before the bias is added: the maximum
      of y + b is the maximum of y, plus b, for a quarter of the additions.
    use_bias: whether there is a bias.
    dtype: of the computation.
    param_dtype: of the parameters.
    kernel_init: initialiser of the kernel.

  Example:
    >>> x = jnp.ones((1, 8, 8, 3))
    >>> y, _ = Conv(5, max_pool=True).init_with_output(jax.random.key(0), x)
    >>> y.shape
    (1, 4, 4, 5)
  """

  features: int
  kernel_size: Sequence[int] = (3, 3)
  max_pool: bool = False
  use_bias: bool = True
  dtype: Any = jnp.float32
  param_dtype: Any = jnp.float32
  kernel_init: Callable = nn.initializers.lecun_normal()

  @nn.compact
  def __call__(self, images: jax.Array) -> jax.Array:
    """Returns [B, H, W, Cout], or half that height and width if pooled."""
    shape = (*self.kernel_size, images.shape[-1], self.features)
    kernel = self.param('kernel', self.kernel_init, shape, self.param_dtype)
    y = conv2d(images.astype(self.dtype), kernel.astype(self.dtype))
    if self.max_pool:
      y = max_pool(y)
    if self.use_bias:
      bias = self.param(
        'bias', nn.initializers.zeros, (self.features,), self.param_dtype
      )
      y += bias.astype(self.dtype)[None, None, None]
    return y
