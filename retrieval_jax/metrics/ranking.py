"""The exact rank of every relevant gallery row, for blocks of queries.

The metrics of a ranking are functions of where its positives (the gallery rows
of the query's class) stand, so nothing else is computed: for the j-th best
positive, how many negatives are above it, and how many tie with it. No row
order of the gallery enters, so none can decide a tie.

Similarities are rounded to multiples of 2 ** -22 (2.4e-7, about the rounding
error of a float32 dot product of unit vectors), and what is equal then ties.
Rows that are equal bit for bit always tie (`core.tiles`), and so do values that
only differ by rounding, as those of a collapsed model.

Two primitives give the same ranks, bit for bit:

  sort   the host sorts whole rows of keys, O(N log N) a query. The fastest on
         a CPU, where numpy sorts with vector instructions and XLA does not.
  count  XLA compares every key with every positive, O(N R) a query, in tiles.
         The fastest for few positives, and nothing leaves an accelerator.

A key is an int32 that carries both the similarity and the relevance:
-2 round(2 ** 22 s), plus 1 for a negative. Ascending keys are a ranking, best
first, with the positives of a tie first; the lowest bit tells who is who.
"""

import dataclasses
import functools
import math
import os
from collections.abc import Iterator, Sequence
from concurrent import futures

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec as P

from retrieval_jax.core import arrays, tiles
from retrieval_jax.core.errors import InputError

RESOLUTION = 2.0**-22

_LAST = np.iinfo(np.int32).max  # The key of what is not in the ranking.
# Up to about this many positives, counting is the faster (measured on CPUs;
# on accelerators by reasoning only).
_COUNT_UP_TO = {'cpu': 64, 'accelerator': 4096}
_CHUNK = 16  # Keys compared at a time on a CPU: a vector register's worth.
_KEPT_TILES = 2  # Tiles of keys that counting does not compute twice.
_MAX_THREADS = 4


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


