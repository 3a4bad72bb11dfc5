"""The triplet loss, however it is summed, against listing the triplets."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from retrieval_jax import losses
from retrieval_jax.core.distances import Distance
from retrieval_jax.losses import mining
from retrieval_jax.losses.mining import sampled
from retrieval_jax.losses.terms import Reducer
from retrieval_jax.losses.triplet import triplet_margin
from tests.compiling import compiled

REDUCERS = (
  'mean',
  'nonzero_mean',
  'per_anchor',
  'sum',
  Reducer('threshold', 0.25, 1.125),
  Reducer('threshold', None, 0.5),
  Reducer('threshold', 0.5, None),
  Reducer('threshold', -1.0, None),
  Reducer('threshold', None, -1.0),
)
COSINE = Distance('cosine')
RAW = Distance('lp', normalize=False)


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


def listed_loss(
  d, triplets, margin, reducer, smooth=False, between=None, sign=1.0
):
  """Returns (values, counts) of the rows, from a list of triplets."""
  reducer = Reducer(reducer) if isinstance(reducer, str) else reducer
  of_rows = [[] for _ in d]
  for a, p, n in triplets:
    far = sign * d[a, n]
    if between is not None:
      far = min(far, sign * between[p, n])
    gap = sign * d[a, p] - far + margin
    of_rows[a].append(np.logaddexp(0.0, gap) if smooth else max(0.0, gap))
  values, counts = np.zeros(len(d)), np.zeros(len(d))
  for a, row in enumerate(of_rows):
    kept = [
      value
      for value in row
      if {
        'nonzero_mean': value > 0,
        'threshold': (reducer.low is None or value > reducer.low)
        and (reducer.high is None or value < reducer.high),
      }.get(reducer.name, True)
    ]
    values[a], counts[a] = sum(kept), len(kept)
    if reducer.name == 'per_anchor' and kept:
      values[a], counts[a] = np.mean(kept), 1
  return values, counts


@functools.cache
def terms_of(reducer, type_of_triplets=None, smooth=False, margin=1.0):
  """Returns a compiled triplet loss, of matrix and masks."""

  def f(d, positives, negatives):
    triplets = None
    if type_of_triplets is not None:
      triplets = mining.triplet_margin_miner(
        d,
        positives,
        negatives,
        margin=0.25,
        type_of_triplets=type_of_triplets,
      )
    terms = triplet_margin(
      d,
      positives,
      negatives,
      triplets=triplets,
      margin=margin,
      smooth_loss=smooth,
      reducer=reducer,
    )
    return terms['loss']

  return compiled(f)


class SumTest(parameterized.TestCase):
  # What a threshold leaves out does not depend on who chose the triplets.
  @parameterized.parameters(
    *((reducer, None) for reducer in REDUCERS),
    *((reducer, 'semihard') for reducer in REDUCERS[:5]),
  )
  def test_counts_are_sums_over_the_list(self, reducer, type_of_triplets):
    d, positives, negatives = make_pairs(7, 37)
    triplets = [
      (a, p, n)
      for a, p, n in list_triplets(positives, negatives)
      if type_of_triplets is None or 0 < d[a, n] - d[a, p] <= 0.25
    ]
    expected = listed_loss(d, triplets, 1.0, reducer)
    found = terms_of(reducer, type_of_triplets)(d, positives, negatives)
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-5)
    np.testing.assert_array_equal(found[1], expected[1])

  @parameterized.parameters('all', 'easy', 'hard')
  def test_triplets_are_those_of_the_miner(self, kind):
    d, positives, negatives = make_pairs(7, 37)
    gaps = {
      (a, p, n): d[a, n] - d[a, p]
      for a, p, n in list_triplets(positives, negatives)
    }
    used = {
      'all': lambda gap: gap <= 0.25,
      'easy': lambda gap: gap > 0.25,
      'hard': lambda gap: gap <= 0,
    }[kind]
    triplets = [t for t, gap in gaps.items() if used(gap)]
    expected = listed_loss(d, triplets, 1.0, 'mean')
    found = terms_of('mean', kind)(d, positives, negatives)
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-5)
    np.testing.assert_array_equal(found[1], expected[1])

  @parameterized.parameters('mean', 'per_anchor')
  def test_the_smooth_loss_is_the_sum_over_the_list(self, reducer):
    d, positives, negatives = make_pairs(7, 37)
    triplets = list(list_triplets(positives, negatives))
    expected = listed_loss(d, triplets, 1.0, reducer, smooth=True)
    found = terms_of(reducer, smooth=True)(d, positives, negatives)
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-5)
    np.testing.assert_array_equal(found[1], expected[1])

  def test_a_nan_is_not_a_row_without_triplets(self):
    d, positives, negatives = make_pairs(4, 20)
    d[1, np.flatnonzero(negatives[1])[0]] = np.nan
    for smooth in (False, True):
      values, counts = terms_of('mean', 'semihard', smooth)(
        d, positives, negatives
      )
      self.assertEqual(np.isnan(values).tolist(), [False, True, False, False])
      self.assertGreaterEqual(counts[1], 1)

  def test_memory_is_that_of_a_few_matrices(self):
    size = 512
    matrix = jax.ShapeDtypeStruct((size, size), jnp.float32)
    mask = jax.ShapeDtypeStruct((size, size), bool)
    for smooth in (False, True):

      def loss_fn(distances, positives, negatives, smooth=smooth):
        terms = triplet_margin(
          distances, positives, negatives, smooth_loss=smooth
        )
        return jnp.sum(terms['loss'][0])

      compiled = jax.jit(jax.value_and_grad(loss_fn)).lower(matrix, mask, mask)
      memory = compiled.compile().memory_analysis()
      # A cube of bytes alone would be 512 matrices of bytes, 128 of float32;
      # what is looked at in one go is 16.
      limit = 70 if smooth else 24
      self.assertLess(memory.temp_size_in_bytes, limit * 4 * size * size)


class SwapTest(parameterized.TestCase):
  @parameterized.product(distance=(RAW, COSINE), smooth=(False, True))
  def test_value_and_gradient_are_those_of_the_list(self, distance, smooth):
    random = np.random.RandomState(0)
    x, y = random.randn(6, 3), np.array([0, 0, 1, 1, 0, 2])
    ref, ref_y = random.randn(9, 3), np.array([0, 1, 2, 0, 1, 0, 0, 2, 1])
    positives = y[:, None] == ref_y
    triplets = list(list_triplets(positives, ~positives))

    def rows(x):
      if distance == COSINE:
        x = x / np.linalg.norm(x, axis=1, keepdims=True)
      return x

    def reference(x, ref):
      x, ref = rows(x), rows(ref)
      if distance == COSINE:
        matrices = x @ ref.T, ref @ ref.T
      else:
        matrices = (
          np.linalg.norm(z[:, None] - ref[None], axis=2) for z in (x, ref)
        )
      d, between = matrices
      sign = -1.0 if distance == COSINE else 1.0
      values, counts = listed_loss(
        d, triplets, 0.4, 'mean', smooth, between, sign
      )
      return values.sum() / counts.sum()

    @compiled
    @functools.partial(jax.value_and_grad, argnums=(0, 1))
    def loss_fn(x, ref):
      values, counts = triplet_margin(
        distance.matrix(x, ref),
        jnp.asarray(positives),
        jnp.asarray(~positives),
        margin=0.4,
        swap=True,
        smooth_loss=smooth,
        distance=distance,
        candidates=ref,
        reducer='mean',
      )['loss']
      return jnp.sum(values) / jnp.sum(counts)

    value, gradients = loss_fn(x.astype(np.float32), ref.astype(np.float32))
    self.assertAlmostEqual(value, reference(x, ref), places=5)
    step = 1e-6
    for i, (z, gradient) in enumerate(zip((x, ref), gradients, strict=True)):
      for place in np.ndindex(z.shape):
        ends = []
        for sign in (1, -1):
          moved = [x.copy(), ref.copy()]
          moved[i][place] += sign * step
          ends.append(reference(*moved))
        expected = (ends[0] - ends[1]) / (2 * step)
        self.assertAlmostEqual(gradient[place], expected, delta=1e-3)


class DrawTest(parameterized.TestCase):
  def test_each_triplet_is_drawn_as_often(self):
    rows = 3000
    positives = np.tile([True, False, True, False, False], (rows, 1))
    negatives = np.tile([False, True, False, True, True], (rows, 1))
    positives[-1] = False

    @compiled
    def draw(positives, negatives):
      keys = jax.random.split(jax.random.key(0), rows)
      return sampled.random_triplets(positives, negatives, keys, 4)

    found = draw(positives, negatives)
    self.assertTrue(found.used[:-1].all())
    self.assertFalse(found.used[-1].any())
    drawn = 5 * found.positives[:-1] + found.negatives[:-1]
    shares = np.bincount(drawn.reshape(-1), minlength=25) / drawn.size
    expected = np.zeros(25)
    expected[[1, 3, 4, 11, 13, 14]] = 1 / 6
    np.testing.assert_allclose(shares, expected, rtol=0, atol=0.012)

  @parameterized.parameters(False, True)
  def test_the_loss_is_of_the_drawn_triplets(self, swap):
    random = np.random.RandomState(0)
    x, y = random.randn(9, 3).astype(np.float32), np.arange(9) % 3
    positives = (y[:, None] == y) & ~np.eye(9, dtype=bool)
    negatives = y[:, None] != y

    @compiled
    def draw(x, *masks):
      keys = jax.random.split(jax.random.key(1), 9)
      d = RAW.matrix(x, x)
      terms = triplet_margin(
        d,
        *masks,
        margin=0.5,
        swap=swap,
        triplets_per_anchor=5,
        distance=RAW,
        candidates=x,
        row_keys=keys,
      )
      return d, terms['loss'], sampled.random_triplets(*masks, keys, 5)

    d, found, drawn = draw(x, positives, negatives)
    triplets = [
      (a, int(p), int(n))
      for a in range(9)
      for p, n in zip(drawn.positives[a], drawn.negatives[a], strict=True)
    ]
    expected = listed_loss(
      d, triplets, 0.5, 'nonzero_mean', between=d if swap else None
    )
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-5)
    np.testing.assert_array_equal(found[1], expected[1])


class ComputeTest(absltest.TestCase):
  def test_a_name_and_a_mapping_are_the_same_miner(self):
    x = np.random.RandomState(0).randn(12, 4)
    y = np.arange(12) % 3
    mapping = {'name': 'triplet_margin', 'type_of_triplets': 'all'}

    @compiled
    def both(x):
      return [
        losses.compute('triplet_margin', x, y, miner=miner)
        for miner in ('triplet_margin', mapping)
      ]

    by_name, by_mapping = both(x)
    self.assertEqual(by_name, by_mapping)
    self.assertEqual(mapping['name'], 'triplet_margin')

  def test_the_order_of_the_rows_changes_nothing(self):
    random = np.random.RandomState(0)
    x = random.randn(9, 4).astype(np.float32)
    y = np.array([2, 0, 1, 0, 2, 1, 1, 0, 2])
    loss_fn = functools.partial(losses.compute, 'triplet_margin')
    step = compiled(jax.value_and_grad(loss_fn))
    value, gradient = step(x, y)
    order = random.permutation(9)
    moved = step(x[order], y[order])
    np.testing.assert_allclose(moved[0], value, rtol=1e-5)
    np.testing.assert_allclose(moved[1], gradient[order], atol=1e-5)


if __name__ == '__main__':
  absltest.main()
