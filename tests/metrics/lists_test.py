"""Metrics of lists against loops, the exact metrics, and by hand."""

import numpy as np
import pytest

from retrieval_jax import metrics, neighbors
from retrieval_jax.core.errors import InputError
from retrieval_jax.metrics import rankings
from tests.metrics import loops


def brute_force(indices, relevant, j):
  """Returns (recall, precision, mAP) at j and (R-precision, mAP@R)."""
  rows = []
  for found, wanted in zip(indices, relevant, strict=True):
    if not wanted:
      continue
    seen, hits = set(), []
    for row in found:
      hits.append(row in wanted and row not in seen)
      seen.add(row)

    def average_precision(depth, denominator, hits=hits):
      return (
        sum(sum(hits[: i + 1]) / (i + 1) for i in range(depth) if hits[i])
        / denominator
      )

    count = len(wanted)
    rows.append(
      [
        any(hits[:j]),
        sum(hits[:j]) / j,
        average_precision(j, min(count, j)),
        sum(hits[:count]) / count,
        average_precision(count, count),
      ]
    )
  return np.mean(rows, axis=0)


NAMES = (
  'recall_at_4',
  'precision_at_4',
  'mean_average_precision_at_4',
  'r_precision',
  'mean_average_precision_at_r',
)


@pytest.mark.parametrize('is_one_set', [False, True])
def test_equals_loops(is_one_set):
  random = np.random.default_rng(0)
  labels = random.integers(0, 6, 50)
  gallery = labels if is_one_set else random.integers(1, 8, 70)
  indices = random.integers(0, len(gallery), (50, 30))  # Some of them twice.
  if is_one_set:
    itself = indices == np.arange(50)[:, None]
    indices[itself] = -1
  relevant = [
    {j for j in np.flatnonzero(gallery == y) if not (is_one_set and i == j)}
    for i, y in enumerate(labels)
  ]
  result = metrics.evaluate_lists(
    indices, labels, None if is_one_set else gallery, metrics=NAMES
  )
  found = [result.metrics[name] for name in NAMES]
  np.testing.assert_allclose(found, brute_force(indices, relevant, 4))
  lone = [i for i, wanted in enumerate(relevant) if not wanted]
  assert result.protocol['num_lone_queries'] == len(lone)
  assert np.isnan(result.per_query['recall_at_4'][lone]).all()


def test_a_search_has_the_exact_metrics():
  random = np.random.default_rng(0)
  x, labels = random.normal(size=(40, 8)), np.arange(40) % 5
  names = ('precision_at_1', 'recall_at_10', 'r_precision')
  names += ('mean_average_precision_at_r',)
  exact = metrics.retrieval_metrics(x, labels, metrics=names)
  lists = neighbors.top_k(x, x, 10, exclude_self=True)
  found = metrics.evaluate_lists(lists[1], labels).metrics
  assert {name: found[name] for name in names} == pytest.approx(exact)
  whole = neighbors.top_k(x, x, 39, exclude_self=True)[1]
  full = metrics.retrieval_metrics(
    x, labels, metrics=('mean_average_precision',)
  )
  found = metrics.evaluate_lists(whole, labels).metrics
  assert found['mean_average_precision_at_39'] == pytest.approx(
    full['mean_average_precision']
  )


def test_label_sets_and_grades():
  sets = np.array([[0, 1], [1, 2], [2, -1], [3, -1]])
  indices = np.array([[1, 2], [0, 2], [3, 1], [0, 1]])
  result = metrics.evaluate_lists(indices, sets)
  assert result.protocol['num_lone_queries'] == 1
  found = result.per_query['mean_average_precision_at_2'][:3]
  np.testing.assert_allclose(found, [1.0, 1.0, 0.5])
  grades = np.array([[1.0, 0.5, 0.0], [0.5, 1.0, 0.0], [0.0, 0.0, 1.0]])
  result = metrics.evaluate_lists(
    [[1, 2]], [0], [2, 1, 0], metrics=('recall_at_1',), grades=grades
  )
  assert result.metrics == {'recall_at_1': 1.0}
  without = metrics.evaluate_lists(
    [[1, 2]], [0], [2, 1, 0], metrics=('recall_at_1',)
  )
  assert without.metrics == {'recall_at_1': 0.0}


