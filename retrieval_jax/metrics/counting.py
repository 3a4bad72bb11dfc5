"""Ranks of positives by counting the negatives above them, tile by tile.

Nothing is sorted but the positives of a query, and nothing of the size of the
gallery is kept: memory does not depend on N. Two counters give the same
numbers, bit for bit:

- `compare_negatives` compares each negative with each positive, O(N R) a query:
  a few vector instructions a negative, the faster for small classes;
- `search_negatives` looks each negative up among the sorted positives and
  counts what falls between two of them, O(N log R) a query at worst.
"""

import functools
from collections.abc import Callable, Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec as P

from retrieval_jax.core import tiles
from retrieval_jax.metrics import ranks
from retrieval_jax.metrics.ranks import LAST_KEY, Ranks

KEPT_TILES = 2  # Tiles of similarities that are not computed twice.
_GROUP = 16  # Rows searched at a time on a CPU.
_SUMMED = 64  # Numbers summed by one matrix product.
_CHUNK = 16  # Keys compared at a time on a CPU: a vector register's worth.


class Counts(NamedTuple):
  """How many negatives stand above the positives of a block of queries.

  Attributes:
    above: [B, K] int32, strictly more similar than each positive.
    tied_rows: [T] int64, the rows of the positives that tie with a negative,
      ascending.
    tied_columns: [T] int64, their columns, ascending in each row.
    num_tied: [T] int64, the negatives that each ties with.
  """

  above: np.ndarray
  tied_rows: np.ndarray
  tied_columns: np.ndarray
  num_tied: np.ndarray


# Takes the gallery; the class of each query [B]; the keys of its positives [B,
# K] int32 on the host, ascending and filled up with `LAST_KEY`; for each tile
# the similarities [B, T] and the class of each row [T].
Counter = Callable[
  [
    tiles.Tiles,
    jax.Array,
    np.ndarray,
    Iterable[tuple[jax.Array, jax.Array]],
  ],
  Counts,
]


def rank_by_count(
  gallery: tiles.Tiles,
  queries,
  picked: np.ndarray,
  num_positives: np.ndarray,
  *,
  width: int,
  counter: Counter,
) -> Ranks:
  """Returns the ranks of a block of queries.

  Args:
    gallery: the tiles, in the order of their classes, with two columns: class
      and row of the gallery.
    queries: the block on the devices: unit rows [B, D], and columns [B]: class,
      own gallery row or -2, the first gallery column of the class, its size.
    picked: [B] int64, the rows of the query array in the block.
    num_positives: [Q] int64, of all queries.
    width: at least the largest class, so that few shapes are compiled.
    counter: `compare_negatives` or `search_negatives`.
  """
  rows, (query_class, itself, first_column, size) = queries
  # The positives first: only the tiles that hold one are computed for it.
  columns = np.asarray(first_column)[: len(picked)]
  first_tile = int(columns.min()) // gallery.tile_rows
  columns = columns + np.asarray(size)[: len(picked)]
  last_tile = (int(columns.max()) - 1) // gallery.tile_rows
  kept = {}
  positives = _no_positives(first_column, width=width)
  for index in range(first_tile, last_tile + 1):
    tile_rows, (_, gallery_row) = gallery[index]
    similarities = ranks.similarities(rows, tile_rows)
    first_nth = first_column - np.int32(index * gallery.tile_rows)
    positives = _positives(
      similarities, gallery_row, first_nth, size, itself, positives
    )
    if len(kept) < KEPT_TILES:
      kept[index] = similarities

  def all_similarities():
    for index in range(len(gallery)):
      tile_rows, (gallery_class, _) = gallery[index]
      similarities = kept.pop(index, None)
      if similarities is None:
        similarities = ranks.similarities(rows, tile_rows)
      yield similarities, gallery_class

  # XLA sorts five times slower than numpy on a CPU, and these are few.
  positives = np.sort(np.asarray(positives), axis=1)
  counts = counter(gallery, query_class, positives, all_similarities())
  num_positives = num_positives[picked]
  starts = np.cumsum(num_positives) - num_positives
  hits = np.arange(1.0, num_positives.sum() + 1)
  hits -= np.repeat(starts, num_positives)
  above = np.concatenate(
    [row[:size] for row, size in zip(counts.above, num_positives, strict=False)]
  )
  return Ranks(
    picked,
    num_positives,
    hits,
    hits + above,
    starts[counts.tied_rows] + counts.tied_columns,
    counts.num_tied,
  )


@functools.partial(jax.jit, static_argnames='width')
def _no_positives(first_column, *, width):
  return jnp.zeros_like(first_column)[:, None] + jnp.full(
    (1, width), LAST_KEY, jnp.int32
  )


