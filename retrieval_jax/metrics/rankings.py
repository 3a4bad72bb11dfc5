"""Metrics of rankings that are given, as challenges collect them."""

from collections.abc import Sequence

import numpy as np

from retrieval_jax.metrics import results
from retrieval_jax.metrics.averages import Groups
from retrieval_jax.metrics.ignored import check_rows, padded_rows
from retrieval_jax.metrics.ranks import Ranks
from retrieval_jax.metrics.results import RetrievalResult
from retrieval_jax.metrics.retrieval import DEFAULT_METRICS, check_metrics


def evaluate_rankings(
  rankings,
  relevant,
  *,
  ignored=None,
  metrics: Sequence[str] = DEFAULT_METRICS,
) -> RetrievalResult:
  """Returns the metrics of given rankings.

  A ranking may be shorter than the gallery: what it does not have was not
  found, and a query with an empty ranking scores 0. A row that is ranked twice
  counts where it comes first; its repetition is a miss and keeps its rank.
  Ignored rows are taken out, and what stood below moves up. Nothing ties.

  Args:
    rankings: [Q, K] int rows of a gallery, best first, padded with -1 at the
      end; or a sequence of Q sequences.
    relevant: [Q, P] int rows, padded with -1, or a sequence of Q sequences. A
      query without any is lone: left out of the means.
    ignored: rows in no ranking, likewise; they are not relevant either.
    metrics: names, see `retrieval_metrics`; without `macro_`.

  Returns:
    The result, without what only embeddings have.

  Raises:
    InputError: for arguments of another form, or no relevant row at all.

  Example:
    >>> evaluate_rankings([[4, 4, 2, 7]], [[4, 7]],
    ...   metrics=('mean_average_precision_at_100',)).metrics
    {'mean_average_precision_at_100': 0.75}
    >>> evaluate_rankings([[4, 4, 2, 7]], [[4, 7]], ignored=[[2]],
    ...   metrics=('mean_reciprocal_rank', 'recall_at_1')).metrics
    {'mean_reciprocal_rank': 1.0, 'recall_at_1': 1.0}
  """
  names = check_metrics(metrics, 'metrics')
  rankings = padded_rows(rankings, 'rankings')
  relevant = check_rows(relevant, 'relevant', len(rankings))
  if ignored is not None:
    ignored = check_rows(ignored, 'ignored', len(rankings))
  queries, counts, ranks = [], [], []
  for query, ranking in enumerate(rankings):
    wanted = relevant[query][relevant[query] >= 0]
    ranking = ranking[ranking >= 0]
    if ignored is not None:
      wanted = np.setdiff1d(wanted, ignored[query], assume_unique=True)
      ranking = ranking[~np.isin(ranking, ignored[query])]
    if not len(wanted):
      continue
    ranked, first = np.unique(ranking, return_index=True)
    found = np.full(len(wanted), np.inf)
    places = np.sort(first[np.isin(ranked, wanted)]) + 1
    found[: len(places)] = places
    queries.append(query)
    counts.append(len(wanted))
    ranks.append(found)
  blocks = []
  if queries:
    none = np.zeros(0, np.int64)
    blocks = [
      Ranks(
        np.array(queries),
        np.array(counts),
        np.concatenate([np.arange(1.0, count + 1) for count in counts]),
        np.concatenate(ranks),
        none,
        none,
        num_ranked=np.array(counts),
      )
    ]
  protocol = {'similarity': 'given rankings', 'relevance': 'listed'}
  if ignored is not None:
    protocol['ignored'] = ['rows listed for each query']
  groups: dict[str, Groups] = {}
  return results.summarize(
    blocks,
    names,
    num_queries=len(rankings),
    num_candidates=0,
    groups=groups,
    protocol=protocol,
    no_positive=(
      f'relevant: none of the {len(rankings)} queries has a relevant row; '
      'allowed is at least one that does: check the lists'
    ),
  )
