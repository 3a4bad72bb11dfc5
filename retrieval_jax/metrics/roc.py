"""Operating points: what a threshold on a score accepts, for all thresholds.

Accepted is a score of at least the threshold. From the highest score down, true
and false positives only grow, and scores that are equal are accepted together:
a tie is one step, in no order. All is found in one pass, so that the scores may
come in parts and are never held as a whole.
"""

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from retrieval_jax.metrics.pairs import UndefinedError

# Cells of the curves that are kept for drawing.
_CELLS_OF_RECALL = 256
_CELLS_A_DECADE = 32


class Scores(NamedTuple):
  """Distinct scores, the best first, with how many there are of each.

  Attributes:
    scores: [M] float64, strictly descending.
    positives: [M] int64, what should be accepted.
    negatives: [M] int64, what should not.
  """

  scores: np.ndarray
  positives: np.ndarray
  negatives: np.ndarray

  @classmethod
  def of(cls, scores: np.ndarray, is_positive: np.ndarray) -> 'Scores':
    """Counts single scores.

    Args:
      scores: [M] float.
      is_positive: [M] bool.

    Example:
      >>> found = Scores.of(np.array([0.5, 0.9, 0.5]), np.array([1, 1, 0]) > 0)
      >>> [column.tolist() for column in found]
      [[0.9, 0.5], [1, 1], [0, 1]]
    """
    distinct, place = np.unique(-scores, return_inverse=True)
    counts = [
      np.bincount(place[mask], minlength=len(distinct))
      for mask in (is_positive, ~is_positive)
    ]
    return cls(-distinct, *counts)


class OperatingPoint(NamedTuple):
  """What one threshold does.

  Attributes:
    threshold: what scores at least this is accepted; infinite: nothing is.
    true_positives: positives that are accepted.
    false_positives: negatives that are.
    num_positives: of all.
    num_negatives: of all.
  """

  threshold: float
  true_positives: int
  false_positives: int
  num_positives: int
  num_negatives: int

  @property
  def recall(self) -> float:
    """The share of positives that are accepted, the true positive rate."""
    return self.true_positives / self.num_positives

  @property
  def false_positive_rate(self) -> float:
    """The share of negatives that are accepted, the false match rate."""
    return self.false_positives / self.num_negatives

  @property
  def false_non_match_rate(self) -> float:
    """The share of positives that are not accepted, 1 - recall."""
    return (self.num_positives - self.true_positives) / self.num_positives

  @property
  def precision(self) -> float:
    """The share of positives among what is accepted; 1 if nothing is."""
    accepted = self.true_positives + self.false_positives
    return self.true_positives / accepted if accepted else 1.0

  @property
  def f1(self) -> float:
    """2 TP / (TP + FP + P), the harmonic mean of precision and recall."""
    accepted = self.true_positives + self.false_positives
    return 2 * self.true_positives / (accepted + self.num_positives)

  @property
  def accuracy(self) -> float:
    """The share that is rightly accepted or rightly not."""
    right = self.true_positives + self.num_negatives - self.false_positives
    return right / (self.num_positives + self.num_negatives)


@dataclasses.dataclass(frozen=True)
class Roc:
  """What the thresholds of a score can do.

  Attributes:
    num_positives: P.
    num_negatives: N.
    auroc: the probability that a positive scores higher than a negative, plus
      half of that of a tie.
    equal_error_rate: where the false positive rate is the false non-match rate,
      on the line between the two thresholds around it.
    average_precision: sum over thresholds of the recall they add times their
      precision: the area under precision over recall, without interpolation.
    best_f1: of the largest F1, the highest threshold if several have it.
    best_accuracy: likewise.
    at_fpr: for each rate that was asked for, the lowest threshold of at most
      this false positive rate.
    at_precision: for each precision that was asked for, the lowest threshold of
      at least this precision.
    curve: points from the highest threshold to the lowest. Each is exact; of
      the points in a cell of 1 / 256 of recall and 1 / 32 of a decade of false
      positives the first is kept, so that they are few.
  """

  num_positives: int
  num_negatives: int
  auroc: float
  equal_error_rate: float
  average_precision: float
  best_f1: OperatingPoint
  best_accuracy: OperatingPoint
  at_fpr: dict[float, OperatingPoint]
  at_precision: dict[float, OperatingPoint]
  curve: tuple[OperatingPoint, ...]


