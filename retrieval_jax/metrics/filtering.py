"""Counts of similarities where few reach any threshold, on the host.

Of a model that has learned something nearly all similarities are below the
worst positive of the query, and count for nothing. What is left after one
comparison is sorted, and the counts are read off the places.
"""

from collections.abc import Sequence

import jax
import numpy as np

from retrieval_jax.core import float_order

# Up to this share of a tile for each threshold, to sort what is left is the
# faster (measured with AVX2).
_SHARE_A_THRESHOLD = 1 / 2000
_FEW_TRIES = 8
_BYTES_OF_FOUND = 64  # As it is found, then put together and sorted.


class Filter:
  """Counts what reaches the thresholds of queries, tile by tile."""

  def __init__(
    self,
    thresholds: Sequence[np.ndarray],
    places: Sequence[tuple[int, slice]],
    tile_rows: int,
    budget: int,
  ):
    """Takes the queries.

    Args:
      thresholds: of each block [B, K] float32, inf for none.
      places: of each block, which tile it is part of, and which columns it is
        there; an empty slice, if it is not.
      tile_rows: T.
      budget: bytes for what is found.
    """
    self._thresholds = thresholds
    sizes = [len(of_block) for of_block in thresholds]
    self._starts = np.cumsum(sizes) - sizes
    self._lowest = [of_block.min(axis=1) for of_block in thresholds]
    self._of_columns = {}
    for start, lowest, (tile, columns) in zip(
      self._starts, self._lowest, places, strict=True
    ):
      if columns.stop:
        queries, of_queries = self._of_columns.setdefault(
          tile,
          (np.zeros(tile_rows, int), np.full(tile_rows, np.inf, np.float32)),
        )
        size = columns.stop - columns.start
        queries[columns] = start + np.arange(size)
        of_queries[columns] = lowest[:size]
    self._counts = [np.zeros(t.shape, np.int32) for t in thresholds]
    self._most_waiting = budget // _BYTES_OF_FOUND
    self._waiting, self._num_waiting = [], 0
    self._num_tries = self._num_taken = 0

  def take_rows(self, block: int, similarities: jax.Array) -> bool:
    """Counts for the queries of a block, or returns False: there are too many.

    Args:
      block: which.
      similarities: [B, T] float32, of a tile.
    """
    return self._take(
      similarities,
      lambda row, _: self._starts[block] + row,
      self._lowest[block][:, None],
      self._thresholds[block].shape[1],
    )

  def take_columns(self, tile: int, similarities: jax.Array) -> bool:
    """Likewise for the queries that are the columns of a tile."""
    queries, lowest = self._of_columns.get(tile, (None, None))
    if queries is None:
      return True
    return self._take(
      similarities,
      lambda row, place: queries[place - row * len(queries)],
      lowest[None, :],
      max(t.shape[1] for t in self._thresholds),
    )

  def _take(self, similarities, query_of, lowest, num_thresholds):
    if self._num_tries > _FEW_TRIES + 2 * self._num_taken:
      return False
    self._num_tries += 1
    similarities = np.asarray(similarities)
    mask = similarities >= lowest
    most = mask.size * num_thresholds * _SHARE_A_THRESHOLD
    if np.count_nonzero(mask) > min(most, self._most_waiting):
      return False
    self._num_taken += 1
    place = np.flatnonzero(mask)
    queries = query_of(place // mask.shape[1], place)
    if self._num_waiting + len(place) > self._most_waiting:
      self._count()
    self._waiting.append(_keys(queries, similarities.reshape(-1)[place]))
    self._num_waiting += len(place)
    return True

  def counts(self) -> list[np.ndarray]:
    """Returns what was counted: of each block [B, K] int32."""
    self._count()
    return self._counts

  def _count(self):
    if not self._waiting:
      return
    found = np.concatenate(self._waiting)
    self._waiting, self._num_waiting = [], 0
    found.sort()
    for start, thresholds, counts in zip(
      self._starts, self._thresholds, self._counts, strict=True
    ):
      queries = start + np.arange(len(thresholds))[:, None]
      firsts = np.searchsorted(found, _keys(queries, thresholds))
      ends = np.searchsorted(found, _keys(queries, _LARGEST), side='right')
      counts += np.where(thresholds < np.inf, ends - firsts, 0)


_LARGEST = np.float32(np.inf)


def _keys(queries, values):
  """Returns int64 in the order of the queries, and of values of a query."""
  return (queries << 32) + float_order.to_ordered(values)
