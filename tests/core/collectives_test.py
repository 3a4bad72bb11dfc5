"""Collectives on four devices against one."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from retrieval_jax.core import collectives

_pmap = functools.partial(jax.pmap, axis_name='batch')
_RNG = np.random.default_rng(0)


def test_rows_and_ids_come_in_order():
  rows = np.arange(8, dtype=np.float32).reshape(4, 2)
  gathered = _pmap(lambda x: collectives.all_gather_rows(x, 'batch'))(rows)
  ids = _pmap(lambda x: collectives.row_ids(2, 'batch'))(rows)
  for device in np.asarray(gathered):
    np.testing.assert_array_equal(device, np.arange(8.0))
  np.testing.assert_array_equal(ids, np.arange(8).reshape(4, 2))
  np.testing.assert_array_equal(collectives.row_ids(3, None), [0, 1, 2])


def test_gradient_flows_back_through_the_gather():
  """The rule of the module, on a loss that is no sum over single rows."""
  w = _RNG.normal(size=(3, 2)).astype(np.float32)
  x = _RNG.normal(size=(8, 3)).astype(np.float32)

  def loss(w, x, axis_name):
    e = x @ w
    everyone = collectives.all_gather_rows(e, axis_name)
    values = jnp.sum((e @ everyone.T) ** 3, axis=1)
    counts = (values > 0).astype(jnp.float32)
    return collectives.masked_mean(values, counts, axis_name)

  expected = jax.jit(jax.grad(functools.partial(loss, axis_name=None)))(w, x)

  def device_gradient(w, x):
    gradient = jax.grad(loss)(w, x, 'batch')
    return collectives.pmean(gradient, 'batch')

  p_gradient = jax.pmap(device_gradient, axis_name='batch', in_axes=(None, 0))
  found = p_gradient(w, x.reshape(4, 2, 3))
  for device in np.asarray(found):
    np.testing.assert_allclose(device, expected, rtol=1e-5)


def test_masked_mean_is_over_rows_not_over_devices():
  values = np.float32([[3.0, 1.0], [0.0, 0.0], [5.0, 7.0], [2.0, 2.0]])
  counts = np.array([[1, 0], [0, 0], [1, 2], [0, 0]])
  found = _pmap(lambda v, c: collectives.masked_mean(v, c, 'batch'))(
    values, counts
  )
  np.testing.assert_allclose(found, np.full(4, (3 + 5 + 7) / 4))


def test_masked_mean_of_nothing_is_zero_with_zero_gradient():
  value, gradient = jax.jit(jax.value_and_grad(collectives.masked_mean))(
    np.float32([1.0, 2.0]), np.zeros(2, np.float32)
  )
  assert float(value) == 0
  np.testing.assert_array_equal(gradient, 0)
