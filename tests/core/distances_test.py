"""Matrices of distances against loops in float64, and where they are hard."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from retrieval_jax.core.distances import Distance
from retrieval_jax.core.errors import InputError

CASES = (
  Distance('cosine'),
  Distance('dot'),
  Distance('dot', normalize=False),
  Distance('lp'),
  Distance('lp', power=2),
  Distance('lp', power=0.5),
  Distance('lp', normalize=False),
  Distance('lp', normalize=False, power=2),
  Distance('lp', p=1),
  Distance('lp', p=1, normalize=False),
  Distance('lp', p=3, normalize=False, power=2),
  Distance('lp', p=1.5),
  Distance('snr'),
  Distance('snr', normalize=False),
)


def reference(distance, x, y):
  """PML's formulas, one pair at a time."""
  matrix = np.zeros((len(x), len(y)))
  order = distance.p if distance.name == 'lp' else 2
  for i, j in np.ndindex(matrix.shape):
    a, b = x[i], y[j]
    if distance.normalize or distance.name == 'cosine':
      a = a / max(np.linalg.norm(a, order), 1e-12)
      b = b / max(np.linalg.norm(b, order), 1e-12)
    if distance.inverted:
      matrix[i, j] = a @ b
    elif distance.name == 'lp':
      matrix[i, j] = np.linalg.norm(a - b, distance.p) ** distance.power
    else:
      matrix[i, j] = np.var(a - b, ddof=1) / np.var(a, ddof=1)
  return matrix


def make_rows(seed=0):
  random = np.random.RandomState(seed)
  return random.randn(4, 11) + 0.5, random.randn(5, 11)


@functools.cache
def weighted_sum(distance):
  def f(x, y, weights):
    matrix = distance.matrix(x, y)
    return jnp.sum(jnp.where(weights == 0, 0, matrix * weights)), matrix

  return jax.jit(jax.value_and_grad(f, argnums=(0, 1), has_aux=True))


@functools.partial(jax.jit, static_argnums=0)
def matrix_of(distance, x, y):
  return distance.matrix(x, y)


def as_float32(*xs):
  return [np.asarray(x, np.float32) for x in xs]


