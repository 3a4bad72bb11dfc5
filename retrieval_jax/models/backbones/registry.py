"""The backbones there are, and what their options may be.

To add one: write its module with a call (images, train) -> `Features`, and add
its row here.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

from flax import linen as nn

from retrieval_jax.core.hyperparameters import (
  FLAG,
  Choice,
  Hyperparameter,
  Number,
)
from retrieval_jax.models.backbones import (
  conv_net,
  convnext,
  efficientnet,
  mobilenet,
  resnet,
  transformer,
)
from retrieval_jax.models.backbones.vit import ViT
from retrieval_jax.models.backbones.vit_variants import VIT_VARIANTS

# How the layers of a backbone are called, first to last: what sees the image,
# the blocks by their numbers, and the rest.
LAYERS = (
  r'(?:stem|patch_embed|positions|class_token|registers|pre_norm).*',
  r'(?:stage|block|conv|norm)_(\d+)(?:_block_(\d+))?(?:[_/].*)?',
  r'.*',
)


@dataclasses.dataclass(frozen=True)
class Backbone:
  """A row of `BACKBONES`.

  Attributes:
    module: builds it from its options, `dtype` and `axis_name`.
    options: the keyword arguments a user may set.
    pooling: the default of `model.pooling`.
    num_maps: how many maps it gives.
    has_token: whether it gives a class token.
    stride: pixels of the image to a place of the last map.
    min_size: the least height and width of an image.
    multiple: what height and width are multiples of.
    channels: of an image; None: any number.
    has_batch_norm: whether BatchNorm is in it, a function of its options;
      `frozen_batch_norm` is seen to apart.
    layers: regular expressions of the paths of its parameters, first layer to
      last; see `training.parameter_groups.learning_rates`.
  """

  module: Callable[..., nn.Module]
  options: Mapping[str, Hyperparameter]
  pooling: str = 'average'
  num_maps: int = 1
  has_token: bool = False
  stride: int = 32
  min_size: int = 32
  multiple: int = 1
  channels: int | None = 3
  has_batch_norm: Callable[[Mapping[str, Any]], bool] = lambda options: False
  layers: tuple[str, ...] = LAYERS


_SHARE = Number(least=0.0, closed=True, most=0.99)

# Options that several backbones have, by the name that they have in all.
BACKBONE_OPTIONS: dict[str, Hyperparameter] = {
  'frozen_batch_norm': FLAG,
  'remat': FLAG,
  'stochastic_depth': _SHARE,
  'last_stage_stride': Choice((1, 2)),
}


def _shared(*names: str) -> dict[str, Hyperparameter]:
  return {name: BACKBONE_OPTIONS[name] for name in names}


def _with_stages(module, options, variants, batch_norm=True):
  """Returns the rows of variants that give C4 and C5."""
  return {
    name: Backbone(
      functools.partial(module, **attributes),
      options=options,
      num_maps=2,
      has_batch_norm=lambda options: batch_norm,
    )
    for name, attributes in variants.items()
  }


_STAGED = _shared('last_stage_stride', 'remat', 'stochastic_depth')
_NORMALIZED = _STAGED | _shared('frozen_batch_norm')
_SCALED = _NORMALIZED | {'stem_stride': Choice((1, 2))}
_VIT = {
  **_shared('remat', 'stochastic_depth'),
  'activation': Choice(tuple(transformer.ACTIVATIONS)),
  'antialias': FLAG,
  'layer_dropout': _SHARE,
  'native_size': Number(least=0, integer=True),
  'position_offset': Number(least=0.0, closed=True),
}

BACKBONES: dict[str, Backbone] = {
  'convnet': Backbone(
    conv_net.ConvNet,
    options={
      'normalization': Choice(conv_net.NORMALIZATIONS),
      **_shared('frozen_batch_norm'),
    },
    pooling='flatten',
    num_maps=3,
    stride=4,
    min_size=conv_net.MIN_SIZE,
    channels=None,
    has_batch_norm=lambda options: options.get('normalization') == 'batch',
  ),
  **_with_stages(resnet.ResNet, _NORMALIZED, resnet.VARIANTS),
  **_with_stages(efficientnet.EfficientNet, _SCALED, efficientnet.VARIANTS),
  **_with_stages(efficientnet.EfficientNet, _SCALED, mobilenet.VARIANTS),
  **_with_stages(
    convnext.ConvNeXt, _STAGED, convnext.VARIANTS, batch_norm=False
  ),
  **{
    name: Backbone(
      functools.partial(ViT, **attributes),
      options=_VIT,
      pooling='class_token',
      has_token=True,
      stride=attributes['patch_size'],
      min_size=attributes['patch_size'],
      multiple=attributes['patch_size'],
      channels=None,
    )
    for name, attributes in VIT_VARIANTS.items()
  },
}
