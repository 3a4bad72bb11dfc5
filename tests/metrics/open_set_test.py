"""Known against unknown queries, by a loop."""

import numpy as np
import pytest
import sklearn.metrics

from retrieval_jax.metrics import open_set, pairs


def _task(kind, self_excluded, seed=0):
  rng = np.random.default_rng(seed)
  size = 60
  x = rng.normal(size=(size, 5)).astype(np.float32)
  # Some rows of which two stand in one place, of one class or of two.
  x[1::5], x[2::5] = x[::5], x[::5]
  if kind == 'sets':
    labels = rng.integers(-1, 40, (size, 2))
  else:
    labels = rng.integers(0, 40, size)
  if self_excluded:
    return pairs.Task(x, labels, x, labels, True)
  half = size // 2
  return pairs.Task(x[:half], labels[:half], x[half:], labels[half:], False)


def _loop(task):
  best, right, known = [], [], []
  for i, query in enumerate(task.queries.astype(float)):
    similarities, relevant = [], []
    for j, row in enumerate(task.gallery.astype(float)):
      if task.self_excluded and i == j:
        continue
      norms = np.linalg.norm(query) * np.linalg.norm(row)
      similarities.append(round(float(query @ row / norms), 5))
      a, b = (
        np.atleast_1d(task.labels[i]),
        np.atleast_1d(task.gallery_labels[j]),
      )
      relevant.append(bool({*a.tolist()} & {*b.tolist()} - {-1}))
    similarities, relevant = np.array(similarities), np.array(relevant)
    best.append(similarities.max())
    right.append(relevant[similarities == best[-1]].mean())
    known.append(relevant.any())
  return np.array(best), np.array(right), np.array(known)


@pytest.mark.parametrize('self_excluded', (True, False))
@pytest.mark.parametrize('kind', ('ints', 'sets'))
def test_equals_a_loop(kind, self_excluded):
  task = _task(kind, self_excluded)
  best, right, known = _loop(task)
  assert 0 < known.sum() < len(known)
  found = open_set.evaluate(task, at_far=(0.0, 0.1, 0.5, 1.0))
  np.testing.assert_allclose(found.similarities, best, atol=2e-5)
  np.testing.assert_allclose(found.right, right)
  np.testing.assert_array_equal(found.is_known, known)
  assert found.roc.auroc == pytest.approx(
    sklearn.metrics.roc_auc_score(known, best)
  )
  for rate, identified in found.identified.items():
    thresholds = [np.inf, *sorted(best, reverse=True)]
    allowed = [t for t in thresholds if (best[~known] >= t).mean() <= rate]
    accepted = known & (best >= allowed[-1])
    assert identified == pytest.approx(right[accepted].sum() / known.sum())
    assert found.roc.at_fpr[rate].recall == accepted.sum() / known.sum()
  # Everything is accepted: what is left is precision at 1 of known queries.
  assert found.identified[1.0] == pytest.approx(right[known].mean())


@pytest.mark.parametrize(
  'labels, kind', (([0, 1], 'known'), ([7, 8], 'unknown'))
)
def test_one_kind_alone_is_undefined(labels, kind):
  task = pairs.Task(np.eye(2), np.array(labels), np.eye(2), np.arange(2), False)
  with pytest.raises(pairs.UndefinedError, match=f'all 2 queries are {kind}'):
    open_set.evaluate(task)
