"""ConvNeXt."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from retrieval_jax.models.backbones.common import check_images, skip_images
from retrieval_jax.models.backbones.convolution import Convolution
from retrieval_jax.models.features import Features

# By timm's names.
VARIANTS: dict[str, dict[str, Any]] = {
  'convnext_tiny': {'depths': (3, 3, 9, 3), 'widths': (96, 192, 384, 768)},
  'convnext_small': {'depths': (3, 3, 27, 3), 'widths': (96, 192, 384, 768)},
  'convnext_base': {'depths': (3, 3, 27, 3), 'widths': (128, 256, 512, 1024)},
}

_INIT = nn.initializers.truncated_normal(0.02)
_PATCH = 4
_KERNEL_SIZE = 7
_EXPANSION = 4


class ConvNeXt(nn.Module):
  """ConvNeXt: residual blocks of a 7x7 depthwise convolution and two layers.

  y = x + s * (W2 gelu(W1 LayerNorm(depthwise(x)) + b1) + b2), with a learnt
  scale s of each channel, 1e-6 at the start. Between the stages the maps are
  normalised and their 2x2 patches projected.

  The maps are the stages' own. The LayerNorm that the classifier of the
  pretrained weights has behind its pooling belongs to the neck, and is left out
  here; and the maps have negative values, which GeM does not see.

  Attributes:
    depths: blocks in each stage.
    widths: channels of each stage.
    last_stage_stride: 2, or 1 for a C5 as high and wide as C4 of the same
      weights.
    stochastic_depth: probability that the last block is skipped for an image in
      training; it grows linearly from 0 at the first. Needs the random stream
      'dropout'. The authors train with 0.1 (tiny), 0.4 (small), 0.5 (base).
    remat: whether a block's activations are computed again for the gradient
      instead of kept.
    axis_name: taken as by all backbones, and of no effect: no layer looks at
      the batch.
    dtype: of the computation; parameters are float32.

  Example:
    >>> backbone = ConvNeXt(**VARIANTS['convnext_tiny'])
    >>> images = jax.ShapeDtypeStruct((2, 64, 64, 3), jnp.float32)
    >>> init = functools.partial(backbone.init_with_output, train=False)
    >>> features, _ = jax.eval_shape(init, jax.random.key(0), images)
    >>> [x.shape for x in features.maps]
    [(2, 4, 4, 384), (2, 2, 2, 768)]

  References:
    Liu et al., A ConvNet for the 2020s, CVPR 2022, figure 4, table 9 and
    appendix A.
  """

  depths: tuple[int, ...]
  widths: tuple[int, ...]
  last_stage_stride: int = 2
  stochastic_depth: float = 0.0
  remat: bool = False
  axis_name: str | None = None
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, images: jax.Array, train: bool) -> Features:
    """Maps images to feature maps.

    Args:
      images: [B, H, W, channels] float, normalised, of at least the stride of
        C5 in height and width. What is left over of a patch is cut off.
      train: whether blocks are skipped.

    Returns:
      Features of `dtype` with maps (C4, C5): [B, H // 16, W // 16, widths[2]]
      and [B, H // 32, W // 32, widths[3]].

    Raises:
      InputError: for images of another rank, or smaller.
    """
    check_images(images, 16 * self.last_stage_stride)
    conv = functools.partial(
      Convolution, use_bias=True, kernel_init=_INIT, dtype=self.dtype
    )
    # In two passes: the channels of trained weights lie far from zero.
    norm = functools.partial(
      nn.LayerNorm, epsilon=1e-6, use_fast_variance=False, dtype=self.dtype
    )
    block_class = nn.remat(_Block) if self.remat else _Block
    last_block = sum(self.depths) - 1
    x = conv(
      self.widths[0], _PATCH, stride=_PATCH, padding='valid', name='stem_conv'
    )(images)
    x = norm(name='stem_norm')(x)
    maps, position = [], 0
    for stage, (depth, width) in enumerate(
      zip(self.depths, self.widths, strict=True)
    ):
      if stage > 0:
        last = stage == len(self.depths) - 1
        stride = self.last_stage_stride if last else 2
        x = norm(name=f'stage_{stage}_norm')(x)
        x = conv(
          width,
          2,
          stride=stride,
          padding='same' if stride == 1 else 'valid',
          name=f'stage_{stage}_conv',
        )(x)
      for block in range(depth):
        x = block_class(
          skip_rate=self.stochastic_depth * position / last_block,
          train=train,
          conv=conv,
          norm=norm,
          dtype=self.dtype,
          name=f'stage_{stage}_block_{block}',
        )(x)
        position += 1
      maps.append(x)
    return Features(maps=tuple(maps[-2:]))


class _Block(nn.Module):
  skip_rate: float
  train: bool
  conv: Callable[..., nn.Module]
  norm: Callable[..., nn.Module]
  dtype: Any

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    width = x.shape[-1]
    y = self.conv(width, _KERNEL_SIZE, depthwise=True, name='depthwise')(x)
    y = self.norm(name='norm')(y)
    y = self._dense(_EXPANSION * width, 'expand')(y)
    y = self._dense(width, 'project')(nn.gelu(y, approximate=False))
    scale = self.param(
      'scale', nn.initializers.constant(1e-6), (width,), jnp.float32
    )
    y *= scale.astype(y.dtype)[None, None, None]
    return x + skip_images(y, self.skip_rate, self.train)

  def _dense(self, features, name):
    return nn.Dense(features, kernel_init=_INIT, dtype=self.dtype, name=name)
