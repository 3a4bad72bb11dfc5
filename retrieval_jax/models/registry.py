"""The networks there are, what their options may be, and how to build one.

To add a pooling: write its module with a call (features, train) -> [B, F], and
add its row here; backbones have their rows in `backbones.registry`. What goes
together is a row of the case table of `tests/models/embedder_test.py`.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from retrieval_jax.core.errors import InputError, unknown_name
from retrieval_jax.core.hyperparameters import (
  FLAG,
  Choice,
  Hyperparameter,
  Number,
  Numbers,
)
from retrieval_jax.models import pooling as pooling_lib
from retrieval_jax.models.backbones.registry import BACKBONES
from retrieval_jax.models.dolg import DOLG
from retrieval_jax.models.embedder import Embedder
from retrieval_jax.models.necks import NECKS, Neck

DTYPES = ('float32', 'bfloat16')


@dataclasses.dataclass(frozen=True)
class Pooling:
  """A row of `POOLINGS`.

  Attributes:
    module: builds it from its options.
    options: the keyword arguments a user may set, in `model.<its name>`.
    num_maps: of how many maps it is made.
    needs_token: whether it is made of the class token.
    has_batch_norm: whether BatchNorm is in it; it takes `axis_name` then.
    has_layers: whether it computes in `dtype`, which it takes then.
  """

  module: Callable[..., nn.Module]
  options: Mapping[str, Hyperparameter] = dataclasses.field(
    default_factory=dict
  )
  num_maps: int = 1
  needs_token: bool = False
  has_batch_norm: bool = False
  has_layers: bool = False


_SHARE = Number(least=0.0, closed=True, most=0.99)
_COUNT = Number(least=0, integer=True)

_POWER = Number(
  least=pooling_lib.MIN_POWER, closed=True, most=pooling_lib.MAX_POWER
)
_GEM = {'p': _POWER, 'learn_p': FLAG}

POOLINGS: dict[str, Pooling] = {
  'average': Pooling(pooling_lib.Average),
  'max': Pooling(pooling_lib.Max),
  'average_max': Pooling(pooling_lib.AverageMax),
  'flatten': Pooling(pooling_lib.Flatten),
  'gem': Pooling(pooling_lib.GeM, options=_GEM),
  'regional_gem': Pooling(
    pooling_lib.RegionalGeM,
    options=_GEM
    | {
      'region_p': Number(least=1.0, closed=True, most=5.0),
      'region_size': Choice((3, 5, 7)),
    },
  ),
  'rmac': Pooling(pooling_lib.RMAC, options={'levels': _COUNT}),
  'class_token': Pooling(pooling_lib.ClassToken, needs_token=True),
  'attention': Pooling(
    pooling_lib.Attention,
    options={'num_heads': _COUNT, 'mlp_ratio': _COUNT},
    has_layers=True,
  ),
  'dolg': Pooling(
    DOLG,
    options=_GEM
    | {
      'features': _COUNT,
      'branch_features': _COUNT,
      'dilations': Numbers(_COUNT),
      'true_projection': FLAG,
    },
    num_maps=2,
    has_batch_norm=True,
    has_layers=True,
  ),
}

# What a network takes besides what its backbone does.
_COMMON_OPTIONS: dict[str, Hyperparameter] = {
  'embedding_dim': _COUNT,
  'dtype': Choice(DTYPES),
  'pooling': Choice(tuple(POOLINGS)),
  'neck': Choice(tuple(NECKS)),
  'dropout': _SHARE,
}


def build_embedder(
  name: str,
  embedding_dim: int,
  *,
  pooling: str | None = None,
  neck: str = 'dense',
  dropout: float = 0.0,
  dtype: str = 'float32',
  axis_name: str | None = None,
  **options: Any,
) -> Embedder:
  """Builds the network from images to embeddings.

  Args:
    name: of the backbone, a key of `BACKBONES`.
    embedding_dim: D.
    pooling: a key of `POOLINGS`; None: the one that its backbone goes with.
    neck: a key of `NECKS`.
    dropout: share of the pooled features that is dropped in training.
    dtype: of the computation, 'float32' or 'bfloat16'. Parameters, statistics
      and embeddings are float32.
    axis_name: the axis of the devices, for BatchNorm; None on one device.
    **options: of the backbone; and the options of poolings, each in a mapping
      called as the pooling, of which those of another pooling are not looked
      at.

  Returns:
    A module whose `apply(variables, images, train)` maps float32 images [B, H,
    W, channels] to float32 embeddings [B, D] of any length.

  Raises:
    InputError: as `check_model`.

  Example:
    >>> import jax
    >>> embedder = build_embedder(
    ...   'convnet', 50, pooling='gem', gem={'p': 4.0}, normalization='batch'
    ... )
    >>> images = jnp.ones((2, 28, 28, 1))
    >>> variables = embedder.init(jax.random.key(0), images, train=False)
    >>> embedder.apply(variables, images, train=False).shape
    (2, 50)
    >>> sorted(variables['params'])
    ['backbone', 'pooling', 'projection']
  """
  given = {
    'embedding_dim': embedding_dim,
    'neck': neck,
    'dropout': dropout,
    'dtype': dtype,
    **options,
  }
  if pooling is not None:
    given['pooling'] = pooling
  check_model(name, given)
  pooling = pooling_name(name, given)
  dtype = jnp.dtype(dtype)
  pooling_options = dict(options.get(pooling, {}))
  row = POOLINGS[pooling]
  if row.has_batch_norm:
    pooling_options['axis_name'] = axis_name
  if row.has_layers:
    pooling_options['dtype'] = dtype
  backbone_options = {
    key: value for key, value in options.items() if key not in POOLINGS
  }
  return Embedder(
    BACKBONES[name].module(
      dtype=dtype, axis_name=axis_name, **backbone_options
    ),
    row.module(**_hashable(pooling_options)),
    Neck(NECKS[neck], embedding_dim, axis_name, dtype),
    dropout,
  )


def pooling_name(name: str, options: Mapping[str, Any]) -> str:
  """Returns the pooling of a network, chosen or its backbone's default."""
  return options.get('pooling', BACKBONES[name].pooling)


