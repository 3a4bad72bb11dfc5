import concurrent.futures

import numpy as np
from absl.testing import absltest, parameterized

from retrieval_jax.data.samplers import permutations


class PermutationsTest(parameterized.TestCase):
  @parameterized.parameters((0, 0, 10), (3, 7, 5), (0, 2, 1000), (9, 9, 1))
  def test_a_place_is_a_philox_of_its_own(self, stream, index, size):
    draw = permutations.Permutations(seed=5)
    draw(1, 1, 7)  # What was drawn before makes no difference.
    philox = np.random.Philox(key=5, counter=(0, 0, index, stream))
    expected = np.random.Generator(philox).permutation(size)
    np.testing.assert_array_equal(draw(stream, index, size), expected)
    np.testing.assert_array_equal(draw(stream, index, size), expected)

  def test_seeds_members_streams_and_indices_differ(self):
    places = [(0, 0), (0, 1), (1, 0), (1, 1)]
    orders = {
      tuple(permutations.Permutations(seed, member)(*place, 20).tolist())
      for seed in (0, 1)
      for member in (0, 1)
      for place in places
    }
    self.assertLen(orders, 16)

  def test_threads_may_share(self):
    draw = permutations.Permutations(seed=1)
    places = [(stream, index) for stream in range(8) for index in range(50)]
    with concurrent.futures.ThreadPoolExecutor(4) as executor:
      orders = list(executor.map(lambda place: draw(*place, 50), places))
    for place, order in zip(places, orders, strict=True):
      expected = permutations.Permutations(seed=1)(*place, 50)
      np.testing.assert_array_equal(order, expected)

  def test_keeps_no_object_for_each_small_class(self):
    draw = permutations.Permutations(seed=0)
    for stream in range(1000):
      draw(stream, 0, 20)
    draw(5, 0, 5000)
    draw(5, 1, 5000)
    kept = [order for _, order in draw._latest.values()]
    self.assertEqual([len(order) for order in kept], [5000])
    self.assertEqual(kept[0].dtype, np.int32)


class ShuffledPlaceTest(parameterized.TestCase):
  @parameterized.parameters(1, 2, 3, 7, 8, 100, 1013)
  def test_is_a_permutation_for_every_key(self, size):
    for key in range(20):
      places = permutations.shuffled_place(
        np.arange(size), np.full(size, size), np.full(size, key, np.uint64)
      )
      self.assertEqual(places.dtype, np.int64)
      self.assertEqual(np.sort(places).tolist(), list(range(size)))

  def test_every_permutation_is_as_likely_as_another(self):
    size, num_keys = 4, 24_000
    keys = permutations.hashed(np.arange(num_keys, dtype=np.uint64))
    places = permutations.shuffled_place(
      np.tile(np.arange(size), num_keys),
      np.full(size * num_keys, size),
      np.repeat(keys, size),
    ).reshape(num_keys, size)
    counts = np.unique(places, axis=0, return_counts=True)[1]
    self.assertLen(counts, 24)
    # Chi-square of 23 degrees of freedom: 49.7 is exceeded once in a thousand.
    self.assertLess(((counts - 1000) ** 2 / 1000).sum(), 49.7)

  def test_pairs_of_places_are_uniform(self):
    size, num_keys = 11, 11_000
    keys = permutations.hashed(np.arange(num_keys, dtype=np.uint64))
    first, second = (
      permutations.shuffled_place(
        np.full(num_keys, place), np.full(num_keys, size), keys
      )
      for place in (0, 1)
    )
    counts = np.bincount(first * size + second, minlength=size**2)
    counts = counts.reshape(size, size)
    self.assertEqual(np.trace(counts), 0)
    off = counts[~np.eye(size, dtype=bool)]
    # Chi-square of 109 degrees of freedom: 158 is exceeded once in a thousand.
    self.assertLess(((off - 100) ** 2 / 100).sum(), 158)

  def test_sizes_mix_in_a_call(self):
    sizes = np.array([1, 2, 50, 1000])
    keys = np.arange(4, dtype=np.uint64)
    place = np.array([0, 1, 7, 999])
    together = permutations.shuffled_place(place, sizes, keys)
    for i in range(4):
      alone = permutations.shuffled_place(
        place[i : i + 1], sizes[i : i + 1], keys[i : i + 1]
      )
      self.assertEqual(alone[0], together[i])


class GroupRowsTest(parameterized.TestCase):
  @parameterized.parameters(0, 1, 50)
  def test_is_the_rows_of_each_label_in_order(self, num_rows):
    labels = np.random.default_rng(0).integers(-3, 9, num_rows)
    order, starts = permutations.group_rows(labels)
    groups = [order[a:b] for a, b in zip(starts[:-1], starts[1:], strict=True)]
    expected = [np.flatnonzero(labels == c) for c in np.unique(labels)]
    self.assertLen(groups, len(expected))
    for group, rows in zip(groups, expected, strict=True):
      np.testing.assert_array_equal(group, rows)


if __name__ == '__main__':
  absltest.main()
