"""The exact rank of every relevant gallery row, for blocks of queries.

The metrics of a ranking are functions of where its positives (the gallery rows
of the query's class) stand, so nothing else is computed: for the j-th best
positive, how many negatives are above it, and how many tie with it. No row
order of the gallery enters, so none can decide a tie.

Two counters of `counting` give the same ranks, bit for bit.
"""

import math
import os
from collections.abc import Iterator, Sequence

import jax
import numpy as np

from retrieval_jax.core import row_files, tiles
from retrieval_jax.core.errors import InputError
from retrieval_jax.metrics import counting, ranks, selecting
from retrieval_jax.metrics.classes import Classes
from retrieval_jax.metrics.ranks import Ranks

# On a CPU comparing is the faster up to about this many positives (measured).
_COMPARE_UP_TO = 64
# Narrow, so that of a symmetric matrix little more than half is computed; not a
# power of two, for which the similarities of a column share few cache lines.
_TILE_ROWS = 832
_MOST_PART_ROWS = 1024  # At least those of a tile: few parts, few programs.
_SORTED_ROWS = 128  # More leave the cache.
_MAX_THREADS = 4


def rank_positives(
  query_embeddings: np.ndarray,
  query_labels: np.ndarray,
  gallery_embeddings: np.ndarray,
  gallery_labels: np.ndarray,
  *,
  exclude_self: bool,
  own_rows: np.ndarray | None = None,
  budget: int,
  counter: str | None = None,
  devices: Sequence[jax.Device] | None = None,
  process: tuple[int, int] = (0, 1),
) -> Iterator[Ranks]:
  """Yields the ranks of all queries that have a positive, block by block.

  Args:
    query_embeddings: [Q, D] any float dtype, finite.
    query_labels: [Q] int64.
    gallery_embeddings: [N, D] likewise.
    gallery_labels: [N] int64.
    exclude_self: whether the gallery is the queries, and row i of it is left
      out for query i.
    own_rows: [Q] int64, the gallery row, of its class, that is the query itself
      and is left out for it, -1 for none; None: none, or `exclude_self`.
    budget: bytes of memory to stay within.
    counter: 'compare' or 'sort'; the faster for the block, if None.
    devices: all local devices, if None.
    process: (which, of how many) share the gallery; all of them call this.

  Raises:
    InputError: if the budget does not hold the smallest block.
  """
  if exclude_self:
    own_rows = np.arange(len(query_labels))
  devices = list(devices or jax.local_devices())
  classes = Classes.of(query_labels, gallery_labels, own_rows)
  most_compared = {'compare': np.inf, 'sort': 0, None: _COMPARE_UP_TO}[
    counter or ('compare' if devices[0].platform != 'cpu' else None)
  ]
  by_comparison, by_sorting = classes.split(most_compared)
  query_rows = row_files.RowReader(query_embeddings)
  gallery_rows = row_files.RowReader(gallery_embeddings)
  # A file is read from front to back.
  in_order = not gallery_rows.is_file
  order = classes.order if in_order else np.arange(len(gallery_rows))
  places = np.argsort(classes.order)[order]
  gallery = tiles.Tiles(
    gallery_embeddings,
    (classes.of_gallery[order], places),
    order=order if in_order else None,
    budget=budget // 2,
    devices=devices,
    tile_rows=_TILE_ROWS if len(by_comparison) else tiles.TILE_ROWS,
    process=process,
  )
  ranking = _Ranking(
    classes,
    query_rows,
    gallery_rows,
    gallery,
    in_order,
    budget - gallery.num_bytes,
  )
  if exclude_self and in_order:
    yield from ranking.compare_with_itself(by_comparison)
  else:
    yield from ranking.compare(by_comparison)
  yield from ranking.sort(by_sorting)


