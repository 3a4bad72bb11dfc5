"""Metrics against hand-worked values, loops, enumerated ties and PML."""

import importlib.util
import json
import pathlib
import subprocess
import sys
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import absltest, parameterized

from retrieval_jax import metrics
from retrieval_jax.core import tiles
from retrieval_jax.core.errors import InputError
from retrieval_jax.metrics import counting, ranking, retrieval, selecting
from tests.metrics import loops

_GOLDEN = pathlib.Path(__file__).parents[1] / 'golden'
_NAMES = (
  *metrics.METRICS,
  *('recall_at_1', 'recall_at_3', 'recall_at_10'),
  'precision_at_3',
  'mean_average_precision_at_3',
  'mean_average_precision_at_3_over_hits',
  'mean_modified_precision_at_3',
)


def _record_script():
  spec = importlib.util.spec_from_file_location(
    'record_pml_metrics', _GOLDEN / 'record_pml_metrics.py'
  )
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def _brute_force(queries, labels, gallery=None, gallery_labels=None):
  """Mean, lowest and highest of each metric over queries, in float64 loops."""
  itself = gallery is None
  if itself:
    gallery, gallery_labels = queries, labels
  return loops.brute_force(
    queries,
    gallery,
    lambda i, j: labels[i] == gallery_labels[j],
    itself=itself,
    names=_NAMES,
  )


def _random_case(seed, *, tied):
  """Small sets, queries or a gallery apart; tied: few distinct directions."""
  random = np.random.default_rng(seed)

  def draw(number):
    labels = random.integers(0, 3, number)
    if tied:
      x = np.eye(4)[random.integers(0, 4, number)] * random.integers(1, 5)
    else:
      x = random.normal(size=(number, 5))
    return x.astype(np.float32), labels

  if seed % 2:
    return draw(7 if tied else 30)
  return draw(6) + draw(7 if tied else 25)


