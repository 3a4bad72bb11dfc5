"""Zero-shot R@K, In-Shop and UnED against loops."""

import numpy as np
import pytest

from retrieval_jax import metrics
from retrieval_jax.core.errors import InputError
from retrieval_jax.metrics.protocols import uned, zero_shot
from retrieval_jax.metrics.protocols.uned import Domain


def _unit(x):
  return x / np.linalg.norm(x, axis=1, keepdims=True)


def _loop(queries, labels, gallery, gallery_labels, itself=None):
  """(R@1, mMP@5) of queries, without ties; `itself`: the row of each."""
  first, modified = [], []
  for i, label in enumerate(labels):
    order = np.argsort(-_unit(gallery) @ queries[i]).tolist()
    if itself is not None:
      order.remove(itself[i])
    relevant = [gallery_labels[j] == label for j in order]
    if total := sum(relevant):
      depth = min(total, 5)
      first.append(float(relevant[0]))
      modified.append(sum(relevant[:depth]) / depth)
  return [np.mean(first), np.mean(modified)]


def _domains():
  random = np.random.default_rng(0)

  def draw(number, classes):
    return random.normal(size=(number, 5)), random.integers(0, classes, number)

  # Labels of both domains have the same numbers; `b` asks itself.
  return {
    'a': Domain(*draw(12, 4), *draw(40, 4)),
    'b': Domain(*draw(30, 5)),
    'c': Domain(*draw(9, 3), *draw(11, 3)),
  }


def test_uned_separate():
  domains = _domains()
  found = uned.evaluate(domains, merged=False)
  expected = {
    'a': _loop(*domains['a']),
    'b': _loop(*domains['b'][:2], *domains['b'][:2], itself=range(30)),
    'c': _loop(*domains['c']),
  }
  for name, values in expected.items():
    own = list(found.domains[name].metrics.values())
    assert own == pytest.approx(values, abs=1e-12)
  assert list(found.means) == list(uned.METRICS)
  assert list(found.means.values()) == pytest.approx(
    np.mean(list(expected.values()), axis=0)
  )


def test_uned_merged():
  domains = _domains()
  index = np.concatenate([domains['a'][2], domains['b'][0], domains['c'][2]])
  # A hit needs the domain, too.
  labels = np.concatenate(
    [domains['a'][3], 100 + domains['b'][1], 200 + domains['c'][3]]
  )
  found = uned.evaluate(domains, merged=True)
  for name, shift, itself in (
    ('a', 0, None),
    ('b', 100, range(40, 70)),
    ('c', 200, None),
  ):
    queries, own, *_ = domains[name]
    expected = _loop(queries, own + shift, index, labels, itself)
    values = list(found.domains[name].metrics.values())
    assert values == pytest.approx(expected, abs=1e-12)
    assert found.domains[name].protocol['gallery_size'] == 81
  separate = uned.evaluate(domains, merged=False)
  for name, value in found.means.items():
    assert value < separate.means[name]


def test_modified_precision_cannot_be_negative_with_copies():
  # Dropping the first row as if it were the query would drop its copy.
  x = np.repeat(np.eye(4), 3, axis=0)
  found = uned.evaluate({'a': Domain(x, np.repeat(range(4), 3))}, merged=True)
  assert found.means == {
    'precision_at_1': 1.0,
    'mean_modified_precision_at_5': 1.0,
  }
  mixed = uned.evaluate({'a': Domain(x, np.arange(12) % 4)}, merged=False)
  assert min(mixed.means.values()) >= 0


def test_uned_refusals():
  domains = _domains()
  with pytest.raises(InputError, match='domains is empty'):
    uned.evaluate({}, merged=False)
  domains['d'] = Domain(np.ones((3, 4)), np.zeros(3, int))
  with pytest.raises(InputError, match='d: gallery_embeddings has 4 columns'):
    uned.evaluate(domains, merged=True)
  domains['d'] = Domain(np.ones((3, 5)), np.arange(3))
  for merged in (False, True):
    with pytest.raises(InputError, match='^d: query_labels: none of the 3'):
      uned.evaluate(domains, merged=merged)
  domains['d'] = Domain(np.ones((3, 5)), np.zeros(2, int))
  with pytest.raises(InputError, match='d: 3 embeddings have 2 labels'):
    uned.evaluate(domains, merged=True)


