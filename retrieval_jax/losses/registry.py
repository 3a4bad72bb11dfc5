"""The losses and miners there are, and what their hyperparameters may be.

To add one: write the function, add its row here, and a row to the case table of
`tests/losses/contracts_test.py`.
"""

import dataclasses
import math
import numbers
from collections.abc import Callable, Mapping
from typing import Any

from retrieval_jax.core.errors import InputError, unknown_name
from retrieval_jax.losses.mining import TYPES_OF_TRIPLETS, triplet_margin_miner
from retrieval_jax.losses.pair import circle
from retrieval_jax.losses.proxy import arcface, cosface
from retrieval_jax.losses.terms import REDUCERS
from retrieval_jax.losses.triplet import triplet_margin


@dataclasses.dataclass(frozen=True)
class Number:
  """A hyperparameter above 0 and at most `most`; `unit` is for the message."""

  most: float = math.inf
  unit: str = ''

  def complaint(self, value: object) -> str | None:
    """Returns what is allowed, if the value is not."""
    allowed = 'a number above 0'
    if math.isfinite(self.most):
      allowed += f' and at most {self.most:g}'
    if self.unit:
      allowed += f' ({self.unit})'
    # A bool is an int to Python, and never meant as one here.
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
      return allowed
    if math.isfinite(value) and 0 < value <= self.most:
      return None
    return allowed


@dataclasses.dataclass(frozen=True)
class Choice:
  """A hyperparameter that is one of a few words."""

  words: tuple[str, ...]

  def complaint(self, value: object) -> str | None:
    """Returns what is allowed, if the value is not."""
    if value in self.words:
      return None
    return 'one of ' + ', '.join(self.words)


@dataclasses.dataclass(frozen=True)
class Loss:
  """A row of `LOSSES`.

  Attributes:
    function: what computes the terms.
    kind: 'pair', rows of a matrix of pairs, or 'proxy', cosines with classes.
    hyperparameters: the keyword arguments a user may set.
    matrix: of a pair loss: 'cosine' similarities or 'euclidean' distances.
    miner: the kind of miner that a pair loss takes, or None.
    ordered: whether the loss is faster on candidates ordered by class.
  """

  function: Callable[..., Any]
  kind: str
  hyperparameters: Mapping[str, Number | Choice]
  matrix: str | None = None
  miner: str | None = None
  ordered: bool = False


@dataclasses.dataclass(frozen=True)
class Miner:
  """A row of `MINERS`: `kind` is 'triplet', bounds on the negatives."""

  function: Callable[..., Any]
  kind: str
  hyperparameters: Mapping[str, Number | Choice]


LOSSES: dict[str, Loss] = {
  'arcface': Loss(
    arcface,
    kind='proxy',
    hyperparameters={
      'margin_deg': Number(most=90.0, unit='degrees'),
      'scale': Number(),
    },
  ),
  'circle': Loss(
    circle,
    kind='pair',
    hyperparameters={
      'margin': Number(most=1.0, unit='cosine'),
      'scale': Number(),
      'reducer': Choice(REDUCERS),
    },
    matrix='cosine',
  ),
  'cosface': Loss(
    cosface,
    kind='proxy',
    hyperparameters={
      'margin': Number(most=1.0, unit='cosine'),
      'scale': Number(),
    },
  ),
  'triplet_margin': Loss(
    triplet_margin,
    kind='pair',
    hyperparameters={
      'margin': Number(most=2.0, unit='distance on the unit sphere'),
      'reducer': Choice(REDUCERS),
    },
    matrix='euclidean',
    miner='triplet',
    ordered=True,
  ),
}

MINERS: dict[str, Miner] = {
  'triplet_margin': Miner(
    triplet_margin_miner,
    kind='triplet',
    hyperparameters={
      'margin': Number(most=2.0, unit='distance on the unit sphere'),
      'type_of_triplets': Choice(TYPES_OF_TRIPLETS),
    },
  ),
}


def check_hyperparameters(
  name: str, hyper: Mapping[str, Any], prefix: str = 'loss'
) -> None:
  """Checks the hyperparameters of a loss before anything is computed.

  Args:
    name: of the loss.
    hyper: what the user set, by keyword.
    prefix: how the keys are called in the message, `loss` for `loss.margin`.

  Raises:
    InputError: for a loss or a key that does not exist, a value of another
      type, NaN, infinite or out of range.

  Example:
    >>> check_hyperparameters('circle', {'margin': 0.25})
    >>> check_hyperparameters('circle', {'margn': 0.25})
    Traceback (most recent call last):
    ...
    retrieval_jax.core.errors.InputError: loss.margn is not a hyperparameter \
of 'circle'; did you mean 'margin'? Known: margin, reducer, scale
  """
  if name not in LOSSES:
    raise unknown_name(f'{prefix}.name', name, LOSSES)
  _check(name, hyper, LOSSES[name].hyperparameters, prefix)


def check_miner(
  name: str,
  hyper: Mapping[str, Any],
  prefix: str = 'miner',
  *,
  loss: str | None = None,
) -> None:
  """Checks a miner, its hyperparameters, and that the loss takes it.

  Args:
    name: of the miner.
    hyper: what the user set, by keyword.
    prefix: how the keys are called in the message.
    loss: the loss it is to mine for; None leaves that unchecked.

  Raises:
    InputError: as `check_hyperparameters`, and for a loss that takes no miner
      of this kind.

  Example:
    >>> check_miner('triplet_margin', {'margin': 0.1}, loss='triplet_margin')
    >>> check_miner('triplet_margin', {}, loss='circle')
    Traceback (most recent call last):
    ...
    retrieval_jax.core.errors.InputError: miner.name is 'triplet_margin', a \
miner of triplets, which loss 'circle' does not take; losses that do: \
triplet_margin
  """
  if name not in MINERS:
    raise unknown_name(f'{prefix}.name', name, MINERS)
  miner = MINERS[name]
  _check(name, hyper, miner.hyperparameters, prefix)
  if loss is not None and LOSSES[loss].miner != miner.kind:
    takers = sorted(n for n, row in LOSSES.items() if row.miner == miner.kind)
    raise InputError(
      f'{prefix}.name is {name!r}, a miner of {miner.kind}s, which loss '
      f'{loss!r} does not take; losses that do: {", ".join(takers)}'
    )


def _check(name, hyper, known, prefix):
  for key, value in hyper.items():
    if key not in known:
      raise _unknown_key(prefix, key, name, known)
    allowed = known[key].complaint(value)
    if allowed is not None:
      raise InputError(f'{prefix}.{key} is {value!r}; allowed is {allowed}')


def _unknown_key(prefix, key, name, known):
  message = str(unknown_name(f'{prefix}.{key}', key, known))
  # "<key> is '<key>'<the nearest and the known>": the middle says it better.
  tail = message.removeprefix(f'{prefix}.{key} is {key!r}')
  return InputError(f'{prefix}.{key} is not a hyperparameter of {name!r}{tail}')
