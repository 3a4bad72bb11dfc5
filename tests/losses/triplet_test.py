"""Counting triplets, and mining them by bounds, against listing them."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from retrieval_jax import losses
from retrieval_jax.losses import triplet


def make_pairs(rows, columns, seed=0, positive=0.3):
  """Random masks, of no class structure, and distances with many ties."""
  random = np.random.RandomState(seed)
  distances = random.randint(17, size=(rows, columns)).astype(np.float32) / 8
  kind = random.rand(rows, columns)
  positives = kind < positive
  negatives = kind > positive + 0.1
  return distances, positives, negatives


def list_triplets(positives, negatives):
  for a in range(len(positives)):
    yield from itertools.product(
      [a], np.flatnonzero(positives[a]), np.flatnonzero(negatives[a])
    )


class CountTest(parameterized.TestCase):
  @parameterized.parameters(
    (1, 1), (2, 15), (3, 16), (2, 17), (4, 63), (2, 65), (3, 131)
  )
  def test_counts_are_those_of_the_list(self, rows, columns):
    distances, positives, negatives = make_pairs(rows, columns)
    lower, upper = distances - 0.25, distances + 0.5
    for low in (None, lower):
      expected_p = np.zeros((rows, columns))
      expected_n = np.zeros((rows, columns))
      for a, p, n in list_triplets(positives, negatives):
        above = low is None or distances[a, n] > low[a, p]
        if above and distances[a, n] <= upper[a, p]:
          expected_p[a, p] += 1
          expected_n[a, n] += 1
      counts = triplet.count_triplets(
        jnp.asarray(distances), positives, negatives, low, jnp.asarray(upper)
      )
      np.testing.assert_array_equal(counts[0], expected_p)
      np.testing.assert_array_equal(counts[1], expected_n)

  def test_no_rows_and_no_columns(self):
    for shape in ((0, 3), (3, 0)):
      empty = jnp.zeros(shape)
      counts = triplet.count_triplets(empty, empty > 0, empty > 0, None, empty)
      self.assertEqual(counts[0].shape, shape)

  def test_memory_is_that_of_a_few_matrices(self):
    size = 512
    matrix = jax.ShapeDtypeStruct((size, size), jnp.float32)
    mask = jax.ShapeDtypeStruct((size, size), bool)

    def loss_fn(distances, positives, negatives):
      terms = losses.triplet_margin(distances, positives, negatives)
      return losses.reduce_terms(terms)[0]

    compiled = jax.jit(jax.value_and_grad(loss_fn)).lower(matrix, mask, mask)
    memory = compiled.compile().memory_analysis()
    # A cube of bytes alone would be 512 matrices of bytes, 128 of float32.
    self.assertLess(memory.temp_size_in_bytes, 24 * 4 * size * size)


class MinerTest(parameterized.TestCase):
  @parameterized.product(
    type_of_triplets=('all', 'easy', 'hard', 'semihard'),
    reducer=('mean', 'nonzero_mean'),
  )
  def test_triplets_are_those_of_the_definition(
    self, type_of_triplets, reducer
  ):
    distances, positives, negatives = make_pairs(7, 19)
    margin, loss_margin = 0.25, 1.0
    values = np.zeros(7)
    counts = np.zeros(7)
    for a, p, n in list_triplets(positives, negatives):
      gap = distances[a, n] - distances[a, p]
      used = {
        'all': gap <= margin,
        'easy': gap > margin,
        'hard': gap <= 0,
        'semihard': 0 < gap <= margin,
      }[type_of_triplets]
      value = max(0.0, loss_margin - gap)
      if used and (value > 0 or reducer == 'mean'):
        values[a] += value
        counts[a] += 1
    self.assertGreater(counts.min(), 0)

    bounds = losses.triplet_margin_miner(
      jnp.asarray(distances),
      positives,
      negatives,
      margin=margin,
      type_of_triplets=type_of_triplets,
    )
    terms = losses.triplet_margin(
      jnp.asarray(distances),
      jnp.asarray(positives),
      jnp.asarray(negatives),
      bounds=bounds,
      margin=loss_margin,
      reducer=reducer,
    )
    np.testing.assert_allclose(terms['loss'][0], values, rtol=1e-5)
    np.testing.assert_array_equal(terms['loss'][1], counts)

  def test_a_name_and_a_mapping_are_the_same_miner(self):
    x = np.random.RandomState(0).randn(12, 4)
    y = np.arange(12) % 3
    by_name = losses.compute('triplet_margin', x, y, miner='triplet_margin')
    mapping = {'name': 'triplet_margin', 'type_of_triplets': 'all'}
    by_mapping = losses.compute('triplet_margin', x, y, miner=mapping)
    self.assertEqual(by_name, by_mapping)
    self.assertEqual(mapping['name'], 'triplet_margin')


class OrderTest(absltest.TestCase):
  def test_rows_come_back_in_the_order_they_went_in(self):
    random = np.random.RandomState(0)
    x = jnp.asarray(random.randn(9, 4), jnp.float32)
    y = jnp.asarray([2, 0, 1, 0, 2, 1, 1, 0, 2], jnp.int32)
    terms = jax.jit(functools.partial(losses.pair_terms, 'triplet_margin'))
    values, counts = terms(x, y)['loss']
    order = random.permutation(9)
    moved = terms(x[order], y[order])['loss']
    np.testing.assert_allclose(moved[0], values[order], rtol=1e-5)
    np.testing.assert_array_equal(moved[1], counts[order])


if __name__ == '__main__':
  absltest.main()
