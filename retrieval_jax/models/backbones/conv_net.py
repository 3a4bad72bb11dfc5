"""A small convolutional network for small images."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from retrieval_jax.core.errors import InputError
from retrieval_jax.models import layers

NORMALIZATIONS = ('none', 'batch')
POOLINGS = ('flatten', 'average')
_NUM_POOLED = 2
_MIN_SIZE = 8


class ConvNet(nn.Module):
  """A small convolutional network for small images.

  Three blocks, the first two of which halve height and width:

    3x3 convolution -> 2x2 max-pool -> bias or BatchNorm -> ReLU

  and the last map, flattened or averaged. Pooling comes first because bias and
  ReLU commute with it and then cost a quarter; BatchNorm does not commute, and
  here sees the pooled maps.

  Attributes:
    widths: channels of each block.
    normalization: 'none', or 'batch' for BatchNorm.
    pooling: 'flatten' keeps every place of the last map apart, for images of
      one size; 'average' takes the mean over the places, for any size.
    dropout: fraction of the features dropped in training; needs the random
      stream 'dropout'.
    axis_name: the axis of the devices. BatchNorm then takes the statistics of
      the global batch, and its running statistics are equal on all devices.
    dtype: of the computation; parameters and statistics are float32.
  """

  widths: Sequence[int] = (32, 64, 128)
  normalization: str = 'none'
  pooling: str = 'flatten'
  dropout: float = 0.0
  axis_name: str | None = None
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, images: jax.Array, train: bool) -> jax.Array:
    """Maps images to features.

    Args:
      images: [B, H, W, channels] float, of at least 8x8 pixels.
      train: whether BatchNorm uses and updates the batch's statistics, and
        dropout drops.

    Returns:
      [B, F] of `dtype`, F = widths[-1] averaged, times H // 4 * W // 4
      flattened.

    Raises:
      InputError: for images of another rank, or smaller.
    """
    if images.ndim != 4 or min(images.shape[1:3]) < _MIN_SIZE:
      raise InputError(
        f'images have shape {images.shape}; allowed is (batch, height, width, '
        f'channels) with height and width at least {_MIN_SIZE}: add the '
        'missing axis or resize the images'
      )
    batch_norm = self.normalization == 'batch'
    x = images
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
          use_running_average=not train,
          momentum=0.9,
          axis_name=self.axis_name,
          dtype=self.dtype,
          name=f'norm_{block}',
        )(x)
      x = nn.relu(x)
    if self.pooling == 'average':
      x = jnp.mean(x, axis=(1, 2))
    x = x.reshape(x.shape[0], -1)
    return nn.Dropout(self.dropout, deterministic=not train)(x)
