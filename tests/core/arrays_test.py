"""Similarities and distances against float64, and gradients at the edges."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import test_util

from retrieval_jax.core import arrays

_RNG = np.random.default_rng(0)
_X = _RNG.normal(size=(5, 7))
_Y = _RNG.normal(size=(4, 7))


def _unit(x):
  return x / np.linalg.norm(x, axis=-1, keepdims=True)


def test_against_float64():
  expected = _unit(_X) @ _unit(_Y).T
  x, y = jnp.asarray(_X, jnp.float32), jnp.asarray(_Y, jnp.float32)
  np.testing.assert_allclose(arrays.normalize(x), _unit(_X), atol=2e-7)
  np.testing.assert_allclose(arrays.dot_products(x, y), _X @ _Y.T, rtol=1e-5)
  np.testing.assert_allclose(
    arrays.cosine_similarities(x, y), expected, atol=3e-7
  )


@pytest.mark.parametrize('scale', [1e-30, 1e-12, 1.0, 1e15, 1e30])
def test_normalize_at_any_scale(scale):
  x = jnp.asarray(scale * _X, jnp.float32)
  np.testing.assert_allclose(arrays.normalize(x), _unit(_X), atol=1e-6)
  # The gradient of a direction shrinks with the length of the vector.
  gradient = jax.grad(lambda v: arrays.normalize(v)[:, 0].sum())(x)
  reference = jax.grad(lambda v: arrays.normalize(v)[:, 0].sum())(
    jnp.asarray(_X, jnp.float32)
  )
  np.testing.assert_allclose(gradient * scale, reference, atol=1e-5)


def test_normalize_gradient_against_differences():
  test_util.check_grads(
    arrays.normalize, (jnp.asarray(_X, jnp.float32),), order=1, rtol=2e-2
  )


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_finite_where_rows_are_equal_opposite_or_zero(dtype):
  function = arrays.cosine_similarities
  rows = [[1.0, 2.0], [1.0, 2.0], [-1.0, -2.0], [0.0, 0.0]]
  x = jnp.array(rows, dtype)
  value, gradient = jax.value_and_grad(lambda v: function(v, v).sum())(x)
  assert np.isfinite(value)
  assert np.isfinite(gradient.astype(jnp.float32)).all()
  assert function(x, x).dtype == jnp.float32


def test_nan_is_not_hidden():
  x = jnp.array([[jnp.nan, 1.0], [1.0, 0.0]])
  assert np.isnan(arrays.cosine_similarities(x, x)[0, 1])
  assert np.isnan(arrays.norms(x)[0])


# Few rows, rows that share lines of the cache, and neither.
@pytest.mark.parametrize('num_columns', [4, 512, 300])
@pytest.mark.parametrize('itself', [False, True])
def test_gradients_of_pair_products(num_columns, itself):
  y = _RNG.normal(size=(num_columns, 7))
  x = y if itself else _X
  weights = _RNG.normal(size=(len(x), num_columns))

  def function(x, y):
    return jnp.sum(weights * jnp.sin(arrays.pair_products(x, y)))

  slopes = weights * np.cos(x @ y.T)
  expected = slopes @ y, slopes.T @ x
  x, y = jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32)
  found = jax.grad(function, (0, 1))(x, y)
  if itself:
    expected = (sum(expected),)
    found = (jax.jit(jax.grad(lambda x: function(x, x)))(x),)
  for gradient, reference in zip(found, expected, strict=True):
    largest = np.abs(reference).max()
    np.testing.assert_allclose(gradient, reference, atol=2e-6 * largest)


def test_sub_centers_take_the_nearest():
  proxies = jnp.asarray(_RNG.normal(size=(6, 7)), jnp.float32)
  x = jnp.asarray(_X, jnp.float32)
  cosines = _unit(_X) @ _unit(np.asarray(proxies)).T
  np.testing.assert_allclose(
    arrays.proxy_cosines(x, proxies, sub_centers=3),
    np.stack([cosines[:, :3].max(1), cosines[:, 3:].max(1)], 1),
    atol=3e-7,
  )
