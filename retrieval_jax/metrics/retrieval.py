"""Retrieval metrics of embeddings: exact, in bounded memory, in [0, 1].

How they are defined (and where PML's `AccuracyCalculator` differs):

- Similarity is cosine. A zero vector has no direction: its similarity to
  everything is 0, and the protocol counts such rows.
- Rankings are full. A `k` that cuts them makes PML's R-precision too large and
  its mAP@R too small; here there is none.
- A tie is no ranking. Values are expectations over random orders within ties,
  so that row order decides nothing.
- Without a gallery the queries are the gallery, and each query is left out of
  its own ranking by its index; its duplicates stay.
- A lone query (no row of its class to find) has no value, is left out of the
  mean, and is counted in the protocol.
- What is to be found is the query's class; with label sets, every row that has
  a label in common with it; with grades, every row graded above 0. How relevant
  it is does not enter these metrics.
"""

import dataclasses
import functools
import warnings
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from retrieval_jax.core import relations, tiles
from retrieval_jax.core.errors import InputError
from retrieval_jax.metrics import definitions, ranking, sorting
from retrieval_jax.metrics.ranks import RESOLUTION

DEFAULT_METRICS = (
  'precision_at_1',
  'r_precision',
  'mean_average_precision',
  'mean_average_precision_at_r',
  'mean_reciprocal_rank',
  'recall_at_10',
)

# Of (positive, negative) pairs. Distinct embeddings stay near 1e-6; where a
# fifth of the rows has collapsed to a point it is about 0.2 ** 3.
COLLAPSE_TIE_RATE = 0.005

_SLACK = 1e-9


@dataclasses.dataclass(frozen=True)
class RetrievalResult:
  """Metrics with what one needs to believe and to compare them.

  Attributes:
    metrics: name -> mean over the queries that have a positive.
    ranges: name -> (lowest, highest) mean that an order of the ties can give;
      equal to the metric where nothing ties.
    protocol: similarity, relevance (unless it is the class), num_queries,
      num_lone_queries, gallery_size, self_excluded, num_zero_embeddings,
      tie_rate (mean share of a query's (positive, negative) pairs that tie),
      tie_resolution (similarities that round to the same multiple tie),
      definitions (name -> sentence) and warnings (sentences, usually none).
      JSON types only.
    per_query: name -> [Q] float64, NaN for lone queries.
  """

  metrics: dict[str, float]
  ranges: dict[str, tuple[float, float]]
  protocol: dict[str, Any]
  per_query: dict[str, np.ndarray]


def retrieval_metrics(
  query_embeddings,
  query_labels,
  gallery_embeddings=None,
  gallery_labels=None,
  *,
  metrics: Sequence[str] = DEFAULT_METRICS,
  grades=None,
  memory_budget_mb: float = 128,
) -> dict[str, float]:
  """Returns retrieval metrics; warns if the embeddings have collapsed.

  Args:
    query_embeddings: [Q, D] any float dtype, on the host or one device.
    query_labels: [Q] int; or [Q, L] int label sets, padded with -1.
    gallery_embeddings: [N, D]; None: the queries, each excluded from its own
      ranking.
    gallery_labels: [N] int, or [N, M] likewise, with the gallery.
    metrics: names in `METRICS`, or `recall_at_<k>`.
    grades: [C, C] float of int labels, the relevance of each class to each; see
      `core.relations`. None: a class is relevant to itself alone.
    memory_budget_mb: MiB beyond the inputs and the results to stay within. If
      it also holds a float32 copy of the gallery twice, things go faster.

  Returns:
    name -> value in [0, 1], in the order of `metrics`.

  Raises:
    InputError: for arguments that cannot be ranked, in words.

  Example:
    >>> embeddings = np.array([[1.0, 0.0], [0.8, 0.6], [0.6, 0.8], [0.0, 1.0]])
    >>> retrieval_metrics(embeddings, np.array([0, 0, 1, 1]),
    ...                   metrics=('precision_at_1', 'mean_average_precision'))
    {'precision_at_1': 0.5, 'mean_average_precision': 0.75}
    >>> label_sets = np.array([[0, 1], [0, 2], [1, 2], [1, -1]])
    >>> retrieval_metrics(embeddings, label_sets,
    ...                   metrics=('precision_at_1', 'r_precision'))
    {'precision_at_1': 1.0, 'r_precision': 0.875}

  References:
    McSherry and Najork, ECIR 2008 (expectations over ties); Musgrave et al.,
    "A metric learning reality check", ECCV 2020, section 3.2 (mAP@R).
  """
  result = evaluate_retrieval(
    query_embeddings,
    query_labels,
    gallery_embeddings,
    gallery_labels,
    metrics=metrics,
    grades=grades,
    memory_budget_mb=memory_budget_mb,
  )
  for sentence in result.protocol['warnings']:
    warnings.warn(sentence, stacklevel=2)
  return result.metrics


