"""Ignored rows and listed relevance, against loops over all orders of ties."""

import resource

import jax
import numpy as np
import pytest

from retrieval_jax import metrics
from retrieval_jax.core import tiles
from retrieval_jax.core.errors import InputError
from tests.metrics import loops

_NAMES = (
  *metrics.METRICS,
  *('recall_at_1', 'recall_at_3', 'precision_at_3', 'ndcg_at_3'),
  *('mean_average_precision_at_3_over_hits', 'revisited_precision_at_3'),
)


def _case(seed, *, tied):
  random = np.random.default_rng(seed)

  def draw(number):
    if tied:
      return np.eye(4, dtype=np.float32)[random.integers(0, 4, number)]
    return random.normal(size=(number, 5)).astype(np.float32)

  return random, draw(7), draw(9)


def _agree(result, expected):
  for name in _NAMES:
    found = result.metrics[name], *result.ranges[name]
    np.testing.assert_allclose(found, expected[name], atol=1e-9, err_msg=name)


@pytest.mark.parametrize('tied', [False, True])
@pytest.mark.parametrize('relation', ['class', 'grades', 'label_sets', 'lists'])
def test_ignored_against_loops(relation, tied):
  random, queries, gallery = _case(1, tied=tied)
  labels, known = random.integers(0, 3, 7), random.integers(0, 3, 9)
  rows = [
    random.permutation(9)[:size].tolist() for size in (0, 1, 2, 3, 1, 0, 2)
  ]
  sequences = random.integers(-1, 3, 7), random.integers(-1, 3, 9)
  cameras = random.integers(-1, 2, 7), random.integers(-1, 2, 9)
  ignored = metrics.Ignored(rows, sequences, cameras)
  grades = np.array([[1, 0.5, 0], [0.5, 1, 0], [0, 0.25, 2]])

  def relevance(i, j):
    if relation == 'grades':
      return grades[labels[i], known[j]]
    if relation == 'label_sets':  # {y, 3} and {y}.
      return (labels[i] == known[j]) / 2
    return float(labels[i] == known[j])

  def grade(i, j):
    same = [pair[0][i] == pair[1][j] >= 0 for pair in (sequences, cameras)]
    if j in rows[i] or same[0] or (same[1] and relevance(i, j) > 0):
      return None
    return relevance(i, j)

  if relation == 'lists':
    lists = [np.flatnonzero(known == label).tolist() for label in labels]
    result = metrics.evaluate_listed(
      queries, gallery, lists, ignored=ignored, metrics=_NAMES
    )
  else:
    if relation == 'label_sets':
      labels, plain = np.stack([labels, np.full(7, 3)], 1), labels
      known, plain_known = np.stack([known, np.full(9, -1)], 1), known
    result = metrics.evaluate_retrieval(
      queries,
      labels,
      gallery,
      known,
      ignored=ignored,
      grades=grades if relation == 'grades' else None,
      metrics=_NAMES,
    )
    if relation == 'label_sets':
      labels, known = plain, plain_known
  expected = loops.brute_force(queries, gallery, grade, names=_NAMES)
  _agree(result, expected)
  assert len(result.protocol['ignored']) == 3


@pytest.mark.parametrize('tied', [False, True])
def test_itself_and_listed_rows(tied):
  random, _, x = _case(2, tied=tied)
  # A query that lists or ignores itself is no special case.
  lists = [random.permutation(9)[: random.integers(0, 5)].tolist() for _ in x]
  lists[0] = [0, 1]
  rows = [[i] for i in range(9)]
  for ignored in (None, metrics.Ignored(rows=rows)):
    result = metrics.evaluate_listed(
      x, None, lists, ignored=ignored, metrics=_NAMES
    )
    expected = loops.brute_force(
      x, x, lambda i, j: float(j in lists[i]), itself=True, names=_NAMES
    )
    _agree(result, expected)
  # The queries as a gallery, and each ignores itself: the same.
  result = metrics.evaluate_listed(
    x, x, lists, ignored=metrics.Ignored(rows=rows), metrics=_NAMES
  )
  _agree(result, expected)


def test_ignored_rows_shift_ranks_and_are_no_positives():
  angles = np.deg2rad([5, 10, 15, 20, 25])
  gallery = np.stack([np.cos(angles), np.sin(angles)], axis=1)
  query, labels = np.array([[1.0, 0.0]]), np.array([7, 0, 7, 0, 7])
  names = ('precision_at_1', 'mean_average_precision', 'mean_reciprocal_rank')

  def evaluate(rows):
    return metrics.retrieval_metrics(
      query,
      np.array([7]),
      gallery,
      labels,
      metrics=names,
      ignored=metrics.Ignored(rows=rows),
    )

  # Positives at ranks 1, 3, 5; without row 0 at 2, 4; without row 1 too, 1, 3.
  assert evaluate([[]]) == pytest.approx(
    dict(zip(names, (1, (1 + 2 / 3 + 3 / 5) / 3, 1), strict=True))
  )
  assert evaluate([[0]]) == pytest.approx(
    dict(zip(names, (0, 1 / 2, 1 / 2), strict=True))
  )
  assert evaluate([[1, 0]]) == pytest.approx(
    dict(zip(names, (1, (1 + 2 / 3) / 2, 1), strict=True))
  )


