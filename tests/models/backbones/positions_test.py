"""Interpolated positions equal to torch's, and by hand."""

import json
import pathlib

import jax.numpy as jnp
import numpy as np
from absl.testing import parameterized

from retrieval_jax.models.backbones.positions import resize_positions
from tests.golden import made_weights

RESIZES = json.loads(
  (pathlib.Path(__file__).parents[2] / 'golden' / 'vit.json').read_text()
)['resizes']


class ResizePositionsTest(parameterized.TestCase):
  @parameterized.parameters(range(len(RESIZES)))
  def test_equals_torch(self, index):
    row = RESIZES[index]
    positions = made_weights.tensors({'pos': [row['size'] ** 2, 2]})['pos']
    found = resize_positions(
      jnp.asarray(positions),
      tuple(row['grid']),
      antialias=row['antialias'],
      offset=row['offset'],
    )
    np.testing.assert_allclose(found, row['positions'], atol=2e-6, rtol=0)

  def test_the_own_grid_stays_as_it_is_whatever_the_offset(self):
    positions = jnp.arange(9.0)[:, None]
    found = resize_positions(positions, (3, 3), antialias=False, offset=0.1)
    np.testing.assert_array_equal(found, positions)

  @parameterized.product(antialias=(True, False), grid=((2, 9), (13, 4)))
  def test_constant_positions_stay_constant(self, antialias, grid):
    found = resize_positions(
      jnp.full((25, 2), 3.0), grid, antialias=antialias, offset=0.1
    )
    np.testing.assert_allclose(
      found, np.full((grid[0] * grid[1], 2), 3.0), 1e-6
    )

  def test_rows_are_rows(self):
    positions = jnp.asarray([[1.0], [1.0], [2.0], [2.0]])
    found = resize_positions(positions, (2, 3), antialias=False)
    np.testing.assert_allclose(found[:, 0], [1, 1, 1, 2, 2, 2], atol=1e-6)

  def test_bfloat16_is_interpolated_in_float32(self):
    positions = jnp.asarray(
      made_weights.tensors({'pos': [16, 2]})['pos'], jnp.bfloat16
    )
    found = resize_positions(positions, (3, 7), antialias=True)
    exact = resize_positions(
      positions.astype(jnp.float32), (3, 7), antialias=True
    )
    self.assertEqual(found.dtype, jnp.bfloat16)
    np.testing.assert_array_equal(found, exact.astype(jnp.bfloat16))