@jax.jit
def _positives(similarities, gallery_row, first_nth, size, itself, positives):
  """Adds the keys of the positives in a tile to `positives` [B, width]."""
  nth = jnp.arange(positives.shape[1], dtype=jnp.int32)[None, :]
  column = first_nth[:, None] + nth
  here = (column >= 0) & (column < len(gallery_row)) & (nth < size[:, None])
  column = jnp.clip(column, 0, len(gallery_row) - 1)
  here &= gallery_row[column] != itself[:, None]
  found = jnp.take_along_axis(similarities, column, axis=1)
  return jnp.where(here, ranks.to_keys(found), positives)


def _negatives(similarities, query_class, gallery_class):
  """Returns the keys of negatives, `LAST_KEY` for all else."""
  counted = query_class[:, None] != gallery_class[None, :]
  counted &= (gallery_class >= 0)[None, :]  # Not the padding.
  return jnp.where(counted, ranks.to_keys(similarities) + 1, LAST_KEY)


# -- few positives: compare each with each ------------------------------------


def compare_negatives(gallery, query_class, positives, all_similarities):
  """A `Counter`: every negative against every positive."""
  # A negative is above a positive if its key is smaller, and not below it if
  # its key is at most the positive's plus 1.
  absent = positives == LAST_KEY
  above = np.where(absent, -LAST_KEY, positives)
  not_below = np.where(absent, -LAST_KEY, positives + 2)
  thresholds = gallery.put_rows(np.concatenate([above, not_below], axis=1))
  counts = jnp.zeros_like(thresholds)
  chunk = _CHUNK if gallery.devices[0].platform == 'cpu' else None
  for similarities, gallery_class in all_similarities:
    counts = _compare(
      similarities,
      query_class,
      gallery_class,
      thresholds,
      counts,
      chunk=chunk,
      mesh=gallery.mesh,
    )
  above, not_below = np.split(np.asarray(counts), 2, axis=1)
  tied = np.nonzero(not_below != above)
  return Counts(above, *tied, (not_below[tied] - above[tied]).astype(np.int64))


@functools.partial(jax.jit, static_argnames=('chunk', 'mesh'))
def _compare(
  similarities, query_class, gallery_class, thresholds, counts, *, chunk, mesh
):
  """Adds, for each threshold, the negatives of a tile with smaller keys."""
  keys = _negatives(similarities, query_class, gallery_class)
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


# -- many positives: look each negative up among them -------------------------


def search_negatives(gallery, query_class, positives, all_similarities):
  """A `Counter`: binary search, from a table of buckets of similarity."""
  # One column more, so that what is below all positives has a place too.
  thresholds = np.full(np.add(positives.shape, (0, 1)), LAST_KEY, np.int32)
  thresholds[:, :-1] = positives
  # On a CPU some rows at a time, so that their places stay in the cache.
  group = len(positives) // len(gallery.devices)
  if gallery.devices[0].platform == 'cpu':
    group = min(_GROUP, group)
  thresholds, buckets, counts = _start_search(
    thresholds, mesh=gallery.mesh, group=group
  )
  for similarities, gallery_class in all_similarities:
    counts = _search(
      similarities,
      query_class,
      gallery_class,
      thresholds,
      buckets,
      counts,
      mesh=gallery.mesh,
      group=group,
    )
  between, tied = np.moveaxis(np.asarray(counts), 1, 0)
  above = np.cumsum(between + tied, axis=1, dtype=np.int32)[:, :-1]
  rows, ends = np.divmod(np.flatnonzero(tied != 0), tied.shape[1])
  num_tied = tied[rows, ends].astype(np.int64)
  ends -= 1  # The last positive of each tie; find the first, of the same key.
  starts = ends.copy()
  while (
    same := (starts > 0)
    & (positives[rows, starts - 1] == positives[rows, ends])
  ).any():
    starts -= same
  sizes = ends - starts + 1
  nth = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
  return Counts(
    above,
    np.repeat(rows, sizes),
    np.repeat(starts, sizes) + nth,
    np.repeat(num_tied, sizes),
  )


class _Buckets(NamedTuple):
  """Buckets of equal width, M to a row, about two for each of its positives."""

  low: jax.Array  # [B, 1] int32, a key in the first bucket; with all below.
  high: jax.Array  # [B, 1] int32, a key in the last bucket; with all above.
  scale: jax.Array  # [B, 1] float32, buckets to a key.
  before: jax.Array  # [B, M] int32, the positives before each bucket.
  steps: jax.Array  # [B] int32, of a binary search in the fullest bucket.


def _bucket(keys, low, high, scale):
  # Rounded the same for a positive and a negative, so ordered like the keys.
  offset = jnp.clip(keys, low, high) - low
  return (offset.astype(jnp.float32) * scale).astype(jnp.int32)