class ValuesTest(parameterized.TestCase):
  def test_hand_worked(self):
    # Angles of the gallery from the query: 10, 20, 30, 40, 50 degrees, with
    # the positives at ranks 1, 3 and 4: R = 3.
    angles = np.deg2rad([10, 20, 30, 40, 50])
    gallery = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    values = metrics.retrieval_metrics(
      np.array([[2.0, 0.0]]),
      np.array([7]),
      gallery,
      np.array([7, 1, 7, 7, 2]),
      metrics=_NAMES,
    )
    expected = {
      'precision_at_1': 1.0,
      'r_precision': 2 / 3,
      'mean_average_precision': (1 + 2 / 3 + 3 / 4) / 3,
      'mean_average_precision_at_r': (1 + 2 / 3) / 3,
      'mean_reciprocal_rank': 1.0,
      'recall_at_1': 1.0,
      'recall_at_3': 1.0,
      'recall_at_10': 1.0,
      'ndcg': (1 + 1 / 2 + 1 / np.log2(5)) / (1 + 1 / np.log2(3) + 1 / 2),
      'revisited_mean_average_precision': (
        (1 + 1) / 2 + (1 / 2 + 2 / 3) / 2 + (2 / 3 + 3 / 4) / 2
      )
      / 3,
      'precision_at_3': 2 / 3,
      'mean_average_precision_at_3': (1 + 2 / 3) / 3,
      'mean_average_precision_at_3_over_hits': (1 + 2 / 3) / 2,
      'mean_modified_precision_at_3': 2 / 3,
    }
    self.assertEqual(list(values), list(_NAMES))
    for name, value in expected.items():
      self.assertAlmostEqual(values[name], value, places=12, msg=name)

  @parameterized.product(
    seed=tuple(range(8)), tied=(False, True), counter=('compare', 'sort')
  )
  def test_equals_brute_force(self, seed, tied, counter):
    case = _random_case(seed, tied=tied)
    expected = _brute_force(*case)
    result = _evaluate(*case, counter=counter)
    for name in _NAMES:
      mean, low, high = expected[name]
      self.assertAlmostEqual(result.metrics[name], mean, places=9, msg=name)
      np.testing.assert_allclose(result.ranges[name], (low, high), atol=1e-9)
    if tied:
      self.assertGreater(result.protocol['tie_rate'], 0)
    else:
      self.assertEqual(result.protocol['tie_rate'], 0)
      for name in _NAMES:
        self.assertEqual(result.ranges[name], (result.metrics[name],) * 2)

  @parameterized.parameters(
    'self', 'self_imbalanced', 'gallery', 'gallery_with_lone_queries'
  )
  def test_equals_pml(self, case):
    script = _record_script()
    recorded = json.loads((_GOLDEN / 'pml_metrics.json').read_text())
    values = metrics.retrieval_metrics(
      *script.make_case(*script.CASES[case]), metrics=tuple(metrics.METRICS)
    )
    for name, value in recorded['metrics'][case].items():
      self.assertAlmostEqual(values[name], value, delta=1e-6, msg=name)

  def test_defaults_are_known_and_plain_floats(self):
    embeddings, labels = _clusters(50, 8, 5)
    values = metrics.retrieval_metrics(embeddings, labels)
    self.assertEqual(tuple(values), metrics.DEFAULT_METRICS)
    self.assertTrue(all(type(value) is float for value in values.values()))

  def test_result_describes_itself_in_json(self):
    embeddings, labels = _clusters(50, 8, 5)
    result = metrics.evaluate_retrieval(embeddings, labels)
    protocol = json.loads(json.dumps(result.protocol))
    self.assertEqual(protocol['similarity'], 'cosine')
    self.assertEqual(protocol['num_queries'], 50)
    self.assertEqual(protocol['gallery_size'], 50)
    self.assertTrue(protocol['self_excluded'])
    self.assertEqual(set(protocol['definitions']), set(result.metrics))
    for name, values in result.per_query.items():
      self.assertEqual(values.shape, (50,))
      self.assertAlmostEqual(values.mean(), result.metrics[name])

  @parameterized.parameters(*range(12))
  def test_invariants(self, seed):
    random = np.random.default_rng(seed)
    size, classes = random.integers(3, 60), random.integers(1, 9)
    x = random.normal(size=(size, random.integers(1, 5))).round(
      random.integers(0, 3)
    )
    labels = random.integers(0, classes, size)
    labels[:2] = 0
    result = _evaluate(x, labels)
    for name in _NAMES:
      low, high = result.ranges[name]
      value = result.metrics[name]
      self.assertTrue(0 <= low <= value + 1e-9 <= high + 2e-9 <= 1 + 2e-9)
    m = result.metrics
    self.assertLessEqual(
      m['mean_average_precision_at_r'], m['r_precision'] + 1e-9
    )
    self.assertLessEqual(
      m['mean_average_precision_at_r'], m['mean_average_precision'] + 1e-9
    )
    self.assertAlmostEqual(m['precision_at_1'], m['recall_at_1'], places=9)
    self.assertLessEqual(m['recall_at_1'], m['recall_at_3'] + 1e-9)


def _clusters(num_rows, dim, num_classes, noise=1.0, seed=0):
  random = np.random.default_rng(seed)
  labels = np.arange(num_rows) % num_classes
  random.shuffle(labels)
  x = random.normal(size=(num_classes, dim))[labels]
  x += noise * random.normal(size=x.shape)
  return x.astype(np.float32), labels


def _evaluate(
  queries,
  labels,
  gallery=None,
  gallery_labels=None,
  *,
  budget=2**27,
  counter=None,
  devices=None,
):
  itself = gallery is None
  return retrieval._evaluate(
    queries,
    labels,
    queries if itself else gallery,
    labels if itself else gallery_labels,
    metrics=_NAMES,
    self_excluded=itself,
    budget=budget,
    counter=counter,
    devices=devices,
  )


