"""Metrics of rankings that are given, as challenges collect them.

Only the first ranks are known, maybe not even all relevant rows. Whatever says
which entries are relevant, it comes down to which ranks are hits and how many
hits there could be, and from there the metrics are those of embeddings.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from retrieval_jax.core import relations, tiles
from retrieval_jax.metrics import results
from retrieval_jax.metrics.averages import Groups
from retrieval_jax.metrics.ignored import check_rows, padded_rows
from retrieval_jax.metrics.ranks import Ranks
from retrieval_jax.metrics.results import RetrievalResult
from retrieval_jax.metrics.retrieval import DEFAULT_METRICS, check_metrics

# Memory for the queries that are under way, if one of them fits.
_BLOCK_BYTES = 64 * tiles.MIB
_BYTES_OF_POSITIVE = 96  # In `Ranks`, and in what metrics make of them.
_BYTES_OF_ENTRY = 32


def evaluate_rankings(
  rankings,
  relevant,
  *,
  ignored=None,
  metrics: Sequence[str] = DEFAULT_METRICS,
  gallery_size: int | None = None,
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
    gallery_size: rows that a query could find, if known; where rankings are
      shorter than that, the definitions say so.

  Returns:
    The result, without what only embeddings have. The protocol has list_length,
    K.

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
  is_wanted = relevant >= 0
  if ignored is not None:
    ignored = check_rows(ignored, 'ignored', len(rankings))
    is_wanted &= ~relations.are_listed(relevant, ignored)

  def find_hits(block):
    entries = rankings[block]
    return first_hits(
      entries,
      relations.are_listed(entries, relevant[block]),
      None
      if ignored is None
      else relations.are_listed(entries, ignored[block]),
    )

  protocol = {
    'similarity': 'given rankings',
    'relevance': 'listed',
    'list_length': rankings.shape[1],
  }
  if ignored is not None:
    protocol['ignored'] = ['rows listed for each query']
  if gallery_size is not None:
    protocol['gallery_size'] = gallery_size
  result = summarize_hits(
    find_hits,
    is_wanted.sum(axis=1),
    names,
    width=rankings.shape[1],
    groups={},
    protocol=protocol,
    no_positive=(
      f'relevant: none of the {len(rankings)} queries has a relevant row; '
      'allowed is at least one that does: check the lists'
    ),
  )
  if gallery_size is None or rankings.shape[1] >= gallery_size:
    return result
  cut = (
    f'; by the first {rankings.shape[1]} of {gallery_size} gallery rows, what '
    'is behind them is not found'
  )
  definitions = result.protocol['definitions']
  return dataclasses.replace(
    result,
    protocol=result.protocol
    | {'definitions': {n: text + cut for n, text in definitions.items()}},
  )


def first_hits(
  rankings: np.ndarray,
  is_relevant: np.ndarray,
  is_ignored: np.ndarray | None = None,
) -> np.ndarray:
  """Returns which ranks are hits.

  Args:
    rankings: [B, K] int rows, best first; -1 is a miss.
    is_relevant: [B, K] bool, of the entries.
    is_ignored: [B, K] bool; these are taken out, and what stood below moves up.

  Returns:
    [B, K] bool, by rank. Only the first of equal entries is a hit.

  Example:
    >>> rankings = np.array([[4, 4, 2, 7]])
    >>> relevant = np.isin(rankings, [4, 7])
    >>> first_hits(rankings, relevant).tolist()
    [[True, False, False, True]]
    >>> first_hits(rankings, relevant, rankings == 2).tolist()
    [[True, False, True, False]]
  """
  order = np.argsort(rankings, axis=1, kind='stable')
  ordered = np.take_along_axis(rankings, order, axis=1)
  is_again = np.zeros(rankings.shape, bool)
  np.put_along_axis(
    is_again, order[:, 1:], ordered[:, 1:] == ordered[:, :-1], axis=1
  )
  hits = is_relevant & (rankings >= 0) & ~is_again
  if is_ignored is None:
    return hits
  order = np.argsort(is_ignored, axis=1, kind='stable')
  return np.take_along_axis(hits & ~is_ignored, order, axis=1)


def summarize_hits(
  find_hits: Callable[[slice], np.ndarray],
  num_positives: np.ndarray,
  names: Sequence[str],
  *,
  width: int,
  groups: Mapping[str, Groups],
  protocol: Mapping[str, Any],
  no_positive: str,
) -> RetrievalResult:
  """Computes the metrics of rankings, block by block.

  Args:
    find_hits: a block of the queries -> [B, K] bool, which ranks are hits.
    num_positives: [Q] int, R of each query, found or not; 0: lone.
    names: of the metrics.
    width: K.
    groups: that the queries are in.
    protocol: what the rankings are.
    no_positive: the message if no query has a positive.

  Raises:
    InputError: see `results.summarize`.
  """
  row_bytes = _BYTES_OF_POSITIVE * int(num_positives.max(initial=0))
  row_bytes += _BYTES_OF_ENTRY * width
  block_rows = max(1, _BLOCK_BYTES // max(row_bytes, 1))

  def blocks() -> Iterator[Ranks]:
    for block in tiles.blocks(len(num_positives), block_rows):
      if num_positives[block].any():
        yield _to_ranks(block, find_hits(block), num_positives[block])

  return results.summarize(
    blocks(),
    names,
    num_queries=len(num_positives),
    num_candidates=0,
    groups=groups,
    protocol=protocol,
    no_positive=no_positive,
  )


def _to_ranks(block, hits, num_positives):
  """Returns the ranks of the queries of a block that have a positive."""
  is_ranked = num_positives > 0
  hits, num_positives = hits[is_ranked], num_positives[is_ranked]
  starts = np.cumsum(num_positives) - num_positives
  rows, columns = np.nonzero(hits)
  nth = np.arange(len(rows)) - np.searchsorted(rows, rows)
  total = int(num_positives.sum())
  found = np.full(total, np.inf)
  found[starts[rows] + nth] = columns + 1
  none = np.zeros(0, np.int64)
  return Ranks(
    np.arange(block.start, block.stop)[is_ranked],
    num_positives,
    np.arange(1.0, total + 1) - np.repeat(starts, num_positives),
    found,
    none,
    none,
    num_ranked=num_positives,  # Nothing else of a gallery is known.
  )