@functools.partial(jax.jit, static_argnames=('mesh', 'group'))
def _start_search(thresholds, *, mesh, group):
  """Returns (the thresholds, their `_Buckets`, the counters at zero)."""

  def of_rows(thresholds, _):
    num_rows, width = thresholds.shape
    num_buckets = tiles.power_of_two(2 * (width - 1), at_least=_SUMMED)
    present = thresholds != LAST_KEY
    num_present = jnp.sum(present, axis=1, keepdims=True)
    # Outliers would leave few buckets for the others.
    outliers = num_present // 256
    last = jnp.maximum(num_present - 1 - outliers, 0)
    low = jnp.take_along_axis(thresholds, outliers, axis=1)
    high = jnp.take_along_axis(thresholds, last, axis=1)
    scale = (num_buckets - 1) / jnp.maximum(high - low, 1).astype(jnp.float32)
    row = jnp.arange(num_rows, dtype=jnp.int32)[:, None]
    bucket = _bucket(thresholds, low, high, scale)
    held = jnp.zeros((num_rows, num_buckets), jnp.int32)
    held = held.at[row, bucket].add(present.astype(jnp.int32))
    steps = 32 - lax.clz(held.max(axis=1))
    before = _sums_before(held).astype(
      jnp.uint16 if width <= 2**16 else jnp.int32
    )
    buckets = _Buckets(low, high, scale, before, steps)
    counts = jnp.zeros((num_rows, 2, width), jnp.int32)
    return thresholds, buckets, counts

  return _map_groups(of_rows, group, mesh)(thresholds, ())


def _map_groups(function, group, mesh):
  """Maps `function(rows, shared)` over groups of rows, on each device its own.

  Returns:
    A function of (arrays [B, ...] in any tree, whatever all groups share) that
    returns what `function` does, of all B rows.
  """

  def of_device(by_row, shared):
    groups = jax.tree.map(lambda x: x.reshape(-1, group, *x.shape[1:]), by_row)
    mapped = lax.map(lambda rows: function(rows, shared), groups)
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), mapped)

  return jax.shard_map(
    of_device, mesh=mesh, in_specs=(P('rows'), P()), out_specs=P('rows')
  )


def _sums_before(x):
  """Returns sum_{i < j} x_i of int32 rows [B, M] of counts.

  Sums of `_SUMMED` numbers by a matrix product, exact below 2 ** 24: on a CPU
  1.6 times as fast as XLA's cumsum of a whole row.
  """
  parts = x.reshape(len(x), -1, _SUMMED)
  earlier = jnp.triu(jnp.ones((_SUMMED, _SUMMED), jnp.float32), 1)
  inside = jnp.matmul(
    parts.astype(jnp.float32), earlier, precision=lax.Precision.HIGHEST
  )
  totals = parts.sum(axis=-1)
  before = jnp.cumsum(totals, axis=1) - totals
  return (inside.astype(jnp.int32) + before[..., None]).reshape(x.shape)


@functools.partial(
  jax.jit, static_argnames=('mesh', 'group'), donate_argnames='counts'
)
def _search(
  similarities,
  query_class,
  gallery_class,
  thresholds,
  buckets,
  counts,
  *,
  mesh,
  group,
):
  """Adds the negatives of a tile to `counts` [B, 2, K].

  [:, 0, j] counts those with j positives at least as similar and no tie,
  [:, 1, j] those that tie with the last of these positives.
  """
  by_row = (similarities, query_class, thresholds, buckets, counts)
  return _map_groups(_search_rows, group, mesh)(by_row, gallery_class)


def _search_rows(by_row, gallery_class):
  similarities, query_class, thresholds, buckets, counts = by_row
  keys = _negatives(similarities, query_class, gallery_class)
  *scale, before, steps = buckets
  steps = steps.max()
  width = thresholds.shape[1]
  row = jnp.arange(len(keys), dtype=jnp.int32)[:, None]
  first, last = row * width, row * width + width - 1

  def step(i, place):
    middle = jnp.minimum(place + (1 << (steps - 1 - i)) - 1, last)
    return jnp.where(_take(thresholds, middle) < keys, middle + 1, place)

  place = _take(before, row * before.shape[1] + _bucket(keys, *scale))
  place = lax.fori_loop(0, steps, step, first + place)
  # Keys of positives are even, and a negative of the same similarity follows.
  tied = _take(thresholds, jnp.maximum(place - 1, 0)) + 1 == keys
  place += first + jnp.where(tied, width, 0)
  new = counts.reshape(-1)
  new = new.at[place.reshape(-1)].add(1, mode='promise_in_bounds')
  return new.reshape(counts.shape)


def _take(table, flat_index):
  # In bounds by construction; XLA's own check costs half as much again.
  return table.reshape(-1).at[flat_index].get(mode='promise_in_bounds')
