import numpy as np
from absl.testing import absltest, parameterized

from retrieval_jax.core.errors import InputError
from retrieval_jax.data import samplers

# Classes of 1, 4, 25 and 70 images in no order.
_SIZES = np.array([1, 4, 25, 70])
_LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(4), _SIZES))


def _sampler(labels=_LABELS, batch_size=50, seed=0, **options):
  return samplers.make_sampler(
    labels, seed=seed, batch_size=batch_size, name='class_weighted', **options
  )


def _rounds(sampler, num_rounds, num_rows=100, batch_size=50):
  steps = range(num_rounds * num_rows // batch_size)
  return np.concatenate([sampler(s) for s in steps]).reshape(num_rounds, -1)


class ClassWeightedSamplerTest(parameterized.TestCase):
  def test_power_one_draws_each_image_once_a_round(self):
    for rows in _rounds(_sampler(class_power=1.0), 5):
      self.assertEqual(np.sort(rows).tolist(), list(range(100)))

  @parameterized.parameters(
    # 100 draws by sqrt(n): 1, 2, 5, 8.37 of 16.37.
    (0.5, 100 * np.sqrt(_SIZES) / np.sqrt(_SIZES).sum()),
    (0.0, np.full(4, 25.0)),
    (0.25, 100 * _SIZES**0.25 / (_SIZES**0.25).sum()),
  )
  def test_classes_are_drawn_by_their_share_in_each_round(self, power, share):
    rounds = _LABELS[_rounds(_sampler(class_power=power), 400)]
    counts = np.stack([np.bincount(r, minlength=4) for r in rounds])
    self.assertTrue((counts >= np.floor(share - 1e-4)).all())
    self.assertTrue((counts <= np.ceil(share + 1e-4)).all())
    # Of at most one round of a count, standard deviation 0.5 / sqrt(400).
    self.assertLess(np.abs(counts.mean(0) - share).max(), 0.125)

  def test_weights_take_the_place_of_a_power(self):
    weights = np.array([0.0, 0.3, 1.0, 8.7])
    rounds = _LABELS[_rounds(_sampler(class_weights=weights), 300)]
    counts = np.stack([np.bincount(r, minlength=4) for r in rounds])
    self.assertEqual(counts[:, 0].max(), 0)
    np.testing.assert_allclose(counts.mean(0), weights * 10, atol=0.15)

  def test_a_class_rarer_than_a_draw_a_round_has_its_share(self):
    # Once in four rounds, not always and not never.
    weights = np.array([1.0, 133.0, 133.0, 133.0])
    rounds = _LABELS[_rounds(_sampler(class_weights=weights), 800)]
    counts = (rounds == 0).sum(1)
    self.assertLessEqual(counts.max(), 1)
    # Binomial of 800 and 1 / 4: mean 200, standard deviation 12.
    self.assertLess(abs(int(counts.sum()) - 200), 60)

  @parameterized.parameters(0.0, 0.5)
  def test_images_of_a_class_are_walked_through(self, power):
    rows = _rounds(_sampler(class_power=power), 200).reshape(-1)
    counts = np.bincount(rows, minlength=100)
    for c in range(4):
      own = counts[_LABELS == c]
      # Passing images over is a matter of chance, so its spread is its root.
      self.assertLess(own.max() - own.min(), 1 + 6 * np.sqrt(own.mean()) / 2)
    # 25 draws a round of 70 images: 2 rounds of one walk repeat no image.
    walk = _rounds(_sampler(class_power=0.0), 2).reshape(-1)
    walk = walk[_LABELS[walk] == 3]
    self.assertLen(walk, 50)
    self.assertLen(set(walk.tolist()), 50)

  def test_is_the_plain_count_of_systematic_sampling(self):
    # Weights in whole draws: the classes of a round are 10, 20, 30, 40 draws.
    sampler = _sampler(class_weights=[1, 2, 3, 4])
    for rows in _rounds(sampler, 10):
      counts = np.bincount(_LABELS[rows], minlength=4)
      self.assertEqual(counts.tolist(), [10, 20, 30, 40])
      # Of 4 images in 20 draws, each 5 times: the walks follow each other.
      images = np.bincount(rows, minlength=100)[_LABELS == 1]
      self.assertEqual(images.tolist(), [5] * 4)

  def test_each_walk_has_an_order_of_its_own(self):
    # All weight on the class of 4 images: 25 walks a round.
    sampler = _sampler(class_weights=[0, 1, 0, 0], batch_size=100)
    order = np.argsort(sampler.permutations(0, 0, 100))
    walks = sampler(0)[order].reshape(25, 4)
    for walk in walks.tolist():
      self.assertLen(set(walk), 4)
    # Of 24 orders, 25 draws meet 15.7 on average.
    self.assertGreater(len({tuple(walk) for walk in walks.tolist()}), 9)

  def test_neighbours_meet_in_a_batch(self):
    # One image a class: systematic draws alone would keep them apart.
    labels = np.arange(200)
    sampler = _sampler(labels, 10, class_power=0.0)
    met = sum(
      bool((np.diff(np.sort(labels[sampler(s)])) == 1).any())
      for s in range(200)
    )
    # 9 of 10 places, each a neighbour with chance 2 / 200 or so: a third.
    self.assertBetween(met, 40, 120)

  @parameterized.named_parameters(
    ('power_high', {'class_power': 1.5}, 'data.class_power is 1.5'),
    ('power_low', {'class_power': -1}, 'data.class_power is -1'),
    ('power_nan', {'class_power': float('nan')}, 'data.class_power is nan'),
    ('power_text', {'class_power': 'x'}, "data.class_power is 'x'"),
    ('shape', {'class_weights': [1, 2]}, r'class_weights has shape \(2,\)'),
    ('sign', {'class_weights': [1, 2, 3, -1]}, 'a negative'),
    ('inf', {'class_weights': [1, 2, 3, np.inf]}, 'non-finite'),
    ('zero', {'class_weights': [0, 0, 0, 0]}, 'no weight above 0'),
    ('batch', {'batch_size': 101}, 'at most 100, the number of training'),
    ('classes', {'classes_per_batch': 2}, 'data.classes_per_batch is 2'),
  )
  def test_refuses(self, options, message):
    with self.assertRaisesRegex(InputError, message) as caught:
      _sampler(**options)
    self.assertNotIn('\n', str(caught.exception))


if __name__ == '__main__':
  absltest.main()
