"""Floats as integers of the same order, so that they sort with other bits."""

import numpy as np

_LOW_BITS = 2**31 - 1


def to_ordered(values: np.ndarray) -> np.ndarray:
  """Returns int64 in the order of float32 numbers.

  Equal numbers, -0.0 and 0.0 among them, give equal integers. NaN is taken as
  -inf.

  Args:
    values: float32.

  Returns:
    int64 from -2 ** 31 to 2 ** 31 - 1, of the same shape.

  Example:
    >>> ordered = to_ordered(np.float32([-2.0, -0.0, 0.0, 1.0, np.inf]))
    >>> (np.diff(ordered) > 0).tolist()
    [True, False, True, True]
  """
  bits = (np.fmax(values, np.float32(-np.inf)) + np.float32(0)).view(np.int32)
  # As integers, negative floats are in the opposite order.
  return (bits ^ ((bits >> 31) & _LOW_BITS)).astype(np.int64)


def from_ordered(ordered: np.ndarray) -> np.ndarray:
  """Returns the float32 numbers of `to_ordered`.

  Example:
    >>> from_ordered(to_ordered(np.float32([-2.5, 0.0]))).tolist()
    [-2.5, 0.0]
  """
  bits = ordered.astype(np.int32)
  return (bits ^ ((bits >> 31) & _LOW_BITS)).view(np.float32)
