import time

import numpy as np
from absl.testing import absltest, parameterized

from retrieval_jax.core.errors import InputError
from retrieval_jax.data import splits
from retrieval_jax.data.collection import TEST, TRAIN


def _labels(seed=0, num_rows=400, num_classes=30):
  """Returns labels of classes of uneven sizes, in no order, with gaps."""
  generator = np.random.default_rng(seed)
  share = generator.dirichlet(np.ones(num_classes))
  return generator.choice(num_classes, num_rows, p=share) * 7 + 3


def _by_class(labels, values):
  return {c: values[labels == c] for c in np.unique(labels).tolist()}


class ClassDisjointTest(parameterized.TestCase):
  @parameterized.parameters(
    # fraction, classes, test classes: round, at least 1, at most C - 1.
    (0.5, 30, 15),
    (0.1, 30, 3),
    (0.25, 10, 3),
    (0.001, 30, 1),
    (0.999, 30, 29),
    (0.5, 2, 1),
  )
  def test_draws_whole_classes(self, fraction, num_classes, expected):
    labels = np.repeat(np.arange(num_classes) * 2, 3)
    codes = splits.class_disjoint(labels, test_fraction=fraction, seed=1)
    self.assertEqual(codes.dtype, np.int8)
    test = set(labels[codes == TEST].tolist())
    train = set(labels[codes == TRAIN].tolist())
    self.assertLen(test, expected)
    self.assertLen(train, num_classes - expected)
    self.assertFalse(test & train)

  def test_draws_every_class_as_often_as_another(self):
    labels = np.arange(20)
    counts = sum(
      splits.class_disjoint(labels, test_fraction=0.25, seed=seed) == TEST
      for seed in range(800)
    )
    # Binomial of 800 and 1 / 4: mean 200, standard deviation 12.
    self.assertLess(np.abs(counts - 200).max(), 60)

  def test_the_order_of_rows_makes_no_difference(self):
    labels = _labels()
    order = np.random.default_rng(1).permutation(len(labels))
    codes = splits.class_disjoint(labels, seed=3)
    np.testing.assert_array_equal(
      splits.class_disjoint(labels[order], seed=3), codes[order]
    )

  def test_refuses_one_class(self):
    with self.assertRaisesRegex(InputError, 'the data have 1 class'):
      splits.class_disjoint([4, 4])

  def test_first_classes_are_those_of_the_lowest_numbers(self):
    labels = [30, 10, 20, 10, 40]
    self.assertEqual(
      splits.first_classes(labels, num_train=2).tolist(), [2, 0, 0, 0, 2]
    )
    for num_train in (0, 4):
      with self.assertRaisesRegex(InputError, f'num_train is {num_train}; '):
        splits.first_classes(labels, num_train=num_train)


class SharesOfClassesTest(parameterized.TestCase):
  @parameterized.product(
    draw=['stratified', 'query_gallery'], fraction=[0.01, 0.2, 0.5, 0.99]
  )
  def test_takes_a_share_of_each_class(self, draw, fraction):
    labels = _labels()
    if draw == 'stratified':
      codes = splits.stratified(labels, test_fraction=fraction, seed=2)
      chosen = codes == TEST
      self.assertEqual(codes.dtype, np.int8)
    else:
      chosen = splits.query_gallery(labels, query_fraction=fraction, seed=2)
      self.assertEqual(chosen.dtype, bool)
    for flags in _by_class(labels, chosen).values():
      n = len(flags)
      expected = min(max(int(fraction * n + 0.5), 1), n - 1)
      self.assertEqual(flags.sum(), expected)

  def test_draws_every_image_as_often_as_another(self):
    labels = np.repeat([0, 1], 10)
    counts = sum(
      splits.query_gallery(labels, query_fraction=0.3, seed=seed)
      for seed in range(800)
    )
    # Binomial of 800 and 0.3: mean 240, standard deviation 13.
    self.assertLess(np.abs(counts - 240).max(), 65)

  def test_single_images_are_not_held_out_and_this_is_said(self):
    labels = [0, 1, 1, 2]
    with self.assertLogs(level='WARNING') as logs:
      codes = splits.stratified(labels, test_fraction=0.9)
    self.assertEqual(codes[[0, 3]].tolist(), [TRAIN, TRAIN])
    self.assertIn('2 of 3 classes have one image', logs.output[0])
    with self.assertLogs(level='WARNING'):
      is_query = splits.query_gallery(labels, query_fraction=0.9)
    self.assertEqual(is_query[[0, 3]].tolist(), [False, False])

  def test_refuses_classes_of_one_image_alone(self):
    with self.assertRaisesRegex(InputError, 'none of the 3 classes has two'):
      splits.stratified([0, 1, 2], test_fraction=0.5)


class DomainTest(parameterized.TestCase):
  def test_leaves_one_domain_out(self):
    codes = splits.leave_one_domain_out(np.array([2, 0, 2, 1]), 2)
    self.assertEqual(codes.tolist(), [TEST, TRAIN, TEST, TRAIN])
    self.assertEqual(codes.dtype, np.int8)

  @parameterized.parameters((5, 'no image is'), (1, 'all images are'))
  def test_refuses_an_empty_set(self, test_domain, message):
    with self.assertRaisesRegex(InputError, f'data.test_domain .*{message}'):
      splits.leave_one_domain_out([1, 1], test_domain)