class DistanceTest(parameterized.TestCase):
  @parameterized.parameters(*CASES)
  def test_values_and_gradients_are_those_of_the_definition(self, distance):
    x, y = make_rows()
    weights = np.random.RandomState(1).randn(len(x), len(y))
    (_, matrix), gradients = weighted_sum(distance)(*as_float32(x, y, weights))
    np.testing.assert_allclose(matrix, reference(distance, x, y), atol=1e-5)
    step = 1e-5
    for rows, gradient, side in ((x, gradients[0], 0), (y, gradients[1], 1)):
      expected = np.zeros_like(rows)
      for place in np.ndindex(rows.shape):
        ends = []
        for sign in (1, -1):
          moved = rows.copy()
          moved[place] += sign * step
          pair = (moved, y) if side == 0 else (x, moved)
          ends.append(np.sum(weights * reference(distance, *pair)))
        expected[place] = (ends[0] - ends[1]) / (2 * step)
      np.testing.assert_allclose(gradient, expected, rtol=1e-3, atol=1e-3)

  @parameterized.parameters(*CASES)
  def test_rows_in_pairs_are_the_diagonal(self, distance):
    x, y = as_float32(*make_rows())
    paired = jax.jit(distance.paired)(x, y[: len(x)])
    (_, matrix), _ = weighted_sum(distance)(x, y, np.ones((4, 5), np.float32))
    np.testing.assert_allclose(paired, np.diag(matrix), atol=1e-5)

  @parameterized.parameters(*CASES)
  def test_equal_zero_and_constant_rows_have_a_finite_gradient(self, distance):
    x, y = make_rows()
    x[1] = 0.0
    x[2] = 1.0
    y[: len(x)] = x
    weights = np.ones((len(x), len(y)))
    (_, matrix), gradients = weighted_sum(distance)(*as_float32(x, y, weights))
    self.assertTrue(np.all(np.isfinite(matrix)))
    if not distance.inverted:
      np.testing.assert_allclose(np.diag(matrix), 0.0, atol=1e-5)
    for gradient in gradients:
      self.assertTrue(np.all(np.isfinite(gradient)))
      self.assertLess(np.abs(gradient).max(), 1e4)
    if distance.name != 'snr':
      expected = reference(distance, x, y)
      np.testing.assert_allclose(matrix, expected, atol=1e-5)

  @parameterized.parameters(*CASES)
  def test_a_nan_spreads(self, distance):
    x, y = make_rows()
    x[0, 3] = np.nan
    weights = np.ones((len(x), len(y)))
    (value, _), _ = weighted_sum(distance)(*as_float32(x, y, weights))
    self.assertTrue(np.isnan(value))

  @parameterized.parameters(
    Distance('cosine'),
    Distance('lp'),
    Distance('lp', normalize=False),
    Distance('lp', p=1, normalize=False),
    Distance('lp', p=3, normalize=False),
    Distance('snr', normalize=False),
  )
  def test_large_and_small_embeddings_neither_overflow_nor_vanish(
    self, distance
  ):
    x, y = make_rows()
    small = reference(distance, x, y)
    for factor in (1e30, 1e-30):
      weights = np.ones((len(x), len(y)))
      inputs = as_float32(x * factor, y * factor, weights)
      (_, matrix), gradients = weighted_sum(distance)(*inputs)
      grows = factor if distance.name == 'lp' and not distance.normalize else 1
      np.testing.assert_allclose(
        np.float64(matrix) / grows, small, rtol=1e-4, atol=1e-5
      )
      for gradient in gradients:
        self.assertTrue(np.all(np.isfinite(gradient)))

  def test_a_common_offset_costs_no_digits(self):
    x, y = make_rows()
    distance = Distance('lp', normalize=False)
    matrix = matrix_of(distance, *as_float32(x + 100, y + 100))
    np.testing.assert_allclose(matrix, reference(distance, x, y), rtol=1e-4)

  def test_one_row_at_a_time_is_the_same_matrix(self):
    x, y = as_float32(*make_rows())
    distance = Distance('lp', normalize=False)
    rows = [matrix_of(distance, x[i : i + 1], y)[0] for i in range(len(x))]
    np.testing.assert_allclose(rows, matrix_of(distance, x, y), 1e-6)

  def test_no_rows_and_no_candidates(self):
    for distance in CASES:
      for rows, candidates in ((0, 2), (2, 0)):
        x, y = (np.ones((n, 3), np.float32) for n in (rows, candidates))
        matrix = jax.eval_shape(distance.matrix, x, y)
        self.assertEqual(matrix.shape, (rows, candidates))

  def test_memory_is_that_of_a_few_matrices(self):
    shape = jax.ShapeDtypeStruct((256, 64), jnp.float32)
    for p in (1, 3):
      distance = Distance('lp', p=p)

      def loss_fn(x, distance=distance):
        return jnp.sum(distance.matrix(x, x) ** 2)

      compiled = jax.jit(jax.grad(loss_fn)).lower(shape).compile()
      memory = compiled.memory_analysis().temp_size_in_bytes
      # The differences alone would be 64 matrices.
      self.assertLess(memory, 16 * 4 * 256 * 256)

  def test_mistakes_say_what_is_allowed(self):
    with self.assertRaisesRegex(InputError, "distance.name is 'cosin'"):
      Distance('cosin')
    with self.assertRaisesRegex(InputError, 'distance.p is 0.5; allowed is'):
      Distance('lp', p=0.5)
    with self.assertRaisesRegex(InputError, 'distance.power is 0; allowed is'):
      Distance('lp', power=0)


if __name__ == '__main__':
  absltest.main()
