"""What a triplet miner returns: which triplets a loss uses, in O(B G) memory.

  Bounds    for each positive pair, the interval that the negative lies in
  Listed    for each anchor, a few triplets by index
  Selected  a function that says it, of a few positives at a time

A triplet loss uses them as they are. A pair loss gets the pairs that are in a
used triplet, `triplets_to_masks`; in how many they are, says `pair_counts`.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from retrieval_jax.core.distances import Distance
from retrieval_jax.losses.mining.counting import (
  count_triplets,
  sum_over_positives,
  take,
)


@dataclasses.dataclass(frozen=True)
class Bounds:
  """The triplet (a, p, n) is used if lower_ap < d_an <= upper_ap.

  Attributes:
    matrix: [B, G] float32, distances; of a similarity s, -s.
    lower: [B, G] float32, open; it means nothing but at positive pairs.
    upper: [B, G] float32, closed, likewise.
    distance: what the matrix is of. A loss of the same distance counts, where
      one of another looks at every triplet.
  """

  matrix: jax.Array
  lower: jax.Array
  upper: jax.Array
  distance: Distance

  @property
  def arrays(self) -> tuple[jax.Array, ...]:
    """What `select` looks at."""
    return self.matrix, self.lower, self.upper

  @property
  def select(self) -> Callable[[jax.Array, Any], jax.Array]:
    """(columns [B, c], arrays) -> [B, c, G] bool, the used triplets."""
    return _inside


class Listed(NamedTuple):
  """T triplets of each anchor, by index.

  Attributes:
    positives: [B, T] int32 columns.
    negatives: [B, T] int32 columns.
    used: [B, T] bool, where there is a triplet.
  """

  positives: jax.Array
  negatives: jax.Array
  used: jax.Array


@dataclasses.dataclass(frozen=True)
class Selected:
  """The triplets that a function says.

  Attributes:
    select: (columns [B, c], arrays) -> [B, c, G] bool; it closes over no array.
    arrays: what it looks at, the matrix [B, G] first.
  """

  select: Callable[[jax.Array, Any], jax.Array]
  arrays: Any


Triplets = Bounds | Listed | Selected


def pair_counts(
  triplets: Triplets, positives: jax.Array, negatives: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Counts the used triplets that a pair is in.

  Args:
    triplets: of a miner.
    positives: [B, G] bool.
    negatives: [B, G] bool.

  Returns:
    (counts of positive pairs, counts of negative pairs), each [B, G] float32,
    0 at other pairs.

  Example:
    >>> positives = jnp.array([[True, True, False, False]])
    >>> p, n = jnp.array([[0, 1]]), jnp.array([[3, 3]])
    >>> counts = pair_counts(Listed(p, n, p >= 0), positives, ~positives)
    >>> print(*counts)
    [[1. 1. 0. 0.]] [[0. 0. 0. 2.]]
  """
  if isinstance(triplets, Listed):
    used = triplets.used.astype(jnp.float32)
    rows = jnp.arange(positives.shape[0])[:, None]
    zeros = jnp.zeros(positives.shape, jnp.float32)
    return (
      zeros.at[rows, triplets.positives].add(used),
      zeros.at[rows, triplets.negatives].add(used),
    )
  if isinstance(triplets, Bounds):
    matrix, lower, upper = triplets.arrays
    return count_triplets(matrix, positives, negatives, lower, upper)
  num_rows, num_columns = positives.shape
  if not positives.size:
    zeros = jnp.zeros(positives.shape, jnp.float32)
    return zeros, zeros

  def count(columns, valid, fixed, _):
    negatives, arrays = fixed
    used = triplets.select(columns, arrays)
    used &= valid[:, :, None] & negatives[:, None, :]
    used = used.astype(jnp.float32)
    rows = jnp.arange(num_rows)[:, None]
    zeros = jnp.zeros((num_rows, num_columns), jnp.float32)
    return zeros.at[rows, columns].add(jnp.sum(used, 2)), jnp.sum(used, 1)

  fixed = lax.stop_gradient((negatives, triplets.arrays))
  return sum_over_positives(count, positives, fixed, ())


def list_triplets(positives: jax.Array, negatives: jax.Array) -> Listed:
  """Lists the triplet of each anchor that has one positive and one negative.

  Args:
    positives: [B, G] bool, one in a row at most.
    negatives: [B, G] bool, likewise.

  Returns:
    [B, 1] triplets; none of an anchor without either.

  Example:
    >>> p = jnp.array([[False, True, False]])
    >>> n = jnp.array([[False, False, True]])
    >>> print(*list_triplets(p, n))
    [[1]] [[2]] [[ True]]
  """
  columns = jnp.arange(positives.shape[1], dtype=jnp.int32)[None, :]

  def column_of(mask):
    return jnp.sum(jnp.where(mask, columns, 0), axis=1, keepdims=True)

  used = jnp.any(positives, axis=1) & jnp.any(negatives, axis=1)
  return Listed(column_of(positives), column_of(negatives), used[:, None])


def triplets_to_masks(
  triplets: Triplets, positives: jax.Array, negatives: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Returns (positives, negatives), the pairs that are in a used triplet."""
  of_positives, of_negatives = pair_counts(triplets, positives, negatives)
  found = of_positives > 0, of_negatives > 0
  if isinstance(triplets, Listed):
    return found
  # A NaN is in no interval, but the loss is to see it.
  lost = jnp.isnan(triplets.arrays[0])
  return found[0] | (positives & lost), found[1] | (negatives & lost)


def _inside(columns, arrays):
  matrix, lower, upper = arrays
  far = matrix[:, None, :]
  low, high = take(lower, columns)[:, :, None], take(upper, columns)[:, :, None]
  return (far > low) & (far <= high)