def test_market_protocol():
  # The nearest row is the query's own camera's picture of the same person: not
  # judged. What that camera took of another person distracts.
  x = np.stack([np.cos([0, 0.1, 0.2, 0.3]), np.sin([0, 0.1, 0.2, 0.3])], axis=1)
  values = metrics.retrieval_metrics(
    x[:1],
    np.array([1]),
    x[1:],
    np.array([1, 2, 1]),
    ignored=metrics.Ignored(cameras=(np.array([0]), np.array([0, 0, 1]))),
    metrics=('precision_at_1', 'mean_average_precision'),
  )
  assert values == {'precision_at_1': 0.0, 'mean_average_precision': 0.5}


def test_queries_whose_positives_are_all_ignored_are_lone():
  x, labels = np.eye(4), np.array([0, 0, 1, 1])
  result = metrics.evaluate_retrieval(
    x, labels, ignored=metrics.Ignored(rows=[[1], [], [], []])
  )
  assert result.protocol['num_lone_queries'] == 1
  assert np.isnan(result.per_query['precision_at_1']).tolist() == [
    *(True, False, False, False)
  ]
  with pytest.raises(InputError, match='none of the 4 queries'):
    metrics.evaluate_retrieval(
      x, labels, ignored=metrics.Ignored(sequences=(labels, labels))
    )


@pytest.mark.parametrize('num_devices', [1, 4])
def test_blocks_and_devices_change_nothing(num_devices, monkeypatch):
  from retrieval_jax.metrics import sorting

  monkeypatch.setattr(tiles, 'TILE_ROWS', 64)
  random = np.random.default_rng(1)
  x = random.normal(size=(300, 3)).round(1)
  labels, cameras = random.integers(0, 9, (2, 300))
  ignored = metrics.Ignored(
    rows=random.integers(0, 300, (300, 3)), cameras=(cameras, cameras)
  ).checked(300, 300)
  grades = random.uniform(size=(9, 9)).round(1)
  names = {name: metrics.get_metric(name) for name in _NAMES}

  def values(budget):
    from retrieval_jax.metrics import definitions

    blocks = sorting.rank_relevant(
      x,
      x,
      sorting.Labels(labels, labels, grades),
      exclude_self=True,
      ignored=ignored,
      with_grades=True,
      budget=budget,
      devices=jax.local_devices()[:num_devices],
    )
    found = [definitions.evaluate(block, names) for block in blocks]
    return len(found), {
      name: np.concatenate([block[name].expected for block in found])
      for name in names
    }

  (few, large), (many, small) = values(2**28), values(num_devices * 250_000)
  assert few < many
  for name in names:
    np.testing.assert_allclose(large[name], small[name], rtol=1e-12)


def test_memory_stays_within_the_budget():
  random = np.random.default_rng(0)
  x = random.normal(size=(20_000, 8)).astype(np.float32)
  labels, cameras = random.integers(0, 30, (2, 20_000))

  def evaluate(number):
    metrics.evaluate_retrieval(
      x[:number],
      labels[:number],
      x,
      labels,
      ignored=metrics.Ignored(
        rows=np.arange(number)[:, None], cameras=(cameras[:number], cameras)
      ),
      memory_budget_mb=16,
    )

  evaluate(64)
  before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  evaluate(300)
  grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
  assert grown / 1024 < 16 + 24  # Compiled code and labels besides.


@pytest.mark.parametrize(
  'ignored, words',
  [
    ({'rows': [[0]]}, 'ignored.rows has 1 rows for 3 queries'),
    ({'rows': [[0], [3], []]}, r'ignored.rows has 3; allowed is at most 2'),
    ({'rows': [[0], [0.5], []]}, r'ignored.rows has \[0.5\]'),
    ({'rows': np.zeros(3, int)}, r'ignored.rows has shape \(3,\)'),
    ({'rows': np.zeros((3, 1))}, 'float64'),
    ({'rows': 3}, 'ignored.rows is int'),
    ({'cameras': np.zeros(3, int)}, 'ignored.cameras is ndarray'),
    ({'cameras': (np.zeros(3, int),) * 3}, 'ignored.cameras is tuple'),
    (
      {'sequences': (np.zeros(3, int), np.zeros(2, int))},
      r'ignored.sequences have lengths \(3, 2\); allowed are \(3, 3\)',
    ),
    ({'sequences': (np.zeros(3), np.zeros(3))}, 'float64'),
  ],
)
def test_refusals(ignored, words):
  with pytest.raises(InputError, match=words) as caught:
    metrics.retrieval_metrics(
      np.eye(3), np.zeros(3, int), ignored=metrics.Ignored(**ignored)
    )
  assert '\n' not in str(caught.value)


@pytest.mark.parametrize(
  'relevant, words',
  [
    ([[], [], []], 'relevant: none of the 3 queries'),
    ([[1], [0]], 'relevant has 2 rows for 3'),
    ([[1], [0], [9]], 'relevant has 9; allowed is at most 2'),
  ],
)
def test_listed_refusals(relevant, words):
  with pytest.raises(InputError, match=words):
    metrics.evaluate_listed(np.eye(3), np.eye(3), relevant)
  with pytest.raises(InputError, match='the queries have no class'):
    metrics.evaluate_listed(
      np.eye(3), None, [[1], [0], [1]], metrics=['macro_recall_at_1']
    )
