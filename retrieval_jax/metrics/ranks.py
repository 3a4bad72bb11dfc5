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
LAST_KEY = np.iinfo(np.int32).max  # Of what is not in the ranking; odd.


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
    tied: [P] int64, the negatives that are equally similar; None if there is
      none in the whole block.
  """

  queries: np.ndarray
  num_positives: np.ndarray
  hits: np.ndarray
  ranks: np.ndarray
  tied: np.ndarray | None

  @functools.cached_property
  def starts(self) -> np.ndarray:
    """[B] int64, where the positives of each query start."""
    return np.cumsum(self.num_positives) - self.num_positives

  @functools.cached_property
  def rows(self) -> np.ndarray:
    """[P] int64, which query of the block a positive belongs to."""
    return np.repeat(np.arange(len(self.queries)), self.num_positives)


@jax.jit
def similarity_keys(queries, tile) -> jax.Array:
  """Returns the keys of a block of queries against a tile of the gallery.

  Args:
    queries: (unit rows [B, D], (class [B], own gallery row or -2 [B], ...)).
    tile: (unit rows [T, D], (class [T], gallery row or -1 for padding [T])).

  Returns:
    [B, T] int32, `LAST_KEY` for the query itself and for padding.
  """
  rows, (query_class, itself, *_) = queries
  gallery_rows, (gallery_class, gallery_row) = tile
  similarities = arrays.dot_products(rows, gallery_rows)
  keys = -2 * jnp.round(similarities / RESOLUTION).astype(jnp.int32)
  keys += (query_class[:, None] != gallery_class[None, :]).astype(jnp.int32)
  left_out = itself[:, None] == gallery_row[None, :]
  left_out |= (gallery_row < 0)[None, :]
  return jnp.where(left_out, LAST_KEY, keys)
