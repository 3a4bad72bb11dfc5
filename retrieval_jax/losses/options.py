"""What a user may say of a loss, checked and made into parts.

A loss is said by a mapping, the same in a config and at a prompt:

    {'name': 'contrastive', 'neg_margin': 0.8}                 hyperparameters
    {..., 'reducer': 'sum'}                                    or {'name': ...}
    {..., 'distance': 'cosine'}                                or {'name': ...}
    {..., 'miner': 'multi_similarity'}                         or {'name': ...}
    {..., 'embedding_regularizer': 'lp', 'embedding_reg_weight': 0.1}
    {..., 'weight_regularizer': 'regular_face'}                of the proxies
    {..., 'class_weights': (1.0, 0.5, 2.0)}    of the anchors, or 'inverse_log'
    {..., 'positives': 'image'}              views of one image, not of a class

and a weighted sum of several by

    {'name': 'weighted_sum',
     'parts': {'pairs': {'name': 'supcon', 'weight': 0.5},
               'classes': {'name': 'arcface'}}}
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from retrieval_jax.core import distances
from retrieval_jax.core.distances import Distance
from retrieval_jax.core.errors import InputError, unknown_name
from retrieval_jax.core.hyperparameters import (
  FLAG,
  Choice,
  Number,
  Numbers,
  check,
)
from retrieval_jax.losses.registry import LOSSES, MINERS
from retrieval_jax.losses.regularizers import REGULARIZERS
from retrieval_jax.losses.rows import Loss, Miner
from retrieval_jax.losses.terms import REDUCERS, Reducer

WEIGHTED_SUM = 'weighted_sum'
INVERSE_LOG = 'inverse_log'  # See `objective.inverse_log_weights`.

_REDUCER_OPTIONS = {
  'low': Number(least=-float('inf'), optional=True),
  'high': Number(least=-float('inf'), optional=True),
}
_DISTANCE_OPTIONS = {
  'p': Number(least=1.0, closed=True),
  'power': Number(),
  'normalize': FLAG,
}
_COMMON = {
  'weight': Number(),
  'class_weights': Numbers(
    Number(closed=True), optional=True, words=(INVERSE_LOG,)
  ),
  'positives': Choice(('class', 'image')),
  'embedding_reg_weight': Number(),
  'weight_reg_weight': Number(),
}
# These are a name, or a mapping with a name and options of their own.
_NAMED = (
  'reducer',
  'distance',
  'miner',
  'embedding_regularizer',
  'weight_regularizer',
)


@dataclasses.dataclass(frozen=True)
class Mining:
  """A miner with its options."""

  name: str
  row: Miner
  hyper: Mapping[str, Any]
  distance: Distance


@dataclasses.dataclass(frozen=True)
class Regularizer:
  """A regularizer with its options."""

  name: str
  hyper: Mapping[str, Any]
  weight: float


@dataclasses.dataclass(frozen=True)
class Part:
  """One loss of a sum, all that a user said of it.

  Attributes:
    label: what it is called in the sum, '' if it is alone.
    name: of the loss.
    row: of the loss.
    hyper: its hyperparameters.
    weight: in the sum.
    reducer: how its values become one number.
    distance: what a pair loss compares by.
    miner: of pairs or triplets.
    positives: 'class' or 'image'.
    class_weights: of the anchors, by their class; or a rule for them.
    embedding_regularizer: added to the loss.
    weight_regularizer: of the proxies, added to the loss.
    centers: proxies of a class, of a proxy loss.
  """

  label: str
  name: str
  row: Loss
  hyper: Mapping[str, Any]
  weight: float
  reducer: Reducer
  distance: Distance | None
  miner: Mining | None
  positives: str
  class_weights: tuple[float, ...] | str | None
  embedding_regularizer: Regularizer | None
  weight_regularizer: Regularizer | None
  centers: int


def parse(options: Mapping[str, Any], prefix: str = 'loss') -> tuple[Part, ...]:
  """Returns the parts of a loss, everything checked.

  Args:
    options: see above.
    prefix: how the keys are called in messages, `loss` for `loss.margin`.

  Raises:
    InputError: for a name or key that does not exist, a value of another type,
      NaN, infinite or out of range, and for what does not go together.

  Example:
    >>> (part,) = parse({'name': 'circle', 'margin': 0.25})
    >>> part.hyper, part.reducer.name
    ({'margin': 0.25}, 'nonzero_mean')
    >>> parse({'name': 'circle', 'margn': 0.25})
    Traceback (most recent call last):
    ...
    retrieval_jax.core.errors.InputError: loss.margn is not a hyperparameter \
