"""Pairs against loops in float64; what must change nothing."""

import jax
import numpy as np
import pytest
import sklearn.metrics

from retrieval_jax.core.errors import InputError
from retrieval_jax.metrics import pairs, verification
from retrieval_jax.metrics.ranks import RESOLUTION


def _task(kind, *, apart, seed=0, **options):
  """Few directions and some duplicates, so that similarities tie."""
  rng = np.random.default_rng(seed)
  grades = None
  sizes = (40, 70) if apart else (50,)
  arrays = []
  for size in sizes:
    x = rng.normal(size=(size, 4)).astype(np.float32)
    x[: size // 3] = np.eye(4)[rng.integers(0, 4, size // 3)]
    if kind == 'sets':
      labels = rng.integers(-1, 5, (size, 3))
    elif kind == 'grades':
      labels = rng.integers(0, 5, size)
    else:
      labels = rng.integers(-3, 5, size) * 10**12  # No int32.
    arrays.append((x, labels))
  if kind == 'grades':
    grades = np.eye(5, dtype=np.float32)
    grades[0, 1] = 0.5
    grades[1, 0] = 0.5
  return pairs.Task(
    *arrays[0], *arrays[-1], self_excluded=not apart, grades=grades, **options
  )


def _is_positive(task, i, j):
  a, b = task.labels[i], task.gallery_labels[j]
  if task.grades is not None:
    return task.grades[a, b] > 0
  if np.ndim(a):
    return bool({*a.tolist()} & {*b.tolist()} - {-1})
  return a == b


def _loop(task):
  """All pairs by a loop: similarities in float64, and whether positive."""
  unit = [
    x.astype(float) / np.linalg.norm(x.astype(float), axis=1, keepdims=True)
    for x in (task.queries, task.gallery)
  ]
  found = [
    (unit[0][i] @ unit[1][j], _is_positive(task, i, j))
    for i in range(len(unit[0]))
    for j in range(i + 1 if task.self_excluded else 0, len(unit[1]))
  ]
  similarities, positive = map(np.array, zip(*found, strict=True))
  return similarities, positive


@pytest.mark.parametrize('apart', (False, True))
@pytest.mark.parametrize('kind', ('ints', 'sets', 'grades'))
def test_equals_a_loop(kind, apart):
  task = _task(kind, apart=apart)
  similarities, positive = _loop(task)
  found = verification.verify(task, at_fpr=(0.05,), at_precision=(0.5,))
  assert found.roc.num_positives == positive.sum()
  assert found.roc.num_negatives == (~positive).sum()
  # Rounded as coarsely as float32 needs, so that what ties there ties here.
  rounded = similarities.round(5)
  assert found.roc.auroc == pytest.approx(
    sklearn.metrics.roc_auc_score(positive, rounded), abs=1e-4
  )
  assert found.roc.average_precision == pytest.approx(
    sklearn.metrics.average_precision_score(positive, rounded), abs=1e-4
  )
  point = found.roc.at_fpr[0.05]
  accepted = similarities >= point.threshold - 1e-6
  assert point.false_positives == (accepted & ~positive).sum()
  assert point.true_positives == (accepted & positive).sum()
  squares = 2 - 2 * similarities
  assert found.alignment == pytest.approx(squares[positive].mean(), abs=1e-6)
  assert found.uniformity == pytest.approx(
    np.log(np.exp(-2 * squares).mean()), abs=1e-6
  )
  assert found.positive_bars.sum() == positive.sum()
  assert found.negative_bars.sum() == (~positive).sum()
  middle = (found.bar_edges[1:] + found.bar_edges[:-1]) / 2
  mean = (found.negative_bars * middle).sum() / found.negative_bars.sum()
  assert mean == pytest.approx(similarities[~positive].mean(), abs=0.01)


@pytest.mark.parametrize('apart', (False, True))
def test_blocks_and_devices_change_nothing(apart, monkeypatch):
  base = _task('ints', apart=apart)
  expected = None
  for tile_rows, max_block, num_devices in (
    (4096, 512, 4),
    (64, 8, 1),
    (64, 16, 2),
  ):
    monkeypatch.setattr('retrieval_jax.core.tiles.TILE_ROWS', tile_rows)
    monkeypatch.setattr('retrieval_jax.core.tiles.MAX_BLOCK_ROWS', max_block)
    devices = tuple(jax.local_devices()[:num_devices])
    x = np.tile(base.queries, (3, 1)), np.tile(base.gallery, (3, 1))
    y = np.tile(base.labels, 3), np.tile(base.gallery_labels, 3)
    task = base._replace(
      queries=x[0],
      labels=y[0],
      gallery=x[1],
      gallery_labels=y[1],
      devices=devices,
    )
    parts = list(verification.count_pairs(task).parts())
    columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
    expected = expected or columns
    for one, other in zip(columns, expected, strict=True):
      np.testing.assert_array_equal(one, other)


def test_similarities_are_at_the_resolution_and_descend():
  parts = verification.count_pairs(_task('ints', apart=True)).parts()
  similarities = np.concatenate([part.scores for part in parts])
  levels = similarities / RESOLUTION
  np.testing.assert_array_equal(levels, levels.round())
  assert (np.diff(similarities) < 0).all()
  assert similarities[0] == pytest.approx(1, abs=1e-6)


def test_zero_rows_are_at_right_angles_to_all():
  x, y = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 0.0]]), np.array([0, 0, 1])
  counts = verification.count_pairs(pairs.Task(x, y, x, y, True))
  (part,) = (part for part in counts.parts() if len(part.scores))
  assert [c.tolist() for c in part] == [[0.0], [1], [2]]


def test_counts_above_32_bits_are_kept():
  counts = verification.PairCounts()
  top = verification._TOP
  counts.add(np.array([top, top, top + verification._NUM_LEVELS]))
  for _ in range(3):
    counts._counts[top] += np.uint32(2**31)
    counts._since_carry = 2**31
    counts.add(np.array([top]))
  assert counts.totals() == (3 * 2**31 + 5, 1)
  (part,) = (part for part in counts.parts() if len(part.scores))
  assert [c.tolist() for c in part] == [[0.0], [3 * 2**31 + 5], [1]]


@pytest.mark.parametrize(
  'labels, kind', [([0, 0, 0], 'not relevant'), ([0, 1, 2], 'relevant')]
)
def test_one_kind_of_pairs_alone_has_no_threshold(labels, kind):
  x, y = np.eye(3), np.array(labels)
  found = verification.verify(pairs.Task(x, y, x, y, True))
  with pytest.raises(pairs.UndefinedError, match=f'are {kind} to each other'):
    _ = found.roc
  assert found.uniformity == pytest.approx(-4)  # All have d^2 = 2.
  assert found.positive_bars.sum() + found.negative_bars.sum() == 3
  if found.num_positives:
    assert found.alignment == pytest.approx(2)
  else:
    with pytest.raises(pairs.UndefinedError, match='that are relevant'):
      _ = found.alignment


def test_no_pair_at_all_is_undefined():
  x, y = np.ones((1, 2)), np.array([0])
  with pytest.raises(pairs.UndefinedError, match='gallery row$'):
    verification.verify(pairs.Task(x, y, x, y, True))


def test_a_budget_that_is_too_small_says_what_is_enough():
  task = _task('ints', apart=True)._replace(budget=2**20)
  with pytest.raises(InputError, match='pass memory_budget_mb=') as error:
    verification.verify(task)
  enough = int(str(error.value).rpartition('=')[2])
  verification.verify(task._replace(budget=enough * 2**20))
