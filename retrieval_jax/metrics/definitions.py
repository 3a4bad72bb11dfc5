"""What each metric is, as a sum over the positives of a query.

A positive that is the j-th hit and stands at rank k gives a term; a metric of a
query is the mean of the terms over its R positives, or the term of its best
positive alone. Where positives tie with negatives the rank is not decided, and
the term of the tie is its expectation over all orders, in closed form.

The expectations follow F. McSherry and M. Najork, "Computing information
retrieval performance measures efficiently in the presence of tied scores",
ECIR 2008: after a items, h of them hits, come n tied items, r of them
positives. The i-th of them is a hit with probability r / n, and then there are
on average h + 1 + (i - 1) (r - 1) / (n - 1) hits up to and including it.
"""

import dataclasses
import functools
import re
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from retrieval_jax.core import errors
from retrieval_jax.metrics.ranks import Ranks


class Ties(NamedTuple):
  """Groups of positives and negatives that tie; arrays over groups.

  Attributes:
    rows: [T] int64, the query of the block.
    before: [T] int64, items above the group (a).
    hits_before: [T] int64, positives above the group (h).
    positives: [T] int64, in the group (r), at least 1.
    size: [T] int64, items in the group (n), more than its positives.
    num_positives: [T] int64, R of the query.
  """

  rows: np.ndarray
  before: np.ndarray
  hits_before: np.ndarray
  positives: np.ndarray
  size: np.ndarray
  num_positives: np.ndarray


@dataclasses.dataclass(frozen=True)
class Positives:
  """Positives in one order of their ties; arrays over positives.

  Attributes:
    hits: [P] float64, 1 for the query's best positive, R for its worst.
    ranks: [P] float64, from 1.
    num_positives: [P] int64, R of the query.
  """

  hits: np.ndarray
  ranks: np.ndarray
  num_positives: np.ndarray

  @functools.cached_property
  def precisions(self) -> np.ndarray:
    """[P] float64, the share of positives down to the rank."""
    return self.hits / self.ranks

  @functools.cached_property
  def within_r(self) -> np.ndarray:
    """[P] bool, whether the rank is among the first R."""
    return self.ranks <= self.num_positives


class Metric(NamedTuple):
  """A metric: one row of the registry.

  Attributes:
    definition: one sentence, with the denominator.
    term: `Positives` -> [P] float64, the term of each.
    expected: `Ties` -> [T] float64, the sum of a group's terms, averaged over
      its orders.
    first_only: whether only the best positive has a term. If so, `expected`
      sees only groups without a hit before; if not, the sum of the terms is
      divided by R.
  """

  definition: str
  term: Callable[['Positives'], np.ndarray]
  expected: Callable[[Ties], np.ndarray]
  first_only: bool = False


# -- metrics of all positives -------------------------------------------------


def _expected_precisions(ties: Ties, places: np.ndarray) -> np.ndarray:
  """Returns the expected sum of precision at each hit in the first `places`.

  (r / n) sum_{i=1..L} (h + 1 + c (i - 1)) / (a + i), c = (r - 1) / (n - 1)
    = (r / n) (c L + (h + 1 - c - c a) (H(a + L) - H(a))),

  with H the harmonic numbers.
  """
  a, h, r, n = ties.before, ties.hits_before, ties.positives, ties.size
  slope = (r - 1) / (n - 1)
  harmonic = _harmonic_numbers(int((a + n).max()))
  steps = harmonic[a + places] - harmonic[a]
  return r / n * (slope * places + (h + 1 - slope - slope * a) * steps)


def _harmonic_numbers(last):
  numbers = np.zeros(last + 1)
  np.cumsum(1 / np.arange(1, last + 1), out=numbers[1:])
  return numbers


def _places_within_r(ties):
  return np.clip(ties.num_positives - ties.before, 0, ties.size)


MEAN_AVERAGE_PRECISION = Metric(
  'mean over queries of (1 / R) sum over all R positives of the precision at '
  'their rank in the full ranking',
  lambda positives: positives.precisions,
  lambda ties: _expected_precisions(ties, ties.size),
)

