"""What is particular to the losses with proxies."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from retrieval_jax import losses


class TargetTest(parameterized.TestCase):
  @parameterized.parameters(28.6, 60.0, 90.0)
  def test_arcface_moves_the_angle_and_falls_with_it(self, margin_deg):
    margin = math.radians(margin_deg)
    angles = np.linspace(0, math.pi, 181)
    # With one more class, at a cosine of 0 and a scale of 1, the loss is
    # log(1 + e^-t), from which the target's logit t is read.
    cosines = np.stack([np.cos(angles), np.zeros(181)], axis=1)
    values, _ = losses.arcface(
      jnp.asarray(cosines, jnp.float32),
      jnp.zeros(181, jnp.int32),
      margin_deg=margin_deg,
      scale=1.0,
    )['loss']
    logits = -np.log(np.expm1(np.asarray(values, np.float64)))
    expected = np.where(
      angles <= math.pi - margin,
      np.cos(angles + margin),
      np.cos(angles) - margin * math.sin(margin),
    )
    # The angle that is on the edge may fall to either side of it.
    kept = np.abs(angles - (math.pi - margin)) > 1e-3
    np.testing.assert_allclose(logits[kept], expected[kept], atol=2e-5)
    self.assertLess(np.diff(logits[kept]).max(), 1e-5)

  @parameterized.product(
    loss=('arcface', 'cosface'),
    dtype=('float32', 'bfloat16'),
    cosine=(1.0, -1.0, 1.0000002, -1.0000002),
  )
  def test_gradient_of_the_cosines_is_finite_at_both_ends(
    self, loss, dtype, cosine
  ):
    cosines = jnp.array([[cosine, 0.0, -cosine]], dtype)

    def loss_fn(cosines):
      terms = losses.proxy_terms(loss, cosines, jnp.array([0]))
      return losses.reduce_terms(terms)[0]

    value, gradient = jax.value_and_grad(loss_fn)(cosines)
    self.assertTrue(np.isfinite(value))
    self.assertEqual(gradient.dtype, dtype)
    self.assertTrue(np.isfinite(np.asarray(gradient, np.float32)).all())

  def test_gradient_near_the_center_is_that_of_the_angle(self):
    # d cos(theta + m) / d cos(theta) = sin(theta + m) / sin(theta)
    margin = math.radians(28.6)
    for angle in (0.01, 0.1, 1.0):
      cosine = np.float32(math.cos(angle))
      exact = math.acos(float(cosine))
      gradient = jax.grad(
        lambda c: losses.arcface(
          jnp.stack([c, jnp.zeros_like(c)])[None],
          jnp.zeros(1, jnp.int32),
          scale=1.0,
        )['loss'][0][0]
      )(cosine)
      own = math.cos(exact + margin)
      slope = math.sin(exact + margin) / math.sin(exact)
      expected = -slope / (1 + math.exp(own))
      np.testing.assert_allclose(gradient, expected, rtol=1e-3)


class RowsTest(parameterized.TestCase):
  @parameterized.parameters('arcface', 'cosface')
  def test_a_weight_of_zero_equals_leaving_the_row_out(self, loss):
    random = np.random.RandomState(0)
    cosines = jnp.asarray(random.uniform(-1, 1, (4, 3)), jnp.float32)
    labels = jnp.array([0, 1, 2, 1])
    weights = jnp.array([1.0, 0.0, 1.0, 0.0])
    weighted = losses.proxy_terms(loss, cosines, labels, weights=weights)
    dropped = losses.proxy_terms(loss, cosines[::2], labels[::2])
    np.testing.assert_allclose(
      losses.reduce_terms(weighted)[0],
      losses.reduce_terms(dropped)[0],
      rtol=1e-6,
    )

  @parameterized.parameters('arcface', 'cosface')
  def test_a_label_without_a_proxy_is_nan(self, loss):
    terms = losses.proxy_terms(loss, jnp.zeros((1, 3)), jnp.array([3]))
    self.assertTrue(np.isnan(losses.reduce_terms(terms)[0]))

  @parameterized.parameters('arcface', 'cosface')
  def test_a_single_class_costs_nothing(self, loss):
    terms = losses.proxy_terms(loss, jnp.ones((2, 1)), jnp.array([0, 0]))
    self.assertEqual(losses.reduce_terms(terms)[0], 0)

  @parameterized.parameters('arcface', 'cosface')
  def test_far_from_every_class_the_loss_is_still_exact(self, loss):
    # All exponentials of 64 (c - 1) are 0 in float32.
    terms = losses.proxy_terms(
      loss, jnp.full((1, 4), -1.0), jnp.array([2]), scale=256.0
    )
    margin = {'arcface': math.radians(28.6), 'cosface': 0.35}[loss]
    own = -1 - margin * math.sin(margin) if loss == 'arcface' else -1 - margin
    expected = 256 * (-1 - own) + math.log(3)
    np.testing.assert_allclose(terms['loss'][0][0], expected, rtol=1e-5)

  @parameterized.parameters('arcface', 'cosface')
  def test_no_second_matrix_of_logits(self, loss):
    rows, num_classes = 64, 4096
    cosines = jax.ShapeDtypeStruct((rows, num_classes), jnp.float32)
    labels = jax.ShapeDtypeStruct((rows,), jnp.int32)

    def loss_fn(cosines, labels):
      return losses.reduce_terms(losses.proxy_terms(loss, cosines, labels))[0]

    step = jax.jit(jax.value_and_grad(loss_fn)).lower(cosines, labels)
    memory = step.compile().memory_analysis()
    # The gradient is the output; beside it there is room for vectors only.
    matrix = 4 * rows * num_classes
    self.assertLess(memory.temp_size_in_bytes, matrix / 2)


if __name__ == '__main__':
  absltest.main()
