"""Where positives stand, and the keys that rank them.

Similarities are rounded to multiples of 2 ** -22 (2.4e-7, about the rounding
error of a float32 dot product of unit vectors), and what is equal then ties.
Rows that are equal bit for bit always tie (`core.tiles`), and so do nearly all
values that only differ by rounding, as those of a collapsed model.

A key is an int32 that carries both the similarity and the relevance:
-2 round(2 ** 22 s), plus 1 for a negative. Ascending keys are a ranking, best
first, with the positives of a tie first; the lowest bit tells who is who.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from retrieval_jax.core import arrays

RESOLUTION = 2.0**-22
LAST_KEY = np.iinfo(np.int32).max  # Of what is not in the ranking.


@dataclasses.dataclass(frozen=True)
class Ranks:
  """Where the positives of a block of queries stand; arrays over positives.

  The positives of a query are adjacent, best first.

  Attributes:
    queries: [B] int64, the rows of the query array that the block ranks.
    num_positives: [B] int64, R of each query, at least 1.
    hits: [P] float64, 1 for a query's best positive, R for its worst.
    ranks: [P] float64, from 1, with the positives of each tie first: `hits`
      plus the negatives that are strictly more similar.
    tied: [T] int64, which of the P positives tie with a negative, ascending.
    num_tied: [T] int64, the negatives that each of them ties with.
    grades: [P] float64 above 0, how relevant each positive is, descending where
      positives tie with each other; None: all alike.
    keys: [P] int32, equal where positives of a query tie; with `grades`.
    num_ranked: [B] int64, rows of the gallery in the ranking of each query;
      None: the same number in all.
  """

  queries: np.ndarray
  num_positives: np.ndarray
  hits: np.ndarray
  ranks: np.ndarray
  tied: np.ndarray
  num_tied: np.ndarray
  grades: np.ndarray | None = None
  keys: np.ndarray | None = None
  num_ranked: np.ndarray | None = None

  @classmethod
  def of_counts(
    cls,
    queries: np.ndarray,
    num_positives: np.ndarray,
    above: np.ndarray,
    reached: np.ndarray,
    **fields: np.ndarray | None,
  ) -> 'Ranks':
    """Returns the ranks of positives from how many negatives are above them.

    Args:
      queries: [B] int64.
      num_positives: [B] int64, at least 1.
      above: [P] int, the negatives that are strictly more similar.
      reached: [P] int, those and those that tie.
      **fields: what else is known.
    """
    starts = np.cumsum(num_positives) - num_positives
    hits = np.arange(1.0, len(above) + 1) - np.repeat(starts, num_positives)
    tied = np.flatnonzero(reached != above)
    num_tied = (reached[tied] - above[tied]).astype(np.int64)
    return cls(
      queries, num_positives, hits, hits + above, tied, num_tied, **fields
    )

  @functools.cached_property
  def starts(self) -> np.ndarray:
    """[B] int64, where the positives of each query start."""
    return np.cumsum(self.num_positives) - self.num_positives

  @functools.cached_property
  def tied_rows(self) -> np.ndarray:
    """[T] int64, which query of the block a tied positive belongs to."""
    return np.searchsorted(self.starts, self.tied, side='right') - 1


def count_in_order(
  keys: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Returns what stands above the positives of sorted rankings.

  Args:
    keys: [B, W] int32, C-contiguous, each row ascending.

  Returns:
    ([B] int64, the positives of each row; [P] int64, the negatives that are
    strictly more similar than each positive; [P] int64, those and those that
    tie).

  Example:
    >>> keys = np.array([[-3, 0, 0, 1, LAST_KEY]], np.int32)
    >>> [of.tolist() for of in count_in_order(keys)]
    [[2], [1, 1], [2, 2]]
  """
  flat, width = keys.reshape(-1), keys.shape[1]
  # The lowest byte says it too, in a quarter of the memory.
  places = true_places(flat.astype(np.int8) & 1 == 0)
  edges = np.searchsorted(places, width * np.arange(len(keys) + 1))
  num_positives = np.diff(edges)
  above = places - np.arange(len(places))
  above -= np.repeat(width * np.arange(len(keys)) - edges[:-1], num_positives)
  reached = above.copy()
  # The last positive of a tie is followed by its first negative.
  own = flat[places]
  last = np.flatnonzero(flat.take(places + 1, mode='clip') == own + 1)
  own, place = own[last], places[last]
  begins = place - place % width
  ends = begins + width
  # Most ties are small.
  near, far = np.maximum(place - 4, begins), np.minimum(place + 4, ends)
  begins = np.where(flat[near] < own, near, begins)
  ends = np.where(flat.take(far, mode='clip') > own + 1, far, ends)
  first, after = np.split(
    _first_that_reach(
      flat,
      np.concatenate([own, own + 2]),
      np.concatenate([begins, place]),
      np.concatenate([place, ends]),
    ),
    2,
  )
  sizes, num_tied = place + 1 - first, after - place - 1
  nth = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
  reached[np.repeat(last + 1 - sizes, sizes) + nth] += np.repeat(
    num_tied, sizes
  )
  return num_positives, above, reached