def evaluate_retrieval(
  query_embeddings,
  query_labels,
  gallery_embeddings=None,
  gallery_labels=None,
  *,
  metrics: Sequence[str] = DEFAULT_METRICS,
  grades=None,
  memory_budget_mb: float = 128,
) -> RetrievalResult:
  """Returns retrieval metrics with ranges, protocol and values per query.

  The arguments and errors are those of `retrieval_metrics`. Warnings are left
  in the protocol, for the caller to log.

  Example:
    Four equal embeddings: everything ties, so nothing is decided.

    >>> result = evaluate_retrieval(np.ones((4, 2)), np.array([0, 0, 1, 1]),
    ...                             metrics=('precision_at_1',))
    >>> round(result.metrics['precision_at_1'], 4)
    0.3333
    >>> result.ranges['precision_at_1'], result.protocol['tie_rate']
    ((0.0, 1.0), 1.0)
  """
  names = check_metrics(metrics, 'metrics')
  budget = tiles.check_memory_budget(memory_budget_mb)
  queries = tiles.check_embeddings(query_embeddings, 'query_embeddings')
  labels = _check_labels(query_labels, 'query_labels', queries)
  self_excluded = gallery_embeddings is None
  if self_excluded != (gallery_labels is None):
    raise InputError(
      'gallery_embeddings and gallery_labels: one is given and one is not; '
      'allowed are both, or neither: then the queries are the gallery'
    )
  if self_excluded:
    gallery, known_labels = queries, labels
  else:
    gallery = tiles.check_embeddings(
      gallery_embeddings, 'gallery_embeddings', queries.shape[1]
    )
    known_labels = _check_labels(gallery_labels, 'gallery_labels', gallery)
    if known_labels.ndim != labels.ndim:
      raise InputError(
        f'gallery_labels has shape {known_labels.shape} and query_labels '
        f'{labels.shape}; allowed are ints (N,) in both, or label sets (N, L) '
        'in both: give each row its set'
      )
  grades = relations.check_grades(grades, labels, 'query_labels')
  relations.check_grades(grades, known_labels, 'gallery_labels')
  return _evaluate(
    queries,
    labels,
    gallery,
    known_labels,
    metrics={name: definitions.get_metric(name) for name in names},
    grades=grades,
    self_excluded=self_excluded,
    budget=budget,
  )


def check_metrics(
  names: Sequence[str], prefix: str = 'eval.metrics'
) -> tuple[str, ...]:
  """Returns metric names as a tuple, each once, or says which is unknown.

  Args:
    names: keys of `METRICS`, or `recall_at_<k>`; at least one.
    prefix: how the message calls them.

  Raises:
    InputError: for an unknown name (with the nearest known one), or none.

  Example:
    >>> check_metrics(['r_precision', 'recall_at_10'])
    ('r_precision', 'recall_at_10')
  """
  if isinstance(names, str):
    raise InputError(
      f'{prefix} is the string {names!r}; allowed is a list of names: '
      f'pass ({names!r},)'
    )
  names = tuple(dict.fromkeys(names))
  if not names:
    raise InputError(
      f'{prefix} is empty; allowed is at least one name, '
      f'for example {DEFAULT_METRICS[0]!r}'
    )
  for name in names:
    definitions.get_metric(name, prefix)
  return names


def _check_labels(labels, name, embeddings):
  labels = relations.check_labels(labels, name, label_sets=True)
  if len(labels) != len(embeddings):
    raise InputError(
      f'{name} has {len(labels)} rows but the embeddings have '
      f'{len(embeddings)}; allowed is one label a row: '
      'check how they were gathered'
    )
  return labels


