"""What a column of a table holds: the order of its classes, its repetitions."""

import re
from collections.abc import Sequence

import numpy as np

from retrieval_jax.core.strings import Strings

_INTEGER = re.compile(r'-?(0|[1-9][0-9]{0,17})')


def class_order(names: Sequence[str]) -> np.ndarray:
  """Returns the order that classes are numbered in.

  Args:
    names: of the classes, each once.

  Returns:
    [C] int64, which name comes first, second, ...: by value if all names are
    integers, else by code point, so that a folder and a table of the same
    images number the classes alike.

  Example:
    >>> [class_order(names).tolist() for names in (['10', '9'], ['b', 'B1'])]
    [[1, 0], [1, 0]]
  """
  key = int if all(map(_INTEGER.fullmatch, names)) else str
  return np.array(
    sorted(range(len(names)), key=lambda i: key(names[i])), np.int64
  )


def find_duplicate(
  strings: Strings, salt: np.ndarray | None = None
) -> tuple[int, int] | None:
  """Finds two equal strings.

  Args:
    strings: N of them.
    salt: [N] uint64, what else must be equal; None: nothing.

  Returns:
    Their rows, or None if all differ. The later one is the first row that
    repeats another.

  Example:
    >>> find_duplicate(Strings.of(['a', 'b', 'c', 'b']))
    (1, 3)
  """
  keys = _keys(strings, salt)
  # Sorted in place, which is cheaper than an order and seldom not enough.
  keys.sort()
  if not (keys[1:] == keys[:-1]).any():
    return None
  keys = _keys(strings, salt)
  order = np.argsort(keys, kind='stable')
  is_same = keys[order[1:]] == keys[order[:-1]]
  pairs = zip(order[:-1][is_same], order[1:][is_same], strict=True)
  for first, second in sorted(pairs, key=lambda pair: pair[1]):
    equal = salt is None or salt[first] == salt[second]
    if equal and strings[first] == strings[second]:
      return int(first), int(second)
  return None


def _keys(strings, salt):
  """Returns [N] uint64 of `find_duplicate`."""
  keys = strings.fingerprints()
  if salt is not None:
    keys += salt
  return keys
