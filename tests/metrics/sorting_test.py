"""Metrics of label sets and graded relevance, against loops and the counter."""

import resource

import jax
import numpy as np
import pytest

from retrieval_jax import metrics
from retrieval_jax.core import relations, tiles
from retrieval_jax.core.errors import InputError
from retrieval_jax.metrics import retrieval, sorting
from tests.metrics import loops

_NAMES = (
  *metrics.METRICS,
  *('recall_at_1', 'recall_at_3', 'ndcg_at_3'),
  'mean_average_precision_at_3_over_hits',
)


def _sets(rng, number, num_labels=5, width=3, fewest=1):
  """Label sets of `fewest` to `width` labels, padding anywhere."""
  sets = np.full((number, width), -1)
  for row in sets:
    size = rng.integers(fewest, width + 1)
    row[rng.permutation(width)[:size]] = rng.permutation(num_labels)[:size]
  return sets


def _embeddings(rng, number, *, tied):
  if tied:
    return np.eye(4, dtype=np.float32)[rng.integers(0, 4, number)]
  return rng.normal(size=(number, 5)).astype(np.float32)


def _agree(result, expected):
  for name in _NAMES:
    found = result.metrics[name], *result.ranges[name]
    np.testing.assert_allclose(found, expected[name], atol=1e-6, err_msg=name)


@pytest.mark.parametrize('tied', [False, True])
@pytest.mark.parametrize('itself', [False, True])
def test_label_sets_against_loops(tied, itself):
  rng = np.random.default_rng(2 * tied + itself)
  queries, labels = _embeddings(rng, 7, tied=tied), _sets(rng, 7, fewest=0)
  gallery, known = queries, labels
  if not itself:
    gallery, known = _embeddings(rng, 8, tied=tied), _sets(rng, 8, fewest=0)

  def shared(i, j):
    mine, theirs = (set(row.tolist()) - {-1} for row in (labels[i], known[j]))
    return len(mine & theirs) / max(len(mine | theirs), 1)

  against = () if itself else (gallery, known)
  result = metrics.evaluate_retrieval(queries, labels, *against, metrics=_NAMES)
  _agree(
    result,
    loops.brute_force(queries, gallery, shared, itself=itself, names=_NAMES),
  )
  assert result.protocol['relevance'] == 'at least one label in common'


@pytest.mark.parametrize('tied', [False, True])
def test_grades_against_loops(tied):
  rng = np.random.default_rng(5)
  x, labels = _embeddings(rng, 8, tied=tied), rng.integers(0, 6, 8)
  # Not symmetric: what is relevant to a class says nothing of the reverse.
  grades = rng.uniform(size=(6, 6)) * (rng.uniform(size=(6, 6)) < 0.5)

  result = metrics.evaluate_retrieval(x, labels, metrics=_NAMES, grades=grades)
  _agree(
    result,
    loops.brute_force(
      x,
      x,
      lambda i, j: grades[labels[i], labels[j]],
      itself=True,
      names=_NAMES,
    ),
  )
  assert result.protocol['relevance'] == 'a grade above 0'


@pytest.mark.parametrize('levels', [0, 3])
def test_of_single_labels_all_paths_agree_bit_for_bit(levels):
  rng = np.random.default_rng(0)
  labels, known = rng.integers(0, 8, 90), rng.integers(0, 8, 400)
  x, gallery = rng.normal(size=(90, 4)), rng.normal(size=(400, 4))
  if levels:  # Few directions, so that much ties.
    x, gallery = np.round(x * levels / 4), np.round(gallery * levels / 4)
  wide = [np.stack([y, np.full(len(y), -1)], axis=1) for y in (labels, known)]
  lists = [np.flatnonzero(known == label).tolist() for label in labels]
  nothing = metrics.Ignored(rows=[[]] * 90)
  names = [name for name in _NAMES if not name.startswith('ndcg')]
  counted, graded, sets, none_ignored = (
    metrics.evaluate_retrieval(
      x, mine, gallery, theirs, metrics=names, grades=grades, ignored=ignored
    )
    for mine, theirs, grades, ignored in (
      (labels, known, None, None),
      (labels, known, np.eye(8), None),
      (*wide, None, None),
      (labels, known, None, nothing),
    )
  )
  listed = metrics.evaluate_listed(x, gallery, lists, metrics=names)
  for other in (graded, sets, none_ignored, listed):
    assert other.metrics == counted.metrics
    assert other.ranges == counted.ranges
    assert other.protocol['tie_rate'] == pytest.approx(
      counted.protocol['tie_rate'], abs=1e-15
    )
    for name in names:
      np.testing.assert_array_equal(
        other.per_query[name], counted.per_query[name]
      )
  assert (counted.protocol['tie_rate'] > 0.01) == bool(levels)


@pytest.mark.parametrize('levels', [0, 3])
def test_equal_grades_are_no_grades(levels):
  rng = np.random.default_rng(1)
  labels, x = rng.integers(0, 8, 90), rng.normal(size=(90, 4))
  if levels:
    x = np.round(x * levels / 4)
  counted, graded = (
    metrics.evaluate_retrieval(
      x, labels, metrics=('ndcg', 'ndcg_at_3'), grades=grades
    )
    for grades in (None, 0.5 * np.eye(8))
  )
  for name in counted.metrics:
    np.testing.assert_allclose(
      [graded.metrics[name], *graded.ranges[name]],
      [counted.metrics[name], *counted.ranges[name]],
      atol=1e-12,
    )


