"""Intervals hold the truth as often as they say; p-values are uniform."""

import itertools

import numpy as np
import pytest
import scipy.stats

from retrieval_jax.core.errors import InputError
from retrieval_jax.metrics import uncertainty


def _interval(values, clusters=None, **options):
  found = uncertainty.confidence_intervals({'x': values}, clusters, **options)
  return found['x']


@pytest.mark.parametrize('by_class', (False, True))
def test_coverage(by_class):
  rng = np.random.default_rng(0)
  hits = []
  for seed in range(400):
    if by_class:  # Classes of several sizes, alike inside.
      clusters = np.repeat(np.arange(40), rng.integers(1, 8, 40))
      values = rng.beta(0.5, 5, 40)[clusters]
    else:
      clusters, values = None, rng.beta(0.5, 5, 50)
    low, high = _interval(values, clusters, num_resamples=500, seed=seed)
    hits.append(low <= 0.5 / 5.5 <= high)
  assert 0.90 <= np.mean(hits) <= 0.98


def test_queries_that_are_alike_need_classes():
  rng = np.random.default_rng(0)
  clusters = np.repeat(np.arange(20), 10)
  values = rng.random(20)[clusters]
  narrow, wide = _interval(values), _interval(values, clusters)
  assert wide.high - wide.low > 2 * (narrow.high - narrow.low)


def test_equals_the_bca_of_scipy():
  values = np.random.default_rng(1).beta(0.5, 2, 60)
  expected = scipy.stats.bootstrap(
    (values,), np.mean, n_resamples=20_000, rng=np.random.default_rng(2)
  ).confidence_interval
  found = _interval(values, num_resamples=20_000)
  np.testing.assert_allclose(found, expected, atol=0.004)


def test_stays_within_what_there_is_and_is_seeded():
  values = np.array([1.0] * 95 + [0.0] * 5)
  low, high = _interval(values)
  assert 0.8 < low < 0.95 < high <= 1
  assert _interval(values) == (low, high)
  smooth = np.random.default_rng(0).random(50)
  assert _interval(smooth) == _interval(smooth) != _interval(smooth, seed=1)
  wide = _interval(values, level=0.99)
  assert wide.low < low
  assert _interval(np.ones(9)) == (1, 1)
  assert _interval(np.array([0.3])) == (0.3, 0.3)


def test_lone_queries_do_not_count():
  values = np.random.default_rng(0).random(30)
  clusters = np.arange(30) // 3
  with_lone = np.append(values, [np.nan] * 6)
  lone_clusters = np.append(clusters, [50] * 6)
  expected = _interval(values, clusters)
  np.testing.assert_allclose(
    _interval(with_lone, lone_clusters), expected, atol=0.03
  )
  found = uncertainty.compare(with_lone, with_lone + 0.1, lone_clusters)
  assert found.num_queries == 30
  assert found.difference == pytest.approx(0.1)


def test_memory_does_not_change_the_draws(monkeypatch):
  values = np.random.default_rng(0).random((2, 100))
  expected = _interval(values[0]), uncertainty.compare(*values)
  monkeypatch.setattr(uncertainty, '_BYTES', 8 * 100 * 7)
  found = _interval(values[0]), uncertainty.compare(*values)
  assert found == expected


def test_p_value_of_few_differences_is_of_all_signs():
  rng = np.random.default_rng(0)
  differences = rng.normal(0.4, 1, 8)
  signs = itertools.product((-1, 1), repeat=8)
  sums = np.array([np.dot(sign, differences) for sign in signs])
  expected = np.mean(np.abs(sums) >= abs(differences.sum()) - 1e-9)
  found = uncertainty.compare(np.zeros(11), np.append(differences, [0, 0, 0]))
  assert found.p_value == expected
  assert found.num_better + found.num_worse == 8


@pytest.mark.parametrize('by_class', (False, True))
def test_p_values_are_uniform_where_nothing_differs(by_class):
  rng = np.random.default_rng(0)
  p_values = []
  for seed in range(300):
    clusters = np.arange(60) // 3
    a, b = rng.normal(size=(2, 20 if by_class else 60))
    if by_class:
      a, b = a[clusters], b[clusters]
    found = uncertainty.compare(
      a,
      b,
      clusters if by_class else None,
      num_flips=400,
      num_resamples=100,
      seed=seed,
    )
    p_values.append(found.p_value)
  assert scipy.stats.kstest(p_values, 'uniform').pvalue > 0.01
  assert 0.02 <= np.mean(np.array(p_values) <= 0.05) <= 0.08


def test_a_difference_is_found():
  rng = np.random.default_rng(0)
  a = rng.random(200)
  found = uncertainty.compare(a, a + rng.normal(0.05, 0.1, 200))
  assert found.p_value < 0.001
  assert 0 < found.interval.low < found.difference < found.interval.high
  assert found.mean_b - found.mean_a == pytest.approx(found.difference)
  turned = uncertainty.compare(a + 0.05, a)
  assert turned.difference == pytest.approx(-0.05)
  assert uncertainty.compare(a, a).p_value == 1


def _compare(values, clusters=None, **options):
  return uncertainty.compare(np.ones(3), values, clusters, **options)


@pytest.mark.parametrize(
  'call, words',
  [
    (lambda: _interval(np.ones(3), level=95), 'level is 95'),
    (lambda: _interval(np.ones(3), num_resamples=1), 'num_resamples is 1'),
    (lambda: _interval(np.full(3, np.nan)), 'x: no query has a value'),
    (lambda: _interval(np.ones(3), num_resamples=1e3), 'num_resamples is 1000'),
    (lambda: _interval(np.ones(3), seed=-1), 'seed is -1; allowed is an int'),
    (lambda: _interval(np.ones((3, 1))), r'x has shape \(3, 1\)'),
    (lambda: _interval(np.ones(3), np.arange(2)), r'clusters has shape \(2,\)'),
    (lambda: _interval(np.array([0, np.inf])), 'x is inf of query 1'),
    (lambda: uncertainty.confidence_intervals({}), 'per_query is empty'),
    (
      lambda: uncertainty.confidence_intervals(
        {'x': np.ones(3), 'y': np.ones(4)}
      ),
      r'y has shape \(4,\) and x \(3,\)',
    ),
    (lambda: _compare(np.ones(4)), 'match the queries'),
    (lambda: _compare(np.ones(3), np.arange(4)), 'clusters has shape'),
    (
      lambda: _compare(np.array([0, 1, -np.inf])),
      'values_b is -inf of query 2',
    ),
    (lambda: _compare(np.ones(3), seed=-1), 'seed is -1'),
    (lambda: _compare(np.full(3, np.nan)), 'no query has a value'),
  ],
)
def test_mistakes(call, words):
  with pytest.raises(InputError, match=words):
    call()
