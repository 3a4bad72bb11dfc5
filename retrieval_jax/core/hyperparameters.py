"""What a user may set an option to, as a test and in words.

Losses, miners and post-processing say of each of their options what it may be,
so that a config is checked before anything is built.
"""

import dataclasses
import math
import numbers
from typing import Any

from retrieval_jax.core.errors import InputError, unknown_name


@dataclasses.dataclass(frozen=True)
class Number:
  """A hyperparameter that is a number within bounds.

  Attributes:
    most: the largest allowed.
    unit: for the message.
    least: the smallest, not allowed itself unless `closed`.
    closed: whether `least` is allowed.
    integer: whether only whole numbers are.
    optional: whether None is allowed too.
    words: what else is allowed, such as 'all'.
  """

  most: float = math.inf
  unit: str = ''
  least: float = 0.0
  closed: bool = False
  integer: bool = False
  optional: bool = False
  words: tuple[str, ...] = ()

  def complaint(self, value: object) -> str | None:
    """Returns what is allowed, if the value is not."""
    if isinstance(value, str) and value in self.words:
      return None
    kind = numbers.Integral if self.integer else numbers.Real
    # A bool is an int to Python, and never meant as one here.
    fits = (
      isinstance(value, kind)
      and not isinstance(value, bool)
      and math.isfinite(value)
      and (value >= self.least if self.closed else value > self.least)
      and value <= self.most
    )
    if fits or (self.optional and value is None):
      return None
    return self.allowed()

  def allowed(self) -> str:
    """Returns what is allowed, in words."""
    words = ['an integer' if self.integer else 'a number']
    if math.isfinite(self.least) and self.integer and not self.closed:
      words.append(f'of at least {math.floor(self.least) + 1}')
    elif math.isfinite(self.least):
      words.append(
        f'{"of at least" if self.closed else "above"} {self.least:g}'
      )
    if math.isfinite(self.most):
      words.append(
        ('and ' if math.isfinite(self.least) else 'of ')
        + f'at most {self.most:g}'
      )
    if self.unit:
      words.append(f'({self.unit})')
    others = [repr(word) for word in self.words]
    others += ['None'] if self.optional else []
    return ' '.join(words) + ''.join(f', or {other}' for other in others)


@dataclasses.dataclass(frozen=True)
class Choice:
  """A hyperparameter that is one of a few values."""

  words: tuple[Any, ...]

  def complaint(self, value: object) -> str | None:
    """Returns what is allowed, if the value is not."""
    if any(value == w and type(value) is type(w) for w in self.words):
      return None
    return 'one of ' + ', '.join(map(str, self.words))


FLAG = Choice((False, True))
"""A hyperparameter that is True or False."""


@dataclasses.dataclass(frozen=True)
class Numbers:
  """A hyperparameter that is a tuple of numbers.

  Attributes:
    each: what one may be.
    optional: whether None is allowed too.
    words: what else is allowed, the name of a rule that gives the numbers.
  """

  each: Number
  optional: bool = False
  words: tuple[str, ...] = ()

  def complaint(self, value: object) -> str | None:
    """Returns what is allowed, if the value is not."""
    if self.optional and value is None:
      return None
    if isinstance(value, str) and value in self.words:
      return None
    if isinstance(value, (tuple, list)) and value:
      if all(self.each.complaint(number) is None for number in value):
        return None
    others = [repr(word) for word in self.words]
    others += ['None'] if self.optional else []
    allowed = f'a tuple, each {self.each.complaint(None)}'
    return allowed + ''.join(f', or {other}' for other in others)


Hyperparameter = Number | Choice | Numbers


def check(options, known, owner, prefix, also=()) -> None:
  """Raises `InputError` for an option that is unknown or out of range.

  Args:
    options: what the user set.
    known: {option: what it may be}.
    owner: whose options they are.
    prefix: how the keys are called in the message.
    also: further options that exist, for the message.
  """
  for key, value in options.items():
    if key not in known:
      message = str(unknown_name(f'{prefix}.{key}', key, (*known, *also)))
      # "<key> is '<key>'<the nearest and the known>": the middle says it
      # better.
      tail = message.removeprefix(f'{prefix}.{key} is {key!r}')
      raise InputError(
        f'{prefix}.{key} is not a hyperparameter of {owner!r}{tail}'
      )
    allowed = known[key].complaint(value)
    if allowed is not None:
      raise InputError(f'{prefix}.{key} is {value!r}; allowed is {allowed}')