class SameResultTest(parameterized.TestCase):
  """What must not change a result: bit for bit."""

  def assert_same(self, result, other):
    self.assertEqual(result.metrics, other.metrics)
    # These are summed block by block.
    np.testing.assert_allclose(
      list(result.ranges.values()), list(other.ranges.values()), atol=1e-12
    )
    tie_rates = [r.protocol.pop('tie_rate') for r in (result, other)]
    self.assertAlmostEqual(*tie_rates, places=12)
    self.assertEqual(result.protocol, other.protocol)
    for name in result.per_query:
      np.testing.assert_array_equal(
        result.per_query[name], other.per_query[name]
      )

  # Each value of one with each value of the others, in both together.
  @parameterized.parameters(('compare', 4, 20), ('sort', 1, 128))
  def test_counter_devices_and_budget(self, *case):
    self.check(*case)

  @parameterized.parameters(('compare', 1, 128), ('sort', 4, 20))
  @pytest.mark.slow
  def test_other_counters_devices_and_budgets(self, *case):
    self.check(*case)

  def check(self, counter, num_devices, budget_mb):
    # Classes of unequal sizes; more rows than a tile, and a tie.
    embeddings, labels = _clusters(4500, 24, 60, noise=1.5)
    labels = labels * (labels % 3 > 0)
    embeddings[17] = embeddings[4400]
    queries = embeddings[::97].copy(), labels[::97].copy()
    case = (*queries, embeddings, labels)
    expected = _evaluate(*case, devices=jax.local_devices()[:1])
    self.assert_same(
      _evaluate(
        *case,
        counter=counter,
        devices=jax.local_devices()[:num_devices],
        budget=budget_mb * 2**20,
      ),
      expected,
    )

  @parameterized.parameters(1, 4)
  def test_few_rows_that_reach_a_positive_are_selected(self, num_devices):
    embeddings, labels = _clusters(3000, 24, 150, noise=0.6)
    embeddings[17] = embeddings[2900]
    for case in (
      (embeddings, labels),
      (embeddings[:40].copy(), labels[:40], embeddings, labels),
    ):
      expected = _evaluate(*case, counter='sort')
      with mock.patch.object(
        selecting.Selection,
        'pick',
        autospec=True,
        side_effect=selecting.Selection.pick,
      ) as pick:
        found = _evaluate(
          *case, counter='compare', devices=jax.local_devices()[:num_devices]
        )
      self.assert_same(found, expected)
      self.assertGreater(pick.call_count, 1)
    self.assertLess(expected.metrics['mean_average_precision'], 1)

  @parameterized.parameters('compare', 'sort')
  def test_threads_that_overwrite_the_members_that_are_kept(self, counter):
    embeddings, labels = _clusters(9000, 8, 4)
    case = embeddings[:40], labels[:40], embeddings, labels
    settings = {'counter': counter, 'devices': jax.local_devices()[:1]}
    expected = _evaluate(*case, **settings)
    overwritten = property(lambda self: (-1, None), lambda self, value: None)
    with (
      mock.patch.object(counting, 'SORTED_COLUMNS', 1024),
      mock.patch.object(
        ranking._Ranking, '_last_members', overwritten, create=True
      ),
    ):
      found = _evaluate(*case, **settings)
    self.assert_same(found, expected)

  def test_streamed_tiles(self):
    embeddings, labels = _clusters(9000, 32, 4000)
    resident = tiles.Tiles(embeddings, budget=2**27)
    streamed = tiles.Tiles(embeddings, budget=2**19)
    self.assertTrue(resident.resident)
    self.assertFalse(streamed.resident)
    self.assert_same(
      _evaluate(embeddings[:300], labels[:300], embeddings, labels),
      _evaluate(
        embeddings[:300], labels[:300], embeddings, labels, budget=2**21
      ),
    )

  @parameterized.parameters('compare', 'sort')
  def test_row_order_with_duplicates(self, counter):
    random = np.random.default_rng(5)
    embeddings, labels = _clusters(300, 17, 12)
    # A third of the rows are copies of others, with other labels.
    embeddings[200:] = embeddings[random.integers(0, 200, 100)]
    expected = _evaluate(embeddings, labels, counter=counter)
    self.assertGreater(expected.protocol['tie_rate'], 0)
    for _ in range(3):
      order = random.permutation(300)
      result = _evaluate(embeddings[order], labels[order], counter=counter)
      for name in _NAMES:
        np.testing.assert_allclose(
          result.per_query[name], expected.per_query[name][order], atol=1e-12
        )

  def test_accepts_other_dtypes_and_jax_arrays(self):
    embeddings, labels = _clusters(64, 8, 6)
    embeddings = embeddings.astype(jnp.bfloat16)
    expected = _evaluate(embeddings.astype(np.float32), labels)
    for dtype in (jnp.bfloat16, np.float16, np.float64):
      given = (
        jnp.asarray(embeddings)
        if dtype == jnp.bfloat16
        else (embeddings.astype(dtype))
      )
      values = metrics.retrieval_metrics(
        given, labels.astype(np.uint8), metrics=_NAMES
      )
      for name in _NAMES:
        self.assertAlmostEqual(values[name], expected.metrics[name], delta=5e-3)

  def test_norms_do_not_matter(self):
    embeddings, labels = _clusters(64, 8, 6)
    scales = 2.0 ** np.random.default_rng(0).integers(-30, 30, (64, 1))
    self.assert_same(
      _evaluate(embeddings, labels),
      _evaluate((embeddings * scales).astype(np.float32), labels),
    )