class _Ranking:
  """Ranks parts of the queries within a budget."""

  def __init__(
    self, classes, query_rows, gallery_rows, gallery, in_order, budget
  ):
    self._classes = classes
    self._query_rows, self._gallery_rows = query_rows, gallery_rows
    self._gallery, self._budget = gallery, budget
    self._in_order = in_order
    self._last_members = None, None

  def compare(self, queries):
    """Yields the ranks of queries of any gallery."""
    if not len(queries):
      return
    block_rows, group_rows = self._rows_at_once(queries)
    for group in tiles.blocks(len(queries), max(group_rows, block_rows)):
      in_group = queries[group]

      def prepare(block, in_group=in_group):
        picked = in_group[block]
        return self._prepare(picked, self._put_queries(picked, block_rows))

      yield from self._compare_group(
        prepare, tiles.blocks(len(in_group), block_rows)
      )

  def compare_with_itself(self, queries):
    """Yields the ranks of queries that are the gallery in its order.

    Blocks are parts of tiles, so that each pair of tiles is computed once.
    """
    if not len(queries):
      return
    gallery, order = self._gallery, self._classes.order
    block_rows, group_rows = self._rows_at_once(queries, most=_MOST_PART_ROWS)
    parts = math.ceil(gallery.tile_rows / block_rows)
    while gallery.tile_rows % (parts * tiles.MIN_BLOCK_ROWS):
      parts += 1
    block_rows = gallery.tile_rows // parts
    rows_of_all = gallery.tile_rows * gallery.process[1]
    if group_rows < rows_of_all:
      yield from self.compare(queries)
      return
    places = self._classes.own_place[queries]
    first, last = places.min() // rows_of_all, places.max() // rows_of_all
    is_query = np.zeros(len(order), bool)
    is_query[queries] = True

    def prepare(place):
      picked = order[place : place + block_rows]
      tile = place // rows_of_all
      column = place - gallery.start(tile)
      columns = slice(0, 0)
      if 0 <= column < gallery.tile_rows:
        columns = slice(column, column + len(picked))
      rows = gallery.rows_at(place, block_rows)
      return self._prepare(picked, rows, is_query[picked], tile, columns)

    for group in tiles.blocks(last + 1 - first, group_rows // rows_of_all):
      start = (first + group.start) * rows_of_all
      stop = min((first + group.stop) * rows_of_all, len(order))
      yield from self._compare_group(prepare, range(start, stop, block_rows))

  def sort(self, queries):
    """Yields the ranks of queries of large classes."""
    if not len(queries):
      return
    gallery, classes = self._gallery, self._classes
    width = int(classes.num_positives[queries].max())
    at_once = counting.tiles_at_once(gallery)
    in_one_part = at_once == len(gallery) and gallery.process[1] == 1
    columns = gallery.tile_rows * at_once
    # Keys, as they come and as a ranking, and which of them are positives;
    # similarities under way; what stands above the positives, and their ranks.
    row_bytes = 13 * (columns + width) + 8 * gallery.tile_rows + 176 * width
    smallest = tiles.MIN_BLOCK_ROWS * row_bytes
    self._check_budget(smallest, width)
    threads = max(1, min(self._num_threads(), self._budget // smallest))
    block_rows = gallery.block_rows(
      min(len(queries), _SORTED_ROWS), row_bytes, self._budget // threads
    )

    def count(block):
      picked = queries[block]
      rows, of_queries = gallery.put_queries(
        self._query_rows[picked],
        (classes.of_queries[picked], classes.own_place[picked]),
        block_rows,
      )
      own_keys = None
      if not in_one_part:
        own_keys = self._own_keys(picked, rows, of_queries, width)
      return picked, counting.count_by_sorting(
        gallery, rows, of_queries, classes.num_positives[picked], own_keys
      )

    blocks = list(tiles.blocks(len(queries), block_rows))
    for picked, counts in tiles.map_in_order(count, blocks, threads):
      yield self._ranks(picked, self._of_all_processes(counts))

  def _own_keys(self, queries, rows, of_queries, width):
    """Returns the keys [b, width] of the positives of some queries."""
    own_keys = np.empty((len(queries), 0), np.int32)
    for begin, tile_rows in self._members(queries):
      places = np.arange(begin, begin + len(tile_rows), dtype=np.int32)
      class_ = np.full(len(places), -1, np.int32)
      members = self._classes.order[begin : begin + len(places)]
      class_[: len(members)] = self._classes.of_gallery[members]
      found = counting.keys(
        ranks.similarities(rows, tile_rows),
        of_queries,
        (class_, places),
        negatives=False,
      )
      found = np.asarray(found)[: len(queries)]
      own_keys = np.concatenate([own_keys, found], axis=1)
      own_keys = np.sort(own_keys, axis=1)[:, :width]
    return own_keys

  def _rows_at_once(self, queries, most=tiles.MAX_BLOCK_ROWS):
    """Returns (rows of a block, rows of a group) to compare."""
    gallery = self._gallery
    width = _width(int(self._classes.num_positives[queries].max()))
    threads = self._threads_to_compare()
    most_keys = self._most_keys()
    budget = self._budget - selecting.KEY_BYTES * most_keys
    # Similarities under way, and what is picked from them; the ranks.
    pair_bytes = 4 * (counting.MOST_AHEAD + 1)
    if most_keys:
      pair_bytes += counting.MOST_AHEAD + 1
      pair_bytes += selecting.most_share(width) * selecting.PICKED_BYTES
    block_bytes = math.ceil(pair_bytes * gallery.tile_rows) * threads
    block_bytes += 96 * width
    # The query, thresholds and counts of rows and of columns.
    copies = len(gallery.devices)
    group_bytes = 4 * self._query_rows.shape[1] * copies
    group_bytes += width * (20 * copies + 40 + 8 * threads)
    if most_keys:
      num_positives = self._classes.num_positives[queries].mean()
      group_bytes += math.ceil(selecting.POSITIVE_BYTES * num_positives)
    smallest = tiles.MIN_BLOCK_ROWS * (block_bytes + group_bytes)
    self._check_budget(smallest, width)
    block_rows = gallery.block_rows(
      len(queries), block_bytes + group_bytes, budget // 2, most
    )
    left = budget - block_rows * block_bytes
    return block_rows, left // group_bytes

  def _most_keys(self):
    """Returns how many keys may be kept to select with; 0 not to select."""
    if self._gallery.devices[0].platform != 'cpu':
      return 0
    fitting = self._budget // 8 // selecting.KEY_BYTES
    few = fitting < self._gallery.tile_rows * tiles.MIN_BLOCK_ROWS
    return 0 if few else min(fitting, selecting.MOST_KEYS)

  def _check_budget(self, smallest, most_positives):
    if smallest > self._budget:
      needed = 2 * (smallest + self._gallery.num_bytes) / tiles.MIB
      needed = math.ceil(needed)
      raise InputError(
        'memory_budget_mb is too small for a gallery of '
        f'{self._gallery.num_rows} rows, up to {most_positives} of them of one '
        f'class; allowed is {needed} or more: pass memory_budget_mb={needed}'
      )

  def _num_threads(self):
    if self._gallery.devices[0].platform != 'cpu':
      return 1
    return min(len(os.sched_getaffinity(0)), _MAX_THREADS)

  def _threads_to_compare(self):
    # Several devices run at the same time anyway; tiles that do not stay would
    # be read by each thread.
    if len(self._gallery.devices) > 1 or not self._gallery.resident:
      return 1
    return self._num_threads()

  def _put_queries(self, picked, block_rows):
    """Returns queries [block_rows, D] on the devices."""
    rows, _ = self._gallery.put_queries(
      self._query_rows[picked], (), block_rows
    )
    return rows

  def _prepare(self, picked, rows, is_query=None, tile=-1, columns=slice(0, 0)):
    """Finds the positives of a block of queries.

    Args:
      picked: [b] rows of the query array, by class.
      rows: [B, D] of the queries on the devices, padded.
      is_query: [b] bool, which of them are ranked; all, if None.
      tile: and `columns`, see `counting.Block`.

    Returns:
      (the rows that are ranked, and which of the block they are; the block).
    """
    classes = self._classes
    if is_query is None:
      is_query = np.ones(len(picked), bool)
    which = np.flatnonzero(is_query)
    ranked = picked[which]
    class_ = classes.of_queries[ranked]
    num_positives = classes.num_positives[ranked]
    width = _width(int(num_positives.max(initial=1)))
    first, own_place = classes.first[class_], classes.own_place[ranked]
    nth = np.arange(width)
    places = first[:, None] + nth
    places += (own_place >= 0)[:, None] & (places >= own_place[:, None])
    places[nth >= num_positives[:, None]] = -1
    places = np.concatenate([places, own_place[:, None]], axis=1)
    own_columns = np.full((len(rows), width + 1), -1, np.int32)
    own_columns[which] = places
    own = np.full(own_columns.shape, -np.inf, np.float32)
    own_columns, own = self._gallery.put((own_columns, own))
    for begin, tile_rows in self._members(ranked):
      own = counting.take_own(
        ranks.similarities(rows, tile_rows), own_columns, begin, own
      )
    return (ranked, which), counting.Block(rows, own, tile, columns)

  def _members(self, queries):
    """Yields the gallery rows of the classes of some queries, as tiles.

    They go through the same matrix product as all others, so that equal rows
    tie. Blocks often share the last tile.

    Args:
      queries: [b] rows of the query array.

    Yields:
      the place in the order where a tile begins, and its rows [T, D], as many
      as a device has of a tile.
    """
    classes, gallery = self._classes, self._gallery
    class_ = classes.of_queries[queries]
    start = int(classes.first[class_].min(initial=len(classes.order)))
    stop = int((classes.first + classes.sizes)[class_].max(initial=0))
    num_rows = gallery.tile_rows // len(gallery.devices)
    for begin in range(start, stop, num_rows):
      # Looked at once: other threads put theirs there meanwhile.
      last = self._last_members
      if last[0] != begin:
        if self._in_order:
          rows = gallery.rows_at(begin, num_rows)
        else:
          members = classes.order[begin : begin + num_rows]
          rows, _ = gallery.put_queries(
            self._gallery_rows[members], (), num_rows
          )
        last = self._last_members = begin, rows
      yield last

  def _compare_group(self, prepare, parts):
    threads = self._threads_to_compare()
    prepared = list(tiles.map_in_order(prepare, parts, threads))
    counts = counting.count_by_comparison(
      self._gallery, [b for _, b in prepared], threads, self._most_keys()
    )
    for (picked, which), (above, reached, present) in zip(
      (queries for queries, _ in prepared), counts, strict=True
    ):
      if not len(picked):
        continue
      counts = self._of_all_processes(np.stack([above, reached]))[:, which]
      present = present[which]
      # Best first; both ascend alike.
      counts = np.sort(np.where(present, counts, ranks.LAST_KEY), axis=-1)
      present = np.sort(~present, axis=-1) == 0
      yield self._ranks(picked, counts[:, present])

  def _ranks(self, queries, counts):
    num_positives = self._classes.num_positives[queries]
    return Ranks.of_counts(queries, num_positives, *counts)

  def _of_all_processes(self, counts):
    if self._gallery.process[1] == 1:
      return counts
    return tiles.gather_from_processes(counts).sum(axis=0)


def _width(number: int) -> int:
  """Returns the next of 4, 8, 12, 16, 24, 32, ...: few shapes are compiled.

  Two thresholds for each then fill vector registers.
  """
  power = tiles.power_of_two(number, at_least=4)
  return 3 * power // 4 if power >= 16 and number <= 3 * power // 4 else power
