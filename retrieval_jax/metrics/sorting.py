"""Ranks of the relevant rows of any relation, by sorting whole rankings.

`ranking` counts, which needs the positives of a query to be one class. Those of
label sets and of graded relevance are not, so here a query's ranking is formed:
a key for each gallery row, sorted on the host. That is O(N log N) a query, and
4 N bytes for each query of a block.
"""

import math
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from retrieval_jax.core import relations, tiles
from retrieval_jax.core.errors import InputError
from retrieval_jax.metrics import ranks
from retrieval_jax.metrics.ranks import LAST_KEY, Ranks

_BYTES_OF_POSITIVE = 96  # In `Ranks`, and in what metrics make of them.


def rank_relevant(
  query_embeddings: np.ndarray,
  query_labels: np.ndarray,
  gallery_embeddings: np.ndarray,
  gallery_labels: np.ndarray,
  *,
  grades: np.ndarray | None = None,
  exclude_self: bool,
  budget: int,
  devices: Sequence[jax.Device] | None = None,
) -> Iterator[Ranks]:
  """Yields the ranks of all queries that have a positive, block by block.

  A gallery row without a label is relevant to no query, and stands in all
  rankings.

  Args:
    query_embeddings: [Q, D] any float dtype, finite.
    query_labels: [Q] int, or [Q, L] label sets.
    gallery_embeddings: [N, D] likewise.
    gallery_labels: [N] or [N, M] likewise.
    grades: [C, C] of int labels, see `relations.relevance`.
    exclude_self: whether the gallery is the queries, and row i of it is left
      out for query i.
    budget: bytes of memory to stay within.
    devices: all local devices, if None.

  Raises:
    InputError: if the budget does not hold the smallest block.
  """
  if grades is None:
    query_labels, gallery_labels = _numbered(query_labels, gallery_labels)
  most_positives = _most_positives(query_labels, gallery_labels, grades)
  gallery = tiles.Tiles(
    gallery_embeddings,
    (gallery_labels, np.arange(len(gallery_labels))),
    budget=budget // 2,
    devices=devices,
  )
  budget -= gallery.num_bytes
  # Similarities, keys and relations of a tile; the keys of all, and which of
  # them are positives.
  width = len(gallery) * gallery.tile_rows
  row_bytes = 24 * gallery.tile_rows + 9 * width
  positive_bytes = _BYTES_OF_POSITIVE * most_positives
  smallest = tiles.MIN_BLOCK_ROWS * len(gallery.devices) * row_bytes
  if smallest + positive_bytes > budget:
    needed = 2 * (smallest + positive_bytes + gallery.num_bytes)
    needed = math.ceil(needed / tiles.MIB)
    raise InputError(
      f'memory_budget_mb is too small for a gallery of {gallery.num_rows} '
      f'rows, up to {most_positives} of them relevant to a query; allowed is '
      f'{needed} or more: pass memory_budget_mb={needed}'
    )
  num_queries = len(query_labels)
  block_rows = gallery.block_rows(
    num_queries, row_bytes, max(smallest, (budget - positive_bytes) // 2)
  )
  left = budget - block_rows * row_bytes
  rows_at_once = max(1, left // max(positive_bytes, 1))
  for block in tiles.blocks(num_queries, block_rows):
    picked = np.arange(num_queries)[block]
    itself = picked if exclude_self else np.full(len(picked), -2)
    queries = gallery.put_queries(
      query_embeddings[block], (query_labels[block], itself), block_rows
    )
    keys = np.empty((len(picked), width), np.int32)
    for index in range(len(gallery)):
      start = index * gallery.tile_rows
      keys[:, start : start + gallery.tile_rows] = np.asarray(
        _tile_keys(queries, gallery[index], grades)
      )[: len(picked)]
    keys.sort(axis=1)
    for part in tiles.blocks(len(picked), rows_at_once):
      found = _ranks(picked[part], keys[part])
      if len(found.queries):
        yield found


def _numbered(query_labels, gallery_labels):
  """Returns label sets whose labels are numbers from 0, which fit an int32."""
  classes = np.unique(np.concatenate([query_labels, gallery_labels], axis=None))
  classes = classes[classes >= 0]

  def number(label_sets):
    numbers = np.searchsorted(classes, label_sets)
    return np.where(label_sets >= 0, numbers, -1)

  return number(query_labels), number(gallery_labels)


def _most_positives(query_labels, gallery_labels, grades):
  """Returns how many rows can be relevant to one query: at least as many."""
  _, labels = relations.incidences(gallery_labels)
  queries = query_labels if query_labels.ndim == 2 else query_labels[:, None]
  counts = np.bincount(labels[labels >= 0], minlength=queries.max() + 1)
  if grades is not None:
    related = (grades > 0).astype(np.int64)
    counts = related[:, : len(counts)] @ counts[: len(grades)]
  most = np.where(queries >= 0, counts[queries], 0).sum(axis=1).max()
  return min(int(most), len(gallery_labels))


def _tile_keys(queries, tile, grades):
  """Returns the keys [B, T] of a tile, `LAST_KEY` for what is not ranked."""
  rows, (labels, itself) = queries
  tile_rows, (tile_labels, gallery_row) = tile
  # Apart, so that no fusion changes how similarities are summed.
  similarities = ranks.similarities(rows, tile_rows)
  return _keys(similarities, labels, itself, tile_labels, gallery_row, grades)


@jax.jit
def _keys(similarities, labels, itself, tile_labels, gallery_row, grades):
  positives, _ = relations.pair_masks(labels, tile_labels, grades=grades)
  is_ranked = gallery_row[None, :] != itself[:, None]
  is_ranked &= (gallery_row >= 0)[None, :]  # Not the padding.
  keys = ranks.to_keys(similarities) + ~positives
  return jnp.where(is_ranked, keys, LAST_KEY)


def _ranks(picked: np.ndarray, keys: np.ndarray) -> Ranks:
  """Returns the ranks of some queries.

  Args:
    picked: [B] int64, their rows.
    keys: [B, W] int32, ascending: even of positives, and odd, 1 larger, of
      negatives of the same similarity.
  """
  rows, columns = np.nonzero(keys & 1 == 0)
  num_positives = np.bincount(rows, minlength=len(picked))
  starts = np.cumsum(num_positives) - num_positives
  hits = np.arange(1.0, len(rows) + 1) - np.repeat(starts, num_positives)
  # The last positive of each tie is followed by its first negative.
  own = keys[rows, columns]
  following = keys[rows, np.minimum(columns + 1, keys.shape[1] - 1)]
  last = np.flatnonzero(following == own + 1)
  sizes, num_tied = np.empty((2, len(last)), np.int64)
  tied_rows, begins = np.unique(rows[last], return_index=True)
  for row, which in zip(
    tied_rows, np.split(np.arange(len(last)), begins[1:]), strict=False
  ):
    key, column = own[last[which]], columns[last[which]] + 1
    sizes[which] = column - np.searchsorted(keys[row], key)
    num_tied[which] = np.searchsorted(keys[row], key + 1, 'right') - column
  nth = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
  has_positive = num_positives > 0
  return Ranks(
    picked[has_positive],
    num_positives[has_positive],
    hits,
    columns + 1.0,
    np.repeat(last - sizes + 1, sizes) + nth,
    np.repeat(num_tied, sizes),
  )
