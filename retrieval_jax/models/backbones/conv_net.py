"""A small convolutional network for small images."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from retrieval_jax.core.errors import InputError
from retrieval_jax.models import layers
from retrieval_jax.models.features import Features

NORMALIZATIONS = ('none', 'batch')
MIN_SIZE = 8
_NUM_POOLED = 2


class ConvNet(nn.Module):
  """A small convolutional network for small images.

  Three blocks, the first two of which halve height and width:

    3x3 convolution -> 2x2 max-pool -> bias or BatchNorm -> ReLU

  Pooling comes first because bias and ReLU commute with it and then cost a
  quarter; BatchNorm does not commute, and here sees the pooled maps.

  Attributes:
    widths: channels of each block.
    normalization: 'none', or 'batch' for BatchNorm.
    frozen_batch_norm: whether BatchNorm keeps its statistics in training, and
      uses them.
    axis_name: the axis of the devices. BatchNorm then takes the statistics of
      the global batch, and its running statistics are equal on all devices.
    dtype: of the computation; parameters and statistics are float32.
  """

  widths: Sequence[int] = (32, 64, 128)
  normalization: str = 'none'
  frozen_batch_norm: bool = False
  axis_name: str | None = None
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, images: jax.Array, train: bool) -> Features:
    """Maps images to features.

    Args:
      images: [B, H, W, channels] float, of at least 8x8 pixels.
      train: whether BatchNorm uses and updates the batch's statistics.

    Returns:
      The maps of each block, of `dtype`: [B, H // 2, W // 2, widths[0]], then
      two of [B, H // 4, W // 4].

    Raises:
      InputError: for images of another rank, or smaller.
    """
    if images.ndim != 4 or min(images.shape[1:3]) < MIN_SIZE:
      raise InputError(
        f'images have shape {images.shape}; allowed is (batch, height, width, '
        f'channels) with height and width at least {MIN_SIZE}: add the '
        'missing axis or resize the images'
      )
    batch_norm = self.normalization == 'batch'
    x, maps = images, []
    for block, width in enumerate(self.widths):
      x = layers.Conv(
        width,
        max_pool=block < _NUM_POOLED,
        use_bias=not batch_norm,
        dtype=self.dtype,
        name=f'conv_{block}',
      )(x)
      if batch_norm:
        x = nn.BatchNorm(
          use_running_average=self.frozen_batch_norm or not train,
          momentum=0.9,
          axis_name=self.axis_name,
          dtype=self.dtype,
          name=f'norm_{block}',
        )(x)
      x = nn.relu(x)
      maps.append(x)
    return Features(tuple(maps))
