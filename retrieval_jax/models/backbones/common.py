"""What the backbones share besides their layers."""

import functools
from collections.abc import Callable
from typing import Any

import jax
from flax import linen as nn

from retrieval_jax.core.errors import InputError


def check_images(images: jax.Array, stride: int) -> None:
  """Checks that a backbone can look at the images.

  Args:
    images: [B, H, W, channels].
    stride: of the last feature map; the images have to be as large.

  Raises:
    InputError: for images of another rank, or smaller.
  """
  if images.ndim != 4 or min(images.shape[1:3]) < stride:
    raise InputError(
      f'images have shape {images.shape}; allowed is (batch, height, width, '
      f'channels) with height and width at least {stride}, the stride of the '
      'last feature map: add the missing axis or resize the images'
    )


def batch_norm(
  use_running_average: bool,
  axis_name: str | None,
  dtype: Any,
  epsilon: float = 1e-5,
) -> Callable[..., nn.Module]:
  """Returns `nn.BatchNorm` with what is the same all over a network.

  Args:
    use_running_average: whether it normalises by its running statistics, and
      leaves them as they are.
    axis_name: the axis of the devices, or None.
    dtype: of what comes out; statistics are float32.
    epsilon: what is added to the variance.
  """
  return functools.partial(
    nn.BatchNorm,
    use_running_average=use_running_average,
    momentum=0.9,
    epsilon=epsilon,
    axis_name=axis_name,
    dtype=dtype,
  )


def skip_images(x: jax.Array, rate: float, train: bool) -> jax.Array:
  """Stochastic depth: skips a residual branch for some of the images.

  y_b = x_b z_b / (1 - rate), z_b = 0 with probability `rate`, else 1, so that
  the mean over z is x. Called within a module; draws from its random stream
  'dropout'.

  Args:
    x: [B, ..., C], what the branch adds.
    rate: probability in [0, 1) that an image skips it.
    train: whether any is skipped.

  Returns:
    [B, ..., C].

  References:
    Huang et al., Deep networks with stochastic depth, ECCV 2016, eq. 2.
  """
  # One draw for all places and features of an image.
  others = tuple(range(1, x.ndim))
  return nn.Dropout(rate, broadcast_dims=others, deterministic=not train)(x)
