"""Ranks of positives by counting: in XLA, O(N R) a query.

Every key of a negative is compared with every positive, tile by tile, in
memory that does not depend on N. The fastest for few positives, and nothing
but the counts leaves an accelerator.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec as P

from retrieval_jax.core import tiles
from retrieval_jax.metrics.ranks import LAST_KEY, Ranks, similarity_keys

KEPT_TILES = 2  # Tiles of keys that are not computed twice.
_CHUNK = 16  # Keys compared at a time on a CPU: a vector register's worth.


def rank_by_count(
  gallery: tiles.Tiles,
  queries,
  picked: np.ndarray,
  num_positives: np.ndarray,
  *,
  width: int,
) -> Ranks:
  """Returns the ranks of a block of queries.

  Args:
    gallery: the tiles, in the order of their classes.
    queries: the block on the devices, as in `similarity_keys`, with two columns
      more: the first gallery column of the query's class, and its size.
    picked: [B] int64, the rows of the query array in the block.
    num_positives: [Q] int64, of all queries.
    width: at least the largest class, so that few shapes are compiled.
  """
  _, (_, _, first_column, size) = queries
  # The positives first: only the tiles that hold one are computed for it.
  columns = np.asarray(first_column)[: len(picked)]
  first_tile = int(columns.min()) // gallery.tile_rows
  columns = columns + np.asarray(size)[: len(picked)]
  last_tile = (int(columns.max()) - 1) // gallery.tile_rows
  kept_keys = {}
  positives = _no_positives(first_column, width=width)
  for index in range(first_tile, last_tile + 1):
    keys = similarity_keys(queries, gallery[index])
    start = np.int32(index * gallery.tile_rows)
    positives = _positives(keys, start, first_column, size, positives)
    if len(kept_keys) < KEPT_TILES:
      kept_keys[index] = keys

  thresholds, counts = _thresholds(positives)
  chunk = _CHUNK if gallery.devices[0].platform == 'cpu' else None
  for index in range(len(gallery)):
    keys = kept_keys.pop(index, None)
    if keys is None:
      keys = similarity_keys(queries, gallery[index])
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
    (1, width), LAST_KEY, jnp.int32
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
  absent = positives == LAST_KEY
  not_below = jnp.where(absent, -LAST_KEY, positives + 2)
  thresholds = jnp.concatenate(
    [jnp.where(absent, -LAST_KEY, positives), not_below], axis=1
  )
  return thresholds, jnp.zeros_like(thresholds)


@functools.partial(jax.jit, static_argnames=('chunk', 'mesh'))
def _count(keys, thresholds, counts, *, chunk, mesh):
  """Adds, for each threshold, the negatives of a tile with smaller keys."""
  keys = jnp.where(keys & 1 == 1, keys, LAST_KEY)
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
