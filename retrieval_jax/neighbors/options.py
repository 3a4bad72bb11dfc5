"""What the options of a post-processing may be, alone and beside each other."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from retrieval_jax.core import hyperparameters
from retrieval_jax.core.errors import InputError
from retrieval_jax.core.hyperparameters import Hyperparameter, Number

COUNT = Number(integer=True)
OPTIONAL_COUNT = Number(integer=True, optional=True)
POSITIVE = Number()
NONNEGATIVE = Number(closed=True)
SHARE = Number(closed=True, most=1.0)
ANY_NUMBER = Number(least=-float('inf'))


class Sizes(NamedTuple):
  """How much there is to choose from; infinite where it is not known yet.

  Attributes:
    found: gallery rows that a query can find: N, or N - 1 without itself.
    gallery: N.
    train: rows that may be fitted on.
    dim: D.
    list_length: that a re-ranking is asked for.
  """

  found: float = float('inf')
  gallery: float = float('inf')
  train: float = float('inf')
  dim: float = float('inf')
  list_length: int = 1


class Limit(NamedTuple):
  """An option that has a largest value because of something else.

  Attributes:
    option: its name, or `LIST_LENGTH`.
    value: what it is.
    largest: what it may be.
    words: what the largest is.
  """

  option: str
  value: int
  largest: float
  words: str


LIST_LENGTH = 'list_length'
FOUND = 'the gallery rows that a query can find'


def check(
  owner: str,
  given: Mapping[str, Any],
  known: Mapping[str, Hyperparameter],
  limits: Iterable[Limit] = (),
  list_length_key: str = 'k',
) -> None:
  """Raises `InputError` for the first option that is not allowed.

  Args:
    owner: the name of the post-processing, before the name of the option.
    given: the options.
    known: what each may be.
    limits: see `Limit`; looked at when the options are right by themselves.
    list_length_key: how the message calls the length of lists.

  Example:
    >>> check('diffusion', {'kq': 0}, {'kq': COUNT})
    Traceback (most recent call last):
    ...
    retrieval_jax.core.errors.InputError: diffusion.kq is 0; allowed is an \
integer of at least 1
  """
  hyperparameters.check(given, known, owner.rpartition('.')[2], owner)
  for limit in limits:
    if limit.value > limit.largest:
      key = f'{owner}.{limit.option}'
      if limit.option == LIST_LENGTH:
        key = list_length_key
      raise InputError(
        f'{key} is {limit.value}; allowed is at most {limit.largest:.0f}, '
        f'{limit.words}: choose a smaller one'
      )
