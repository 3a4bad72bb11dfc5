"""The exact rank of every relevant gallery row, for blocks of queries.

The metrics of a ranking are functions of where its positives (the gallery rows
of the query's class) stand, so nothing else is computed: for the j-th best
positive, how many negatives are above it, and how many tie with it. No row
order of the gallery enters, so none can decide a tie.

Two counters of `counting` give the same ranks, bit for bit.
"""

import functools
import math
import os
from collections.abc import Iterator, Sequence
from concurrent import futures

import jax
import numpy as np

from retrieval_jax.core import tiles
from retrieval_jax.core.errors import InputError
from retrieval_jax.metrics import counting
from retrieval_jax.metrics.ranks import Ranks

# Up to about this many positives, comparing is the faster (measured on CPUs).
_COMPARE_UP_TO = 32
_SEARCHED_ROWS = 128  # More leave the cache, and malloc gives pages back.
_MAX_THREADS = 4


def rank_positives(
  query_embeddings: np.ndarray,
  query_labels: np.ndarray,
  gallery_embeddings: np.ndarray,
  gallery_labels: np.ndarray,
  *,
  exclude_self: bool,
  budget: int,
  counter: str | None = None,
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
    counter: 'compare' or 'search'; the faster for the block, if None.
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

  for name, part in _parts(queries, num_positives, counter):
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
    wanted = len(part)
    if name == 'search':
      wanted = min(wanted, _SEARCHED_ROWS * len(gallery.devices))
    block_rows = gallery.block_rows(wanted, row_bytes, budget // threads)
    picks = [part[block] for block in tiles.blocks(len(part), block_rows)]

    def rank_block(picked, rank=rank, block_rows=block_rows):
      return rank(gallery, put(picked, block_rows), picked, num_positives)

    yield from _map_in_order(rank_block, picks, threads)


def _parts(queries, num_positives, counter):
  """Splits the queries, which are by class size, between the counters."""
  if counter is None:
    split = np.searchsorted(
      num_positives[queries], _COMPARE_UP_TO, side='right'
    )
  else:
    split = len(queries) if counter == 'compare' else 0
  for name, part in (('compare', queries[:split]), ('search', queries[split:])):
    if len(part):
      yield name, part


def _plan(name, gallery, most_positives):
  """Returns (bytes that a query needs, the function that ranks a block)."""
  width = tiles.power_of_two(most_positives)
  # Similarities that are kept, and arrays over the positives of the ranks.
  row_bytes = 4 * gallery.tile_rows * min(counting.KEPT_TILES, len(gallery))
  row_bytes += 64 * most_positives
  if name == 'compare':
    # Similarities and keys of one tile; thresholds and counters.
    row_bytes += 12 * gallery.tile_rows + 48 * width
    counter = counting.compare_negatives
  else:
    # Likewise, with places twice; the table of buckets too.
    row_bytes += 24 * gallery.tile_rows + 64 * width
    counter = counting.search_negatives
  return row_bytes, functools.partial(
    counting.rank_by_count, width=width, counter=counter
  )


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