MEAN_AVERAGE_PRECISION_AT_R = Metric(
  'mean over queries of (1 / R) sum over the positives within the first R '
  'ranks of the precision at their rank',
  lambda positives: positives.precisions * positives.within_r,
  lambda ties: _expected_precisions(ties, _places_within_r(ties)),
)

R_PRECISION = Metric(
  'mean over queries of the share of positives among the first R ranks, '
  'denominator R',
  lambda positives: positives.within_r.astype(float),
  lambda ties: ties.positives / ties.size * _places_within_r(ties),
)


# -- metrics of the best positive ---------------------------------------------


def _expected_by_misses(ties: Ties, function) -> np.ndarray:
  """Applies `function(a, missed)` to each group, equal groups once.

  `missed[i]` is the probability that the first i of the tied items are all
  negatives, prod_{u < i} (n - r - u) / (n - u), for i = 0..n-r.
  """
  groups = np.stack([ties.before, ties.positives, ties.size], axis=1)
  groups, which = np.unique(groups, axis=0, return_inverse=True)
  values = np.empty(len(groups))
  for index, (before, positives, size) in enumerate(groups):
    drawn = np.arange(size - positives)
    missed = np.cumprod((size - positives - drawn) / (size - drawn))
    values[index] = function(before, np.concatenate([[1.0], missed]))
  return values[which.reshape(-1)]


def _expected_reciprocal_rank(before, missed):
  # The first hit is the i-th tied item if i - 1 are missed and i are not.
  first_hit = missed - np.append(missed[1:], 0.0)
  return np.sum(first_hit / (before + np.arange(1, len(missed) + 1)))


def _expected_recall(before, missed, *, k):
  places = k - before
  if places <= 0:
    return 0.0
  return 1.0 - missed[places] if places < len(missed) else 1.0


MEAN_RECIPROCAL_RANK = Metric(
  'mean over queries of 1 / rank of the best positive in the full ranking',
  lambda positives: 1 / positives.ranks,
  lambda ties: _expected_by_misses(ties, _expected_reciprocal_rank),
  first_only=True,
)

PRECISION_AT_1 = Metric(
  'share of queries whose first rank is a positive',
  lambda positives: (positives.ranks == 1).astype(float),
  lambda ties: np.where(ties.before == 0, ties.positives / ties.size, 0.0),
  first_only=True,
)


def recall_at(k: int) -> Metric:
  """Returns the metric `recall_at_<k>`: is there a positive in the first k?"""
  return Metric(
    f'share of queries with at least one positive in the first {k} ranks',
    lambda positives: (positives.ranks <= k).astype(float),
    lambda ties: _expected_by_misses(
      ties, functools.partial(_expected_recall, k=k)
    ),
    first_only=True,
  )


METRICS = {
  'precision_at_1': PRECISION_AT_1,
  'r_precision': R_PRECISION,
  'mean_average_precision': MEAN_AVERAGE_PRECISION,
  'mean_average_precision_at_r': MEAN_AVERAGE_PRECISION_AT_R,
  'mean_reciprocal_rank': MEAN_RECIPROCAL_RANK,
}


def get_metric(name: str, prefix: str = 'metrics') -> Metric:
  """Returns the metric of a name: a key of `METRICS`, or `recall_at_<k>`.

  Raises:
    InputError: for an unknown name, with the nearest known one.

  Example:
    >>> get_metric('recall_at_5').definition
    'share of queries with at least one positive in the first 5 ranks'
  """
  if isinstance(name, str):
    if name in METRICS:
      return METRICS[name]
    if match := re.fullmatch(r'recall_at_([1-9][0-9]*)', name):
      return recall_at(int(match[1]))
  raise errors.unknown_name(prefix, name, [*METRICS, 'recall_at_<k>'])


# -- from ranks to values -----------------------------------------------------


class Values(NamedTuple):
  """A metric of each query of a block: [B] float64 each.

  Attributes:
    expected: the expectation over random orders of ties.
    lowest: with the negatives of every tie first.
    highest: with the positives first.
  """

  expected: np.ndarray
  lowest: np.ndarray
  highest: np.ndarray


