"""The backbones there are, what their options may be, and how to build one.

To add one: write its module with a call (images, train) -> features [B, F], add
its row here, and a row to the case table of `tests/models/embedder_test.py`.
"""

import dataclasses
import numbers
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from retrieval_jax.core.errors import InputError, unknown_name
from retrieval_jax.models.backbones import NORMALIZATIONS, POOLINGS, ConvNet
from retrieval_jax.models.embedder import Embedder

DTYPES = ('float32', 'bfloat16')


@dataclasses.dataclass(frozen=True)
class Option:
  """What a user may set an option to, as a test and in words."""

  accepts: Callable[[Any], bool]
  allowed: str


@dataclasses.dataclass(frozen=True)
class Backbone:
  """A row of `BACKBONES`.

  Attributes:
    module: builds it from its options, `dtype` and `axis_name`.
    options: the keyword arguments a user may set.
  """

  module: Callable[..., nn.Module]
  options: Mapping[str, Option]


def _choice(*words: str) -> Option:
  return Option(lambda value: value in words, 'one of ' + ', '.join(words))


def _is_number(value: object) -> bool:
  # A bool is an int to Python, and never meant as one here.
  return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _is_count(value: object) -> bool:
  return isinstance(value, int) and _is_number(value) and value > 0


BACKBONES: dict[str, Backbone] = {
  'convnet': Backbone(
    ConvNet,
    options={
      'normalization': _choice(*NORMALIZATIONS),
      'pooling': _choice(*POOLINGS),
      'dropout': Option(
        lambda value: _is_number(value) and 0 <= value < 1,
        'a number from 0 to below 1',
      ),
    },
  ),
}

# What every backbone takes.
_COMMON_OPTIONS = {
  'embedding_dim': Option(_is_count, 'an int above 0'),
  'dtype': _choice(*DTYPES),
}


def build_embedder(
  name: str,
  embedding_dim: int,
  *,
  dtype: str = 'float32',
  axis_name: str | None = None,
  **options: Any,
) -> nn.Module:
  """Builds the network from images to embeddings.

  Args:
    name: of the backbone, a key of `BACKBONES`.
    embedding_dim: D.
    dtype: of the computation, 'float32' or 'bfloat16'. Parameters, statistics
      and embeddings are float32.
    axis_name: the axis of the devices, for backbones whose normalisation looks
      at the batch; None on one device.
    **options: of the backbone.

  Returns:
    A module whose `apply(variables, images, train)` maps float32 images [B, H,
    W, channels] to float32 embeddings [B, D] of any length.

  Raises:
    InputError: as `check_model`.

  Example:
    >>> import jax
    >>> embedder = build_embedder('convnet', 50, normalization='batch')
    >>> images = jnp.ones((2, 28, 28, 1))
    >>> variables = embedder.init(jax.random.key(0), images, train=False)
    >>> embedder.apply(variables, images, train=False).shape
    (2, 50)
  """
  given = {'embedding_dim': embedding_dim, 'dtype': dtype, **options}
  check_model(name, given)
  dtype = jnp.dtype(dtype)
  backbone = BACKBONES[name].module(dtype=dtype, axis_name=axis_name, **options)
  return Embedder(backbone, embedding_dim, dtype)


def check_model(
  name: str, options: Mapping[str, Any], prefix: str = 'model'
) -> None:
  """Checks a backbone and its options before anything is built.

  Args:
    name: of the backbone.
    options: what the user set, `embedding_dim` and `dtype` among it.
    prefix: how the keys are called in the message, `model` for `model.name`.

  Raises:
    InputError: for a backbone or an option that does not exist, or a value of
      another type or out of range.

  Example:
    >>> check_model('convnet', {'embedding_dim': 50, 'dtype': 'bfloat16'})
    >>> check_model('convnet', {'embedding_dim': 0})
    Traceback (most recent call last):
    ...
    retrieval_jax.core.errors.InputError: model.embedding_dim is 0; allowed is \
an int above 0
  """
  if name not in BACKBONES:
    raise unknown_name(f'{prefix}.name', name, BACKBONES)
  known = {**_COMMON_OPTIONS, **BACKBONES[name].options}
  for key, value in options.items():
    if key not in known:
      message = str(unknown_name(f'{prefix}.{key}', key, known))
      hint = message.removeprefix(f'{prefix}.{key} is {key!r}')
      raise InputError(f'{prefix}.{key} is not an option of {name!r}{hint}')
    if not known[key].accepts(value):
      raise InputError(
        f'{prefix}.{key} is {value!r}; allowed is {known[key].allowed}'
      )
