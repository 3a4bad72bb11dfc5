"""Ranked lists that end where there is nothing more to be found."""

import numpy as np

from retrieval_jax.neighbors import options as options_lib
from retrieval_jax.neighbors.lists import RankedLists, check_lists

CONSTANT_OPTIONS = {'threshold': options_lib.ANY_NUMBER}
ADAPTIVE_OPTIONS = {'n_std': options_lib.POSITIVE}


def constant_threshold(lists, *, threshold: float = 0.5) -> RankedLists:
  """Returns lists without the entries whose score is below a threshold.

  Args:
    lists: (scores [Q, k], indices [Q, k]), such as of `top_k`.
    threshold: in the unit of the scores; a cosine of `top_k`.

  Returns:
    Lists [Q, k], some ended early: score -inf, index -1.

  Raises:
    InputError: for what is no lists, or no number.

  Example:
    >>> lists = np.array([[0.9, 0.4]]), np.array([[7, 3]])
    >>> constant_threshold(lists).indices.tolist()
    [[7, -1]]
  """
  given = {'threshold': threshold}
  options_lib.check('constant_threshold', given, CONSTANT_OPTIONS)
  lists = check_lists(lists)
  return _keep(lists, lists.scores >= threshold)


def adaptive_threshold(lists, *, n_std: float = 10.0) -> RankedLists:
  """Returns lists that end at their first large gap.

  A gap is the difference of the scores of two entries that follow each other.
  A list ends before the first gap above `n_std` times the mean gap of all
  lists, so that what is returned depends on which lists come together. The name
  of the option is that of the source, although no deviation is in it.

  Args:
    lists: (scores [Q, k], indices [Q, k]), such as of `top_k`.
    n_std: in mean gaps; the smaller, the less is left.

  Returns:
    Lists [Q, k], some ended early: score -inf, index -1.

  Raises:
    InputError: for what is no lists, or no number above 0.

  Example:
    >>> lists = np.array([[0.9, 0.8, 0.3, 0.2]]), np.array([[7, 3, 1, 2]])
    >>> adaptive_threshold(lists, n_std=2.0).indices.tolist()
    [[7, 3, -1, -1]]

  References:
    `AdaptiveThresholding` of open-metric-learning 4.0.
  """
  options_lib.check('adaptive_threshold', {'n_std': n_std}, ADAPTIVE_OPTIONS)
  lists = check_lists(lists)
  listed = lists.indices >= 0
  scores = np.where(listed, lists.scores, 0).astype(np.float64)
  # What follows the end of a list is no gap.
  gaps = np.where(listed[:, 1:], scores[:, :-1] - scores[:, 1:], 0.0)
  count = int(listed[:, 1:].sum())
  if not count:
    return lists
  ends = gaps > n_std * (gaps.sum() / count)
  kept = np.ones(listed.shape, bool)
  kept[:, 1:] = ~np.logical_or.accumulate(ends, axis=1)
  return _keep(lists, kept)


def _keep(lists: RankedLists, kept: np.ndarray) -> RankedLists:
  return RankedLists(
    np.where(kept, lists.scores, -np.inf).astype(np.float32),
    np.where(kept, lists.indices, -1).astype(np.int32),
  )
