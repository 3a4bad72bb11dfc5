"""Convolutions of the large backbones, each as the fastest program for it.

  * Windows that do not overlap (1x1, patches) are a matrix product. On a CPU
    this is a good deal faster than XLA's convolution.
  * A depthwise convolution is, on a CPU, a sum of shifted images, and so are
    its gradients: XLA's takes some 20 times as long (3x3, 8 images of
    56x56x144, one core: forwards 123 ms against 7, gradient of the images 148
    against 7, of the kernel 664 against 33).
  * The rest are XLA's, on a CPU with the kernel's gradient of `layers.conv2d`.

The gradients that are written out have a reverse rule alone, so `jax.jvp` does
not apply to them.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from retrieval_jax.core import backend
from retrieval_jax.models import layers

PADDINGS = ('symmetric', 'same', 'valid')

# He et al. 2015, eq. 14; what ResNet and EfficientNet start from.
_HE_FAN_OUT = nn.initializers.variance_scaling(2.0, 'fan_out', 'normal')
_HE_FAN_IN = nn.initializers.variance_scaling(2.0, 'fan_in', 'normal')

_Pads = tuple[tuple[int, int], tuple[int, int]]


def pads_of(
  padding: str, size: tuple[int, int], kernel_size: int, stride: int
) -> _Pads:
  """Returns the zeros to add above and below, left and right.

  Args:
    padding: 'symmetric' adds kernel_size // 2 on each side, as PyTorch's models
      do; 'same' adds what gives ceil(size / stride), the odd one below and on
      the right, as TensorFlow's do; 'valid' adds none.
    size: height and width of the images.
    kernel_size: of the square window.
    stride: of the window.

  Returns:
    ((above, below), (left, right)).

  Example:
    >>> pads_of('symmetric', (64, 64), 3, 2), pads_of('same', (64, 65), 3, 2)
    (((1, 1), (1, 1)), ((0, 1), (1, 1)))
  """
  if padding == 'symmetric':
    half = kernel_size // 2
    return (half, half), (half, half)
  window = (kernel_size, kernel_size)
  pads = lax.padtype_to_pads(size, window, (stride, stride), padding.upper())
  (above, below), (left, right) = pads
  return (int(above), int(below)), (int(left), int(right))


def convolve(
  images: jax.Array, kernel: jax.Array, stride: int, padding: str
) -> jax.Array:
  """Convolves images with a square kernel.

  Args:
    images: [B, H, W, Cin] any float dtype.
    kernel: [k, k, Cin, Cout] of the same dtype.
    stride: of the window, in both directions.
    padding: one of `PADDINGS`, see `pads_of`.

  Returns:
    [B, h, w, Cout] of that dtype.

  Example:
    >>> images, kernel = jnp.ones((1, 4, 4, 1)), jnp.ones((3, 3, 1, 1))
    >>> convolve(images, kernel, 2, 'symmetric')[0, :, :, 0]
    Array([[4., 6.],
           [6., 9.]], dtype=float32)
  """
  size = kernel.shape[0]
  pads = pads_of(padding, images.shape[1:3], size, stride)
  if size == 1:
    images, stride = images[:, ::stride, ::stride], 1
  if stride == size and pads == ((0, 0), (0, 0)):
    return _product_of_patches(images, kernel)
  if stride == 1 and pads == ((size // 2,) * 2,) * 2 and size % 2:
    return layers.conv2d(images, kernel)
  return lax.conv_general_dilated(
    images,
    kernel,
    window_strides=(stride, stride),
    padding=pads,
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
  )


def _product_of_patches(images, kernel):
  size, _, channels, features = kernel.shape
  height, width = images.shape[1] // size, images.shape[2] // size
  patches = images[:, : height * size, : width * size]
  patches = patches.reshape(-1, height, size, width, size, channels)
  patches = patches.swapaxes(2, 3)
  patches = patches.reshape(-1, height, width, size * size * channels)
  return jnp.dot(patches, kernel.reshape(-1, features))


def convolve_depthwise(
  images: jax.Array, kernel: jax.Array, stride: int, padding: str
) -> jax.Array:
  """Convolves each channel with a kernel of its own.

  Args:
    images: [B, H, W, C] any float dtype.
    kernel: [k, k, 1, C] of the same dtype.
    stride: of the window, in both directions.
    padding: one of `PADDINGS`, see `pads_of`.

  Returns:
    [B, h, w, C] of that dtype; on a CPU the sum is in float32.

  Example:
    >>> kernel = jnp.ones((3, 3, 1, 2)).at[..., 1].set(2)
    >>> y = convolve_depthwise(jnp.ones((1, 4, 4, 2)), kernel, 2, 'symmetric')
    >>> y[0, 1, :]
    Array([[ 6., 12.],
           [ 9., 18.]], dtype=float32)
  """
  pads = pads_of(padding, images.shape[1:3], kernel.shape[0], stride)
  if backend.name() == 'cpu':
    return _shifted_depthwise(images, kernel, stride, pads)
  return lax.conv_general_dilated(
    images,
    kernel,
    window_strides=(stride, stride),
    padding=pads,
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    feature_group_count=images.shape[-1],
  )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _shifted_depthwise(images, kernel, stride, pads):
  return _sum_of_shifts(images, kernel, stride, pads)


def _depthwise_forward(images, kernel, stride, pads):
  return _sum_of_shifts(images, kernel, stride, pads), (images, kernel)


def _depthwise_backward(stride, pads, residuals, gradient):
  images, kernel = residuals
  return (
    _gradient_of_images(gradient, kernel, stride, pads, images.shape),
    _gradient_of_kernel(images, gradient, len(kernel), stride, pads).astype(
      kernel.dtype
    ),
  )


_shifted_depthwise.defvjp(_depthwise_forward, _depthwise_backward)


def _grid(images, size, stride, pads):
  """Returns [B, h + e, s, w + e, s, C]: padded images, a stride's rows apart.

  The pixel of window (y, x) under entry (i, j) of the kernel is [y + i // s, i
  % s, x + j // s, j % s]; e = (k - 1) // s. So every shift is a contiguous
  slice, which at stride 2 takes a third of the time of a strided one.
  """
  extra = (size - 1) // stride
  places, config = [], [(0, 0, 0)]
  for extent, (low, high) in zip(images.shape[1:3], pads, strict=True):
    windows = (low + extent + high - size) // stride + 1
    places.append(windows + extra)
    # Negative where the last windows leave pixels over.
    config.append((low, (windows + extra) * stride - low - extent, 0))
  padded = lax.pad(images, jnp.zeros((), images.dtype), (*config, (0, 0, 0)))
  rows, columns = places
  return padded.reshape(
    len(images), rows, stride, columns, stride, images.shape[-1]
  )


# Compiled by itself, so that blocks of equal shape are traced once.
@functools.partial(jax.jit, static_argnums=(2, 3))
def _sum_of_shifts(images, kernel, stride, pads):
  size = len(kernel)
  grid = _grid(images, size, stride, pads)
  batch, rows, _, columns, _, channels = grid.shape
  height, width = (n - (size - 1) // stride for n in (rows, columns))
  total = 0.0
  for i in range(size):
    for j in range(size):
      (y, a), (x, b) = divmod(i, stride), divmod(j, stride)
      shifted = lax.slice(
        grid,
        (0, y, a, x, b, 0),
        (batch, y + height, a + 1, x + width, b + 1, channels),
      ).reshape(batch, height, width, channels)
      total += _scaled(shifted, kernel[i, j, 0])
  return total.astype(images.dtype)


def _scaled(images, weights):
  weights = weights.astype(jnp.float32)[None, None, None]
  return images.astype(jnp.float32) * weights


@functools.partial(jax.jit, static_argnums=(2, 3, 4))
def _gradient_of_images(gradient, kernel, stride, pads, shape):
  """Returns sum_{i, j} g[b, y - i // s, x - j // s, c] k[i, j, c].

  That is pixel [y, i % s, x, j % s] of the grid: each of the s^2 places between
  the strides sums its own entries of the kernel.
  """
  size = len(kernel)
  extra = (size - 1) // stride
  batch, height, width, channels = gradient.shape
  padded = jnp.pad(gradient, ((0, 0), (extra,) * 2, (extra,) * 2, (0, 0)))
  between = []
  for a in range(stride):
    for b in range(stride):
      total = jnp.zeros(
        (batch, height + extra, width + extra, channels), jnp.float32
      )
      for i in range(a, size, stride):
        for j in range(b, size, stride):
          y, x = extra - i // stride, extra - j // stride
          shifted = lax.slice(
            padded,
            (0, y, x, 0),
            (batch, y + height + extra, x + width + extra, channels),
          )
          total += _scaled(shifted, kernel[i, j, 0])
      between.append(total.astype(gradient.dtype))
  grid = jnp.stack(between, axis=3).reshape(
    batch, height + extra, width + extra, stride, stride, channels
  )
  grid = grid.swapaxes(2, 3).reshape(
    batch, (height + extra) * stride, (width + extra) * stride, channels
  )
  config = [
    (-low, low + extent - n, 0)
    for extent, n, (low, _) in zip(
      shape[1:3], grid.shape[1:3], pads, strict=True
    )
  ]
  zero = jnp.zeros((), grid.dtype)
  return lax.pad(grid, zero, ((0, 0, 0), *config, (0, 0, 0)))


@functools.partial(jax.jit, static_argnums=(2, 3, 4))
def _gradient_of_kernel(images, gradient, size, stride, pads):
  """Returns sum_{b, y, x} grid[b, y + i // s, i % s, x + j // s, j % s, c] g.

  A sum over all but the last axis is slow on a CPU; adding up rows of images,
  [B, w, C], is not, and leaves little to sum in that way.
  """
  batch, height, width, channels = gradient.shape
  grid = _grid(images, size, stride, pads)
  grid = grid.reshape(batch, -1, *grid.shape[3:])

  def kernel_row(i):
    def add_row(y, sums):
      row = lax.dynamic_index_in_dim(grid, y * stride + i, 1, keepdims=False)
      row_gradient = lax.dynamic_index_in_dim(gradient, y, 1, keepdims=False)
      row, row_gradient = (x.astype(jnp.float32) for x in (row, row_gradient))
      return tuple(
        total
        + row[:, j // stride : j // stride + width, j % stride] * row_gradient
        for j, total in enumerate(sums)
      )

    zeros = jnp.zeros((batch, width, channels), jnp.float32)
    sums = lax.fori_loop(0, height, add_row, (zeros,) * size)
    return jnp.stack([jnp.sum(total, axis=(0, 1)) for total in sums])

  return lax.map(kernel_row, jnp.arange(size))[:, :, None]


class Convolution(nn.Module):
  """A convolution with a square kernel.

  Parameters: `kernel [k, k, Cin, Cout]`, depthwise `[k, k, 1, C]`, and `bias
  [Cout]`.

  Attributes:
    features: Cout; in a depthwise convolution Cin too.
    kernel_size: k.
    stride: of the window.
    depthwise: whether each channel has a kernel of its own.
    padding: one of `PADDINGS`, see `pads_of`.
    use_bias: whether there is a bias.
    kernel_init: initialiser of the kernel; by default normal with variance 2 /
      fan-out.
    dtype: of the computation; the parameters are float32.

  Example:
    >>> x = jnp.ones((1, 8, 8, 3))
    >>> convolution = Convolution(5, kernel_size=3, stride=2)
    >>> y, _ = convolution.init_with_output(jax.random.key(0), x)
    >>> y.shape
    (1, 4, 4, 5)
  """

  features: int
  kernel_size: int = 1
  stride: int = 1
  depthwise: bool = False
  padding: str = 'symmetric'
  use_bias: bool = False
  kernel_init: Callable | None = None
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, images: jax.Array) -> jax.Array:
    """Maps [B, H, W, Cin] to [B, h, w, Cout] of `dtype`."""
    inputs = 1 if self.depthwise else images.shape[-1]
    # The fan-out of a channel that has a kernel of its own is k^2, and so is
    # its fan-in, which is what the initialiser can see.
    default = _HE_FAN_IN if self.depthwise else _HE_FAN_OUT
    kernel = self.param(
      'kernel',
      self.kernel_init or default,
      (self.kernel_size, self.kernel_size, inputs, self.features),
      jnp.float32,
    )
    function = convolve_depthwise if self.depthwise else convolve
    y = function(
      images.astype(self.dtype),
      kernel.astype(self.dtype),
      self.stride,
      self.padding,
    )
    if self.use_bias:
      bias = self.param(
        'bias', nn.initializers.zeros, (self.features,), jnp.float32
      )
      y += bias.astype(self.dtype)[None, None, None]
    return y
