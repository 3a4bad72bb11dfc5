"""What a loss returns: named terms, each with a value and a count per row.

Sum and count travel together to the end, so that padding, row weights and the
number of devices change nothing. A reducer says which values of a row count; it
is applied where they are made, so that no list of pairs or triplets is kept.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

Terms = dict[str, tuple[jax.Array, jax.Array]]
"""{name: (values [B] float32, counts [B] float32)}: the sum of the row's
counted terms, and their number (or weight)."""

REDUCERS = ('mean', 'nonzero_mean', 'per_anchor', 'sum', 'threshold')


class Reducer(NamedTuple):
  """How the values of a term become one number.

    mean          their mean
    nonzero_mean  the mean of those above 0 (PML's AvgNonZeroReducer)
    threshold     the mean of those within (low, high)
    per_anchor    the mean over anchors of the mean over their pairs
    sum           their sum

  Attributes:
    name: one of `REDUCERS`.
    low: of 'threshold', or None.
    high: of 'threshold', or None.
  """

  name: str = 'mean'
  low: float | None = None
  high: float | None = None


def reduce_row(
  values: jax.Array,
  valid: jax.Array,
  reducer: str | Reducer = 'mean',
  weights: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
  """Sums what counts in each row.

  Args:
    values: [B, ...] float32.
    valid: [B, ...] bool, where there is a value; elsewhere it is not looked
      at, and no gradient comes from there.
    reducer: which of the valid values count.
    weights: of the values, [B, ...] or None: how often each is there. A weight
      of 0 equals leaving the value out.

  Returns:
    (values [B], counts [B]), float32. A NaN is counted: it must not pass for 0.

  Example:
    >>> values = jnp.array([[2.0, 0.0, 5.0], [1.0, 1.0, 4.0]])
    >>> valid = jnp.array([[True, True, False], [True, True, True]])
    >>> print(*reduce_row(values, valid, 'nonzero_mean'))
    [2. 6.] [1. 3.]
    >>> print(*reduce_row(values, valid, 'per_anchor'))
    [1. 2.] [1. 1.]
  """
  reducer = Reducer(reducer) if isinstance(reducer, str) else reducer
  counted = valid
  # Written with "not", so that a NaN counts.
  if reducer.name == 'nonzero_mean':
    counted &= ~(values <= 0)
  elif reducer.name == 'threshold':
    if reducer.low is not None:
      counted &= ~(values <= reducer.low)
    if reducer.high is not None:
      counted &= ~(values >= reducer.high)
  counts = counted.astype(jnp.float32)
  values = jnp.where(counted, values, 0.0)
  if weights is not None:
    counts *= weights
    values *= weights
  rest = tuple(range(1, values.ndim))
  values, counts = jnp.sum(values, axis=rest), jnp.sum(counts, axis=rest)
  if reducer.name == 'per_anchor':
    return row_means(values, counts)
  return values, counts


def row_means(
  values: jax.Array, counts: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Returns the mean of each row, counted once, for 'per_anchor'.

  Args:
    values: [B] float32, the sum of the row.
    counts: [B] float32, of how many.

  Example:
    >>> print(*row_means(jnp.array([6.0, 0.0]), jnp.array([3.0, 0.0])))
    [2. 0.] [1. 0.]
  """
  found = counts > 0
  means = jnp.where(found, values / jnp.where(found, counts, 1.0), 0.0)
  return means, found.astype(jnp.float32)


def row_term(
  values: jax.Array,
  valid: jax.Array,
  reducer: str | Reducer = 'mean',
  weights: jax.Array | None = None,
) -> Terms:
  """Returns `{'loss': reduce_row(...)}`, of a loss that has one term.

  Example:
    >>> valid = jnp.array([True, True, False])
    >>> values = jnp.array([2.0, 0.0, 5.0])
    >>> values, counts = row_term(values, valid, 'nonzero_mean')['loss']
    >>> print(values, counts)
    [2. 0. 0.] [1. 0. 0.]
  """
  return {'loss': reduce_row(values, valid, reducer, weights)}