class TiesTest(parameterized.TestCase):
  @parameterized.product(dim=(1, 3, 50, 129), counter=('compare', 'sort'))
  def test_identical_embeddings_are_chance(self, dim, counter):
    row = np.random.default_rng(dim).normal(size=(1, dim))
    embeddings = np.repeat(row, 40, axis=0)
    labels = np.arange(40) % 4
    result = _evaluate(embeddings, labels, counter=counter)
    self.assertEqual(result.protocol['tie_rate'], 1.0)
    self.assertAlmostEqual(result.metrics['precision_at_1'], 9 / 39)
    self.assertAlmostEqual(result.metrics['r_precision'], 9 / 39)
    self.assertAlmostEqual(
      result.metrics['recall_at_3'], 1 - 30 * 29 * 28 / (39 * 38 * 37)
    )
    self.assertEqual(result.ranges['precision_at_1'], (0.0, 1.0))
    self.assertEqual(result.ranges['r_precision'], (0.0, 1.0))

  def test_equal_gallery_rows_tie_wherever_they_stand(self):
    # The kernels treat the edges of a matrix apart; tiles must hide that.
    random = np.random.default_rng(0)
    for size, dim in ((3, 7), (65, 129), (4097, 33)):
      gallery = np.repeat(random.normal(size=(1, dim)), size, axis=0)
      result = _evaluate(
        random.normal(size=(5, dim)),
        np.zeros(5, int),
        gallery,
        np.arange(size) % 2,
      )
      self.assertEqual(result.protocol['tie_rate'], 1.0, (size, dim))

  def test_rounding_does_not_break_ties(self):
    # Codes of +1 and -1: few distinct cosines, which float32 sums disturb.
    random = np.random.default_rng(0)
    codes = random.choice([-1.0, 1.0], size=(7, 6))
    labels = np.array([0, 1, 0, 1, 0, 1, 1])
    expected = _brute_force(codes, labels)
    result = _evaluate(codes, labels)
    for name in _NAMES:
      self.assertAlmostEqual(result.metrics[name], expected[name][0], places=9)

  def test_collapse_alarm(self):
    embeddings = np.ones((20, 4)) + 1e-8
    labels = np.arange(20) % 2
    with self.assertWarnsRegex(UserWarning, 'collapsed'):
      metrics.retrieval_metrics(embeddings, labels)
    result = metrics.evaluate_retrieval(embeddings, labels)
    self.assertLen(result.protocol['warnings'], 1)

  @parameterized.parameters(200, 40_000)
  def test_no_alarm_for_embeddings_that_differ(self, size):
    # In a large gallery nearly every positive ties with some negative.
    embeddings, labels = _clusters(size, 8, 4)
    result = metrics.evaluate_retrieval(
      embeddings[:50], labels[:50], embeddings, labels
    )
    self.assertEqual(result.protocol['warnings'], [])
    self.assertLess(result.protocol['tie_rate'], 1e-5)

  def test_tie_rate_is_the_share_of_pairs(self):
    # The positive of query 0 is as near as two of its five negatives; the
    # positive of query 1 as none.
    axes = np.eye(4)
    gallery = axes[[0, 0, 0, 1, 2, 3]]
    labels = np.array([5, 1, 2, 6, 3, 4])
    queries = axes[[0, 3]] + 0.1 * axes[[1, 1]]
    result = _evaluate(queries, np.array([5, 4]), gallery, labels)
    self.assertAlmostEqual(result.protocol['tie_rate'], (2 / 5 + 0) / 2)

  def test_zero_rows_are_as_far_from_everything(self):
    embeddings, labels = _clusters(30, 8, 5)
    embeddings[3] = 0
    result = _evaluate(embeddings, labels)
    self.assertEqual(result.protocol['num_zero_embeddings'], 1)
    self.assertRegex(result.protocol['warnings'][-1], 'zero')
    # Everything ties for the zero query: 5 of the 29 others are positives.
    self.assertAlmostEqual(result.per_query['precision_at_1'][3], 5 / 29)


