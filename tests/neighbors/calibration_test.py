"""Thresholds of answers against loops in float64."""

import numpy as np
import pytest

from retrieval_jax.core.errors import InputError
from retrieval_jax.neighbors import calibration


def loop_best(x, labels, y=None, others=None):
  """Returns p and n of each query by definition."""
  excluded = y is None
  y, others = (x, labels) if excluded else (y, others)
  unit = [a / np.linalg.norm(a, axis=1, keepdims=True) for a in (x, y)]
  same, other = [], []
  for i, label in enumerate(labels):
    found = {True: -np.inf, False: -np.inf}
    for j, candidate in enumerate(others):
      if not (excluded and i == j):
        is_same = bool(label == candidate)
        found[is_same] = max(found[is_same], unit[0][i] @ unit[1][j])
    same.append(found[True])
    other.append(found[False])
  return np.array(same), np.array(other)


@pytest.mark.parametrize('has_gallery', [False, True])
def test_best_similarities_are_those_of_a_loop(has_gallery, monkeypatch):
  # So small that there are several blocks and tiles, the last ones padded.
  monkeypatch.setattr(calibration, '_BLOCK_ROWS', 16)
  monkeypatch.setattr(calibration, '_TILE_ROWS', 24)
  rng = np.random.default_rng(0)
  x, y = rng.normal(size=(37, 5)), rng.normal(size=(53, 5))
  labels = rng.integers(0, 6, 37)
  against = (y, rng.integers(0, 7, 53)) if has_gallery else ()
  labels[3] = 9  # Alone in its class.
  got = calibration.best_similarities(x, labels, *against)
  for values, expected in zip(got, loop_best(x, labels, *against), strict=True):
    np.testing.assert_allclose(values, expected, atol=1e-6)
  assert got[0][3] == -np.inf


def test_equal_images_tie_exactly():
  x = np.random.default_rng(1).normal(size=(3, 5))[[0, 0, 0, 1, 2]]
  same, other = calibration.best_similarities(x, np.array([0, 0, 1, 0, 2]))
  assert same[0] == other[0]
  found = calibration.threshold_for_fpr(same, other, 0.9)
  # Rows 0 to 2 are tied or lone, 3 has equal ones of both classes, 4 none.
  assert found.precision == 0


def loop_describe(same, other, threshold):
  best = [max(p, n) for p, n in zip(same, other, strict=True)]
  answered = [i for i, b in enumerate(best) if b >= threshold]
  right = [i for i in answered if same[i] > other[i]]
  precision = len(right) / len(answered) if answered else np.nan
  rate = sum(n >= threshold for n in other) / len(other)
  return precision, len(answered) / len(best), rate


@pytest.mark.parametrize('seed', range(8))
def test_threshold_for_precision_is_the_least_of_all(seed):
  rng = np.random.default_rng(seed)
  # On a grid, so that there are many ties.
  same = (rng.integers(2, 14, 40) / 12).astype(np.float32)
  other = (rng.integers(0, 12, 40) / 12).astype(np.float32)
  candidates = sorted(set(np.maximum(same, other).tolist()))
  for wanted in (0.5, 0.7, 0.9, 1.0):
    fits = [t for t in candidates if loop_describe(same, other, t)[0] >= wanted]
    if not fits:
      with pytest.raises(InputError, match='no threshold gives more than'):
        calibration.threshold_for_precision(same, other, wanted)
      continue
    found = calibration.threshold_for_precision(same, other, wanted)
    assert found.value == fits[0]
    np.testing.assert_allclose(
      found[1:4], loop_describe(same, other, fits[0]), rtol=1e-12
    )


@pytest.mark.parametrize('seed', range(8))
def test_threshold_for_fpr_is_the_least_of_all(seed):
  rng = np.random.default_rng(seed)
  same = (rng.integers(2, 14, 40) / 12).astype(np.float32)
  other = (rng.integers(0, 12, 40) / 12).astype(np.float32)
  for wanted in (0.0, 0.1, 0.25, 0.5, 0.99):
    found = calibration.threshold_for_fpr(same, other, wanted)
    assert found.false_positive_rate <= wanted
    np.testing.assert_allclose(
      found[1:4], loop_describe(same, other, found.value), rtol=1e-12
    )
    below = float(np.nextafter(np.float32(found.value), np.float32(-2)))
    assert below < -1 or loop_describe(same, other, below)[2] > wanted


def test_a_threshold_survives_json_and_float32():
  same = np.array([0.1, 0.7], np.float32)
  other = np.array([0.2, 0.3], np.float32)
  found = calibration.threshold_for_precision(same, other, 1.0)
  assert np.float32(found.value) == same[1]
  nothing = calibration.Calibration(1.0, float('nan'), 0.0, 0.0, 2)
  assert nothing.to_dict()['precision'] is None


@pytest.mark.parametrize(
  'call, message',
  [
    (lambda s, o: calibration.threshold_for_precision(s, o, 0), 'above 0, up'),
    (lambda s, o: calibration.threshold_for_precision(s, o, 1.1), 'above 0'),
    (lambda s, o: calibration.threshold_for_fpr(s, o, 1), 'from 0 up to'),
    (lambda s, o: calibration.threshold_for_fpr(s, o, -0.1), 'from 0'),
    (lambda s, o: calibration.threshold_for_fpr(s, o, float('nan')), 'from 0'),
    (
      lambda s, o: calibration.threshold_for_fpr(s, o - np.inf, 0.1),
      'at least two classes',
    ),
    (
      lambda s, o: calibration.best_similarities(np.eye(3), np.arange(2)),
      r'shape \(2,\)',
    ),
    (
      lambda s, o: calibration.best_similarities(np.eye(2), np.array([0, -1])),
      'row 1 is -1',
    ),
    (
      lambda s, o: calibration.best_similarities(
        np.eye(2), np.array([0.5, 1.0])
      ),
      'dtype float64',
    ),
  ],
)
def test_mistakes_are_one_line(call, message):
  values = np.array([0.5, 0.25], np.float32)
  with pytest.raises(InputError, match=message) as caught:
    call(values, values)
  assert '\n' not in str(caught.value)
