"""Metrics of ranked lists, of which no similarity is known behind the last.

Re-ranking gives the best k gallery rows and nothing else, so that a metric of
the full ranking has no value; and what comes behind k would be another
ranking's. Here is what the first k say:

- the order is that of the list: there are no ties;
- `recall_at_<j>`, `precision_at_<j>` and `mean_average_precision_at_<j>` for
  j <= k, the last with the denominator min(R, j);
- `r_precision` and `mean_average_precision_at_r`, which look at the first R
  ranks, where no query has R above k;
- an entry of -1 is a rank at which nothing was returned, a miss; an entry for
  the second time is a miss too, and keeps its rank.
"""

import dataclasses
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import sparse

from retrieval_jax.core import relations, tiles
from retrieval_jax.core.errors import InputError, unknown_name

_BLOCK_ROWS = 4096


class ListMetric(NamedTuple):
  """A metric of lists.

  Attributes:
    definition: one sentence, with the denominator.
    depth: ranks that it looks at; None: R of the query.
    value: (hits [B, k] bool, R [B] int) -> [B] float64.
  """

  definition: str
  depth: int | None
  value: Callable[[np.ndarray, np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True)
class ListResult:
  """Metrics of lists, with what they are of.

  Attributes:
    metrics: name -> mean over the queries that have a positive, in [0, 1].
    protocol: num_queries, num_lone_queries, gallery_size, self_excluded,
      list_length (k), mean_returned (entries a list) and definitions (name ->
      sentence). JSON types only.
    per_query: name -> [Q] float64, NaN for lone queries, and of
      `returned_precision` for empty lists.
  """

  metrics: dict[str, float]
  protocol: dict[str, Any]
  per_query: dict[str, np.ndarray]


def _recall(j):
  return lambda hits, _: hits[:, :j].any(axis=1).astype(np.float64)


def _precision(j):
  return lambda hits, _: hits[:, :j].sum(axis=1) / j


def _average_precision(j):
  return lambda hits, positives: (
    _precision_sums(hits[:, :j]) / np.minimum(positives, j)
  )


def _precision_sums(hits):
  ranks = np.arange(1, hits.shape[1] + 1)
  return (hits * np.cumsum(hits, axis=1) / ranks).sum(axis=1)


def _within_r(hits, positives):
  return hits & (np.arange(hits.shape[1]) < positives[:, None])


METRICS_AT = {
  'recall_at': (
    'share of queries with at least one positive in the first {} ranks',
    _recall,
  ),
  'precision_at': (
    'mean over queries of the positives in the first {0} ranks, denominator '
    '{0}',
    _precision,
  ),
  'mean_average_precision_at': (
    'mean over queries of (1 / min(R, {0})) sum over the positives in the '
    'first {0} ranks of the precision at their rank',
    _average_precision,
  ),
}

METRICS_AT_R = {
  'r_precision': ListMetric(
    'mean over queries of the share of positives among the first R ranks, '
    'denominator R',
    None,
    lambda hits, positives: _within_r(hits, positives).sum(axis=1) / positives,
  ),
  'mean_average_precision_at_r': ListMetric(
    'mean over queries of (1 / R) sum over the positives within the first R '
    'ranks of the precision at their rank',
    None,
    lambda hits, positives: (
      _precision_sums(_within_r(hits, positives)) / positives
    ),
  ),
}

RETURNED_PRECISION = 'returned_precision'
_RETURNED_DEFINITION = (
  'mean over queries with a list that is not empty of the share of positives '
  'in it'
)


def get_list_metric(name: str, prefix: str = 'metrics') -> ListMetric:
  """Returns the metric of lists of a name.

  Args:
    name: a key of `METRICS_AT_R`, or one of `METRICS_AT` with `_<j>`.
    prefix: how the message calls it.

  Raises:
    InputError: for an unknown name, with the nearest known one.

  Example:
    >>> get_list_metric('recall_at_5').depth
    5
  """
  if name in METRICS_AT_R:
    return METRICS_AT_R[name]
  if match := re.fullmatch(r'(\w+_at)_([1-9][0-9]*)', name):
    if match[1] in METRICS_AT:
      definition, make = METRICS_AT[match[1]]
      depth = int(match[2])
      return ListMetric(definition.format(depth), depth, make(depth))
  known = [*METRICS_AT_R, *(f'{at}_<j>' for at in METRICS_AT)]
  raise unknown_name(prefix, name, known)


def evaluate_lists(
  indices,
  query_labels,
  gallery_labels=None,
  *,
  metrics: Sequence[str] | None = None,
  grades=None,
) -> ListResult:
  """Returns the metrics of ranked lists, such as of a re-ranking.

  A query without a positive in the gallery is left out and counted, as in
  `retrieval_metrics`.

  Args:
    indices: [Q, k] int, gallery rows, best first; -1 where nothing is returned.
    query_labels: [Q] int; or [Q, L] label sets, padded with -1.
    gallery_labels: [N] int or [N, M] likewise; None: the queries are the
      gallery, and no list holds its own query.
    metrics: names, see `get_list_metric`; None: `precision_at_1`,
      `recall_at_10`, `mean_average_precision_at_<k>`, and where no R is above
      k also those at R.
    grades: [C, C] float, see `core.relations`; what is graded above 0 is
      looked for.

  Returns:
    The metrics, and `returned_precision` if a list has ended early.

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

  References:
    Weyand et al., Google Landmarks Dataset v2, CVPR 2020, equation 2 (mAP@100
    with min(R, 100); their code counts a repeated entry as a miss).
  """
  labels = relations.check_labels(query_labels, 'query_labels', label_sets=True)
  is_one_set = gallery_labels is None
  known_labels = (
    labels
    if is_one_set
    else relations.check_labels(
      gallery_labels, 'gallery_labels', label_sets=True
    )
  )
  if known_labels.ndim != labels.ndim:
    raise InputError(
      f'gallery_labels has shape {known_labels.shape} and query_labels '
      f'{labels.shape}; allowed are ints (N,) in both, or label sets (N, L) in '
      'both: give each row its set'
    )
  grades = relations.check_grades(grades, labels, 'query_labels')
  relations.check_grades(grades, known_labels, 'gallery_labels')
  indices = _check_indices(indices, labels, known_labels, is_one_set)
  positives = _count_positives(labels, known_labels, grades)
  if is_one_set:
    positives -= _is_own_positive(labels, grades)
  ranked = np.flatnonzero(positives > 0)
  if not len(ranked):
    raise InputError(
      f'query_labels: none of the {len(labels)} queries has a relevant row in '
      'the gallery; allowed is at least one that does: check that both come '
      'from the same label map'
    )
  length = indices.shape[1]
  names = _names(metrics, length, int(positives.max()))
  rows = {name: get_list_metric(name) for name in names}
  _check_depths(rows, length, int(positives.max()))
  has_ended = bool((indices < 0).any())
  if has_ended:
    rows[RETURNED_PRECISION] = ListMetric(_RETURNED_DEFINITION, 0, None)
  per_query = {name: np.full(len(labels), np.nan) for name in rows}
  for block in tiles.blocks(len(ranked), _BLOCK_ROWS):
    picked = ranked[block]
    hits = _hits(indices[picked], labels[picked], known_labels, grades)
    for name, row in rows.items():
      if row.value is not None:
        per_query[name][picked] = row.value(hits, positives[picked])
    if has_ended:
      returned = (indices[picked] >= 0).sum(axis=1)
      some = returned > 0
      per_query[RETURNED_PRECISION][picked[some]] = (
        hits[some].sum(axis=1) / returned[some]
      )
  return ListResult(
    metrics={name: _mean(values) for name, values in per_query.items()},
    protocol={
      'num_queries': len(labels),
      'num_lone_queries': len(labels) - len(ranked),
      'gallery_size': len(known_labels),
      'self_excluded': is_one_set,
      'list_length': length,
      'mean_returned': float((indices >= 0).sum(axis=1).mean()),
      'definitions': {name: row.definition for name, row in rows.items()},
    },
    per_query=per_query,
  )


def _mean(values):
  values = values[~np.isnan(values)]
  return float(np.clip(values.mean(), 0.0, 1.0)) if len(values) else 0.0


def _check_indices(indices, labels, known_labels, is_one_set):
  indices = np.asarray(indices)
  if indices.ndim != 2 or len(indices) != len(labels) or not indices.size:
    raise InputError(
      f'indices have shape {indices.shape} with {len(labels)} query_labels; '
      'allowed is (Q, k), a list for each query: pass what a search returned'
    )
  if not np.issubdtype(indices.dtype, np.integer):
    raise InputError(
      f'indices have dtype {indices.dtype}; allowed are integers: pass the '
      'indices of a search, not the scores'
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
    return tuple(dict.fromkeys(metrics))
  names = ['precision_at_1']
  names += ['recall_at_10'] if length >= 10 else []
  names.append(f'mean_average_precision_at_{length}')
  return (*names, *(METRICS_AT_R if most_positives <= length else ()))


def _check_depths(rows, length, most_positives):
  for name, row in rows.items():
    depth = most_positives if row.depth is None else row.depth
    if depth > length:
      reason = f' with R up to {depth}' if row.depth is None else ''
      raise InputError(
        f'metrics has {name!r}{reason}; allowed is what looks at the first '
        f'{length} ranks, the length of the lists: make lists of {depth}'
      )


def _count_positives(labels, known_labels, grades):
  """Returns R [Q] int64, the query itself included where it is one of them."""
  if labels.ndim == 1:
    classes, counts = np.unique(known_labels, return_counts=True)
    if grades is not None:
      rows = grades[np.maximum(labels, 0)][:, np.maximum(classes, 0)] > 0
      return (rows & (labels >= 0)[:, None] & (classes >= 0)) @ counts
    places = np.minimum(np.searchsorted(classes, labels), len(classes) - 1)
    return np.where(classes[places] == labels, counts[places], 0)
  most = 1 + max(int(labels.max()), int(known_labels.max()), 0)
  sets = [
    sparse.csr_matrix(
      (np.ones(len(rows), np.int32), (rows, found)), shape=(len(x), most)
    )
    for x in (labels, known_labels)
    for rows, found in (relations.incidences(x),)
  ]
  by_label = sets[1].T.tocsr()
  return np.concatenate(
    [
      (sets[0][block] @ by_label).getnnz(axis=1)
      for block in tiles.blocks(len(labels), 256)
    ]
  ).astype(np.int64)


def _is_own_positive(labels, grades):
  return relations.are_related(labels, labels[:, None], grades)[:, 0]


def _hits(indices, labels, known_labels, grades):
  """Returns [B, k] bool, whether each entry is a positive, the first time."""
  hits = relations.are_related(labels, known_labels[indices], grades)
  hits &= indices >= 0
  order = np.argsort(indices, axis=1, kind='stable')
  ordered = np.take_along_axis(indices, order, axis=1)
  again = np.zeros(indices.shape, bool)
  np.put_along_axis(
    again, order[:, 1:], ordered[:, 1:] == ordered[:, :-1], axis=1
  )
  return hits & ~again