def rank_positives(
  query_embeddings: np.ndarray,
  query_labels: np.ndarray,
  gallery_embeddings: np.ndarray,
  gallery_labels: np.ndarray,
  *,
  exclude_self: bool,
  budget: int,
  primitive: str | None = None,
  devices: Sequence[jax.Device] | None = None,
) -> Iterator[Ranks]:
  """Yields the ranks of all queries that have a positive, block by block.

  Args:
    query_embeddings: [Q, D] any float dtype, finite.
    query_labels: [Q] int64.
    gallery_embeddings: [N, D] likewise.
    gallery_labels: [N] int64.
    exclude_self: whether the gallery is the queries, and row i of it is left
      out for query i.
    budget: bytes of memory to stay within.
    primitive: 'sort' or 'count'; the faster for the block, if None.
    devices: all local devices, if None.

  Raises:
    InputError: if the budget does not hold the smallest block.
  """
  # Classes in order of size, so that the queries of a block have about the same
  # number of positives, and the gallery by class, so that the positives of a
  # query are a run of columns.
  classes, sizes = np.unique(gallery_labels, return_counts=True)
  by_size = np.argsort(sizes, kind='stable')
  place = np.argsort(by_size)
  sizes = sizes[by_size]
  gallery_class = place[np.searchsorted(classes, gallery_labels)]
  order = np.argsort(gallery_class, kind='stable')

  found = np.minimum(np.searchsorted(classes, query_labels), len(classes) - 1)
  num_positives = np.where(
    classes[found] == query_labels, sizes[place[found]] - exclude_self, 0
  )
  query_class = place[found]
  queries = np.argsort(query_class, kind='stable')
  queries = queries[num_positives[queries] > 0]

  gallery = tiles.Tiles(
    gallery_embeddings,
    (gallery_class[order], order),
    order=order,
    budget=budget // 2,
    devices=devices,
  )
  budget -= gallery.num_bytes
  first_column = np.cumsum(sizes) - sizes

  def put(picked, block_rows):
    class_ = query_class[picked]
    itself = picked if exclude_self else np.full(len(picked), -2)
    columns = (class_, itself, first_column[class_], sizes[class_])
    return gallery.put_queries(query_embeddings[picked], columns, block_rows)

  for name, part in _parts(queries, num_positives, gallery, primitive):
    most = int(sizes[query_class[part[-1]]])
    row_bytes, rank = _plan(name, gallery, most)
    threads = _num_threads(gallery)
    smallest = tiles.MIN_BLOCK_ROWS * len(gallery.devices) * row_bytes
    threads = max(1, min(threads, budget // smallest))
    if smallest > budget:
      needed = math.ceil(2 * (smallest + gallery.num_bytes) / tiles.MIB)
      raise InputError(
        f'memory_budget_mb is too small for a gallery of {gallery.num_rows} '
        f'rows, {most} of them of one class; allowed is {needed} or more: '
        f'pass memory_budget_mb={needed}'
      )
    block_rows = gallery.block_rows(len(part), row_bytes, budget // threads)
    picks = [part[block] for block in tiles.blocks(len(part), block_rows)]

    def rank_block(picked, rank=rank, block_rows=block_rows):
      return rank(gallery, put(picked, block_rows), picked, num_positives)

    yield from _map_in_order(rank_block, picks, threads)


def _parts(queries, num_positives, gallery, primitive):
  """Splits the queries, which are by class size, between the primitives."""
  if primitive is None:
    platform = 'cpu' if gallery.devices[0].platform == 'cpu' else 'accelerator'
    split = np.searchsorted(
      num_positives[queries], _COUNT_UP_TO[platform], side='right'
    )
  else:
    split = len(queries) if primitive == 'count' else 0
  for name, part in (('count', queries[:split]), ('sort', queries[split:])):
    if len(part):
      yield name, part


def _plan(name, gallery, most_positives):
  """Returns (bytes that a query needs, the function that ranks a block)."""
  # Similarities, keys and the comparison's operand of one tile.
  row_bytes = 12 * gallery.tile_rows
  if name == 'sort':
    # The row that is sorted, the mask of its positives, and about eight
    # arrays over the positives.
    return row_bytes + 9 * gallery.num_rows + 64 * most_positives, _rank_by_sort
  width = tiles.power_of_two(most_positives)
  rank = functools.partial(_rank_by_count, width=width)
  row_bytes += 4 * gallery.tile_rows * min(_KEPT_TILES, len(gallery))
  return row_bytes + 96 * width, rank


def _num_threads(gallery):
  if gallery.devices[0].platform != 'cpu':
    return 1
  return min(len(os.sched_getaffinity(0)), _MAX_THREADS)


def _map_in_order(function, items, threads):
  """Maps in threads, in order, with one result a thread waiting at most."""
  if threads == 1:
    yield from map(function, items)
    return
  with futures.ThreadPoolExecutor(threads) as pool:
    pending = []
    for item in items:
      pending.append(pool.submit(function, item))
      if len(pending) == threads:
        yield pending.pop(0).result()
    for future in pending:
      yield future.result()


@jax.jit
def _keys(queries, tile):
  """Returns [B, T] int32 keys, `_LAST` for self and for padding."""
  rows, (query_class, itself, *_) = queries
  gallery_rows, (gallery_class, gallery_row) = tile
  similarities = arrays.dot_products(rows, gallery_rows)
  keys = -2 * jnp.round(similarities / RESOLUTION).astype(jnp.int32)
  keys += (query_class[:, None] != gallery_class[None, :]).astype(jnp.int32)
  left_out = itself[:, None] == gallery_row[None, :]
  left_out |= (gallery_row < 0)[None, :]
  return jnp.where(left_out, _LAST, keys)


# -- sort ---------------------------------------------------------------------


def _rank_by_sort(gallery, queries, picked, num_positives):
  num_rows = gallery.num_rows
  keys = np.empty((len(picked), num_rows), np.int32)
  for index in range(len(gallery)):
    start = index * gallery.tile_rows
    stop = min(start + gallery.tile_rows, num_rows)
    tile_keys = np.asarray(_keys(queries, gallery[index]))
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


# -- count --------------------------------------------------------------------


def _rank_by_count(gallery, queries, picked, num_positives, *, width):
  _, (_, _, first_column, size) = queries
  # The positives first: only the tiles that hold one are computed for it.
  columns = np.asarray(first_column)[: len(picked)]
  first_tile = int(columns.min()) // gallery.tile_rows
  columns = columns + np.asarray(size)[: len(picked)]
  last_tile = (int(columns.max()) - 1) // gallery.tile_rows
  kept_keys = {}
  positives = _no_positives(first_column, width=width)
  for index in range(first_tile, last_tile + 1):
    keys = _keys(queries, gallery[index])
    start = np.int32(index * gallery.tile_rows)
    positives = _positives(keys, start, first_column, size, positives)
    if len(kept_keys) < _KEPT_TILES:
      kept_keys[index] = keys

  thresholds, counts = _thresholds(positives)
  chunk = _CHUNK if gallery.devices[0].platform == 'cpu' else None
  for index in range(len(gallery)):
    keys = kept_keys.pop(index, None)
    if keys is None:
      keys = _keys(queries, gallery[index])
    counts = _count(keys, thresholds, counts, chunk=chunk, mesh=gallery.mesh)
  counts = np.asarray(counts)[: len(picked)]
  above, not_below = counts[:, :width], counts[:, width:]

  num_positives = num_positives[picked]
  hits = np.broadcast_to(np.arange(1.0, width + 1), above.shape)
  kept = hits <= num_positives[:, None]
  hits = hits[kept]
  tied = (not_below - above)[kept].astype(np.int64)
  ranks = hits + above[kept]
  return Ranks(picked, num_positives, hits, ranks, tied if tied.any() else None)


@functools.partial(jax.jit, static_argnames='width')
def _no_positives(first_column, *, width):
  return jnp.zeros_like(first_column)[:, None] + jnp.full(
    (1, width), _LAST, jnp.int32
  )


@jax.jit
def _positives(keys, start, first_column, size, positives):
  """Adds the keys of the positives in a tile to `positives` [B, width]."""
  nth = jnp.arange(positives.shape[1], dtype=jnp.int32)[None, :]
  column = first_column[:, None] + nth - start
  here = (column >= 0) & (column < keys.shape[1]) & (nth < size[:, None])
  column = jnp.clip(column, 0, keys.shape[1] - 1)
  found = jnp.take_along_axis(keys, column, axis=1)
  return jnp.where(here, found, positives)


@jax.jit
def _thresholds(positives):
  """Returns what to compare keys with, [B, 2 width], and counters at zero.

  A negative is above a positive if its key is smaller, and not below it if its
  key is at most the positive's plus 1.
  """
  positives = jnp.sort(positives, axis=1)
  absent = positives == _LAST
  not_below = jnp.where(absent, -_LAST, positives + 2)
  thresholds = jnp.concatenate(
    [jnp.where(absent, -_LAST, positives), not_below], axis=1
  )
  return thresholds, jnp.zeros_like(thresholds)


@functools.partial(jax.jit, static_argnames=('chunk', 'mesh'))
def _count(keys, thresholds, counts, *, chunk, mesh):
  """Adds, for each threshold, the negatives of a tile with smaller keys."""
  keys = jnp.where(keys & 1 == 1, keys, _LAST)
  # Each device loops over its own rows.
  count = jax.shard_map(
    functools.partial(count_below, chunk=chunk),
    mesh=mesh,
    in_specs=P('rows'),
    out_specs=P('rows'),
  )
  return counts + count(keys, thresholds)


def count_below(
  keys: jax.Array, thresholds: jax.Array, chunk: int | None
) -> jax.Array:
  """Returns c_ij = #{t : keys[i, t] < thresholds[i, j]}.

  Args:
    keys: [B, T] int32.
    thresholds: [B, K] int32.
    chunk: keys compared at a time, row by row: a CPU keeps the counters in
      registers; or None for one comparison [B, T, K] that a GPU compiler fuses
      into the sum.

  Returns:
    [B, K] int32.

  Example:
    >>> keys, thresholds = jnp.array([[3, 1, 2, 9]]), jnp.array([[2, 9]])
    >>> count_below(keys, thresholds, chunk=2).tolist()
    [[1, 3]]
  """
  if chunk is None:
    below = keys[:, :, None] < thresholds[:, None, :]
    return jnp.sum(below, axis=1, dtype=jnp.int32)

  def count_row(row):
    row_keys, row_thresholds = row

    def add(i, counts):
      some = lax.dynamic_slice(row_keys, (i * chunk,), (chunk,))
      below = some[:, None] < row_thresholds[None, :]
      return counts + jnp.sum(below, axis=0, dtype=jnp.int32)

    zeros = jnp.zeros_like(row_thresholds)
    return lax.fori_loop(0, len(row_keys) // chunk, add, zeros)

  return lax.map(count_row, (keys, thresholds))
