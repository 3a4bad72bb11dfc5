"""Values and gradients equal to flax's own layers, on every path."""

import functools
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized
from flax import linen as nn
from jax.test_util import check_grads

from retrieval_jax.models import layers


def random_array(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


# Compiled whole: operation by operation takes several times as long.
@jax.jit
@jax.grad
def kernel_gradient(kernel, images):
  return layers.conv2d(images, kernel).sum()


@functools.partial(jax.jit, static_argnums=0)
def initialise(module, images, key=0):
  return module.init_with_output(jax.random.key(key), images)


@functools.partial(jax.jit, static_argnums=0)
def apply(module, variables, images):
  return module.apply(variables, images)


def on_backend(name):
  return mock.patch.object(jax, 'default_backend', return_value=name)


class ConvTest(parameterized.TestCase):
  @parameterized.parameters(
    ((3, 8, 8, 1), (3, 3), 'cpu'),
    ((3, 8, 8, 1), (3, 3), 'gpu'),
    ((40, 5, 5, 4), (3, 3), 'cpu'),
    ((40, 5, 5, 4), (5, 3), 'gpu'),
    ((2, 7, 9, 3), (1, 1), 'cpu'),
    ((2, 7, 9, 3), (2, 4), 'cpu'),
  )
  def test_equals_flax_in_value_and_gradient(self, shape, kernel_size, backend):
    images = random_array(*shape)
    ours = layers.Conv(6, kernel_size)
    flaxs = nn.Conv(6, kernel_size)
    _, variables = initialise(flaxs, images, 3)
    weights = random_array(*shape[:3], 6, seed=1)

    @jax.jit
    def compare(variables, images):
      def value(module):
        def loss(variables, images):
          y = module.apply(variables, images)
          return jnp.sum(jnp.sin(y) * weights), y

        return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(
          variables, images
        )

      return value(ours), value(flaxs)

    with on_backend(backend):
      jax.tree.map(
        np.testing.assert_array_equal,
        initialise(ours, images, 3)[1],
        variables,
      )
      actual, expected = compare(variables, images)
    jax.tree.map(
      lambda a, e: np.testing.assert_allclose(a, e, rtol=1e-5, atol=1e-4),
      actual,
      expected,
    )

  @parameterized.parameters(1, 16, 17, 300)
  def test_every_image_counts_once_in_the_kernel_gradient(self, batch):
    # Integers: their sums are exact in any order.
    images = np.arange(batch * 4).reshape(batch, 2, 2, 1) % 7
    kernel = np.ones((1, 1, 1, 1), np.float32)
    gradient = kernel_gradient(kernel, images.astype(np.float32))
    self.assertEqual(gradient.item(), images.sum().item())

  def test_bfloat16_sums_groups_in_float32(self):
    images = np.ones((512, 4, 4, 1), jnp.bfloat16)
    kernel = np.ones((1, 1, 1, 1), jnp.bfloat16)
    gradient = kernel_gradient(kernel, images)
    self.assertEqual(gradient.dtype, jnp.bfloat16)
    self.assertEqual(gradient.item(), 512 * 16)

  def test_gradients_by_differences(self):
    check_grads(
      jax.jit(lambda x, k: jnp.sin(layers.conv2d(x, k))),
      (random_array(2, 4, 5, 2), random_array(3, 3, 2, 3)),
      order=1,
      modes=['rev'],
      rtol=2e-2,
      atol=2e-2,
    )

  def test_pooling_before_the_bias_changes_nothing(self):
    images = random_array(2, 8, 8, 3)
    plain, pooled = layers.Conv(4), layers.Conv(4, max_pool=True)
    _, variables = initialise(plain, images)
    variables['params']['bias'] = random_array(4)
    np.testing.assert_array_equal(
      apply(pooled, variables, images),
      jax.jit(layers.max_pool)(apply(plain, variables, images)),
    )

  def test_parameters_stay_float32(self):
    images = random_array(2, 8, 8, 3)
    y, variables = initialise(layers.Conv(4, dtype=jnp.bfloat16), images)
    self.assertEqual(y.dtype, jnp.bfloat16)
    for leaf in jax.tree.leaves(variables):
      self.assertEqual(leaf.dtype, jnp.float32)

  def test_first_layer_pays_for_no_image_gradient(self):
    images, kernel = random_array(4, 8, 8, 8), random_array(3, 3, 8, 8)

    def flops(argnums):
      loss = lambda k, x: jnp.sum(layers.conv2d(x, k) ** 2)  # noqa: E731
      compiled = jax.jit(jax.grad(loss, argnums)).lower(kernel, images)
      return compiled.compile().cost_analysis()['flops']

    self.assertLess(flops((0,)), 0.75 * flops((0, 1)))


class MaxPoolTest(parameterized.TestCase):
  @parameterized.parameters(
    ((2, 8, 8, 3), jnp.float32, False),
    ((2, 8, 8, 3), jnp.bfloat16, True),
    ((1, 7, 9, 2), jnp.float32, True),
    ((3, 2, 3, 1), jnp.float32, False),
  )
  def test_equals_flax_in_value_and_gradient(self, shape, dtype, ties):
    x = random_array(*shape)
    x = (np.round(x) if ties else x).astype(dtype)
    weights = random_array(shape[0], shape[1] // 2, shape[2] // 2, shape[3])

    def value_and_grad(pool):
      def loss(x):
        y = pool(x)
        return jnp.sum(y.astype(jnp.float32) * weights), y

      return jax.jit(jax.value_and_grad(loss, has_aux=True))(x)

    jax.tree.map(
      np.testing.assert_array_equal,
      value_and_grad(layers.max_pool),
      value_and_grad(lambda x: nn.max_pool(x, (2, 2), (2, 2))),
    )

  def test_nan_is_not_hidden(self):
    max_pool = jax.jit(layers.max_pool)
    for entry in np.ndindex(2, 2):
      x = np.zeros((1, 2, 2, 1), np.float32)
      x[0, *entry, 0] = np.nan
      self.assertTrue(np.isnan(max_pool(x)).all())


if __name__ == '__main__':
  pytest.main([__file__])