def _first_that_reach(flat, values, begins, ends):
  """Returns the first place, in ascending parts, that has no less than values.

  Args:
    flat: [N].
    values: [T].
    begins: [T] where the part begins that is searched for each value.
    ends: [T] where it ends: what is returned if all before is less.
  """
  while (begins < ends).any():
    middle = (begins + ends) // 2  # The end itself, if it is found.
    is_less = (begins < ends) & (flat.take(middle, mode='clip') < values)
    begins, ends = (
      np.where(is_less, middle + 1, begins),
      np.where(is_less, ends, middle),
    )
  return ends


def true_places(mask: np.ndarray) -> np.ndarray:
  """Returns `np.flatnonzero(mask)`, sooner.

  Of an array of which up to a tenth is true NumPy finds each by itself, which
  from a share of 0.04 on takes longer than to look at all (measured); a tail of
  ones makes it look at all.

  Args:
    mask: [N] bool.

  Example:
    >>> true_places(np.arange(24) % 12 == 5).tolist()
    [5, 17]
  """
  number = np.count_nonzero(mask)
  if 0.04 * mask.size < number <= 0.1 * mask.size:
    mask = np.concatenate([mask, np.ones(mask.size // 12, bool)])
  return np.flatnonzero(mask)[:number]


@jax.jit
def similarities(rows: jax.Array, gallery_rows: jax.Array) -> jax.Array:
  """Returns the cosines [B, T] float32 of unit rows [B, D] and [T, D]."""
  return arrays.dot_products(rows, gallery_rows)


def multiples(similarities: jax.Array) -> jax.Array:
  """Returns the int32 multiple of `RESOLUTION` that each is rounded to.

  Args:
    similarities: float32 in [-1, 1], up to rounding.

  Example:
    >>> multiples(jnp.array([1.0, 0.0, -(2.0 ** -22)])).tolist()
    [4194304, 0, -1]
  """
  return jnp.round(similarities / RESOLUTION).astype(jnp.int32)


def least_similarities(multiples: jax.Array) -> jax.Array:
  """Returns the smallest float32 that rounds to a multiple, or a larger one.

  So that similarities can be compared without being rounded: halves go to the
  even multiple.

  Args:
    multiples: int32, of `RESOLUTION`, up to 2 ** 23 in size.

  Example:
    >>> least = least_similarities(jnp.array([8]))
    >>> multiples(jnp.array([least[0], jnp.nextafter(least[0], 0.0)])).tolist()
    [8, 7]
  """
  # Exact: fewer than 25 bits, times a power of two.
  half = (2 * multiples - 1).astype(jnp.float32) * (RESOLUTION / 2)
  return jnp.where(multiples % 2 == 0, half, jnp.nextafter(half, jnp.inf))


def to_keys(similarities: jax.Array) -> jax.Array:
  """Returns the int32 keys of positives; those of negatives are 1 larger.

  Args:
    similarities: float32 in [-1, 1], up to rounding.

  Example:
    >>> to_keys(jnp.array([1.0, 0.0, -(2.0 ** -22)])).tolist()
    [-8388608, 0, 2]
  """
  return -2 * multiples(similarities)
