"""Regularizers: as recorded of PML, with padding, and on many devices."""

import functools
import json
import pathlib
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from retrieval_jax.core import collectives
from retrieval_jax.core.errors import InputError
from retrieval_jax.losses import regularizers
from retrieval_jax.losses.regularizers import REGULARIZERS

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden/pml_regularizers.json'
RECORDED = json.loads(GOLDEN.read_text())
ROWS = np.array(RECORDED['rows'], np.float32)
CENTERS = 3
named = parameterized.parameters(*REGULARIZERS)


def reduced(rows, valid, axis_name=None, *, name, **hyper):
  if 'centers_per_class' in REGULARIZERS[name].needs:
    hyper.setdefault('centers_per_class', CENTERS)
  values, counts = REGULARIZERS[name].function(
    rows, valid=valid, axis_name=axis_name, **hyper
  )
  return collectives.masked_mean(values, counts, axis_name)


@functools.cache
def compiled(name, hyper=()):
  function = functools.partial(reduced, name=name, **dict(hyper))
  return jax.jit(jax.value_and_grad(function))


def run(name, rows, valid=None, **hyper):
  valid = np.ones(len(rows), bool) if valid is None else valid
  return compiled(name, tuple(hyper.items()))(
    jnp.asarray(rows, jnp.float32), jnp.asarray(valid)
  )


class PmlTest(parameterized.TestCase):
  @parameterized.named_parameters(RECORDED['cases'].items())
  def test_value_and_gradient_are_those_of_pml(self, row):
    value, gradient = run(row['name'], ROWS, **row['hyper'])
    np.testing.assert_allclose(value, row['value'], rtol=1e-5)
    expected = np.array(row['gradient'])
    np.testing.assert_allclose(
      gradient, expected, rtol=0, atol=1e-5 * np.abs(expected).max()
    )

  def test_every_regularizer_is_recorded(self):
    names = {row['name'] for row in RECORDED['cases'].values()}
    self.assertEqual(names, set(REGULARIZERS))


class RowsTest(parameterized.TestCase):
  @named
  def test_padding_equals_dropping_rows(self, name):
    # A class of three, for the regularizer that sees classes.
    valid = np.repeat([True, False, True, True], 3)
    rows = ROWS.copy()
    rows[3] = np.nan
    value, gradient = run(name, rows, valid)
    expected, kept = run(name, ROWS[valid])
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(gradient[valid], kept, rtol=1e-4, atol=1e-7)
    self.assertEqual(np.abs(gradient[~valid]).max(), 0)

  @named
  def test_nothing_valid_is_zero(self, name):
    value, gradient = run(name, ROWS, np.zeros(len(ROWS), bool))
    self.assertEqual(value, 0)
    self.assertEqual(np.abs(gradient).max(), 0)

  @named
  def test_a_nan_is_seen(self, name):
    rows = ROWS.copy()
    rows[4] = np.nan
    self.assertTrue(np.isnan(run(name, rows)[0]))

  @named
  def test_equal_and_zero_rows_have_a_finite_gradient(self, name):
    for rows in (np.ones_like(ROWS), np.zeros_like(ROWS), 1e-30 * ROWS):
      for leaf in run(name, rows):
        self.assertTrue(np.isfinite(leaf).all())

  @parameterized.parameters('lp', 'regular_face', 'sparse_centers', 'zero_mean')
  def test_huge_rows_have_a_finite_gradient(self, name):
    for leaf in run(name, 1e30 * ROWS):
      self.assertTrue(np.isfinite(leaf).all())

  @named
  def test_half_precision_is_computed_in_full(self, name):
    rows = jnp.asarray(ROWS, jnp.bfloat16)
    valid = jnp.ones(len(ROWS), bool)
    value, gradient = compiled(name)(rows, valid)
    expected, _ = run(name, rows)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    self.assertEqual(gradient.dtype, jnp.bfloat16)

  def test_rows_shared_out_over_devices_change_nothing(self):
    # Three rows a device: whole classes. Those of one device are padding.
    valid = np.repeat([True, True, False, True], 3)

    def device_losses(rows, valid):
      found = {
        name: reduced(rows, valid, 'd', name=name) for name in REGULARIZERS
      }
      return sum(found.values()), found

    (_, values), gradients = jax.pmap(
      jax.value_and_grad(device_losses, has_aux=True), axis_name='d'
    )(ROWS.reshape(4, 3, -1), valid.reshape(4, 3))
    total = 0
    for name in REGULARIZERS:
      expected, gradient = run(name, ROWS, valid)
      total += gradient
      np.testing.assert_allclose(
        values[name], np.full(4, expected), rtol=1e-6, err_msg=name
      )
    # A device's gradient counts each of the four equal losses.
    np.testing.assert_allclose(
      gradients.reshape(total.shape) / 4, total, rtol=1e-5, atol=1e-6
    )


class RegularFaceTest(parameterized.TestCase):
  def test_it_moves_the_row_and_its_neighbour(self):
    rows = np.array([[1.0, 0.0], [1.0, 1.0], [-1.0, 0.5]], np.float32)
    _, gradient = run('regular_face', rows)

    def loop(rows):
      units = rows / np.linalg.norm(rows, axis=1, keepdims=True)
      cosines = units @ units.T - 9 * np.eye(3)
      return cosines.max(axis=1).mean()

    for place in np.ndindex(*rows.shape):
      step = np.zeros(rows.shape)
      step[place] = 1e-5
      slope = (loop(rows + step) - loop(rows - step)) / 2e-5
      np.testing.assert_allclose(gradient[place], slope, atol=1e-5)

  def test_a_lone_row_has_no_neighbour(self):
    self.assertEqual(run('regular_face', ROWS[:1])[0], 0)

  def test_chunks_change_nothing(self):
    expected, gradient = run('regular_face', ROWS)
    function = functools.partial(reduced, name='regular_face')
    # Chunks of five rows, the last of two.
    with mock.patch.object(regularizers, '_MAX_PAIRS', 5 * len(ROWS)):
      value, of_chunks = jax.jit(jax.value_and_grad(function))(
        ROWS, np.ones(len(ROWS), bool)
      )
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    np.testing.assert_allclose(of_chunks, gradient, rtol=1e-5, atol=1e-7)

  def test_no_matrix_of_all_pairs(self):
    rows = jax.ShapeDtypeStruct((2**14, 4), jnp.float32)
    valid = jax.ShapeDtypeStruct((2**14,), bool)
    function = functools.partial(reduced, name='regular_face')
    step = jax.jit(jax.grad(function)).lower(rows, valid).compile()
    # All pairs are a GiB.
    self.assertLess(step.memory_analysis().temp_size_in_bytes, 2**26)


class SparseCentersTest(parameterized.TestCase):
  def test_the_value_is_half_the_mean_distance_of_a_class(self):
    units = ROWS / np.linalg.norm(ROWS, axis=1, keepdims=True)
    distances = [
      np.linalg.norm(units[3 * c + k] - units[3 * c + m])
      for c in range(4)
      for k in range(3)
      for m in range(k)
    ]
    value, _ = run('sparse_centers', ROWS)
    np.testing.assert_allclose(value, np.mean(distances) / 2, rtol=1e-5)

  def test_one_center_is_refused(self):
    with self.assertRaisesRegex(InputError, r'with 1 centre.*at least 2: set'):
      REGULARIZERS['sparse_centers'].function(ROWS, centers_per_class=1)


if __name__ == '__main__':
  absltest.main()