def _hashable(options: Mapping[str, Any]) -> dict[str, Any]:
  # Modules are static arguments of compiled functions.
  return {
    key: tuple(value) if isinstance(value, list) else value
    for key, value in options.items()
  }


def check_model(
  name: str, options: Mapping[str, Any], prefix: str = 'model'
) -> None:
  """Checks a backbone and its options before anything is built.

  Args:
    name: of the backbone.
    options: what the user set, `embedding_dim` and `dtype` among it.
    prefix: how the keys are called in the message, `model` for `model.name`.

  Raises:
    InputError: for a backbone or an option that does not exist, a value of
      another type or out of range, or a pooling of what the backbone does not
      give.

  Example:
    >>> check_model('convnet', {'embedding_dim': 50, 'dtype': 'bfloat16'})
    >>> check_model('convnet', {'embedding_dim': 50, 'gem': {'p': 0.5}})
    Traceback (most recent call last):
    ...
    retrieval_jax.core.errors.InputError: model.gem.p is 0.5; allowed is a \
number of at least 1 and at most 10
  """
  if name not in BACKBONES:
    raise unknown_name(f'{prefix}.name', name, BACKBONES)
  known = {**_COMMON_OPTIONS, **BACKBONES[name].options}
  sections = {key: options[key] for key in options if key in POOLINGS}
  _check_options(
    {key: value for key, value in options.items() if key not in sections},
    known,
    name,
    prefix,
    sections=tuple(key for key, row in POOLINGS.items() if row.options),
  )
  for key, section in sections.items():
    if not isinstance(section, Mapping):
      raise InputError(
        f'{prefix}.{key} is {section!r}; allowed are the options of that '
        f'pooling, such as {prefix}.{key}.p: to choose it, set '
        f'--config.{prefix}.pooling={key}'
      )
    _check_options(section, POOLINGS[key].options, key, f'{prefix}.{key}')
  pooling = pooling_name(name, options)
  row, backbone = POOLINGS[pooling], BACKBONES[name]
  if row.needs_token and not backbone.has_token:
    raise InputError(
      f'{prefix}.pooling is {pooling!r}, and {name!r} has no class token; '
      f'allowed are poolings of its maps: set --config.{prefix}.pooling='
      f'{backbone.pooling}'
    )
  if row.num_maps > backbone.num_maps:
    raise InputError(
      f'{prefix}.pooling is {pooling!r}, which takes {row.num_maps} maps, and '
      f'{name!r} gives {backbone.num_maps}; allowed are poolings of one map: '
      f'set --config.{prefix}.pooling={backbone.pooling}'
    )


