"""nDCG: gains discounted by rank, over the best that could have been."""

from collections.abc import Callable

import numpy as np

from retrieval_jax.metrics.ties import Block, Terms, Values


def ndcg(k: int | None = None) -> Callable[[Block], Values]:
  """Returns DCG@k / ideal DCG@k of each query.

  DCG@k = sum over ranks i <= k of g_i / log2(i + 1), where g_i is the grade of
  the row at rank i, and 0 of a row that is not relevant. The gain is the grade
  itself, as in Järvelin and Kekäläinen and in scikit-learn; for 2^g - 1, pass
  grades of 2^g - 1. The ideal ranking has all relevant rows of the gallery,
  found or not. All gains are 1 if the ranks have no grades.

  In a tie of n items each stands at each of the n places equally likely, so its
  expected gain is the sum of its grades times the mean discount. The lowest
  value has its grades in ascending order, the highest in descending order.

  Args:
    k: the last rank that counts; None: all do.

  References:
    Järvelin and Kekäläinen, "Cumulated gain-based evaluation of IR
    techniques", ACM TOIS 20(4), 2002, section 2.2 (with the discount 1 / log2(i
    + 1) of Burges et al., ICML 2005).
  """
  alike = _of_equal_gains(k)

  def values(block: Block) -> Values:
    if block.ranks.grades is None:
      return alike(block)
    return _of_grades(block, k)

  return values


def _discounts(ranks: np.ndarray, k: int | None) -> np.ndarray:
  counts = ranks <= (np.inf if k is None else k)
  return counts / np.log2(ranks + 1)


def _summed_discounts(last: int, k: int | None) -> np.ndarray:
  """Returns [last + 1], the sums of the first 0 .. `last` discounts."""
  sums = np.zeros(last + 1)
  np.cumsum(_discounts(np.arange(1.0, last + 1), k), out=sums[1:])
  return sums


def _of_equal_gains(k):
  def term(positives):
    return _discounts(positives.ranks, k)

  def expected(groups):
    ends = groups.before + groups.size
    sums = _summed_discounts(int(ends.max()), k)
    return groups.positives / groups.size * (sums[ends] - sums[groups.before])

  def ideal(num_positives):
    return _summed_discounts(int(num_positives.max()), k)[num_positives]

  return Terms(term, expected, denominator=ideal)


def _of_grades(block: Block, k: int | None) -> Values:
  ranks = block.ranks
  grades, rows = (
    ranks.grades,
    np.repeat(np.arange(len(block)), ranks.num_positives),
  )
  # All groups of equal similarity, also those of positives alone.
  is_new = np.ones(len(rows), bool)
  is_new[1:] = (rows[1:] != rows[:-1]) | (ranks.keys[1:] != ranks.keys[:-1])
  first, group = np.flatnonzero(is_new), np.cumsum(is_new) - 1
  size = np.diff(np.append(first, len(rows)))
  negatives = np.zeros(len(first), np.int64)
  negatives[group[ranks.tied]] = ranks.num_tied
  size += negatives
  # The grades of a group descend: in the worst order its last comes first.
  nth = np.arange(len(rows)) - first[group]
  before = ranks.ranks[first].astype(np.int64) - 1
  worst = (before + size)[group] - nth
  sums = _summed_discounts(int((before + size).max()), k)
  mean_discount = (sums[before + size] - sums[before]) / size
  order = np.lexsort((-grades, rows))
  ideal_ranks = np.arange(1.0, len(rows) + 1) - ranks.starts[rows]
  ideal = block.sum(rows, grades[order] * _discounts(ideal_ranks, k))
  return Values(
    *(
      block.sum(rows, grades * discount) / ideal
      for discount in (
        mean_discount[group],
        _discounts(worst, k),
        _discounts(ranks.ranks, k),
      )
    )
  )
