import numpy as np
from absl.testing import absltest

from retrieval_jax.data import samplers


class CoverageTest(absltest.TestCase):
  def test_hand_worked(self):
    batches = [[1, 0, 1], [0, 3, 0], [1, 3, 4]]
    labels = np.array([9, 5, 5, 9, 7, 2, 5, 5])
    result = samplers.coverage(
      lambda step: np.array(batches[step]),
      labels,
      num_steps=3,
      images_per_class=3,
    )
    self.assertEqual(
      result,
      samplers.Coverage(
        num_steps=3,
        num_draws=9,
        images_seen=4 / 8,
        images_possible=1.0,
        classes_seen=3 / 4,
        fewest=0,
        most=3,
        repeats=2,
        small_classes=3,
      ),
    )
    self.assertEqual(
      str(result),
      '3 steps draw 9 times, 50.0% of the images (of 100.0% possible) and '
      '75.0% of the classes; an image 0 to 3 times; 2 draws repeat an image of '
      'their batch; 3 classes are smaller than their share',
    )

  def test_an_epoch_of_uniform_sampling_sees_all_once(self):
    labels = np.arange(40) % 7
    sampler = samplers.make_sampler(labels, seed=0, batch_size=8)
    result = samplers.coverage(sampler, labels, num_steps=5)
    self.assertEqual((result.images_seen, result.classes_seen), (1.0, 1.0))
    self.assertEqual((result.fewest, result.most, result.repeats), (1, 1, 0))

  def test_looks_at_no_more_than_so_many_steps(self):
    labels = np.zeros(1000, int)
    sampler = samplers.make_sampler(labels, seed=0, batch_size=10)
    result = samplers.coverage(sampler, labels, 100, max_steps=20)
    self.assertEqual((result.num_steps, result.num_draws), (20, 200))
    self.assertEqual((result.images_seen, result.images_possible), (0.2, 0.2))


if __name__ == '__main__':
  absltest.main()
