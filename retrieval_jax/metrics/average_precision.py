"""Average precision: the precision at each hit, added up, over a denominator.

The field divides by different numbers and gives all of them the name mAP. Here
the denominator is part of the name: R (all positives of the query), min(R, k),
or the hits that are among the first k.
"""

from collections.abc import Callable

import numpy as np

from retrieval_jax.metrics import ties
from retrieval_jax.metrics.ties import Block, Positives, Terms, Ties, Values


def over_all(positives: np.ndarray) -> np.ndarray:
  """Returns R, the denominator of most."""
  return positives


def within(depth: Callable[[np.ndarray], np.ndarray | float]) -> Terms:
  """Returns (1 / R) times the sum of the precision at the hits up to a rank.

  Args:
    depth: R -> the last rank that counts.
  """

  def term(positives: Positives) -> np.ndarray:
    counts = positives.ranks <= depth(positives.num_positives)
    return positives.precisions * counts

  def expected(groups: Ties) -> np.ndarray:
    places = groups.places(depth(groups.num_positives)).astype(np.int64)
    return ties.expected_precisions(groups, places)

  return Terms(term, expected, denominator=over_all)


def at(k: int, denominator: Callable[[np.ndarray], np.ndarray]) -> Terms:
  """Returns the sum of the precision at the hits among the first k ranks.

  Args:
    k: the last rank that counts.
    denominator: R -> what the sum is divided by.
  """
  terms = within(lambda num_positives: k)
  return Terms(terms.term, terms.expected, denominator=denominator)


# -- trapezoidal --------------------------------------------------------------


def _trapezoid(positives: Positives) -> np.ndarray:
  # Where the first rank is a hit, the precision before it is taken as 1.
  ranks_before = np.maximum(positives.ranks - 1, 1)
  before = np.where(
    positives.ranks == 1, 1.0, (positives.hits - 1) / ranks_before
  )
  return (before + positives.precisions) / 2


def _expected_trapezoid(groups: Ties) -> np.ndarray:
  """Likewise in expectation.

  The precision before the i-th tied item is (h + c (i - 1)) / (a + i - 1) on
  average if it is a hit. Its sum over the places, with u = i - 1, is
  sum_{u=0..n-1} (h + c u) / (a + u) = c n + (h - c a) (H(a + n - 1) - H(a -
  1)); for a = 0, where h = 0, the first is 1 instead, and the others are c.
  """
  a, h, r, n = groups.before, groups.hits_before, groups.positives, groups.size
  slope = (r - 1) / (n - 1)
  harmonic = ties.harmonic_numbers(int((a + n).max(initial=0)))
  steps = harmonic[a + n - 1] - harmonic[np.maximum(a, 1) - 1]
  before = slope * n + (h - slope * a) * steps
  before = np.where(a == 0, 1 + slope * (n - 1), before)
  return (r / n * before + ties.expected_precisions(groups, n)) / 2


TRAPEZOIDAL = Terms(_trapezoid, _expected_trapezoid, denominator=over_all)


# -- divided by the hits ------------------------------------------------------


def over_hits(k: int) -> Callable[[Block], Values]:
  """Returns the mean precision at the hits among the first k ranks.

  0 without a hit. Here another hit can lower the value, so neither order of a
  tie gives the range by itself, and the sum of terms is no sum of expectations:
  both go through the numbers of hits that the tie at rank k can have above it.

  Args:
    k: the last rank that counts.
  """

  def values(block: Block) -> Values:
    view, groups = block.every, block.groups
    places = groups.places(k)
    is_whole = places == groups.size
    is_cut = (places > 0) & ~is_whole  # At most one group of a query.

    def term(positives):
      return positives.precisions * (positives.ranks <= k)

    # The sums of precisions at the hits that no order moves beyond rank k.
    best, worst = term(view.tied_best), term(view.tied_worst)
    total = np.add.reduceat(term(view.positives), view.starts)
    apart = total - block.sum(view.tied_rows, best)
    kept = is_whole[block.group_of_tied]
    highest = apart + block.sum(view.tied_rows, best * kept)
    lowest = apart + block.sum(view.tied_rows, worst * kept)
    expected = apart + block.sum(
      groups.rows,
      ties.expected_precisions(groups, np.where(is_whole, groups.size, 0)),
    )
    found = np.add.reduceat(view.positives.ranks <= k, view.starts, dtype=float)
    found = np.maximum(found, 1)
    result = Values(expected / found, lowest / found, highest / found)
    _replace_cut(
      result, Values(expected, lowest, highest), groups.where(is_cut), k
    )
    return result

  return values


def _replace_cut(result: Values, sums: Values, cut: Ties, k: int) -> None:
  """Writes the values of the queries that have a tie across rank k.

  Args:
    result: the values, of which those of `cut.rows` are written.
    sums: of the precisions at the hits before the tie.
    cut: the ties.
    k: the last rank that counts.
  """
  if not len(cut.rows):
    return
  alike, which = np.unique(
    np.stack([cut.before, cut.hits_before, cut.positives, cut.size], axis=1),
    axis=0,
    return_inverse=True,
  )
  which = which.reshape(-1)
  harmonic = ties.harmonic_numbers(k)
  for index, (a, h, r, n) in enumerate(alike.tolist()):
    rows = cut.rows[which == index]
    places = k - a
    m, probability = ties.hits_in_places(r, n, places)
    # Precisions of m hits at places drawn at random, at the first, the last.
    slope = (m - 1) / max(places - 1, 1)
    steps = harmonic[k] - harmonic[a]
    mean = slope * places + (h + 1 - slope - slope * a) * steps
    mean = m / places * mean
    first = m + (h - a) * (harmonic[a + m] - harmonic[a])
    last = m + (h - k + m) * (harmonic[k] - harmonic[k - m])
    hits = np.maximum(h + m, 1)
    low, high = (
      (ends[rows, None] + own) / hits
      for ends, own in ((sums.lowest, last), (sums.highest, first))
    )
    result.lowest[rows] = low.min(axis=1)
    result.highest[rows] = high.max(axis=1)
    means = (sums.expected[rows, None] + mean) / hits
    result.expected[rows] = means @ probability
