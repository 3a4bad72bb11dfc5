"""Metrics of ranked lists, of which no similarity is known behind the last.

Re-ranking gives the best k gallery rows and nothing else, so that a metric of
the full ranking has no value; and what comes behind k would be another
ranking's. So a metric may look at the first k ranks alone: those with a number
up to k, and those at R where no query has R above k. The order is that of the
list: there are no ties.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from scipy import sparse

from retrieval_jax.core import relations, tiles
from retrieval_jax.core.errors import InputError
from retrieval_jax.metrics import averages, definitions, rankings
from retrieval_jax.metrics.averages import Groups
from retrieval_jax.metrics.ignored import Ignored, padded_rows
from retrieval_jax.metrics.results import RetrievalResult
from retrieval_jax.metrics.retrieval import check_label_pair, check_metrics

# They look at the first R ranks.
_AT_R = ('r_precision', 'mean_average_precision_at_r')
RETURNED_PRECISION = 'returned_precision'
_RETURNED_DEFINITION = (
  'mean over queries with a list that is not empty of the share of positives '
  'in it'
)


def evaluate_lists(
  indices,
  query_labels,
  gallery_labels=None,
  *,
  metrics: Sequence[str] | None = None,
  grades=None,
  ignored: Ignored | None = None,
) -> RetrievalResult:
  """Returns the metrics of ranked lists, such as of a re-ranking.

  These are `evaluate_rankings`, with labels that say what is relevant: a query
  without a positive in the gallery is left out and counted, a repeated entry is
  a miss, and so is -1, and both keep their rank.

  Args:
    indices: [Q, k] int, gallery rows, best first; -1 where nothing is returned.
    query_labels: [Q] int; or [Q, L] label sets, padded with -1.
    gallery_labels: [N] int or [N, M] likewise; None: the queries are the
      gallery, and no list holds its own query.
    metrics: names, see `retrieval_metrics`, that look at the first k ranks and
      not at grades; None: `precision_at_1`, `recall_at_10`,
      `mean_average_precision_at_<k>`, and where no R is above k also those at
      R.
    grades: [C, C] float, see `core.relations`; what is graded above 0 is
      looked for.
    ignored: rows that a query is not judged by: they are taken out of its list,
      and what stood below moves up. A list of k entries is then known to fewer
      ranks, unless it ends with -1.

  Returns:
    The result, and in it `returned_precision` if a list has ended early. The
    protocol also has list_length (the ranks that are known) and mean_returned
    (entries a list).

  Raises:
    InputError: for lists and labels that do not fit, a depth beyond k, or a
      query in its own list.

  Example:
    The second query has one of its two positives, at rank 2.

    >>> result = evaluate_lists([[0, 1], [3, 2]], [5, 6], [5, 5, 6, 7, 6])
    >>> result.metrics['precision_at_1']
    0.5
    >>> result.metrics['mean_average_precision_at_2']
    0.625
  """
  labels = relations.check_labels(query_labels, 'query_labels', label_sets=True)
  is_one_set = gallery_labels is None
  known_labels = labels
  if not is_one_set:
    known_labels = relations.check_labels(
      gallery_labels, 'gallery_labels', label_sets=True
    )
  grades = check_label_pair(labels, known_labels, grades)
  indices = _check_indices(indices, labels, known_labels, is_one_set)
  positives = _count_positives(labels, known_labels, grades)
  itself = np.arange(len(labels))[:, None]
  if is_one_set:
    positives -= relations.are_related(labels, labels[itself], grades)[:, 0]
  is_ignored = np.zeros(indices.shape, bool)
  if ignored is not None:
    rows = ignored.rows_of_all(labels, known_labels, grades)
    is_ignored = relations.are_listed(indices, rows)
    counted = relations.are_related(labels, known_labels[rows], grades)
    counted &= (rows >= 0) & ~(is_one_set & (rows == itself))
    positives -= counted.sum(axis=1)
  is_listed = (indices >= 0) & ~is_ignored
  returned = is_listed.sum(axis=1)
  has_ended = (indices < 0).any(axis=1)
  length = int(returned.min(initial=indices.shape[1], where=~has_ended))
  if not length:
    row = int(np.argmin(returned + has_ended))
    raise InputError(
      f'indices row {row} holds nothing but rows that the query ignores; '
      'allowed are lists with others in them: make longer lists'
    )
  most_positives = int(positives.max())
  names = _names(metrics, length, most_positives)
  is_graded = grades is not None or labels.ndim == 2
  _check_depths(names, length, most_positives, is_graded)
  num_hits = np.zeros(len(labels))

  def find_hits(block):
    entries = indices[block]
    is_relevant = relations.are_related(
      labels[block], known_labels[entries], grades
    )
    hits = rankings.first_hits(entries, is_relevant, is_ignored[block])
    num_hits[block] = hits.sum(axis=1)
    return hits

  protocol = {'similarity': 'given lists'}
  if ignored is not None:
    protocol['ignored'] = ignored.describe()
  result = rankings.summarize_hits(
    find_hits,
    positives,
    names,
    width=indices.shape[1] * (1 + known_labels[0].size),
    groups={'class': Groups.of_labels(labels)},
    protocol=protocol
    | {
      'gallery_size': len(known_labels),
      'self_excluded': is_one_set,
      'list_length': length,
      'mean_returned': float(returned.mean()),
    },
    no_positive=(
      f'query_labels: none of the {len(labels)} queries has a relevant row in '
      'the gallery; allowed is at least one that does: check that both come '
      'from the same label map'
    ),
  )
  if has_ended.any():
    result = _with_returned_precision(result, positives, num_hits, returned)
  return result


def _with_returned_precision(result, positives, num_hits, returned):
  """Adds the share of positives in what is returned, if anything is."""
  is_judged = (positives > 0) & (returned > 0)
  if not is_judged.any():
    return result
  values = np.full(len(returned), np.nan)
  values[is_judged] = num_hits[is_judged] / returned[is_judged]
  mean = averages.mean(values)
  sentences = result.protocol['definitions'] | {
    RETURNED_PRECISION: _RETURNED_DEFINITION
  }
  return dataclasses.replace(
    result,
    metrics=result.metrics | {RETURNED_PRECISION: mean},
    ranges=result.ranges | {RETURNED_PRECISION: (mean, mean)},
    protocol=result.protocol | {'definitions': sentences},
    per_query=result.per_query | {RETURNED_PRECISION: values},
    per_query_ranges=result.per_query_ranges
    | {RETURNED_PRECISION: (values, values)},
  )


def _check_indices(indices, labels, known_labels, is_one_set):
  indices = padded_rows(np.asarray(indices), 'indices')
  if len(indices) != len(labels) or not indices.size:
    raise InputError(
      f'indices have shape {indices.shape} with {len(labels)} query_labels; '
      'allowed is (Q, k), a list for each query: pass what a search returned'
    )
  if indices.min() < -1 or indices.max() >= len(known_labels):
    raise InputError(
      f'indices reach from {indices.min()} to {indices.max()}; allowed are 0 '
      f'to {len(known_labels) - 1}, the rows of the gallery, and -1 for '
      'nothing: search in the gallery that the labels are of'
    )
  itself = indices == np.arange(len(indices))[:, None]
  if is_one_set and itself.any():
    raise InputError(
      f'indices row {int(np.argmax(itself.any(axis=1)))} holds the query '
      'itself; allowed are other rows where the queries are the gallery: '
      'search with exclude_self=True, or pass gallery_labels'
    )
  return indices


def _names(metrics, length, most_positives):
  if metrics is not None:
    return check_metrics(metrics, 'metrics')
  names = ['precision_at_1']
  names += ['recall_at_10'] if length >= 10 else []
  names.append(f'mean_average_precision_at_{length}')
  return (*names, *(_AT_R if most_positives <= length else ()))


def _check_depths(names, length, most_positives, is_graded):
  for name in names:
    base = averages.split_name(name)[1]
    if is_graded and definitions.get_metric(base).is_graded:
      raise InputError(
        f'metrics has {name!r} of lists whose relevance is graded; allowed is '
        'what asks whether a row is relevant, not how much: leave it out'
      )
    _, depth = definitions.parse_k(base)
    reason = ''
    if base in _AT_R:
      depth, reason = most_positives, f' with R up to {most_positives}'
    if depth is None:
      raise InputError(
        f'metrics has {name!r}; allowed is what looks at the first {length} '
        'ranks, the length of the lists, such as mean_average_precision_at_'
        f'{length}: leave it out'
      )
    if depth > length:
      raise InputError(
        f'metrics has {name!r}{reason}; allowed is what looks at the first '
        f'{length} ranks, the length of the lists: make lists of {depth}'
      )


def _count_positives(labels, known_labels, grades):
  """Returns R [Q] int64, the query itself included where it is one of them."""
  if labels.ndim == 2:
    return _count_sharing(labels, known_labels)
  if grades is not None:
    sizes = np.bincount(known_labels[known_labels >= 0], minlength=len(grades))
    return np.where(labels >= 0, ((grades > 0) @ sizes)[labels], 0)
  classes, sizes = np.unique(known_labels, return_counts=True)
  places = np.minimum(np.searchsorted(classes, labels), len(classes) - 1)
  return np.where(classes[places] == labels, sizes[places], 0)


def _count_sharing(label_sets, known_sets):
  """Returns how many rows have a label in common with each."""
  most = 1 + max(int(label_sets.max()), int(known_sets.max()), 0)
  sets = [
    sparse.csr_matrix(
      (np.ones(len(rows), np.int32), (rows, found)), shape=(len(x), most)
    )
    for x in (label_sets, known_sets)
    for rows, found in (relations.incidences(x),)
  ]
  by_label = sets[1].T.tocsr()
  return np.concatenate(
    [
      (sets[0][block] @ by_label).getnnz(axis=1)
      for block in tiles.blocks(len(label_sets), 256)
    ]
  ).astype(np.int64)
