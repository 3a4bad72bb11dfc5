import concurrent.futures
import time

import numpy as np
from absl.testing import absltest, parameterized

from retrieval_jax.core.errors import InputError
from retrieval_jax.data import samplers


def _steps(sampler, first, last):
  return np.concatenate([sampler(step) for step in range(first, last)])


class PermutationsTest(parameterized.TestCase):
  @parameterized.parameters((0, 0, 10), (3, 7, 5), (0, 2, 1000), (9, 9, 1))
  def test_a_place_is_a_philox_of_its_own(self, stream, index, size):
    draw = samplers.Permutations(seed=5)
    draw(1, 1, 7)  # What was drawn before makes no difference.
    philox = np.random.Philox(key=5, counter=(0, 0, index, stream))
    expected = np.random.Generator(philox).permutation(size)
    np.testing.assert_array_equal(draw(stream, index, size), expected)

  def test_seeds_streams_and_indices_differ(self):
    places = [(0, 0), (0, 1), (1, 0), (1, 1)]
    orders = {
      tuple(samplers.Permutations(seed)(*place, 20).tolist())
      for seed in (0, 1)
      for place in places
    }
    self.assertLen(orders, 8)

  def test_threads_may_share(self):
    draw = samplers.Permutations(seed=1)
    places = [(stream, index) for stream in range(8) for index in range(50)]
    with concurrent.futures.ThreadPoolExecutor(4) as executor:
      orders = list(executor.map(lambda place: draw(*place, 50), places))
    for place, order in zip(places, orders, strict=True):
      expected = samplers.Permutations(seed=1)(*place, 50)
      np.testing.assert_array_equal(order, expected)


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


class BalancedSamplerTest(parameterized.TestCase):
  @parameterized.parameters(
    # classes, images of each, P, K
    (10, 40, 10, 4),
    (10, 40, 8, 4),
    (7, 9, 3, 4),
    (5, 6, 5, 6),
    (30, 2, 4, 2),
  )
  def test_batches_are_p_classes_of_k_images(self, c, n, p, k):
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(c), n))
    sampler = samplers.make_sampler(
      labels * 3 + 1, seed=0, batch_size=p * k, classes_per_batch=p
    )
    for step in range(40):
      rows = sampler(step)
      self.assertEqual(rows.dtype, np.int64)
      self.assertLen(set(rows.tolist()), p * k)
      by_class = labels[rows].reshape(p, k)
      self.assertTrue((by_class == by_class[:, :1]).all())
      self.assertLen(set(by_class[:, 0].tolist()), p)

  def test_cycles_take_each_class_and_image_once(self):
    # 6 classes in 2 batches a cycle, 8 images in 4 cycles a walk.
    labels = np.repeat(np.arange(6), 8)
    sampler = samplers.make_sampler(
      labels, seed=3, batch_size=6, classes_per_batch=3
    )
    for cycle in range(8):
      rows = _steps(sampler, 2 * cycle, 2 * cycle + 2)
      self.assertEqual(np.bincount(labels[rows]).tolist(), [2] * 6)
    for walk in range(3):
      rows = _steps(sampler, 8 * walk, 8 * walk + 8)
      self.assertCountEqual(rows.tolist(), range(48))

  def test_classes_and_images_that_sit_out_change(self):
    labels = np.repeat(np.arange(10), 7)
    sampler = samplers.make_sampler(
      labels, seed=0, batch_size=24, classes_per_batch=8
    )
    counts = np.bincount(_steps(sampler, 0, 2000), minlength=70)
    mean = 24 * 2000 / 70
    # Standard deviation of a count: about 20.
    self.assertLess(np.abs(counts - mean).max(), 120)

  def test_small_classes_repeat_evenly_and_this_is_said_once(self):
    labels = np.array([0] * 2 + [1] * 8 + [2])
    with self.assertLogs(level='WARNING') as logs:
      sampler = samplers.make_sampler(
        labels, seed=0, batch_size=15, classes_per_batch=3
      )
      batches = [sampler(step) for step in range(20)]
    self.assertLen(logs.output, 1)
    self.assertIn('2 of 3 classes have fewer than the 5', logs.output[0])
    for rows in batches:
      self.assertEqual(np.bincount(labels[rows]).tolist(), [5, 5, 5])
      counts = np.bincount(rows, minlength=11)
      self.assertCountEqual(counts[:2].tolist(), [2, 3])
      self.assertLessEqual(counts[2:10].max(), 1)
      self.assertEqual(counts[10], 5)


class SamplersTest(parameterized.TestCase):
  @parameterized.parameters(0, 3)
  def test_order_of_calls_changes_nothing(self, classes_per_batch):
    labels = np.random.default_rng(1).integers(0, 5, 100)

    def make():
      return samplers.make_sampler(
        labels, seed=2, batch_size=12, classes_per_batch=classes_per_batch
      )

    sampler = make()
    expected = [sampler(step) for step in range(60)]
    for step in np.random.default_rng(0).permutation(60).tolist():
      np.testing.assert_array_equal(sampler(step), expected[step])
      np.testing.assert_array_equal(sampler(np.int32(step)), expected[step])
    np.testing.assert_array_equal(make()(37), expected[37])

  @parameterized.parameters(0, 3)
  def test_far_steps_cost_no_more(self, classes_per_batch):
    labels = np.repeat(np.arange(5), 20)
    sampler = samplers.make_sampler(
      labels, seed=0, batch_size=12, classes_per_batch=classes_per_batch
    )
    begin = time.monotonic()
    self.assertLen(sampler(10**12), 12)
    self.assertLess(time.monotonic() - begin, 1.0)

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
  )
  def test_refuses(self, change, message):
    arguments = {'seed': 0, 'batch_size': 8} | change
    with self.assertRaisesRegex(InputError, message) as caught:
      samplers.make_sampler(np.arange(40) % 4, **arguments)
    self.assertNotIn('\n', str(caught.exception))

  def test_refuses_labels_of_rank_two(self):
    with self.assertRaisesRegex(InputError, r'has shape \(4, 1\)'):
      samplers.make_sampler(np.zeros((4, 1), int), seed=0, batch_size=2)


if __name__ == '__main__':
  absltest.main()