@pytest.mark.parametrize('name', ['cub', 'cars', 'sop'])
def test_zero_shot_excludes_the_query_by_its_index(name):
  random = np.random.default_rng(2)
  x = random.normal(size=(60, 4))
  labels = random.permutation(60) % 20
  # A copy of the query under another label: it is the nearest, not the query.
  x[1] = x[0]
  labels[:2] = 0, 1
  result = zero_shot.evaluate(name, x, labels)
  order = np.argsort(-_unit(x) @ x.T, axis=0, kind='stable')
  for k in zero_shot.BENCHMARKS[name].ks:
    hits = []
    for i in range(2, 60):
      others = [j for j in order[:, i].tolist() if j != i]
      hits.append(any(labels[j] == labels[i] for j in others[:k]))
    own = result.per_query[f'recall_at_{k}'][2:]
    # The copies tie for all others: at most those at the edge of k differ.
    assert np.count_nonzero(own != hits) <= 4
    assert result.metrics[f'recall_at_{k}'] <= 1
  assert result.per_query['recall_at_1'][0] == 0
  assert result.protocol['benchmark'] == name
  assert not result.protocol['is_official_size']


def test_in_shop_gives_the_pessimistic_value_of_ties():
  # The positive and a negative are equally near: code that counts negatives
  # strictly above calls it a hit, the lower end of the range does not.
  result = zero_shot.evaluate(
    'in_shop',
    np.array([[1.0, 0.0]]),
    np.array([1]),
    np.array([[1.0, 1.0], [1.0, 1.0], [0.0, 1.0]]),
    np.array([1, 2, 3]),
  )
  assert list(result.metrics) == [
    f'recall_at_{k}' for k in (1, 10, 20, 30, 40, 50)
  ]
  assert result.metrics['recall_at_1'] == 0.5
  assert result.ranges['recall_at_1'] == (0.0, 1.0)
  assert result.metrics['recall_at_10'] == 1.0


def test_official_sizes():
  benchmarks = zero_shot.BENCHMARKS
  assert benchmarks['sop'].metrics[-1] == 'recall_at_1000'
  for benchmark in benchmarks.values():
    metrics.check_metrics(benchmark.metrics)


def test_a_test_set_of_the_official_size(monkeypatch):
  benchmark = zero_shot.BENCHMARKS['cub']._replace(num_queries=12)
  monkeypatch.setitem(zero_shot.BENCHMARKS, 'cub', benchmark)
  labels = np.arange(12) % 4
  result = zero_shot.evaluate('cub', np.eye(4)[labels], labels)
  assert result.protocol['is_official_size']
  assert set(result.metrics.values()) == {1.0}


def test_zero_shot_refusals():
  x, labels = np.eye(4), np.array([0, 0, 1, 1])
  with pytest.raises(InputError, match="mean 'cub'"):
    zero_shot.evaluate('cubs', x, labels)
  with pytest.raises(InputError, match='cub got a gallery'):
    zero_shot.evaluate('cub', x, labels, x, labels)
  with pytest.raises(InputError, match='in_shop got no gallery'):
    zero_shot.evaluate('in_shop', x, labels)


def test_own_rows_are_as_ignored_rows():
  random = np.random.default_rng(5)
  x = random.normal(size=(90, 6)).astype(np.float32)
  x[3] = x[70]  # A copy, which is no reason to drop it.
  labels = random.integers(0, 9, 90)
  picked = random.permutation(90)[:30]
  names = ('precision_at_1', 'mean_average_precision', 'r_precision')
  own_rows = np.where(np.arange(30) % 7 == 0, -1, picked)
  found = metrics.evaluate_retrieval(
    x[picked], labels[picked], x, labels, own_rows=own_rows, metrics=names
  )
  expected = metrics.evaluate_retrieval(
    *(x[picked], labels[picked], x, labels),
    ignored=metrics.Ignored(rows=own_rows[:, None]),
    metrics=names,
  )
  for name in names:
    np.testing.assert_allclose(
      found.per_query[name], expected.per_query[name], atol=1e-12
    )
  assert found.protocol['self_excluded'] and 'ignored' not in found.protocol
  # With label sets rankings are sorted, to the same end.
  sets = np.stack([labels, np.full(90, -1)], axis=1)
  sorted_ = metrics.evaluate_retrieval(
    x[picked], sets[picked], x, sets, own_rows=own_rows, metrics=names
  )
  assert sorted_.metrics == pytest.approx(found.metrics, abs=1e-12)


@pytest.mark.parametrize(
  'own_rows, words',
  [
    ([0, 4], 'own_rows has shape .2,.*4 integers'),
    ([0.0, 1.0, 2.0, 3.0], 'dtype float64'),
    ([0, 1, 2, 4], 'below 4'),
    ([0, 1, 2, 0], 'query 3 has label 1 and is row 0 .* label 0'),
  ],
)
def test_own_rows_that_cannot_be(own_rows, words):
  x, labels = np.eye(4), np.array([0, 0, 1, 1])
  with pytest.raises(InputError, match=words):
    metrics.evaluate_retrieval(x, labels, x, labels, own_rows=own_rows)


def test_own_rows_without_a_gallery():
  x, labels = np.eye(4), np.array([0, 0, 1, 1])
  with pytest.raises(InputError, match='own_rows is given without a gallery'):
    metrics.evaluate_retrieval(x, labels, own_rows=labels)