def test_lists_that_end_early():
  result = metrics.evaluate_lists(
    [[0, 2, -1], [-1, -1, -1], [1, 0, 2]], [5, 5, 6], [5, 5, 6]
  )
  assert result.protocol['mean_returned'] == pytest.approx(5 / 3)
  np.testing.assert_allclose(
    result.per_query['returned_precision'], [1 / 2, np.nan, 1 / 3]
  )
  assert result.metrics['returned_precision'] == pytest.approx(5 / 12)
  assert result.per_query['precision_at_1'][1] == 0


@pytest.mark.parametrize(
  'indices, words, options',
  [
    ([[1, -1], [0, 1]], 'row 1 holds the query itself', {}),
    ([[1, 2], [0, 2]], 'reach from 0 to 2; allowed are 0 to 1', {}),
    ([[1, -2], [0, -1]], 'reach from -2', {}),
    ([[1.0], [0.0]], 'dtype float64', {}),
    ([1, 0], r'shape \(2,\)', {}),
    ([[1], [0]], "'recall_at_2'; allowed .* first 1", ['recall_at_2']),
    ([[1], [0]], "did you mean 'recall_at_<k>'", ['recal_at_2']),
  ],
)
def test_bad_input(indices, words, options):
  with pytest.raises(InputError, match=words):
    metrics.evaluate_lists(indices, [3, 3], metrics=options or None)


def test_metrics_at_r_need_lists_as_long():
  indices = np.array([[1, 2], [2, 0], [0, 1], [0, 1]])
  with pytest.raises(InputError, match='r_precision.* with R up to 3'):
    metrics.evaluate_lists(indices, [3] * 4, metrics=['r_precision'])
  found = metrics.evaluate_lists(indices, [3] * 4).metrics
  assert list(found) == ['precision_at_1', 'mean_average_precision_at_2']
  with pytest.raises(InputError, match='none of the 4 queries'):
    metrics.evaluate_lists(indices, [1, 2, 3, 4])


@pytest.mark.parametrize('relation', ['class', 'grades', 'label_sets'])
@pytest.mark.parametrize('is_one_set', [False, True])
def test_ignored_rows_against_loops(relation, is_one_set):
  random = np.random.default_rng(3)
  num_rows = 12 if is_one_set else 20
  labels, known = random.integers(0, 3, 12), random.integers(0, 3, num_rows)
  rows = [random.permutation(num_rows)[: i % 4] for i in range(12)]
  sequences = random.integers(-1, 6, 12), random.integers(-1, 6, num_rows)
  cameras = random.integers(-1, 2, 12), random.integers(-1, 2, num_rows)
  if is_one_set:
    known, sequences, cameras = labels, sequences[:1] * 2, cameras[:1] * 2
  grades = np.array([[1, 0.5, 0], [0.5, 1, 0], [0, 0.25, 2]])
  lists = [
    random.permutation([j for j in range(num_rows) if j != i or not is_one_set])
    for i in range(12)
  ]
  names = ('recall_at_1', 'precision_at_3', 'mean_average_precision_at_4')
  names += ('mean_modified_precision_at_2', 'revisited_precision_at_3')

  def is_relevant(i, j):
    if relation == 'grades':
      return grades[labels[i], known[j]] > 0
    return labels[i] == known[j]

  expected = []
  for i in range(12):
    judged = []
    for j in lists[i]:
      same = [pair[0][i] == pair[1][j] >= 0 for pair in (sequences, cameras)]
      if not (j in rows[i] or same[0] or (same[1] and is_relevant(i, j))):
        judged.append(is_relevant(i, j))
    if any(judged):
      values = loops.loop_metrics(judged)
      expected.append([values[name] for name in names])
    else:
      expected.append([np.nan] * len(names))

  def as_given(ints):
    return (
      np.stack([ints, -1 - 0 * ints], 1) if relation == 'label_sets' else ints
    )

  result = metrics.evaluate_lists(
    np.array(lists),
    as_given(labels),
    None if is_one_set else as_given(known),
    metrics=names,
    grades=grades if relation == 'grades' else None,
    ignored=metrics.Ignored(rows, sequences, cameras),
  )
  found = [result.per_query[name] for name in names]
  np.testing.assert_allclose(found, np.transpose(expected))
  assert len(result.protocol['ignored']) == 3
  lone = np.isnan(expected).any(axis=1).sum()
  assert result.protocol['num_lone_queries'] == lone