def evaluate(ranks: Ranks, metrics: dict[str, Metric]) -> dict[str, Values]:
  """Returns the values of each metric for the queries of a block.

  Args:
    ranks: of the block.
    metrics: name -> metric.

  Example:
    A query with two positives: one negative ties with the first.

    >>> one = np.array([1])
    >>> ranks = Ranks(queries=one, num_positives=one + 1,
    ...               hits=np.array([1.0, 2.0]), ranks=np.array([1.0, 3.0]),
    ...               tied=np.array([0]), num_tied=one)
    >>> values = evaluate(ranks, {'precision_at_1': PRECISION_AT_1})
    >>> [v.tolist() for v in values['precision_at_1']]
    [[0.5], [0.0], [1.0]]
  """
  groups = _find_ties(ranks)
  all_tied = ranks.tied, ranks.tied_rows, ranks.num_tied
  is_first = ranks.hits[ranks.tied] == 1
  first_tied = (x[is_first] for x in all_tied)
  # What has a term, and what of it ties: its query, its terms in both orders.
  every = (
    Positives(
      ranks.hits,
      ranks.ranks,
      np.repeat(ranks.num_positives, ranks.num_positives),
    ),
    *_in_both_orders(ranks, *all_tied),
  )
  first = (
    Positives(
      ranks.hits[ranks.starts], ranks.ranks[ranks.starts], ranks.num_positives
    ),
    *_in_both_orders(ranks, *first_tied),
  )
  values = {}
  for name, metric in metrics.items():
    best, tied_rows, tied_best, tied_worst = (
      first if metric.first_only else every
    )
    divisor = 1 if metric.first_only else ranks.num_positives

    def per_query(terms, rows=tied_rows, divisor=divisor):
      return np.bincount(rows, terms, len(ranks.queries)) / divisor

    highest = metric.term(best)
    if not metric.first_only:
      highest = np.add.reduceat(highest, ranks.starts) / divisor
    # Few positives tie, so only what they change is computed.
    changed = metric.term(tied_best)
    expected = highest - per_query(changed)
    expected += _expectations(metric, groups, ranks)
    lowest = highest - per_query(changed - metric.term(tied_worst))
    values[name] = Values(expected, lowest, highest)
  return values


def _in_both_orders(ranks, tied, rows, num_tied):
  """Returns (the queries of tied positives, them at best, them at worst)."""
  best = Positives(
    ranks.hits[tied], ranks.ranks[tied], ranks.num_positives[rows]
  )
  return rows, best, dataclasses.replace(best, ranks=best.ranks + num_tied)


def _expectations(metric, groups, ranks):
  """Returns [B], what groups of ties add to the metric of each query."""
  if metric.first_only:
    groups = Ties(*(field[groups.hits_before == 0] for field in groups))
  if not len(groups.rows):
    return 0.0
  num_queries = len(ranks.queries)
  sums = np.bincount(groups.rows, metric.expected(groups), num_queries)
  return sums if metric.first_only else sums / ranks.num_positives


def tie_rates(ranks: Ranks, num_candidates: int) -> np.ndarray:
  """Returns how likely a positive and a negative of a query tie.

  Args:
    ranks: of the block.
    num_candidates: rows of the gallery, without the query itself.

  Returns:
    [B] float64 in [0, 1], the share of (positive, negative) pairs that tie. It
    does not grow with the gallery: distinct embeddings stay near 1e-6.
  """
  pairs = ranks.num_positives * (num_candidates - ranks.num_positives)
  tied = np.bincount(ranks.tied_rows, ranks.num_tied, len(ranks.queries))
  return tied / np.maximum(pairs, 1)


def _find_ties(ranks: Ranks) -> Ties:
  """Gathers the tied positives into groups: adjacent, and as many above."""
  tied, rows = ranks.tied, ranks.tied_rows
  hits = ranks.hits[tied].astype(np.int64)
  above = ranks.ranks[tied].astype(np.int64) - hits
  first = np.ones(len(tied), bool)
  first[1:] = (rows[1:] != rows[:-1]) | (above[1:] != above[:-1])
  positives = np.diff(np.append(np.flatnonzero(first), len(tied)))
  hits_before = hits[first] - 1
  return Ties(
    rows[first],
    hits_before + above[first],
    hits_before,
    positives,
    positives + ranks.num_tied[first],
    ranks.num_positives[rows[first]],
  )
