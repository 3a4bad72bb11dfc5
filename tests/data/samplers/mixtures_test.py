import numpy as np
from absl.testing import absltest, parameterized

from retrieval_jax.core.errors import InputError
from retrieval_jax.data import samplers

# Data sets of 20, 50 and 130 images; classes of 5, 10 and 13.
_PARTS = np.array([0, 20, 70, 200])
_LABELS = np.concatenate(
  [
    np.arange(20) // 5,
    4 + np.arange(50) // 10,
    9 + np.arange(130) // 13,
  ]
)
_SET = np.repeat([0, 1, 2], np.diff(_PARTS))


def _sampler(mixing, batch_size=12, parts=_PARTS, **options):
  return samplers.make_sampler(
    _LABELS,
    seed=0,
    batch_size=batch_size,
    parts=parts,
    mixing=mixing,
    **options,
  )


class MixturesTest(parameterized.TestCase):
  @parameterized.parameters(
    {},
    {'classes_per_batch': 6},
    {'name': 'class_weighted', 'class_power': 0.0},
  )
  def test_proportional_is_one_set(self, **options):
    mixture, whole = (
      _sampler('proportional', parts=parts, **options)
      for parts in (_PARTS, None)
    )
    for step in range(20):
      np.testing.assert_array_equal(mixture(step), whole(step))

  def test_one_set_is_no_mixture(self):
    for mixing in samplers.MIXINGS:
      np.testing.assert_array_equal(
        _sampler(mixing, parts=[0, 200])(3), _sampler('proportional')(3)
      )

  @parameterized.parameters(
    {},
    {'classes_per_batch': 6},
    {'name': 'class_weighted', 'class_power': 0.0},
    {
      'name': 'hierarchical',
      'classes_per_batch': 6,
      'categories': _LABELS % 2 + 2 * _SET,
      'categories_per_batch': 3,
    },
  )
  def test_balanced_has_equal_shares_in_every_batch(self, **options):
    sampler = _sampler('balanced', **options)
    for step in range(30):
      rows = sampler(step)
      self.assertEqual(np.bincount(_SET[rows]).tolist(), [4, 4, 4])
      if options.get('classes_per_batch'):  # The images of a class adjoin.
        by_class = _LABELS[rows].reshape(6, 2)
        self.assertTrue((by_class[:, 0] == by_class[:, 1]).all())
        self.assertLen(set(by_class[:, 0].tolist()), 6)

  def test_balanced_interleaves_the_sets(self):
    # Two of 12 / 4 = 3 processes' parts would otherwise be of one set.
    self.assertEqual(_SET[_sampler('balanced')(1)].tolist(), [0, 1, 2] * 4)
    rows = _sampler('balanced', classes_per_batch=6)(1)
    self.assertEqual(_SET[rows].tolist(), [0, 0, 1, 1, 2, 2] * 2)

  def test_balanced_walks_through_each_set(self):
    # 5 steps of 4 are the 20 images of the first set.
    sampler = _sampler('balanced')
    for walk in range(4):
      rows = np.concatenate([sampler(5 * walk + i) for i in range(5)])
      self.assertCountEqual(rows[_SET[rows] == 0].tolist(), range(20))

  @parameterized.parameters(
    {}, {'classes_per_batch': 4}, {'name': 'class_weighted'}
  )
  def test_round_robin_takes_sets_in_turn(self, **options):
    sampler = _sampler('round_robin', **options)
    for step in range(30):
      self.assertEqual(set(_SET[sampler(step)].tolist()), {step % 3})

  def test_round_robin_walks_through_each_set(self):
    # Set 1 has the steps 1, 4, 7, ...; 25 steps of 12 are 6 walks of 50.
    sampler = _sampler('round_robin')
    rows = np.concatenate([sampler(3 * visit + 1) for visit in range(25)])
    for walk in rows.reshape(6, 50):
      self.assertCountEqual(walk.tolist(), range(20, 70))

  def test_sets_of_one_size_are_drawn_apart(self):
    sampler = samplers.make_sampler(
      np.zeros(80, int),
      seed=0,
      batch_size=40,
      parts=[0, 40, 80],
      mixing='round_robin',
    )
    self.assertFalse(np.array_equal(sampler(0), sampler(1) - 40))

  def test_weights_are_those_of_the_classes_of_a_set(self):
    weights = np.ones(19)
    weights[[0, 6, 18]] = 0
    sampler = _sampler('balanced', name='class_weighted', class_weights=weights)
    rows = np.concatenate([sampler(step) for step in range(100)])
    counts = np.bincount(_LABELS[rows], minlength=19)
    np.testing.assert_array_equal(counts == 0, weights == 0)
    # 400 draws of each set: of 3, 4 and 9 classes that weigh something.
    for classes, kept in (
      (slice(0, 4), 3),
      (slice(4, 9), 4),
      (slice(9, 19), 9),
    ):
      own = counts[classes][weights[classes] > 0]
      np.testing.assert_allclose(own, 400 / kept, atol=20)

  @parameterized.named_parameters(
    (
      'batch',
      'balanced',
      {'batch_size': 8},
      'data.batch_size is 8; allowed with data.mixing=balanced are multiples '
      'of 3, the number of data sets: set it to 9',
    ),
    (
      'classes',
      'balanced',
      {'classes_per_batch': 4},
      'data.classes_per_batch is 4; .*multiples of 3.*set it to 6',
    ),
    (
      'small_set',
      'round_robin',
      {'batch_size': 24},
      r'data set 1 of the 3 of the mixture \(data.mixing=round_robin\): '
      'data.batch_size is 24; allowed is at most 20',
    ),
    (
      'few_classes',
      'round_robin',
      {'classes_per_batch': 6},
      'data set 1 of .*classes_per_batch is 6; allowed is at most 4',
    ),
    (
      'empty_set',
      'balanced',
      {'parts': [0, 20, 20, 200]},
      'data set 2 of the mixture has no training images',
    ),
  )
  def test_refuses(self, mixing, options, message):
    with self.assertRaisesRegex(InputError, message) as caught:
      _sampler(mixing, **options)
    self.assertNotIn('\n', str(caught.exception))

  def test_parts_that_are_not_those_of_the_rows_are_a_defect(self):
    for parts in ([0, 100], [5, 200], [200], 200):
      with self.assertRaises(ValueError) as caught:
        _sampler('balanced', parts=parts)
      self.assertNotIsInstance(caught.exception, InputError)


if __name__ == '__main__':
  absltest.main()
