"""Counts for positives what reaches the worst of them, picked out on a CPU.

Of a model that has learned something, few rows are as similar to a query as the
least similar of its positives, and no other can stand above one or tie with it.
These few are picked from the similarities and kept as keys, (query, multiple of
`ranks.RESOLUTION`); sorted, they tell for each positive how many reach it. So a
similarity is looked at once, and not once for each positive.
"""

import threading
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from retrieval_jax.core import tiles
from retrieval_jax.metrics import ranks

# Of a key, for the multiple: it is below 2 ** 23 in size, rounding included.
_MULTIPLE_BITS = 24
MOST_KEYS = 2**21  # 16 MiB.
KEY_BYTES = 8
POSITIVE_BYTES = 40  # Its key, counts, owner, order; where it is found.
PICKED_BYTES = 64  # What picking a similarity takes for a while.


def most_share(num_positives: int) -> float:
  """Returns up to which share of the similarities picking is to be fast.

  Comparing takes time with each positive, picking with what is picked; both
  were measured with AVX-512.

  Args:
    num_positives: K, that each similarity would be compared with.
  """
  return min(num_positives, 64) / 320


@jax.jit
def _reaching(similarities, of_rows, of_columns):
  """Returns [B, T] bool, what reaches that of its row or that of its column."""
  return similarities >= jnp.minimum(of_rows[:, None], of_columns[None, :])


class Selection:
  """What reaches the worst positive of its query, counted for all positives.

  Threads may share it. Queries are numbered through the blocks; the number that
  follows the last is that of columns that are no queries.
  """

  def __init__(
    self,
    gallery: tiles.Tiles,
    own: Sequence[np.ndarray],
    lowest: Sequence[np.ndarray],
    columns: Sequence[tuple[int, slice]],
    most_keys: int,
  ):
    """Numbers the queries.

    Args:
      gallery: the tiles.
      own: of each block [B, K] float32, the similarities of the positives; -inf
        where there is none.
      lowest: of each block [B] float32, the least similarity that reaches the
        worst positive; inf where there is none.
      columns: of each block the tile, and the columns of it, whose rows its
        queries are; see `counting.Block`.
      most_keys: how many keys to keep before they are counted.
    """
    edges = np.append(0, np.cumsum([len(block) for block in own]))
    self._queries = [
      slice(*pair) for pair in zip(edges[:-1], edges[1:], strict=True)
    ]
    self._lowest = np.concatenate([*lowest, [np.inf]], dtype=np.float32)
    self._of_columns = {}
    for queries, (tile, part) in zip(self._queries, columns, strict=True):
      if tile >= 0:
        of_tile = self._of_columns.setdefault(
          tile, np.full(gallery.tile_rows, edges[-1])
        )
        numbers = np.arange(queries.start, queries.stop)
        of_tile[part] = numbers[: part.stop - part.start]
    self._of_columns[-1] = np.full(gallery.tile_rows, edges[-1])
    self._lowest_of_rows = gallery.put(list(lowest))
    self._lowest_of_columns = gallery.put(
      {tile: self._lowest[of] for tile, of in self._of_columns.items()},
      P('rows'),
    )
    self._present = [block > -np.inf for block in own]
    self._owners = np.concatenate(
      [
        queries.start + np.nonzero(present)[0]
        for queries, present in zip(self._queries, self._present, strict=True)
      ],
      dtype=np.int32,
    )
    positives = np.concatenate(
      [block[of] for block, of in zip(own, self._present, strict=True)]
    )
    keys = _keys(self._owners, positives)
    # Ascending keys are found soonest; the owners ascend already.
    self._order = np.argsort(keys).astype(np.int32)
    self._positives = keys[self._order]
    self._counts = np.zeros((2, len(keys)), np.int32)
    self._kept = np.empty(most_keys, np.int64)
    self._number = 0
    self._lock = threading.Lock()

  def reaching(
    self, similarities: jax.Array, block: int, tile: int
  ) -> jax.Array:
    """Returns what may reach the worst positive of a query.

    Args:
      similarities: [B, T] float32, of a block and a tile.
      block: which block.
      tile: the tile, if it is counted for the queries that are its rows too;
        else -1.

    Returns:
      [B, T] bool.
    """
    return _reaching(
      similarities, self._lowest_of_rows[block], self._lowest_of_columns[tile]
    )

  def pick(
    self,
    reaching: jax.Array,
    similarities: jax.Array,
    block: int,
    tile: int,
  ) -> bool:
    """Counts what reaches the worst positive, if that is little.

    Args:
      reaching: [B, T] bool, of the method of that name and these arguments.
      similarities: [B, T] float32.
      block: which block.
      tile: the tile, or -1.

    Returns:
      whether it was counted.
    """
    values, reaching = np.asarray(similarities), np.asarray(reaching)
    share = most_share(self._present[block].shape[1])
    most = min(share * values.size, len(self._kept))
    if np.count_nonzero(reaching) > most:
      return False
    places = ranks.true_places(reaching.reshape(-1))
    # Faster than `np.divmod`; as `take` is than an index.
    rows = places // values.shape[1]
    columns = places - rows * values.shape[1]
    values = values.reshape(-1).take(places)
    self._keep(rows + self._queries[block].start, values)
    if tile >= 0:
      self._keep(self._of_columns[tile].take(columns), values)
    return True

  def _keep(self, queries, similarities):
    reach = ranks.true_places(similarities >= self._lowest.take(queries))
    keys = _keys(queries.take(reach), similarities.take(reach))
    with self._lock:
      if self._number + len(keys) > len(self._kept):
        self._count()
      self._kept[self._number : self._number + len(keys)] = keys
      self._number += len(keys)

  def _count(self):
    if not self._number:
      return
    kept, positives = self._kept[: self._number], self._positives
    kept.sort()
    queries = np.arange(len(self._lowest)) << _MULTIPLE_BITS
    begin = np.searchsorted(kept, queries)[self._owners]
    above = np.searchsorted(kept, positives)
    # Most tie with nothing but themselves.
    reached = above + (kept.take(above, mode='clip') == positives)
    ties = np.flatnonzero(kept.take(above + 1, mode='clip') == positives)
    reached[ties] = np.searchsorted(kept, positives[ties], 'right')
    self._counts += [above - begin, reached - begin]
    self._number = 0

  def counts(self) -> list[np.ndarray]:
    """Returns [B, 2 K] int32 of each block.

    What is strictly more similar than each positive, and that with its ties,
    of what was picked; 0 where there is no positive.
    """
    self._count()
    edges = np.cumsum([present.sum() for present in self._present])
    by_place = np.empty_like(self._counts)
    by_place[:, self._order] = self._counts
    counts = []
    for present, of_block in zip(
      self._present, np.split(by_place, edges[:-1], axis=1), strict=True
    ):
      both = np.zeros((2, *present.shape), np.int32)
      both[:, present] = of_block
      counts.append(np.concatenate(both, axis=1))
    return counts


def _keys(queries, similarities):
  """Returns int64 keys that ascend by query, and from the most similar on."""
  multiples = np.rint(similarities * np.float32(1 / ranks.RESOLUTION))
  return (queries.astype(np.int64) << _MULTIPLE_BITS) + (
    2 ** (_MULTIPLE_BITS - 1) - multiples.astype(np.int64)
  )