def test_labels_say_what_lists_of_rows_say():
  random = np.random.default_rng(0)
  labels, known = random.integers(0, 5, 30), random.integers(0, 5, 40)
  indices = random.integers(-1, 40, (30, 15))
  names = ('macro_recall_at_4', 'precision_at_4', 'ndcg_at_9')
  names += ('mean_average_precision_at_15_over_hits',)
  found = metrics.evaluate_lists(indices, labels, known, metrics=names)
  listed = metrics.evaluate_rankings(
    indices,
    [np.flatnonzero(known == label) for label in labels],
    metrics=names[1:],
  )
  for name in names[1:]:
    np.testing.assert_array_equal(found.per_query[name], listed.per_query[name])
  recalls = found.per_query['macro_recall_at_4']
  assert found.metrics['macro_recall_at_4'] == pytest.approx(
    np.mean([recalls[labels == label].mean() for label in np.unique(labels)])
  )


def test_blocks_change_nothing(monkeypatch):
  random = np.random.default_rng(0)
  labels, indices = random.integers(0, 9, 50), random.integers(-1, 50, (50, 20))
  indices[indices == np.arange(50)[:, None]] = -1
  ignored = metrics.Ignored(sequences=(labels % 4, np.arange(50) % 4))
  whole, parts = (
    metrics.evaluate_lists(indices, labels, ignored=ignored)
    for _ in _with_block_bytes(monkeypatch, (2**26, 1))
  )
  assert whole.metrics == parts.metrics
  assert 'returned_precision' in whole.metrics


def _with_block_bytes(monkeypatch, sizes):
  for size in sizes:
    monkeypatch.setattr(rankings, '_BLOCK_BYTES', size)
    yield size


def test_what_lists_do_not_know():
  # Of three entries one is ignored: the third rank is another list's.
  labels, known = [5, 6], [5, 5, 6, 7, 6]
  ignored = metrics.Ignored(rows=[[1], []])
  result = metrics.evaluate_lists(
    [[1, 3, 0], [2, 0, 1]], labels, known, ignored=ignored
  )
  assert result.protocol['list_length'] == 2
  assert list(result.metrics)[:2] == [
    'precision_at_1',
    'mean_average_precision_at_2',
  ]
  with pytest.raises(InputError, match='at_3.*first 2 ranks'):
    metrics.evaluate_lists(
      [[1, 3, 0], [2, 0, 1]],
      labels,
      known,
      ignored=ignored,
      metrics=['recall_at_3'],
    )
  # Where the list has ended there is nothing more to know.
  result = metrics.evaluate_lists(
    [[1, 3, -1], [2, 0, 1]], labels, known, ignored=ignored
  )
  assert result.protocol['list_length'] == 3
  assert result.per_query['returned_precision'].tolist() == [0, 1 / 3]
  with pytest.raises(InputError, match='row 0 holds nothing but'):
    metrics.evaluate_lists([[1], [2]], labels, known, ignored=ignored)


@pytest.mark.parametrize(
  'metric, grades, words',
  [
    ('mean_reciprocal_rank', None, 'first 2 ranks'),
    ('auroc', None, 'first 2 ranks'),
    ('ndcg_at_1', np.eye(3), "'ndcg_at_1'.*graded"),
  ],
)
def test_metrics_that_lists_have_not(metric, grades, words):
  with pytest.raises(InputError, match=words):
    metrics.evaluate_lists(
      [[1, 2]], [0], [0, 1, 0], metrics=[metric], grades=grades
    )
