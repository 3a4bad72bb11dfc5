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
  query j. On a CPU, where few rows reach the worst positive of a query, it
  counts these alone (`selecting`);
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
from jax.sharding import PartitionSpec as P

from retrieval_jax.core import tiles
from retrieval_jax.metrics import comparing, ranks, selecting

SORTED_COLUMNS = 16384  # At most about so many are sorted at a time.
_SORTED_RANKINGS = 32  # So that what is made of them stays in the cache.
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
  gallery: tiles.Tiles,
  blocks: Sequence[Block],
  threads: int = 1,
  most_keys: int = 0,
) -> list[Counts]:
  """Counts for blocks of queries; each thread asks for each tile once.

  Args:
    gallery: the tiles.
    blocks: of any sizes. If some are parts of tiles, they are all the rows of
      these tiles, and each pair of these tiles is computed once.
    threads: how many share the blocks. A thread runs one program at a time, of
      which on a CPU only the matrix product takes more than one core.
    most_keys: how many keys of similarities to keep where few of them reach the
      worst positive of a query, see `selecting`; 0 to compare all.
  """
  thresholds = [_thresholds(block.own) for block in blocks]
  of_columns = _ColumnThresholds(gallery, blocks, thresholds)
  selection = None
  if most_keys:
    selection = selecting.Selection(
      gallery,
      [np.asarray(block.own)[:, :-1] for block in blocks],
      [np.split(np.asarray(t), 2, axis=1)[1].min(axis=1) for t in thresholds],
      [(block.tile, block.columns) for block in blocks],
      most_keys,
    )

  def count(some):
    return _count_some(gallery, blocks, some, thresholds, of_columns, selection)

  parts = [range(first, len(blocks), threads) for first in range(threads)]
  found = list(tiles.map_in_order(count, parts, threads))
  totals = selection.counts() if selection else [0] * len(blocks)
  column_counts = collections.Counter()
  for by_rows, by_columns in found:
    for i, of_block in by_rows.items():
      totals[i] = totals[i] + np.asarray(of_block).sum(axis=0)
    for index, of_tile in by_columns.items():
      column_counts[index] += np.asarray(of_tile)
  return [
    _counts(gallery, *of_block, column_counts)
    for of_block in zip(blocks, thresholds, totals, strict=True)
  ]


def _count_some(gallery, blocks, some, thresholds, of_columns, selection):
  """Counts for some of the blocks.

  Returns:
    block -> counts [devices, B, 2 K], tile -> counts [2 K, T] of its columns:
    what was compared.
  """
  counts, column_counts = {}, {}

  def zeros(*shape, spec):
    return gallery.put(np.zeros(shape, np.int32), spec)

  def compare(similarities, i, index):
    if i not in counts:
      shape = len(gallery.devices), *thresholds[i].shape
      counts[i] = zeros(*shape, spec=P('rows'))
    counts[i] = comparing.add_rows(
      similarities, thresholds[i], counts[i], mesh=gallery.mesh
    )
    if index < 0:
      return counts[i]
    columns = of_columns[index]
    if index not in column_counts:
      column_counts[index] = zeros(*columns.shape, spec=P(None, 'rows'))
    column_counts[index] = comparing.add_columns(
      similarities, columns, column_counts[index], mesh=gallery.mesh
    )
    return column_counts[index]

  dense = set() if selection else set(some)

  def finish(found, pair):
    if pair is not None and not selection.pick(found, *pair):
      dense.add(pair[1])
      found = compare(*pair)
    found.block_until_ready()

  ahead = collections.deque()
  for index in range(len(gallery)):
    tile_rows, _ = gallery[index]
    for i in some:
      tile = blocks[i].tile
      if tile > index in of_columns:
        continue  # Counted where the rows of this block are the tile.
      pair = (
        ranks.similarities(blocks[i].rows, tile_rows),
        i,
        index if 0 <= tile < index in of_columns else -1,
      )
      if i in dense:
        ahead.append((compare(*pair), None))
      else:
        ahead.append((selection.reaching(*pair), pair))
      # Similarities take memory until they are counted.
      while len(ahead) > MOST_AHEAD:
        finish(*ahead.popleft())
  while ahead:
    finish(*ahead.popleft())
  return counts, column_counts


def _counts(gallery, block, thresholds, total, column_counts):
  """Returns the `Counts` of a block: all that was counted, less its own."""
  if not gallery.process[0]:
    total = total - np.asarray(
      _not_negative(
        block.own, thresholds, gallery.num_padding, mesh=gallery.mesh
      )
    )
  above, reached = np.split(total, 2, axis=1)
  if block.columns.stop and block.tile in column_counts:
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


@functools.partial(jax.jit, static_argnames='mesh')
def _not_negative(own, thresholds, num_padding, *, mesh):
  """Returns [B, 2 K], what is counted of the class, and of zero rows."""
  zeros = num_padding * (thresholds <= 0).astype(jnp.int32)
  return comparing.count_reached(own, thresholds, comparing.chunk(mesh)) + zeros


class _ColumnThresholds:
  """The thresholds [2 K, T] of the queries in the columns of tiles.

  Made when they are asked for, which they are not if all is selected.
  """

  def __init__(self, gallery, blocks, thresholds):
    self._gallery = gallery
    self._parts = collections.defaultdict(list)
    for block, t in zip(blocks, thresholds, strict=True):
      if block.tile >= 0:
        self._parts[block.tile].append((block.columns, t))
    self._made = {}

  def __contains__(self, index):
    return index in self._parts

  def __getitem__(self, index):
    if index not in self._made:  # Threads may make it twice.
      parts = self._parts[index]
      width = max(t.shape[1] for _, t in parts) // 2
      shape = 2, width, self._gallery.tile_rows
      found = np.full(shape, np.inf, np.float32)
      for columns, t in parts:
        of_block = np.stack(np.split(np.asarray(t).T, 2))
        number = columns.stop - columns.start
        found[:, : of_block.shape[1], columns] = of_block[..., :number]
      self._made[index] = self._gallery.put(
        found.reshape(2 * width, -1), P(None, 'rows')
      )
    return self._made[index]


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
