"""How many gallery rows reach a similarity: what exact ranks are made of.

A positive of similarity s stands below the negatives that are strictly more
similar and ties with those that round to the same multiple of `RESOLUTION`. So
two counts give its rank and its ties: of the rows that reach the next multiple
above s, and of those that reach the multiple of s itself. Rows that are no
negatives are counted too and taken off again, which is cheaper than to find
them in every tile.

Nothing of the size of the gallery is kept: memory does not depend on N. Two
counters give the same numbers:

- `count_by_comparison` compares each similarity with each threshold, O(N R) a
  query, in vector registers, on any device. Where the queries are the gallery
  it needs only half of the similarities: s_ij is counted for query i, and for
  query j;
- `count_by_sorting` sorts rankings on the host, whose keys tell a positive from
  a negative, O((N + R) log N) a query: the faster on a CPU for large classes.
"""

import collections
import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec as P

from retrieval_jax.core import tiles
from retrieval_jax.metrics import ranks

SORTED_COLUMNS = 16384  # At most about so many are sorted at a time.
_SORTED_RANKINGS = 16  # So that what is made of them stays in the cache.
# Compared at a time on a CPU (measured with AVX2).
_CHUNK = 16
_CHUNK_OF_COLUMNS = 8
_MOST_THRESHOLDS = 64  # Whose counts stay in registers.
MOST_AHEAD = 1  # Counts that a thread has under way.


class Block(NamedTuple):
  """Queries whose positives are known, on the devices.

  Attributes:
    rows: [B, D] float32, unit rows.
    own: [B, K + 1] float32, the similarities of the positives and, last, of the
      query itself; -inf where there is none.
    tile: which tile of all processes the block is part of, if the queries are
      the gallery and in its order; or -1.
    columns: the part, a slice of the columns of that tile; or empty.
  """

  rows: jax.Array
  own: jax.Array
  tile: int = -1
  columns: slice = slice(0, 0)


class Counts(NamedTuple):
  """What stands above the positives of a block, in the tiles of a process.

  Attributes:
    above: [B, K] int32, negatives that are strictly more similar.
    reached: [B, K] int32, those, and those that tie.
    present: [B, K] bool, whether there is a positive; what the others count
      means nothing.
  """

  above: np.ndarray
  reached: np.ndarray
  present: np.ndarray


@jax.jit
def take_own(
  similarities: jax.Array, columns: jax.Array, start: int, own: jax.Array
) -> jax.Array:
  """Returns `own` [B, K] with what a tile has of the columns [B, K].

  Args:
    similarities: [B, T] float32, of columns `start` to `start + T`.
    columns: [B, K] int32; what is not among these changes nothing.
    start: the first column.
    own: [B, K] float32.
  """
  columns = columns - start
  here = (columns >= 0) & (columns < similarities.shape[1])
  inside = jnp.clip(columns, 0, similarities.shape[1] - 1)
  found = jnp.take_along_axis(similarities, inside, axis=1)
  return jnp.where(here, found, own)


# -- comparing ----------------------------------------------------------------


def count_by_comparison(
  gallery: tiles.Tiles, blocks: Sequence[Block], threads: int = 1
) -> list[Counts]:
  """Counts for blocks of queries; each thread asks for each tile once.

  Args:
    gallery: the tiles.
    blocks: of any sizes. If some are parts of tiles, they are all the rows of
      these tiles, and each pair of these tiles is computed once.
    threads: how many share the blocks. A thread runs one program at a time, of
      which on a CPU only the matrix product takes more than one core.
  """
  thresholds = [_thresholds(block.own) for block in blocks]
  of_columns = _thresholds_of_columns(gallery, blocks, thresholds)

  def count(some):
    return _count_some(gallery, blocks[some], thresholds[some], of_columns)

  parts = [slice(first, None, threads) for first in range(threads)]
  counts = [None] * len(blocks)
  column_counts = {}
  for some, (found, by_columns) in zip(
    parts, tiles.map_in_order(count, parts, threads), strict=True
  ):
    counts[some] = found
    for index, of_tile in by_columns.items():
      column_counts[index] = column_counts.get(index, 0) + np.asarray(of_tile)
  return [
    _counts(gallery, *of_block, column_counts)
    for of_block in zip(blocks, thresholds, counts, strict=True)
  ]