def _check_options(options, known, owner, prefix, sections=()) -> None:
  for key, value in options.items():
    if key not in known:
      if not (known or sections):
        raise InputError(f'{prefix}.{key} is not an option: {owner!r} has none')
      message = str(unknown_name(f'{prefix}.{key}', key, (*known, *sections)))
      hint = message.removeprefix(f'{prefix}.{key} is {key!r}')
      raise InputError(f'{prefix}.{key} is not an option of {owner!r}{hint}')
    allowed = known[key].complaint(value)
    if allowed is not None:
      raise InputError(f'{prefix}.{key} is {value!r}; allowed is {allowed}')


def check_images(name: str, image_shape: tuple[int, int, int]) -> None:
  """Checks that a backbone takes images of a size and number of channels.

  Args:
    name: of the backbone.
    image_shape: (H, W, channels).

  Raises:
    InputError: too small, no multiple of what a patch has, or another number
      of channels.

  Example:
    >>> check_images('convnet', (28, 28, 1))
    >>> check_images('convnet', (4, 28, 1))
    Traceback (most recent call last):
    ...
    retrieval_jax.core.errors.InputError: images are 4 x 28 pixels; allowed \
are at least 8 x 8 with model.name 'convnet': set --config.data.image_size=8
  """
  row = BACKBONES[name]
  *size, channels = image_shape
  if min(size) < row.min_size:
    raise InputError(
      f'images are {size[0]} x {size[1]} pixels; allowed are at least '
      f'{row.min_size} x {row.min_size} with model.name {name!r}: set '
      f'--config.data.image_size={row.min_size}'
    )
  if any(pixels % row.multiple for pixels in size):
    nearest = round(max(size) / row.multiple) * row.multiple
    raise InputError(
      f'images are {size[0]} x {size[1]} pixels; allowed are multiples of '
      f'{row.multiple} with model.name {name!r}: set '
      f'--config.data.image_size={nearest}'
    )
  if row.channels not in (None, channels):
    raise InputError(
      f'images have {channels} channels; allowed is {row.channels} with '
      f'model.name {name!r}: set --config.data.channels={row.channels}'
    )


def batch_norms(name: str, options: Mapping[str, Any]) -> list[str]:
  """Returns what in a network normalises by the statistics of the batch.

  Args:
    name: of the backbone.
    options: of `build_embedder`, valid.

  Example:
    >>> batch_norms('convnet', {'neck': 'bnneck', 'normalization': 'batch'})
    ["the backbone 'convnet'", "model.neck='bnneck'"]
  """
  found = []
  frozen = options.get('frozen_batch_norm', False)
  if BACKBONES[name].has_batch_norm(options) and not frozen:
    found.append(f'the backbone {name!r}')
  pooling = pooling_name(name, options)
  if POOLINGS[pooling].has_batch_norm:
    found.append(f'model.pooling={pooling!r}')
  neck = options.get('neck', 'dense')
  if NECKS[neck].batch_norm:
    found.append(f'model.neck={neck!r}')
  return found
