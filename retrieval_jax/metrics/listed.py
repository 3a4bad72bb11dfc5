"""Metrics of embeddings whose ground truth lists rows of the gallery."""

from collections.abc import Sequence

from retrieval_jax.core import tiles
from retrieval_jax.metrics import results, sorting
from retrieval_jax.metrics.averages import Groups
from retrieval_jax.metrics.ignored import Ignored, check_rows
from retrieval_jax.metrics.results import RetrievalResult
from retrieval_jax.metrics.retrieval import (
  DEFAULT_METRICS,
  check_metrics,
  check_row_labels,
)


def evaluate_listed(
  query_embeddings,
  gallery_embeddings,
  relevant,
  *,
  metrics: Sequence[str] = DEFAULT_METRICS,
  categories=None,
  ignored: Ignored | None = None,
  memory_budget_mb: float = 128,
  all_processes: bool = False,
  curves: bool = False,
) -> RetrievalResult:
  """Returns retrieval metrics of a ground truth that lists rows.

  Landmark sets say of each query which rows of the gallery show the same, which
  is no partition into classes. The other arguments and the errors are those of
  `evaluate_retrieval`; rankings are sorted whole.

  Args:
    query_embeddings: [Q, D] any float dtype.
    gallery_embeddings: [N, D]; None: the queries, each excluded from its own
      ranking.
    relevant: [Q, P] int rows of the gallery, padded with -1, or a sequence of
      Q sequences. Queries without any are lone.
    metrics: see `retrieval_metrics`; without `macro_`.
    categories: [Q] int, see `retrieval_metrics`.
    ignored: rows in no ranking.
    memory_budget_mb: see `retrieval_metrics`.
    all_processes: likewise.
    curves: whether the result has them, see `evaluate_retrieval`.

  Example:
    Of the two rows nearest to the query, the first is junk.

    >>> import numpy as np
    >>> gallery = np.array([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]])
    >>> result = evaluate_listed(
    ...   np.array([[1.0, 0.1]]), gallery, [[1]],
    ...   ignored=Ignored(rows=[[0]]), metrics=('precision_at_1',))
    >>> result.metrics
    {'precision_at_1': 1.0}
  """
  names = check_metrics(metrics, 'metrics')
  budget = tiles.check_memory_budget(memory_budget_mb)
  queries = tiles.check_embeddings(query_embeddings, 'query_embeddings')
  self_excluded = gallery_embeddings is None
  gallery = (
    queries
    if self_excluded
    else tiles.check_embeddings(
      gallery_embeddings, 'gallery_embeddings', queries.shape[1]
    )
  )
  relevant = check_rows(relevant, 'relevant', len(queries), len(gallery))
  groups = {}
  if categories is not None:
    groups['category'] = Groups.of_categories(
      check_row_labels(categories, 'categories', queries, sets=False)
    )
  if ignored is not None:
    ignored = ignored.checked(len(queries), len(gallery))
  blocks = sorting.rank_relevant(
    queries,
    gallery,
    sorting.Lists(relevant),
    exclude_self=self_excluded,
    ignored=ignored,
    budget=budget,
    process=tiles.this_process(all_processes),
  )
  found = results.summarize(
    blocks,
    names,
    num_queries=len(queries),
    num_candidates=len(gallery) - self_excluded,
    groups=groups,
    curves=curves,
    protocol=results.describe_search(
      queries,
      gallery,
      self_excluded=self_excluded,
      ignored=ignored,
      relevance='listed for the query',
    ),
    no_positive=(
      f'relevant: none of the {len(queries)} queries has a row of the gallery '
      'to find; allowed is at least one that does: check the lists'
    ),
  )
  results.check_not_empty(found)
  return found