def _count_some(gallery, blocks, thresholds, of_columns):
  """Returns (the counts of each block, those of the columns of each tile)."""
  counts = gallery.put(
    [np.zeros((len(gallery.devices), *t.shape), np.int32) for t in thresholds],
    P('rows'),
  )
  column_counts = gallery.put(
    {index: np.zeros(t.shape, np.int32) for index, t in of_columns.items()},
    P(None, 'rows'),
  )
  mesh, chunk = gallery.mesh, _chunk(gallery)
  ahead = collections.deque()
  for index in range(len(gallery)):
    tile_rows, _ = gallery[index]
    for i, block in enumerate(blocks):
      if block.tile > index in of_columns:
        continue  # Counted where the rows of this block are the tile.
      similarities = ranks.similarities(block.rows, tile_rows)
      counts[i] = _add_rows(
        similarities, thresholds[i], counts[i], mesh=mesh, chunk=chunk
      )
      ahead.append(counts[i])
      if 0 <= block.tile < index in of_columns:
        column_counts[index] = _add_columns(
          similarities,
          of_columns[index],
          column_counts[index],
          mesh=mesh,
          chunk=chunk,
        )
        ahead.append(column_counts[index])
      # Similarities take memory until they are counted.
      while len(ahead) > MOST_AHEAD:
        ahead.popleft().block_until_ready()
  return counts, column_counts


def _counts(gallery, block, thresholds, counts, column_counts):
  """Returns the `Counts` of a block: by rows, by columns, less its own."""
  total = np.asarray(counts).sum(axis=0)
  if not gallery.process[0]:
    total -= np.asarray(
      _not_negative(
        block.own, thresholds, gallery.num_padding, chunk=_chunk(gallery)
      )
    )
  above, reached = np.split(total, 2, axis=1)
  if block.columns.stop:
    by_column = column_counts[block.tile][:, block.columns]
    for found, more in zip(
      (above, reached), np.split(by_column, 2), strict=True
    ):
      found[: more.shape[1]] += more[: found.shape[1]].T
  return Counts(above, reached, np.asarray(block.own)[:, :-1] > -np.inf)


@jax.jit
def _thresholds(own):
  """Returns [B, 2 K]: what is strictly above each positive; what is as high."""
  return _thresholds_of_positives(own[:, :-1])


@jax.jit
def _thresholds_of_positives(positives):
  present = positives > -jnp.inf
  multiples = ranks.multiples(jnp.where(present, positives, 0))
  both = jnp.concatenate([multiples + 1, multiples], axis=1)
  present = jnp.concatenate([present, present], axis=1)
  return jnp.where(present, ranks.least_similarities(both), jnp.inf)


@functools.partial(jax.jit, static_argnames='chunk')
def _not_negative(own, thresholds, num_padding, *, chunk):
  """Returns [B, 2 K], what is counted of the class, and of zero rows."""
  zeros = num_padding * (thresholds <= 0).astype(jnp.int32)
  return count_reached(own, thresholds, chunk) + zeros


