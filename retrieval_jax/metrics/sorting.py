"""Ranks of positives by sorting: on the host, O(N log N) a query.

numpy sorts with vector instructions, which XLA on a CPU does not (20 times
slower). The time is nearly all in the sort. On AMD Zen 4, numpy's AVX-512 sort
is 3.8 times slower than its AVX2 one (it compresses to memory, which that
processor does in microcode); there the environment variable
`NPY_DISABLE_CPU_FEATURES="AVX512_ICL X86_V4"` halves the time of all.
"""

import numpy as np

from retrieval_jax.core import tiles
from retrieval_jax.metrics.ranks import Ranks, similarity_keys


def rank_by_sort(
  gallery: tiles.Tiles,
  queries,
  picked: np.ndarray,
  num_positives: np.ndarray,
) -> Ranks:
  """Returns the ranks of a block of queries.

  Args:
    gallery: the tiles.
    queries: the block on the devices, as in `similarity_keys`.
    picked: [B] int64, the rows of the query array in the block.
    num_positives: [Q] int64, of all queries.
  """
  num_rows = gallery.num_rows
  keys = np.empty((len(picked), num_rows), np.int32)
  for index in range(len(gallery)):
    start = index * gallery.tile_rows
    stop = min(start + gallery.tile_rows, num_rows)
    tile_keys = np.asarray(similarity_keys(queries, gallery[index]))
    keys[:, start:stop] = tile_keys[: len(picked), : stop - start]
  keys.sort(axis=1)

  # Row by row in slices that stay in the cache.
  positions = np.concatenate(
    [
      np.flatnonzero((keys[block] & 1) == 0) + block.start * num_rows
      for block in tiles.blocks(len(picked), max(1, tiles.MIB // num_rows))
    ]
  )
  num_positives = num_positives[picked]
  tied = _tied_in_sorted(keys, positions, num_positives)
  row_starts = np.arange(len(picked)) * num_rows
  ranks = positions - np.repeat(row_starts - 1.0, num_positives)
  hits = np.arange(1.0, len(positions) + 1)
  hits -= np.repeat(np.cumsum(num_positives) - num_positives, num_positives)
  return Ranks(picked, num_positives, hits, ranks, tied)


def _tied_in_sorted(keys, positions, num_positives):
  """Returns how many negatives tie with each positive, or None if none do."""
  flat = keys.reshape(-1)
  values = flat[positions]
  last = len(flat) - 1
  # The last positive of a tie has a negative of its similarity to the right. A
  # row's last position may look into the next row: mixed ties never end there.
  after = np.minimum(positions + 1, last)
  (mixed,) = np.nonzero(flat[after] == values + 1)
  num_rows = keys.shape[1]
  mixed = mixed[positions[mixed] % num_rows != num_rows - 1]
  if not len(mixed):
    return None
  # Binary search for the end of each tie, all ties at once.
  low = positions[mixed] + 1
  high = (positions[mixed] // num_rows + 1) * num_rows
  while (searching := low < high).any():
    middle = (low + high) // 2
    inside = flat[np.minimum(middle, last)] <= values[mixed] + 1
    low = np.where(searching & inside, middle + 1, low)
    high = np.where(searching & ~inside, middle, high)
  # Give the number to all positives of the tie: those up to `mixed` with the
  # same value in the same row.
  rows = np.repeat(np.arange(len(keys)), num_positives)
  changes = np.ones(len(values), bool)
  changes[1:] = (values[1:] != values[:-1]) | (rows[1:] != rows[:-1])
  group = np.cumsum(changes) - 1
  tied = np.zeros(group[-1] + 1, np.int64)
  tied[group[mixed]] = low - positions[mixed] - 1
  return tied[group]