class QueriesTest(parameterized.TestCase):
  @parameterized.parameters('compare', 'sort')
  def test_lone_queries_are_left_out_and_counted(self, counter):
    embeddings, labels = _clusters(30, 8, 5)
    labels[[4, 9]] = [70, 80]
    result = _evaluate(embeddings, labels, counter=counter)
    self.assertEqual(result.protocol['num_lone_queries'], 2)
    for name, values in result.per_query.items():
      np.testing.assert_array_equal(np.isnan(values).nonzero()[0], [4, 9])
      self.assertAlmostEqual(result.metrics[name], np.nanmean(values))
    # They stay in the gallery as negatives.
    self.assertEqual(result.protocol['gallery_size'], 30)

  def test_labels_the_gallery_does_not_have(self):
    embeddings, labels = _clusters(20, 8, 2)
    result = _evaluate(embeddings, labels, embeddings[:9], labels[:9] * 5 - 5)
    self.assertEqual(
      result.protocol['num_lone_queries'],
      sum(label not in labels[:9] * 5 - 5 for label in labels),
    )

  def test_a_query_finds_its_duplicate_but_not_itself(self):
    embeddings, labels = _clusters(20, 8, 20)
    embeddings = np.concatenate([embeddings, embeddings])
    labels = np.concatenate([labels, labels])
    values = metrics.retrieval_metrics(
      embeddings, labels, metrics=tuple(metrics.METRICS)
    )
    self.assertEqual(set(values.values()), {1.0})

  def test_a_gallery_that_holds_the_queries_is_taken_as_given(self):
    embeddings, labels = _clusters(20, 8, 20)
    values = metrics.retrieval_metrics(
      embeddings, labels, embeddings, labels, metrics=tuple(metrics.METRICS)
    )
    self.assertEqual(set(values.values()), {1.0})