def _thresholds_of_columns(gallery, blocks, thresholds):
  """Returns tile -> [2 K, T], the thresholds of the queries in its columns."""
  widths = {}
  for block, t in zip(blocks, thresholds, strict=True):
    if block.tile >= 0:
      widths[block.tile] = max(widths.get(block.tile, 0), t.shape[1] // 2)
  found = {
    index: np.full((2, width, gallery.tile_rows), np.inf, np.float32)
    for index, width in widths.items()
  }
  for block, t in zip(blocks, thresholds, strict=True):
    if block.columns.stop:
      of_block = np.stack(np.split(np.asarray(t).T, 2))
      size = block.columns.stop - block.columns.start
      found[block.tile][:, : of_block.shape[1], block.columns] = of_block[
        ..., :size
      ]
  return gallery.put(
    {i: t.reshape(-1, gallery.tile_rows) for i, t in found.items()},
    P(None, 'rows'),
  )


@functools.partial(jax.jit, static_argnames=('mesh', 'chunk'))
def _add_rows(similarities, thresholds, counts, *, mesh, chunk):
  """Adds the counts of the rows [devices, B, K], on each device its own."""
  add = jax.shard_map(
    lambda s, t, c: c + count_reached(s, t, chunk)[None],
    mesh=mesh,
    in_specs=(P(None, 'rows'), P(), P('rows')),
    out_specs=P('rows'),
  )
  return add(similarities, thresholds, counts)


@functools.partial(jax.jit, static_argnames=('mesh', 'chunk'))
def _add_columns(similarities, thresholds, counts, *, mesh, chunk):
  """Adds the counts of the columns [K, T]."""
  spec = P(None, 'rows')
  add = jax.shard_map(
    lambda s, t, c: (
      c + count_reached_by_columns(s, t, chunk and _CHUNK_OF_COLUMNS)
    ),
    mesh=mesh,
    in_specs=(spec, spec, spec),
    out_specs=spec,
  )
  return add(similarities, thresholds, counts)


def _chunk(gallery):
  return _CHUNK if gallery.devices[0].platform == 'cpu' else None


def count_reached(
  similarities: jax.Array, thresholds: jax.Array, chunk: int | None
) -> jax.Array:
  """Returns c_ij = #{t : s_it >= thresholds_ij}.

  Args:
    similarities: [B, T] float32.
    thresholds: [B, K] float32.
    chunk: similarities compared at a time, row by row: a CPU keeps what it
      counts in registers; or None for one comparison [B, T, K] that a GPU
      compiler fuses into the sum.

  Returns:
    [B, K] int32.

  Example:
    >>> similarities = jnp.array([[0.3, 0.1, 0.2, 0.9]])
    >>> count_reached(similarities, jnp.array([[0.2, 0.95]]), 2).tolist()
    [[3, 0]]
  """
  if chunk is None:
    reached = similarities[:, :, None] >= thresholds[:, None, :]
    return jnp.sum(reached, axis=1, dtype=jnp.int32)
  if thresholds.shape[1] > _MOST_THRESHOLDS:
    parts = [
      count_reached(similarities, thresholds[:, part], chunk)
      for part in tiles.blocks(thresholds.shape[1], _MOST_THRESHOLDS)
    ]
    return jnp.concatenate(parts, axis=1)

  def count_row(row):
    of_row, row_thresholds = row

    def count(some):
      reached = some[:, None] >= row_thresholds[None, :]
      return jnp.sum(reached, axis=0, dtype=jnp.int32)

    return _sum_over_chunks(count, of_row, chunk)

  return lax.map(count_row, (similarities, thresholds))


def count_reached_by_columns(
  similarities: jax.Array, thresholds: jax.Array, chunk: int | None
) -> jax.Array:
  """Returns c_jt = #{i : s_it >= thresholds_jt}.

  Args:
    similarities: [B, T] float32.
    thresholds: [K, T] float32.
    chunk: as in `count_reached`.

  Returns:
    [K, T] int32.

  Example:
    >>> similarities = jnp.array([[0.3], [0.1], [0.2], [0.9]])
    >>> thresholds = jnp.array([[0.2], [0.95]])
    >>> count_reached_by_columns(similarities, thresholds, 2).tolist()
    [[3], [0]]
  """

  def count(rows):
    reached = rows[:, None, :] >= thresholds[None, :, :]
    return jnp.sum(reached, axis=0, dtype=jnp.int32)

  return _sum_over_chunks(count, similarities, chunk or len(similarities))


def _sum_over_chunks(count, x, chunk):
  """Sums `count` of `chunk` elements along the first axis of x at a time."""
  whole = len(x) // chunk
  counts = count(x[whole * chunk :])
  if not whole:
    return counts

  def add(i, counts):
    return counts + count(lax.dynamic_slice_in_dim(x, i * chunk, chunk))

  return lax.fori_loop(0, whole, add, counts)


# -- sorting ------------------------------------------------------------------


def count_by_sorting(
  gallery: tiles.Tiles,
  rows: jax.Array,
  of_queries: tuple[jax.Array, jax.Array],
  num_positives: np.ndarray,
  own_keys: np.ndarray | None = None,
) -> np.ndarray:
  """Counts for one block, with at most `SORTED_COLUMNS` sorted at a time.

  Args:
    gallery: the tiles, with two columns: the class, and the place.
    rows: [B', D] float32, unit rows of the queries, and padding.
    of_queries: ([B'], [B']) int32, the classes of the queries, and the places
      of the rows that are the queries themselves.
    num_positives: [B], of the queries.
    own_keys: [B, K] int32, the keys of the positives, and `LAST_KEY`; None: all
      of the gallery is sorted at a time, and they are in it.

  Returns:
    [2, P] int64, `above` and `reached` of `Counts`, of the P positives of all
    queries, the best of each first.
  """
  edges = np.append(0, np.cumsum(num_positives))
  counts = np.zeros((2, edges[-1]), np.int64)
  width = gallery.tile_rows
  own_width = 0 if own_keys is None else own_keys.shape[1]
  for some in tiles.blocks(len(gallery), tiles_at_once(gallery)):
    rankings = np.empty(
      (len(num_positives), own_width + width * (some.stop - some.start)),
      np.int32,
    )
    if own_keys is not None:
      rankings[:, :own_width] = own_keys
    for i, index in enumerate(range(some.start, some.stop)):
      tile_rows, tile_columns = gallery[index]
      found = keys(
        ranks.similarities(rows, tile_rows),
        of_queries,
        tile_columns,
        positives=own_keys is None,
      )
      begin = own_width + i * width
      rankings[:, begin : begin + width] = np.asarray(found)[: len(rankings)]
    for few in tiles.blocks(len(rankings), _SORTED_RANKINGS):
      rankings[few].sort(axis=1)
      of_few = slice(edges[few.start], edges[few.stop])
      _, *found = ranks.count_in_order(rankings[few])
      for count, more in zip(counts[:, of_few], found, strict=True):
        count += more
  return counts


def tiles_at_once(gallery: tiles.Tiles) -> int:
  """Returns how many tiles are sorted at a time."""
  return min(len(gallery), max(1, SORTED_COLUMNS // gallery.tile_rows))


@functools.partial(jax.jit, static_argnames=('positives', 'negatives'))
def keys(
  similarities: jax.Array,
  of_queries: tuple[jax.Array, jax.Array],
  of_rows: tuple[jax.Array, jax.Array],
  *,
  positives: bool = True,
  negatives: bool = True,
) -> jax.Array:
  """Returns the keys [B, T] of similarities, see `ranks`.

  Args:
    similarities: [B, T] float32.
    of_queries: ([B], [B]) int32, the class of each query, and the place in the
      gallery of the query itself.
    of_rows: ([T], [T]) int32, the class and the place of each row; a class of
      -1 is padding.
    positives: whether to give those of positives.
    negatives: and those of negatives; all other get `LAST_KEY`.
  """
  (class_, place), (row_class, row_place) = of_queries, of_rows
  is_positive = class_[:, None] == row_class[None, :]
  wanted = (row_class >= 0)[None, :] & (place[:, None] != row_place[None, :])
  if not positives:
    wanted &= ~is_positive
  if not negatives:
    wanted &= is_positive
  found = ranks.to_keys(similarities) + ~is_positive
  return jnp.where(wanted, found, ranks.LAST_KEY)