of 'circle'; did you mean 'margin'? Known: class_weights, distance, \
embedding_reg_weight, embedding_regularizer, margin, miner, positives, \
reducer, scale, weight, weight_reg_weight, weight_regularizer
  """
  name = options.get('name')
  if name != WEIGHTED_SUM:
    return (_part('', options, prefix),)
  unknown = sorted(set(options) - {'name', 'parts'})
  if unknown:
    raise InputError(
      f'{prefix}.{unknown[0]} is not an option of {WEIGHTED_SUM!r}; allowed is '
      f'{prefix}.parts: set it on one of the parts'
    )
  parts = options.get('parts')
  if not isinstance(parts, Mapping) or not parts:
    raise InputError(
      f'{prefix}.parts is {parts!r}; allowed is a mapping of a label to the '
      "name and options of a loss, such as {'a': {'name': 'arcface'}}"
    )
  made = tuple(
    _part(label, part, f'{prefix}.parts.{label}')
    for label, part in parts.items()
  )
  centers = {part.centers: part for part in made if part.row.kind == 'proxy'}
  if len(centers) > 1:
    a, b = list(centers.values())[:2]
    raise InputError(
      f'{prefix}.parts.{a.label} has {a.centers} proxies a class and '
      f'{prefix}.parts.{b.label} {b.centers}; allowed is one number, since the '
      f'parts share the proxies: set {a.row.centers[0]} and {b.row.centers[0]}'
    )
  return made


def _part(label, options, prefix) -> Part:
  options = dict(options)
  name = options.pop('name', None)
  if name not in LOSSES:
    raise unknown_name(f'{prefix}.name', name, (*LOSSES, WEIGHTED_SUM))
  row = LOSSES[name]
  named = {key: options.pop(key, None) for key in _NAMED}
  common = {key: options.pop(key) for key in _COMMON if key in options}
  check(common, _COMMON, name, prefix)
  known = dict(row.hyperparameters)
  center_option, centers = row.centers
  if row.kind == 'proxy':
    known[center_option] = Number(least=1, closed=True, integer=True)
  check(options, known, name, prefix, also=(*_NAMED, *_COMMON))
  if row.kind == 'proxy':
    centers = options.pop(center_option, centers)
  regularizers = {
    key: _regularizer(
      named[f'{key}_regularizer'],
      common.get(f'{key}_reg_weight', 1.0),
      kind,
      f'{prefix}.{key}_regularizer',
    )
    for key, kind in (('embedding', 'embeddings'), ('weight', 'proxies'))
  }
  if regularizers['weight'] is not None and row.kind != 'proxy':
    raise InputError(
      f'{prefix}.weight_regularizer is {regularizers["weight"].name!r}; '
      f'allowed is None for {name!r}, which has no proxies'
    )
  weights = common.get('class_weights')
  if weights is not None and (row.alike or row.of_classes):
    raise InputError(
      f'{prefix}.class_weights is {weights!r}; allowed is None for {name!r}, '
      'whose terms are not one an anchor: leave it out'
    )
  return Part(
    label=label,
    name=name,
    row=row,
    hyper=options,
    weight=common.get('weight', 1.0),
    reducer=_reducer(named['reducer'], row, f'{prefix}.reducer'),
    distance=_distance(
      named['distance'], row.distance, row.distances, name, f'{prefix}.distance'
    ),
    miner=_miner(named['miner'], name, row, f'{prefix}.miner'),
    positives=common.get('positives', 'class'),
    class_weights=tuple(weights) if isinstance(weights, list) else weights,
    embedding_regularizer=regularizers['embedding'],
    weight_regularizer=regularizers['weight'],
    centers=centers,
  )


def _named(value, prefix, known):
  """Returns (name, options) of a name or a mapping with a name."""
  if isinstance(value, str):
    return value, {}
  if not isinstance(value, Mapping):
    raise InputError(
      f'{prefix} is {value!r}; allowed is a name, one of '
      f'{", ".join(sorted(known))}, or a mapping with a name and options'
    )
  options = dict(value)
  if options.get('name') is None:
    raise InputError(
      f'{prefix} has no name; allowed is one of {", ".join(sorted(known))}'
    )
  return options.pop('name'), options


def _reducer(value, row, prefix):
  if value is None:
    return Reducer(row.reducer)
  if isinstance(value, Reducer):
    return value
  name, options = _named(value, prefix, REDUCERS)
  if name not in REDUCERS:
    raise unknown_name(prefix, name, REDUCERS)
  check(options, _REDUCER_OPTIONS if name == 'threshold' else {}, name, prefix)
  reducer = Reducer(name, **options)
  if name == 'threshold' and reducer.low is None and reducer.high is None:
    raise InputError(
      f"{prefix} is 'threshold' without low and high; allowed is at least one: "
      f'set {prefix}.low or {prefix}.high'
    )
  return reducer


def _distance(value, default, allowed, owner, prefix):
  if value is None:
    return default
  if default is None:
    raise InputError(
      f'{prefix} is {value!r}; allowed is None for {owner!r}, which has no '
      'choice of a distance: leave it out'
    )
  if isinstance(value, Distance):
    return value
  name, options = _named(value, prefix, allowed)
  if name not in distances.NAMES:
    raise unknown_name(prefix, name, distances.NAMES)
  if name not in allowed:
    raise InputError(
      f'{prefix} is {name!r}; allowed for {owner!r} is one of '
      f'{", ".join(allowed)}'
    )
  check(options, _DISTANCE_OPTIONS, name, prefix)
  return Distance(name, **options)


def _miner(value, loss, row, prefix):
  if value is None or (isinstance(value, Mapping) and not value.get('name')):
    return None
  name, options = _named(value, prefix, MINERS)
  if name not in MINERS:
    raise unknown_name(f'{prefix}.name', name, MINERS)
  if row.kind != 'pair' or not row.masked:
    takers = sorted(
      n for n, r in LOSSES.items() if r.kind == 'pair' and r.masked
    )
    raise InputError(
      f'{prefix}.name is {name!r}, which loss {loss!r} does not take; losses '
      f'that take a miner: {", ".join(takers)}'
    )
  miner = MINERS[name]
  distance = _distance(
    options.pop('distance', None),
    miner.distance,
    miner.distances,
    name,
    f'{prefix}.distance',
  )
  check(options, miner.hyperparameters, name, prefix, also=('distance',))
  return Mining(name, miner, options, distance)


def _regularizer(value, weight, kind, prefix):
  if value is None:
    return None
  known = sorted(n for n, row in REGULARIZERS.items() if kind in row.kinds)
  name, options = _named(value, prefix, known)
  if name not in known:
    raise unknown_name(prefix, name, known)
  check(options, REGULARIZERS[name].hyperparameters, name, prefix)
  return Regularizer(name, options, weight)