class ErrorsTest(parameterized.TestCase):
  """Each would be a wrong number, or a crash, in a calculator less strict."""

  def setUp(self):
    super().setUp()
    self.x, self.y = _clusters(20, 8, 4)

  def check(self, pattern, *args, **kwargs):
    with self.assertRaisesRegex(InputError, pattern) as caught:
      metrics.retrieval_metrics(*args, **kwargs)
    self.assertNotIn('\n', str(caught.exception))

  def test_labels(self):
    # (N, 1) printed an mAP of 4949.99; floats merge ids above 2 ** 24.
    self.check(r'query_labels has shape \(20, 1\)', self.x, self.y[:, None])
    self.check('float64', self.x, self.y.astype(float))
    self.check('query_labels has 19 rows', self.x, self.y[:-1])
    self.check(
      'gallery_labels has shape', self.x, self.y, self.x, self.y[:, None]
    )

  def test_large_ids_do_not_collide(self):
    self.check('none of the 20', self.x, np.arange(20) + 2**24)
    self.check('none of the 20', self.x, np.arange(20) + 2**53)

  def test_all_lone(self):
    self.check('none of the 20 queries', self.x, np.arange(20))
    self.check('none of the 1 queries', self.x[:1], self.y[:1])

  @parameterized.parameters(np.nan, np.inf, -np.inf)
  def test_not_finite(self, value):
    self.x[13, 2] = value
    self.x[15, 2] = value
    self.check('query_embeddings row 13 ', self.x, self.y)
    self.check(
      'gallery_embeddings row 13 ', self.x[:5], self.y[:5], self.x, self.y
    )

  def test_not_finite_in_float32(self):
    self.check('row 0', self.x.astype(float) * 1e300, self.y)

  def test_shapes(self):
    self.check(r'shape \(20,\)', self.x[:, 0], self.y)
    self.check('7 columns', self.x, self.y, self.x[:, :7], self.y)
    self.check(r'shape \(0, 8\)', self.x[:0], self.y[:0])
    self.check(r'shape \(20, 0\)', self.x[:, :0], self.y)
    self.check('dtype int', self.x.astype(int), self.y)

  def test_half_a_gallery(self):
    self.check('one is given', self.x, self.y, self.x)
    self.check('one is given', self.x, self.y, None, self.y)

  def test_names(self):
    self.check("mean 'r_precision'", self.x, self.y, metrics=['r_precison'])
    self.check('recall_at_<k>', self.x, self.y, metrics=['recall_at_0'])
    self.check('is the string', self.x, self.y, metrics='r_precision')
    self.check('is empty', self.x, self.y, metrics=[])
    self.check(
      "has 'macro_auroc', but 'auroc' is of the whole set",
      self.x,
      self.y,
      metrics=['macro_auroc'],
    )
    for pattern in metrics.METRICS_AT_K:
      for number in ('2147483648', '9' * 20, '9' * 5000):
        name = pattern.replace('<k>', number)
        self.check(f'{number}|at_<k>', self.x, self.y, metrics=[name])
      name = pattern.replace('<k>', '2147483647')
      values = metrics.retrieval_metrics(self.x, self.y, metrics=[name])
      self.assertBetween(values[name], 0, 1)
    with self.assertRaisesRegex(InputError, 'eval.metrics is 3'):
      metrics.check_metrics([3])

  @parameterized.parameters(0, -1, np.nan, np.inf, True, '128')
  def test_memory_budget(self, budget):
    self.check('memory_budget_mb is', self.x, self.y, memory_budget_mb=budget)

  def test_memory_budget_too_small(self):
    x, y = _clusters(3000, 4, 2)
    self.check('pass memory_budget_mb=', x, y, memory_budget_mb=0.1)

  def test_any_selection_of_metrics_works(self):
    for name in _NAMES:
      values = metrics.retrieval_metrics(self.x, self.y, metrics=[name])
      self.assertEqual(list(values), [name])


class ImportsTest(absltest.TestCase):
  def test_without_tensorflow(self):
    code = (
      'import sys; from retrieval_jax import metrics, neighbors; '
      "assert 'tensorflow' not in sys.modules"
    )
    subprocess.run([sys.executable, '-c', code], check=True)


if __name__ == '__main__':
  absltest.main()