def _evaluate(
  queries: np.ndarray,
  labels: np.ndarray,
  gallery: np.ndarray,
  gallery_labels: np.ndarray,
  *,
  metrics: dict[str, definitions.Metric],
  self_excluded: bool,
  budget: int,
  grades: np.ndarray | None = None,
  counter: str | None = None,
  devices: Sequence[jax.Device] | None = None,
) -> RetrievalResult:
  per_query = {name: np.full(len(queries), np.nan) for name in metrics}
  # How far the ties of all queries together could push a metric.
  down = dict.fromkeys(metrics, 0.0)
  up = dict.fromkeys(metrics, 0.0)
  num_ranked, tie_sum = 0, 0.0
  num_candidates = len(gallery) - self_excluded
  is_one_class = labels.ndim == 1 and grades is None
  rank = (
    functools.partial(ranking.rank_positives, counter=counter)
    if is_one_class
    else functools.partial(sorting.rank_relevant, grades=grades)
  )
  for block in rank(
    queries,
    labels,
    gallery,
    gallery_labels,
    exclude_self=self_excluded,
    budget=budget,
    devices=devices,
  ):
    for name, values in definitions.evaluate(block, metrics).items():
      per_query[name][block.queries] = values.expected
      down[name] += float((values.expected - values.lowest).sum())
      up[name] += float((values.highest - values.expected).sum())
    num_ranked += len(block.queries)
    tie_sum += float(definitions.tie_rates(block, num_candidates).sum())
  if not num_ranked:
    raise InputError(
      f'query_labels: none of the {len(queries)} queries has another row '
      f'{"of its class" if is_one_class else "that is relevant"} in the '
      'gallery; allowed is at least one that does: check that both come from '
      'the same label map'
    )
  _check_invariants(per_query)
  tie_rate = tie_sum / num_ranked
  num_zero = tiles.count_zero_rows(queries)
  if not self_excluded:
    num_zero += tiles.count_zero_rows(gallery)
  means = {name: _mean(values) for name, values in per_query.items()}
  relation = {}
  if not is_one_class:
    relation['relevance'] = (
      'at least one label in common' if grades is None else 'a grade above 0'
    )
  return RetrievalResult(
    metrics=means,
    ranges={
      name: (
        max(mean - down[name] / num_ranked, 0.0),
        min(mean + up[name] / num_ranked, 1.0),
      )
      for name, mean in means.items()
    },
    protocol={
      'similarity': 'cosine',
      **relation,
      'num_queries': len(queries),
      'num_lone_queries': len(queries) - num_ranked,
      'gallery_size': len(gallery),
      'self_excluded': self_excluded,
      'num_zero_embeddings': num_zero,
      'tie_rate': tie_rate,
      'tie_resolution': RESOLUTION,
      'definitions': {name: row.definition for name, row in metrics.items()},
      'warnings': _warnings(tie_rate, num_zero),
    },
    per_query=per_query,
  )


def _mean(values: np.ndarray) -> float:
  # The slack of the last digit, so that the mean too stays in [0, 1].
  return float(np.clip(np.mean(values[~np.isnan(values)]), 0.0, 1.0))


def _warnings(tie_rate: float, num_zero: int) -> list[str]:
  sentences = []
  if tie_rate > COLLAPSE_TIE_RATE:
    sentences.append(
      f'the embeddings may have collapsed: {tie_rate:.1%} of the pairs '
      'of a positive and a negative tie, so the metrics are partly chance; '
      'look at the ranges, the loss, the learning rate and the last layer'
    )
  if num_zero:
    sentences.append(
      f'{num_zero} embeddings are zero: they have no direction and are taken '
      'as equally far from everything'
    )
  return sentences


def _check_invariants(per_query: dict[str, np.ndarray]) -> None:
  """Raises if a value is impossible: that is a defect, not a user's mistake."""
  for name, values in per_query.items():
    if not np.all(np.isnan(values) | _between(0, values, 1)):
      raise AssertionError(f'{name} left [0, 1]')
  at_r = per_query.get('mean_average_precision_at_r')
  recalls = [name for name in per_query if name.startswith('recall_at_')]
  ordered = [
    (at_r, per_query.get('r_precision')),
    (at_r, per_query.get('mean_average_precision')),
    *((per_query.get('precision_at_1'), per_query[name]) for name in recalls),
  ]
  for smaller, larger in ordered:
    if smaller is None or larger is None:
      continue
    if np.any(smaller > larger + _SLACK):
      raise AssertionError('mAP@R > R-precision or mAP, or P@1 > recall')


def _between(low, values, high):
  return (values >= low - _SLACK) & (values <= high + _SLACK)