def summarize(
  parts: Iterable[Scores],
  num_positives: int,
  num_negatives: int,
  *,
  at_fpr: Sequence[float] = (),
  at_precision: Sequence[float] = (),
) -> Roc:
  """Returns the operating points of scores.

    AUROC = sum_g n_g (TP_g - p_g / 2) / (P N)
    AP = sum_g (p_g / P) TP_g / (TP_g + FP_g)

  with p_g positives and n_g negatives of the g-th distinct score, and TP_g and
  FP_g those that score at least this.

  Args:
    parts: all scores, the best first.
    num_positives: P, the sum of all positives.
    num_negatives: N.
    at_fpr: false positive rates to find a threshold for, in [0, 1].
    at_precision: precisions likewise.

  Raises:
    UndefinedError: if P or N is 0.

  Example:
    >>> scores = Scores.of(np.array([0.9, 0.8, 0.7, 0.6]),
    ...                    np.array([True, False, True, False]))
    >>> roc = summarize([scores], 2, 2, at_fpr=(0.0, 0.5))
    >>> roc.auroc, round(roc.average_precision, 4), roc.equal_error_rate
    (0.75, 0.8333, 0.5)
    >>> [point.threshold for point in roc.at_fpr.values()]
    [0.9, 0.7]

  References:
    T. Fawcett, "An introduction to ROC analysis", Pattern Recognition Letters
    2006.
  """
  for number, kind in (
    (num_positives, 'positive'),
    (num_negatives, 'negative'),
  ):
    if not number:
      raise UndefinedError(f'there is no {kind} to score')
  totals = num_positives, num_negatives
  nothing = OperatingPoint(math.inf, 0, 0, *totals)
  last = best_f1 = best_accuracy = nothing
  fpr_points = dict.fromkeys(at_fpr, nothing)
  precision_points = dict.fromkeys(at_precision, nothing)
  auroc = average_precision = 0.0
  equal_error_rate = None
  curve, last_cell = [nothing], -1
  for part in parts:
    if not len(part.scores):
      continue
    tp = last.true_positives + np.cumsum(part.positives)
    fp = last.false_positives + np.cumsum(part.negatives)

    def point(i, part=part, tp=tp, fp=fp):
      return OperatingPoint(
        float(part.scores[i]), int(tp[i]), int(fp[i]), *totals
      )

    recall, fpr, precision = (
      tp / num_positives,
      fp / num_negatives,
      tp / (tp + fp),
    )
    above = recall - part.positives / (2 * num_positives)
    auroc += float(np.sum(part.negatives / num_negatives * above))
    average_precision += float(
      np.sum(part.positives / num_positives * precision)
    )
    highest = point(np.argmax(2 * tp / (tp + fp + num_positives)))
    best_f1 = max(best_f1, highest, key=lambda point: point.f1)
    highest = point(np.argmax(tp - fp))
    best_accuracy = max(
      best_accuracy, highest, key=lambda point: point.accuracy
    )
    for rate in at_fpr:
      if number := np.searchsorted(fpr, rate, side='right'):
        fpr_points[rate] = point(number - 1)
    for wanted in at_precision:
      if len(found := np.flatnonzero(precision >= wanted)):
        precision_points[wanted] = point(found[-1])
    if equal_error_rate is None and fpr[-1] + recall[-1] >= 1:
      i = np.argmax(fpr + recall >= 1)
      equal_error_rate = _equal_error_rate(
        point(i - 1) if i else last, point(i)
      )
    cells = np.floor(_CELLS_OF_RECALL * recall)
    cells += np.floor(_CELLS_A_DECADE * np.log10(np.maximum(fp, 1)))
    is_new = np.diff(cells, prepend=last_cell) > 0
    curve.extend(point(i) for i in np.flatnonzero(is_new))
    last, last_cell = point(-1), cells[-1]
  if curve[-1] != last:
    curve.append(last)
  return Roc(
    *totals,
    auroc,
    equal_error_rate,
    average_precision,
    best_f1,
    best_accuracy,
    fpr_points,
    precision_points,
    tuple(curve),
  )


def _equal_error_rate(before: OperatingPoint, after: OperatingPoint) -> float:
  """Returns where the errors are equal, between two points around it."""
  gap = before.false_non_match_rate - before.false_positive_rate
  gap_after = after.false_non_match_rate - after.false_positive_rate
  share = gap / (gap - gap_after)
  rates = before.false_positive_rate, after.false_positive_rate
  return rates[0] + share * (rates[1] - rates[0])