@pytest.mark.parametrize('num_devices', [1, 4])
def test_blocks_and_devices_change_nothing(num_devices, monkeypatch):
  if jax.local_device_count() < num_devices:
    pytest.skip(f'{num_devices} devices are needed')
  monkeypatch.setattr(tiles, 'TILE_ROWS', 64)
  rng = np.random.default_rng(1)
  x, labels = rng.normal(size=(300, 3)).round(1), _sets(rng, 300, 40)
  x[:5] = x[0]
  large, small = (
    retrieval._evaluate(
      x,
      labels,
      x,
      labels,
      metrics=_NAMES,
      self_excluded=True,
      budget=budget,
      devices=jax.local_devices()[:num_devices],
    )
    for budget in (2**28, num_devices * 180_000)
  )
  for name in _NAMES:
    np.testing.assert_allclose(
      large.per_query[name], small.per_query[name], rtol=1e-12
    )


def test_rows_without_a_label_are_lone_and_distract():
  x = np.eye(3, dtype=np.float32)[[0, 0, 0, 1]] + 0.1 * np.eye(4, 3)
  labels = np.array([[0, 1], [-1, -1], [-1, -1], [1, -1]])
  result = metrics.evaluate_retrieval(x, labels, metrics=_NAMES)
  assert result.protocol['num_lone_queries'] == 2
  assert result.metrics['precision_at_1'] == 0
  np.testing.assert_allclose(result.per_query['mean_reciprocal_rank'][0], 1 / 3)


def test_labels_above_32_bits_stay_apart():
  x = np.eye(4, dtype=np.float32) + 1
  labels = np.array([[1, 2**32], [2**32, -1], [2**33, 5], [5, -1]])
  result = metrics.evaluate_retrieval(x, labels, metrics=('r_precision',))
  assert result.protocol['num_lone_queries'] == 0


def test_memory_stays_within_the_budget():
  rng = np.random.default_rng(0)
  x = rng.normal(size=(20_000, 8)).astype(np.float32)
  labels = rng.integers(0, 30, (20_000, 3))
  metrics.evaluate_retrieval(x[:64], labels[:64], memory_budget_mb=16)
  before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  metrics.evaluate_retrieval(
    x[:300], labels[:300], x, labels, memory_budget_mb=16
  )
  grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
  assert grown / 1024 < 16 + 24  # Compiled code and labels besides.


def test_a_budget_too_small_names_one_that_is_enough():
  x = np.random.default_rng(0).normal(size=(3000, 8)).astype(np.float32)
  labels = np.arange(6000).reshape(3000, 2) % 7
  with pytest.raises(InputError, match='pass memory_budget_mb=') as caught:
    metrics.retrieval_metrics(x, labels, memory_budget_mb=0.1)
  enough = int(str(caught.value).rpartition('=')[2])
  metrics.retrieval_metrics(
    x[:50], labels[:50], x, labels, memory_budget_mb=enough
  )


@pytest.mark.parametrize(
  'labels, gallery_labels, grades, words',
  [
    ([[0], [0]], None, None, r'query_labels has shape \(2, 1\).*\(N, L\)'),
    ([[0, 1], [0, 1]], [0, 0], None, 'gallery_labels has shape'),
    ([[0, 1], [0, 1]], None, np.eye(2), 'grades are given with label sets'),
    ([0, 2], None, np.eye(2), 'query_labels has 2; allowed is at most 1'),
    ([0, 1], None, np.ones(3), r'grades have shape \(3,\)'),
    ([0, 1], None, -np.eye(2), 'negative'),
    ([[0, 1], [2, 3]], None, None, 'none of the 2 queries.*relevant'),
    ([[-1, -1], [-1, -1]], None, None, 'none of the 2 queries.*relevant'),
    ([[-1, -1]] * 2, [[0, 1]] * 2, None, 'none of the 2 queries.*relevant'),
    ([[0, 1]] * 2, [[-1, -1]] * 2, None, 'none of the 2 queries.*relevant'),
  ],
)
def test_refusals(labels, gallery_labels, grades, words):
  x, gallery = np.eye(2, dtype=np.float32), None
  if gallery_labels is not None:
    gallery, gallery_labels = x, np.array(gallery_labels)
  with pytest.raises(InputError, match=words) as caught:
    metrics.retrieval_metrics(
      x, np.array(labels), gallery, gallery_labels, grades=grades
    )
  assert '\n' not in str(caught.value)


def test_most_positives_is_a_bound():
  rng = np.random.default_rng(3)
  labels, known = _sets(rng, 20), _sets(rng, 50)
  bound = sorting._most_positives(labels, known, None)
  counted = relations.are_related(
    labels, np.broadcast_to(known, (20, *known.shape))
  ).sum(axis=1)
  assert counted.max() <= bound <= 50
