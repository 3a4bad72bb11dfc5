"""Curves over the ranks of all queries: CMC, and precision against recall."""

import dataclasses
import math

import numpy as np

from retrieval_jax.metrics.ranks import Ranks

# Ranks of the CMC, denser at the start.
CMC_RANKS = np.unique(np.geomspace(1, 1000, 61).round().astype(np.int64))
RECALL_LEVELS = np.linspace(0.0, 1.0, 101)
_NORMAL_95 = 1.959964


@dataclasses.dataclass(frozen=True)
class Curve:
  """Means over queries, each with its 95 % confidence interval.

  Attributes:
    x: [P], where.
    mean: [P] float64 in [0, 1].
    low: [P] float64, the lower end of the interval.
    high: [P] float64, the upper end.
  """

  x: np.ndarray
  mean: np.ndarray
  low: np.ndarray
  high: np.ndarray


@dataclasses.dataclass(frozen=True)
class RankingCurves:
  """What rankings say beyond one number; a tie counts against the model.

  Attributes:
    cmc: the share of queries with a positive in the first k ranks, against k,
      with Wilson's interval.
    precision: the interpolated precision, against recall: of a query, the
      largest precision at any rank with at least that recall; with the interval
      of a mean, 1.96 standard errors to each side.
  """

  cmc: Curve
  precision: Curve


class CurveSums:
  """Adds up the curves of single queries, block by block."""

  def __init__(self):
    """Starts at zero."""
    self._num_queries = 0
    self._found = np.zeros(len(CMC_RANKS))
    self._precision = np.zeros((2, len(RECALL_LEVELS)))

  def add(self, block: Ranks) -> None:
    """Adds the queries of a block."""
    ranks = block.ranks.copy()
    ranks[block.tied] += block.num_tied
    first = ranks[block.starts]
    self._found += (first[:, None] <= CMC_RANKS).sum(axis=0)
    self._num_queries += len(first)
    stops = block.starts + block.num_positives
    for start, stop in zip(block.starts, stops, strict=True):
      precisions = block.hits[start:stop] / ranks[start:stop]
      best = np.maximum.accumulate(precisions[::-1])[::-1]
      # The hit that reaches a recall; the first, for a recall of 0.
      nth = np.ceil(RECALL_LEVELS * len(best) - 1e-9).astype(np.int64)
      of_query = best[np.maximum(nth, 1) - 1]
      self._precision += of_query, of_query**2

  def curves(self) -> RankingCurves:
    """Returns the curves of all queries that were added, at least one."""
    size = self._num_queries
    mean, square = self._precision / size
    deviation = np.sqrt(np.maximum(square - mean**2, 0))
    error = _NORMAL_95 * deviation / math.sqrt(max(size - 1, 1))
    return RankingCurves(
      Curve(CMC_RANKS, *_wilson(self._found / size, size)),
      Curve(
        RECALL_LEVELS,
        mean,
        np.maximum(mean - error, 0),
        np.minimum(mean + error, 1),
      ),
    )


def _wilson(share, size):
  """Returns (share, low, high), Wilson's interval of a share of so many."""
  z = _NORMAL_95**2 / size
  middle = (share + z / 2) / (1 + z)
  half = np.sqrt(z * share * (1 - share) + z**2 / 4) / (1 + z)
  return (
    share,
    np.minimum(middle - half, share).clip(0),
    np.maximum(middle + half, share).clip(max=1),
  )