class FoldsTest(parameterized.TestCase):
  @parameterized.product(num_folds=[2, 4, 7, 30], seed=[0, 5, None])
  def test_class_folds_have_whole_classes_in_equal_numbers(
    self, num_folds, seed
  ):
    labels = np.concatenate([_labels(), np.arange(30) * 7 + 3])
    folds = splits.class_folds(labels, num_folds=num_folds, seed=seed)
    fold_of = {c: set(f) for c, f in _by_class(labels, folds).items()}
    self.assertTrue(all(len(f) == 1 for f in fold_of.values()))
    counts = np.bincount([f.pop() for f in fold_of.values()])
    self.assertLen(counts, num_folds)
    self.assertLessEqual(counts.max() - counts.min(), 1)

  def test_class_folds_of_the_reality_check(self):
    # CUB: classes 1 to 100 in fours: 1-25, 26-50, 51-75, 76-100.
    labels = np.repeat(np.arange(1, 101), 2)
    folds = splits.class_folds(labels, num_folds=4, seed=None)
    np.testing.assert_array_equal(folds, (labels - 1) // 25)

  @parameterized.parameters(2, 3, 5, 40)
  def test_image_folds_divide_each_class_and_all_images_evenly(self, num_folds):
    labels = _labels(num_rows=1000)
    folds = splits.image_folds(labels, num_folds=num_folds, seed=1)
    for own in _by_class(labels, folds).values():
      if len(own) == 1:
        self.assertEqual(own.tolist(), [-1])
        continue
      counts = np.bincount(own, minlength=num_folds)
      self.assertLessEqual(counts.max() - counts.min(), 1)
      self.assertLess(counts.max(), len(own))
    sizes = np.bincount(folds[folds >= 0], minlength=num_folds)
    self.assertLessEqual(sizes.max() - sizes.min(), 1)

  def test_image_folds_say_which_are_in_none(self):
    with self.assertLogs(level='WARNING') as logs:
      folds = splits.image_folds([4, 4, 9], num_folds=2)
    self.assertEqual(folds[2], -1)
    self.assertIn('1 of 2 classes have one image', logs.output[0])

  @parameterized.parameters(
    ('class_folds', 1), ('class_folds', 4), ('image_folds', 7)
  )
  def test_refuses_more_folds_than_there_is_to_divide(self, name, num_folds):
    labels = [0, 0, 1, 1, 2, 2]
    with self.assertRaisesRegex(
      InputError, f'data.validation_folds is {num_folds}; allowed are 2 to '
    ):
      getattr(splits, name)(labels, num_folds=num_folds)


_DRAWS = (
  ('class_disjoint', {'test_fraction': 0.5}),
  ('stratified', {'test_fraction': 0.5}),
  ('query_gallery', {'query_fraction': 0.5}),
  ('class_folds', {'num_folds': 3}),
  ('image_folds', {'num_folds': 3}),
)


class SplitsTest(parameterized.TestCase):
  @parameterized.parameters(*_DRAWS)
  def test_are_functions_of_the_seed(self, name, options):
    labels, draw = _labels(), getattr(splits, name)
    drawn = [draw(labels, seed=seed, **options) for seed in (0, 1, 0)]
    np.testing.assert_array_equal(drawn[0], drawn[2])
    self.assertFalse(np.array_equal(drawn[0], drawn[1]))

  @parameterized.parameters(*_DRAWS)
  def test_refuse_bad_seeds_and_labels(self, name, options):
    for seed in (-1, 0.5, True, 2**64):
      with self.assertRaisesRegex(InputError, 'data.split_seed is '):
        getattr(splits, name)([0, 0, 1, 1, 2, 2], seed=seed, **options)
    with self.assertRaisesRegex(InputError, r'shape \(4, 1\)'):
      getattr(splits, name)(np.zeros((4, 1), int), **options)

  @parameterized.product(
    draw=_DRAWS[:3], fraction=[0, 1, -0.5, 2, float('nan')]
  )
  def test_refuse_fractions_that_are_none(self, draw, fraction):
    name, options = draw
    (key,) = options
    with self.assertRaisesRegex(InputError, f'data.{key} is {fraction}') as e:
      getattr(splits, name)([0, 0, 1, 1], **{key: fraction})
    self.assertNotIn('\n', str(e.exception))

  def test_two_draws_of_one_seed_are_independent(self):
    labels = np.arange(1000) // 50
    is_test = splits.stratified(labels, test_fraction=0.5) == TEST
    is_query = splits.query_gallery(labels, query_fraction=0.5)
    # Mean 250, standard deviation 8.
    self.assertLess(abs(int((is_test & is_query).sum()) - 250), 40)

  @parameterized.parameters(*_DRAWS)
  def test_many_classes_take_no_loop(self, name, options):
    labels = np.random.default_rng(0).permutation(np.arange(200_000) // 2)
    begin = time.monotonic()
    getattr(splits, name)(labels, **options)
    self.assertLess(time.monotonic() - begin, 2.0)


if __name__ == '__main__':
  absltest.main()
