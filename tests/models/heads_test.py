import functools

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import parameterized

from retrieval_jax import models


# Compiled whole: operation by operation takes several times as long.
@functools.partial(jax.jit, static_argnums=0)
def initialise(head, embeddings):
  return head.init(jax.random.key(0), embeddings)


def unit(x):
  return x / np.linalg.norm(x, axis=-1, keepdims=True)


class ProxyHeadTest(parameterized.TestCase):
  @parameterized.product(sub_centers=[1, 3], dtype=[jnp.float32, jnp.bfloat16])
  def test_equals_a_loop(self, sub_centers, dtype):
    head = models.ProxyHead(5, 8, sub_centers)
    embeddings = np.random.default_rng(1).normal(size=(4, 8)).astype(dtype)
    variables = initialise(head, embeddings)
    proxies = variables['params']['proxies']
    self.assertEqual(proxies.shape, (5 * sub_centers, 8))
    self.assertEqual(proxies.dtype, jnp.float32)
    cosines = jax.device_get(jax.jit(head.apply)(variables, embeddings))
    self.assertEqual(cosines.dtype, jnp.float32)
    rows = unit(np.asarray(embeddings, np.float64))
    centers = unit(np.asarray(proxies, np.float64))
    for b in range(4):
      for c in range(5):
        own = centers[c * sub_centers : (c + 1) * sub_centers]
        expected = max(rows[b] @ center for center in own)
        np.testing.assert_allclose(cosines[b, c], expected, atol=1e-6)

  def test_initial_proxies_are_normal(self):
    head = models.ProxyHead(1000, 64)
    variables = initialise(head, np.zeros((1, 64), np.float32))
    proxies = np.asarray(variables['params']['proxies'])
    np.testing.assert_allclose(proxies.mean(), 0.0, atol=0.02)
    np.testing.assert_allclose(proxies.std(), head.init_stddev, rtol=0.02)

  def test_gradient_is_finite_at_zero_and_on_a_proxy(self):
    head = models.ProxyHead(2, 4)
    zero = np.zeros((1, 4), np.float32)
    variables = initialise(head, zero)
    embeddings = np.concatenate([zero, variables['params']['proxies']])

    @jax.jit
    @functools.partial(jax.grad, argnums=(0, 1))
    def gradients_of(variables, embeddings):
      return head.apply(variables, embeddings).sum()

    gradients = gradients_of(variables, embeddings)
    for leaf in jax.tree.leaves(gradients):
      self.assertTrue(np.isfinite(leaf).all())
