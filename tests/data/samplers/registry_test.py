import time

import numpy as np
from absl.testing import absltest, parameterized

from retrieval_jax.core.errors import InputError
from retrieval_jax.data import samplers


def _steps(sampler, first, last):
  return np.concatenate([sampler(step) for step in range(first, last)])


class UniformSamplerTest(parameterized.TestCase):
  @parameterized.parameters((10, 4), (10, 10), (12, 4), (7, 1), (9, 8))
  def test_is_a_row_of_permutations(self, n, batch_size):
    sampler = samplers.make_sampler(
      np.zeros(n, int), seed=0, batch_size=batch_size
    )
    rows = _steps(sampler, 0, 3 * n)
    self.assertEqual(rows.dtype, np.int64)
    self.assertLen(rows, 3 * n * batch_size)
    for epoch in rows.reshape(-1, n):
      self.assertCountEqual(epoch.tolist(), range(n))

  def test_epochs_and_seeds_differ(self):
    orders = {
      tuple(
        samplers.make_sampler(np.zeros(20, int), seed=seed, batch_size=20)(
          epoch
        ).tolist()
      )
      for seed in range(3)
      for epoch in range(3)
    }
    self.assertLen(orders, 9)

  def test_every_example_counts_alike(self):
    sampler = samplers.make_sampler(np.zeros(50, int), seed=0, batch_size=8)
    for steps in (5, 17, 100):
      counts = np.bincount(_steps(sampler, 0, steps), minlength=50)
      self.assertLessEqual(counts.max() - counts.min(), 1)

  def test_the_caller_may_write_into_a_batch(self):
    sampler = samplers.make_sampler(np.zeros(8, int), seed=0, batch_size=4)
    expected = sampler(0).tolist()
    sampler(0)[:] = -1
    self.assertEqual(sampler(0).tolist(), expected)


_LABELS = np.random.default_rng(1).integers(0, 8, 100)
_BY_CATEGORY = {
  'classes_per_batch': 4,
  'categories': _LABELS % 3,
  'categories_per_batch': 2,
}
# Every sampler, alone and in mixtures.
_SETTINGS = (
  {},
  {'classes_per_batch': 4},
  {'name': 'category_balanced'} | _BY_CATEGORY,
  {'name': 'hierarchical'} | _BY_CATEGORY,
  {'name': 'class_weighted', 'class_power': 0.5},
  {'parts': [0, 30, 100], 'mixing': 'balanced'},
  {'parts': [0, 30, 100], 'mixing': 'balanced', 'classes_per_batch': 6},
  {'parts': [0, 30, 100], 'mixing': 'round_robin', 'classes_per_batch': 3},
)


def _sampler(seed=2, batch_size=12, **settings):
  return samplers.make_sampler(
    _LABELS, seed=seed, batch_size=batch_size, **settings
  )


class SamplersTest(parameterized.TestCase):
  @parameterized.parameters(*_SETTINGS)
  def test_order_of_calls_changes_nothing(self, **settings):
    sampler = _sampler(**settings)
    expected = [sampler(step) for step in range(60)]
    for step in np.random.default_rng(0).permutation(60).tolist():
      np.testing.assert_array_equal(sampler(step), expected[step])
      np.testing.assert_array_equal(sampler(np.int32(step)), expected[step])
    for step in (0, 37, 59):
      np.testing.assert_array_equal(_sampler(**settings)(step), expected[step])

  @parameterized.parameters(*_SETTINGS)
  def test_far_steps_cost_no_more(self, **settings):
    sampler = _sampler(**settings)
    begin = time.monotonic()
    rows = sampler(10**12)
    self.assertLess(time.monotonic() - begin, 1.0)
    self.assertEqual(rows.shape, (12,))
    self.assertEqual(rows.dtype, np.int64)
    self.assertBetween(rows.min(), 0, rows.max())
    self.assertLess(rows.max(), 100)

  @parameterized.parameters(*_SETTINGS)
  def test_seeds_and_steps_differ(self, **settings):
    batches = {
      tuple(_sampler(seed, **settings)(step).tolist())
      for seed in range(3)
      for step in range(3)
    }
    self.assertLen(batches, 9)

  @parameterized.parameters(*_SETTINGS)
  def test_the_caller_may_write_into_a_batch(self, **settings):
    sampler = _sampler(**settings)
    expected = sampler(0).tolist()
    sampler(0)[:] = -1
    self.assertEqual(sampler(0).tolist(), expected)

  def test_uniform_with_classes_is_balanced(self):
    uniform, balanced = {'name': 'uniform'}, {'name': 'balanced'}
    for classes_per_batch, names in ((0, [uniform]), (4, [uniform, balanced])):
      expected = _sampler(classes_per_batch=classes_per_batch)(5)
      for name in names:
        np.testing.assert_array_equal(
          _sampler(classes_per_batch=classes_per_batch, **name)(5), expected
        )

  @parameterized.named_parameters(
    ('batch_zero', {'batch_size': 0}, 'data.batch_size is 0'),
    ('batch_negative', {'batch_size': -4}, 'data.batch_size is -4'),
    ('batch_float', {'batch_size': 4.0}, 'data.batch_size is 4.0'),
    ('batch_bool', {'batch_size': True}, 'data.batch_size is True'),
    ('batch_too_large', {'batch_size': 41}, 'at most 40'),
    ('seed', {'seed': -1}, 'seed is -1'),
    ('p_negative', {'classes_per_batch': -1}, 'classes_per_batch is -1'),
    ('p_does_not_divide', {'classes_per_batch': 3}, 'does not divide'),
    (
      'too_many_classes',
      {'batch_size': 16, 'classes_per_batch': 8},
      'at most 4, the number of classes',
    ),
    ('name', {'name': 'balancd'}, "data.sampler is 'balancd'; did you mean"),
    ('mixing', {'mixing': 'equal'}, "data.mixing is 'equal', known: balanced"),
    ('no_p', {'name': 'balanced'}, 'data.classes_per_batch 0; allowed is at'),
    (
      'unheard_g',
      {'categories_per_batch': 2},
      "data.categories_per_batch is 2, but data.sampler 'uniform' knows no",
    ),
    (
      'unheard_power',
      {'class_power': 0.5},
      "data.class_power is 0.5, but data.sampler 'uniform' weighs no classes",
    ),
    (
      'unheard_weights',
      {'class_weights': [1, 1, 1, 1]},
      "class_weights are given, but data.sampler 'uniform' weighs",
    ),
  )
  def test_refuses(self, change, message):
    arguments = {'seed': 0, 'batch_size': 8} | change
    with self.assertRaisesRegex(InputError, message) as caught:
      samplers.make_sampler(np.arange(40) % 4, **arguments)
    self.assertNotIn('\n', str(caught.exception))

  def test_refuses_labels_of_rank_two(self):
    with self.assertRaisesRegex(InputError, r'has shape \(4, 1\)'):
      samplers.make_sampler(np.zeros((4, 1), int), seed=0, batch_size=2)

  def test_many_classes_take_no_loop(self):
    labels = np.random.default_rng(0).permutation(np.arange(600_000) // 3)
    begin = time.monotonic()
    sampler = samplers.make_sampler(
      labels, seed=0, batch_size=256, classes_per_batch=128
    )
    sampler(0)
    self.assertLess(time.monotonic() - begin, 2.0)


if __name__ == '__main__':
  absltest.main()
