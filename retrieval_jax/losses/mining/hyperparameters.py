"""What a user may set of a miner, beyond numbers and choices."""

import dataclasses
import math
import numbers


@dataclasses.dataclass(frozen=True)
class Range:
  """(low, high) with low <= high, or None."""

  def complaint(self, value: object) -> str | None:
    """Returns what is allowed, if the value is not."""
    if value is None or (_is_pair(value, numbers.Real) and _ordered(value)):
      return None
    return 'two numbers (low, high) with low <= high, or None'


@dataclasses.dataclass(frozen=True)
class Ranks:
  """A whole number of at least 1, or (first, last) of such."""

  def complaint(self, value: object) -> str | None:
    """Returns what is allowed, if the value is not."""
    pair = (1, value) if isinstance(value, numbers.Integral) else value
    if not isinstance(value, bool) and _is_pair(pair, numbers.Integral):
      if 1 <= pair[0] <= pair[1]:
        return None
    return (
      'an integer of at least 1, or two (first, last) with 1 <= first <= last'
    )


def _is_pair(value, kind):
  return (
    isinstance(value, (tuple, list))
    and len(value) == 2
    and all(isinstance(v, kind) and not isinstance(v, bool) for v in value)
  )


def _ordered(value):
  return all(map(math.isfinite, value)) and value[0] <= value[1]
