"""Operating points against loops over all thresholds, and scikit-learn."""

import math

import numpy as np
import pytest
import sklearn.metrics

from retrieval_jax.metrics import pairs, roc


def _case(seed, *, size=60, distinct=12):
  rng = np.random.default_rng(seed)
  is_positive = rng.random(size) < 0.4
  scores = (rng.integers(0, distinct, size) + is_positive) / distinct
  return scores, is_positive


def _summary(scores, is_positive, num_parts=1, **wanted):
  found = roc.Scores.of(scores, is_positive)
  parts = [
    roc.Scores(*columns)
    for columns in zip(
      *(np.array_split(column, num_parts) for column in found), strict=True
    )
  ]
  counts = int(is_positive.sum()), int((~is_positive).sum())
  return roc.summarize(parts, *counts, **wanted)


@pytest.mark.parametrize('seed', range(6))
@pytest.mark.parametrize('distinct', (3, 12, 10**6))
def test_equals_scikit_learn_and_a_loop(seed, distinct):
  scores, is_positive = _case(seed, distinct=distinct)
  wanted = (0.01, 0.1, 0.5, 1.0)
  found = _summary(scores, is_positive, at_fpr=wanted, at_precision=wanted)
  assert found.auroc == pytest.approx(
    sklearn.metrics.roc_auc_score(is_positive, scores), abs=1e-12
  )
  assert found.average_precision == pytest.approx(
    sklearn.metrics.average_precision_score(is_positive, scores), abs=1e-12
  )
  num_positives, num_negatives = is_positive.sum(), (~is_positive).sum()
  points = [(math.inf, 0, 0)]
  for threshold in sorted(set(scores.tolist()), reverse=True):
    accepted = scores >= threshold
    tp, fp = (accepted & is_positive).sum(), (accepted & ~is_positive).sum()
    points.append((threshold, tp, fp))
  f1 = [2 * tp / (tp + fp + num_positives) for _, tp, fp in points]
  assert found.best_f1[:3] == points[int(np.argmax(f1))]
  assert found.best_f1.f1 == pytest.approx(max(f1))
  right = [tp + num_negatives - fp for _, tp, fp in points]
  assert found.best_accuracy[:3] == points[int(np.argmax(right))]
  assert found.best_accuracy.accuracy == max(right) / len(scores)
  for rate in wanted:
    allowed = [p for p in points if p[2] / num_negatives <= rate]
    assert found.at_fpr[rate][:3] == allowed[-1]
    precise = [p for p in points[1:] if p[1] / (p[1] + p[2]) >= rate]
    assert found.at_precision[rate][:3] == (precise or points[:1])[-1]
  # The rate where a fine walk along the lines of the curve has equal errors.
  fpr = np.array([p[2] / num_negatives for p in points])
  miss = np.array([1 - p[1] / num_positives for p in points])
  along = np.linspace(0, len(points) - 1, 200_001)
  walks = [np.interp(along, np.arange(len(points)), x) for x in (fpr, miss)]
  nearest = np.argmin(np.abs(walks[0] - walks[1]))
  assert found.equal_error_rate == pytest.approx(walks[0][nearest], abs=1e-3)
  # Few points: the curve has them all that raise the recall.
  kept = {point[:3] for point in found.curve}
  assert kept <= set(points)
  assert found.curve[0][:3] == points[0]
  assert found.curve[-1][:3] == points[-1]
  assert {p.true_positives for p in found.curve} == {p[1] for p in points}


@pytest.mark.parametrize('num_parts', (2, 5, 40))
def test_parts_change_nothing(num_parts):
  scores, is_positive = _case(0, size=2000, distinct=700)
  wanted = {'at_fpr': (0.001, 0.1), 'at_precision': (0.5, 0.9)}
  whole = _summary(scores, is_positive, **wanted)
  parts = _summary(scores, is_positive, num_parts, **wanted)
  assert parts.curve == whole.curve
  assert parts.at_fpr == whole.at_fpr
  assert parts.at_precision == whole.at_precision
  assert (parts.best_f1, parts.best_accuracy) == (
    whole.best_f1,
    whole.best_accuracy,
  )
  for name in ('auroc', 'average_precision', 'equal_error_rate'):
    assert getattr(parts, name) == pytest.approx(getattr(whole, name))


def test_curve_has_few_points_of_many():
  scores, is_positive = _case(0, size=200_000, distinct=10**9)
  found = _summary(scores, is_positive)
  assert 256 < len(found.curve) < 700
  recalls = np.array([point.recall for point in found.curve])
  assert np.diff(recalls).max() < 2 / 256


def test_equal_scores_say_nothing():
  found = _summary(np.ones(10), np.arange(10) < 4, at_fpr=(0.5,))
  assert found.auroc == found.equal_error_rate == 0.5
  assert found.average_precision == 0.4
  nothing = found.at_fpr[0.5]
  assert (nothing.threshold, nothing.recall) == (math.inf, 0)
  assert nothing.precision == 1
  # To accept nothing is right in 6 of 10.
  assert found.best_accuracy == nothing
  assert found.best_accuracy.accuracy == 0.6


@pytest.mark.parametrize('is_positive', (True, False))
def test_one_kind_alone_is_undefined(is_positive):
  with pytest.raises(pairs.UndefinedError, match='there is no'):
    _summary(np.arange(3.0), np.full(3, is_positive))
