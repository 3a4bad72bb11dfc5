"""Tiles: every row once, unit length, one shape, within the budget."""

import jax
import numpy as np
from absl.testing import absltest, parameterized

from retrieval_jax.core import tiles


class TilesTest(parameterized.TestCase):
  @parameterized.product(
    size=(1, 64, 65, 5000), resident=(False, True), num_devices=(1, 4)
  )
  def test_every_row_once_in_order(self, size, resident, num_devices):
    random = np.random.default_rng(0)
    x = random.normal(size=(size, 6))
    order = random.permutation(size)
    tiled = tiles.Tiles(
      x,
      (np.arange(size), order),
      order=order,
      budget=2**30 if resident else 0,
      devices=jax.local_devices()[:num_devices],
    )
    self.assertEqual(tiled.resident, resident)
    parts = [tiled[i] for i in range(len(tiled))]
    for rows, (place, index) in parts:
      self.assertEqual(rows.shape, (tiled.tile_rows, 6))
      self.assertEqual(place.shape, (tiled.tile_rows,))
      self.assertLen(rows.devices(), num_devices)
      np.testing.assert_array_equal(np.asarray(rows)[np.asarray(index) < 0], 0)
    rows = np.concatenate([np.asarray(part[0]) for part in parts])
    index = np.concatenate([np.asarray(part[1][1]) for part in parts])
    np.testing.assert_array_equal(index[:size], order)
    np.testing.assert_array_equal(index[size:], -1)
    expected = x[order] / np.linalg.norm(x[order], axis=1, keepdims=True)
    np.testing.assert_allclose(rows[:size], expected, atol=1e-6)

  def test_memory_counts_copies_on_cpu_devices(self):
    x = np.ones((4096, 16), np.float32)
    one, four = (
      tiles.Tiles(x, budget=2**30, devices=jax.local_devices()[:n])
      for n in (1, 4)
    )
    self.assertEqual(one.num_bytes, x.nbytes)
    self.assertEqual(four.num_bytes, 4 * x.nbytes)

  @parameterized.parameters(
    (1, 1, 2**30, 8),
    (5000, 1, 2**30, 512),
    (5000, 4, 2**30, 2048),
    (5000, 1, 20_000, 16),
    (100, 1, 2**30, 128),
  )
  def test_block_rows(self, num_queries, num_devices, budget, expected):
    tiled = tiles.Tiles(
      np.ones((10, 3)), budget=0, devices=jax.local_devices()[:num_devices]
    )
    rows = tiled.block_rows(num_queries, row_bytes=1000, budget=budget)
    self.assertEqual(rows, expected)

  def test_queries_are_split_and_padded(self):
    tiled = tiles.Tiles(np.ones((10, 3)), budget=0)
    rows, (index,) = tiled.put_queries(
      np.full((5, 3), 2.0), (np.arange(5),), block_rows=8
    )
    self.assertEqual(rows.sharding.shard_shape(rows.shape), (2, 3))
    np.testing.assert_allclose(rows[:5], 3**-0.5, rtol=1e-6)
    np.testing.assert_array_equal(index, [0, 1, 2, 3, 4, -1, -1, -1])


if __name__ == '__main__':
  absltest.main()
