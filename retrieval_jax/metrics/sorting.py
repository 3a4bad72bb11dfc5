"""Ranks of the relevant rows of any relation, by sorting whole rankings.

`ranking` counts, which needs the positives of a query to be one class, and all
other rows to be its negatives. Those of label sets, of graded relevance and of
listed rows are not, and ignored rows are neither; so here a query's ranking is
formed: a key for each gallery row, sorted on the host. That is O(N log N) a
query, and 4 N bytes for each query of a block.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from retrieval_jax.core import relations, row_files, tiles
from retrieval_jax.core.errors import InputError
from retrieval_jax.metrics import ranks
from retrieval_jax.metrics.ignored import Ignored
from retrieval_jax.metrics.ranks import LAST_KEY, Ranks

_BYTES_OF_POSITIVE = 96  # In `Ranks`, and in what metrics make of them.
_BYTES_OF_GRADE = 64


class Labels(NamedTuple):
  """Relevance by label.

  Attributes:
    queries: [Q] int, or [Q, L] label sets.
    gallery: [N] or [N, M] likewise. A row without a label is relevant to no
      query, and stands in all rankings.
    grades: [C, C] of int labels, see `relations.relevance`; None.
  """

  queries: np.ndarray
  gallery: np.ndarray
  grades: np.ndarray | None = None


class Lists(NamedTuple):
  """Relevance by lists, as landmark sets come with.

  Attributes:
    rows: [Q, P] int64 rows of the gallery, each once, padded with -1.
  """

  rows: np.ndarray


def rank_relevant(
  query_embeddings: np.ndarray,
  gallery_embeddings: np.ndarray,
  relevant: Labels | Lists,
  *,
  exclude_self: bool,
  budget: int,
  ignored: Ignored | None = None,
  with_grades: bool = False,
  devices: Sequence[jax.Device] | None = None,
  process: tuple[int, int] = (0, 1),
) -> Iterator[Ranks]:
  """Yields the ranks of all queries that have a positive, block by block.

  Args:
    query_embeddings: [Q, D] any float dtype, finite.
    gallery_embeddings: [N, D] likewise.
    relevant: what is relevant to which query.
    exclude_self: whether the gallery is the queries, and row i of it is left
      out for query i.
    budget: bytes of memory to stay within.
    ignored: rows in no ranking, checked.
    with_grades: whether to say how relevant each positive is.
    devices: all local devices, if None.
    process: (which, of how many) share the gallery; all of them call this, and
      each sorts what all of them give.

  Raises:
    InputError: if the budget does not hold the smallest block.
  """
  if isinstance(relevant, Labels) and relevant.grades is None:
    relevant = Labels(
      *relations.number_labels(relevant.queries, relevant.gallery)
    )
  num_queries, num_rows = len(query_embeddings), len(gallery_embeddings)
  if isinstance(relevant, Lists):
    most_positives = relevant.rows.shape[1]
    # As padding, no row is a positive; the listed ones are made so later.
    labels = Labels(np.full(num_queries, -1), np.full(num_rows, -1))
  else:
    most_positives = _most_positives(*relevant)
    labels = relevant
  gallery = tiles.Tiles(
    gallery_embeddings,
    (labels.gallery, np.arange(num_rows)),
    budget=budget // 2,
    devices=devices,
    process=process,
  )
  budget -= gallery.num_bytes
  # Similarities, keys and relations of a tile; the keys of all, and which of
  # them are positives; the keys as they come from processes.
  own_width = len(gallery) * gallery.tile_rows
  width = own_width * process[1]
  row_bytes = 24 * gallery.tile_rows + 9 * width
  if process[1] > 1:
    row_bytes += 4 * own_width + 8 * width
  graded_bytes = _BYTES_OF_GRADE * with_grades
  positive_bytes = (_BYTES_OF_POSITIVE + graded_bytes) * most_positives
  smallest = tiles.MIN_BLOCK_ROWS * row_bytes
  if smallest + positive_bytes > budget:
    needed = 2 * (smallest + positive_bytes + gallery.num_bytes)
    needed = math.ceil(needed / tiles.MIB)
    raise InputError(
      f'memory_budget_mb is too small for a gallery of {gallery.num_rows} '
      f'rows, up to {most_positives} of them relevant to a query; allowed is '
      f'{needed} or more: pass memory_budget_mb={needed}'
    )
  block_rows = gallery.block_rows(
    num_queries, row_bytes, max(smallest, (budget - positive_bytes) // 2)
  )
  left = budget - block_rows * row_bytes
  rows_at_once = max(1, left // max(positive_bytes, 1))
  query_rows = row_files.RowReader(query_embeddings)
  for block in tiles.blocks(num_queries, block_rows):
    picked = np.arange(num_queries)[block]
    queries = gallery.put_queries(
      query_rows[block], (labels.queries[block],), block_rows
    )
    keys = np.empty((len(picked), own_width), np.int32)
    for index in range(len(gallery)):
      start = index * gallery.tile_rows
      keys[:, start : start + gallery.tile_rows] = np.asarray(
        _tile_keys(queries, gallery[index], labels.grades)
      )[: len(picked)]
    if process[1] > 1:
      keys = _of_all_processes(keys, gallery.tile_rows)
    if isinstance(relevant, Lists):
      _mark_positives(keys, relevant.rows[block])
    for part in tiles.blocks(len(picked), rows_at_once):
      found = _part_ranks(
        picked[part],
        keys[part],
        exclude_self=exclude_self,
        ignored=ignored,
        relevant=relevant if with_grades else None,
      )
      if len(found.queries):
        yield found


def _of_all_processes(keys, tile_rows):
  """Returns the keys [B, W] of all tiles, which go to the processes in turn."""
  parts = tiles.gather_from_processes(keys)
  parts = parts.reshape(*parts.shape[:2], -1, tile_rows)
  return parts.transpose(1, 2, 0, 3).reshape(len(keys), -1)


def _mark_positives(keys, rows):
  """Makes the listed rows positives."""
  queries, columns = np.nonzero(rows >= 0)
  keys[queries, rows[queries, columns]] &= ~1


def _part_ranks(picked, keys, *, exclude_self, ignored, relevant):
  """Returns the ranks of some queries; sorts their keys in place.

  Args:
    picked: [B] int64, their rows.
    keys: [B, W] int32, of the gallery in its order.
    exclude_self: whether to ignore row i for query i.
    ignored: what else.
    relevant: what the grades come from; None: no grades.
  """
  if exclude_self:
    keys[np.arange(len(picked)), picked] = LAST_KEY
  num_ranked = None
  if ignored is not None:
    keys[ignored.pairs(picked, lambda: np.nonzero(keys & 1 == 0))] = LAST_KEY
    num_ranked = np.count_nonzero(keys != LAST_KEY, axis=1)
  grades = own = None
  if relevant is not None:
    rows, columns = np.nonzero(keys & 1 == 0)
    grades = _grades(relevant, picked[rows], columns)
    own = keys[rows, columns]
    order = np.lexsort((-grades, own, rows))
    grades, own = grades[order], own[order]
  keys.sort(axis=1)
  num_positives, above, reached = ranks.count_in_order(keys)
  has_positive = num_positives > 0
  return Ranks.of_counts(
    picked[has_positive],
    num_positives[has_positive],
    above,
    reached,
    num_ranked=None if num_ranked is None else num_ranked[has_positive],
    grades=grades,
    keys=own,
  )


def _grades(relevant, rows, columns):
  """Returns [P] float64, how relevant gallery rows are to queries."""
  if isinstance(relevant, Lists):
    return np.ones(len(rows))
  return relations.pair_relevance(
    relevant.queries[rows], relevant.gallery[columns], relevant.grades
  )


def _most_positives(query_labels, gallery_labels, grades):
  """Returns how many rows can be relevant to one query: at least as many."""
  _, labels = relations.incidences(gallery_labels)
  queries = query_labels if query_labels.ndim == 2 else query_labels[:, None]
  # Queries may be without any label.
  num_labels = max(int(queries.max()) + 1, 1)
  counts = np.bincount(labels[labels >= 0], minlength=num_labels)
  if grades is not None:
    related = (grades > 0).astype(np.int64)
    counts = related[:, : len(counts)] @ counts[: len(grades)]
  most = np.where(queries >= 0, counts[queries], 0).sum(axis=1).max()
  return min(int(most), len(gallery_labels))


def _tile_keys(queries, tile, grades):
  """Returns the keys [B, T] of a tile, `LAST_KEY` for its padding."""
  rows, (labels,) = queries
  tile_rows, (tile_labels, gallery_row) = tile
  # Apart, so that no fusion changes how similarities are summed.
  similarities = ranks.similarities(rows, tile_rows)
  return _keys(similarities, labels, tile_labels, gallery_row, grades)


@jax.jit
def _keys(similarities, labels, tile_labels, gallery_row, grades):
  positives, _ = relations.pair_masks(labels, tile_labels, grades=grades)
  keys = ranks.to_keys(similarities) + ~positives
  return jnp.where((gallery_row >= 0)[None, :], keys, LAST_KEY)
