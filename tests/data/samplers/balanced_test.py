import numpy as np
from absl.testing import absltest, parameterized

from retrieval_jax.core.errors import InputError
from retrieval_jax.data import samplers


def _steps(sampler, first, last):
  return np.concatenate([sampler(step) for step in range(first, last)])


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


# 6 categories of 4, 5, 6, 7, 8 and 12 classes of 6 images, in no order.
_SIZES = np.array([4, 5, 6, 7, 8, 12])
_CATEGORY_OF_CLASS = np.random.default_rng(1).permutation(
  np.repeat(np.arange(6), _SIZES)
)
_LABELS = np.random.default_rng(2).permutation(np.repeat(np.arange(42), 6))
_CATEGORIES = _CATEGORY_OF_CLASS[_LABELS] * 10 + 5


def _by_category(name, p=8, g=2, k=3, labels=_LABELS, categories=_CATEGORIES):
  return samplers.make_sampler(
    labels,
    seed=0,
    batch_size=p * k,
    name=name,
    classes_per_batch=p,
    categories=categories,
    categories_per_batch=g,
  )


class CategorySamplersTest(parameterized.TestCase):
  @parameterized.product(
    name=['category_balanced', 'hierarchical'],
    shape=[(8, 2, 3), (4, 1, 6), (3, 3, 2), (6, 6, 1), (4, 2, 1)],
  )
  def test_batches_are_g_categories_of_equal_shares(self, name, shape):
    p, g, k = shape
    sampler = _by_category(name, p, g, k)
    for step in range(60):
      rows = sampler(step)
      self.assertEqual(rows.dtype, np.int64)
      self.assertLen(set(rows.tolist()), p * k)
      by_class = _LABELS[rows].reshape(p, k)
      self.assertTrue((by_class == by_class[:, :1]).all())
      self.assertLen(set(by_class[:, 0].tolist()), p)
      blocks = _CATEGORIES[rows].reshape(g, -1)
      self.assertTrue((blocks == blocks[:, :1]).all())
      # 12 of 42 classes are more than a sixth, and 4 blocks of 14 than a third.
      if name == 'category_balanced' or g < 3:
        self.assertLen(set(blocks[:, 0].tolist()), g)

  def test_category_balanced_takes_every_category_as_often(self):
    # 3 batches of 2 of 6 categories are a cycle.
    sampler = _by_category('category_balanced')
    for cycle in range(20):
      rows = _steps(sampler, 3 * cycle, 3 * cycle + 3)
      counts = np.bincount(_CATEGORIES[rows] // 10)
      self.assertEqual(counts.tolist(), [12] * 6)

  def test_category_balanced_walks_through_the_classes_of_a_category(self):
    # 4 classes of each category a visit; the largest has 12, so 3 visits.
    sampler = _by_category('category_balanced')
    for walk in range(4):
      rows = _steps(sampler, 9 * walk, 9 * walk + 9)
      counts = np.bincount(_LABELS[rows], minlength=42)
      self.assertEqual(counts[_CATEGORY_OF_CLASS == 5].tolist(), [3] * 12)
      self.assertEqual(counts[_CATEGORY_OF_CLASS == 0].tolist(), [9] * 4)

  def test_hierarchical_takes_every_class_once_a_cycle(self):
    # 42 classes one by one in batches of 6 categories: 7 batches a cycle.
    sampler = _by_category('hierarchical', p=6, g=6, k=2)
    for cycle in range(10):
      rows = _steps(sampler, 7 * cycle, 7 * cycle + 7)
      counts = np.bincount(_LABELS[rows], minlength=42)
      self.assertEqual(counts.tolist(), [2] * 42)
    # Of 6 images 2 a cycle: 3 cycles are a walk.
    for walk in range(3):
      rows = _steps(sampler, 21 * walk, 21 * walk + 21)
      self.assertEqual(np.bincount(rows).tolist(), [1] * 252)

  def test_hierarchical_meets_a_category_in_proportion_to_its_blocks(self):
    # Blocks of 4 classes: 1, 1, 1, 1, 2 and 3 of them; 4 batches of 2 a cycle.
    sampler = _by_category('hierarchical')
    rows = _steps(sampler, 0, 4 * 500)
    share = np.bincount(_CATEGORIES[rows] // 10) / (500 * 12)
    # Of 9 blocks 8 fit: any one sits out.
    np.testing.assert_allclose(
      share, np.array([1, 1, 1, 1, 2, 3]) * 8 / 9, rtol=0.06
    )

  def test_hierarchical_varies_what_meets_and_when(self):
    sampler = _by_category('hierarchical')
    pairs = {
      tuple(sorted(set((_CATEGORIES[sampler(step)] // 10).tolist())))
      for step in range(400)
    }
    self.assertGreaterEqual(len(pairs), 12)
    firsts = {int(_CATEGORIES[sampler(4 * cycle)][0]) for cycle in range(50)}
    self.assertLen(firsts, 6)
    # One class a batch, 42 a cycle: not category by category.
    sampler = _by_category('hierarchical', p=1, g=1)
    met = _CATEGORIES[_steps(sampler, 0, 42)[::3]]
    self.assertGreater((np.diff(met) != 0).sum(), 20)

  @parameterized.named_parameters(
    ('none', {'categories': None}, 'knows no categories'),
    ('rows', {'categories': _CATEGORIES[:9]}, 'categories has 9 rows'),
    ('no_g', {'g': 0}, 'data.categories_per_batch is 0; allowed are divisors'),
    ('g', {'g': 3}, 'categories_per_batch is 3; allowed are divisors of'),
    ('many', {'p': 7, 'g': 7}, 'is 7; allowed is at most 6, the number of'),
    ('p', {'p': 10}, 'smallest category has 4; allowed is at most 8'),
    ('no_p', {'p': 0}, 'data.classes_per_batch 0; allowed is at least 1'),
    (
      'two_categories',
      {'labels': np.array([3, 3, 4]), 'categories': np.array([1, 2, 2])},
      'class 3 has images of category 1 and of 2',
    ),
  )
  def test_refuses(self, options, message):
    options = {'p': 8, 'g': 2} | options
    for name in ('category_balanced', 'hierarchical'):
      with self.assertRaisesRegex(InputError, message) as caught:
        if options['p'] == 0:
          samplers.make_sampler(
            _LABELS, seed=0, batch_size=8, name=name, categories=_CATEGORIES
          )
        else:
          _by_category(name, **options)
      self.assertNotIn('\n', str(caught.exception))


if __name__ == '__main__':
  absltest.main()
