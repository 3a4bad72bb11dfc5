"""Tiles: every row once, unit length, one shape, within the budget."""

from unittest import mock

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

  def test_tiles_that_do_not_stay_are_put_when_asked_for(self):
    put = mock.patch.object(
      tiles.Tiles, '_put', autospec=True, side_effect=tiles.Tiles._put
    )
    with put as puts:
      tiled = tiles.Tiles(np.ones((9000, 6)), budget=2**10)
      self.assertEqual(puts.call_count, 0)
      tiled[1], tiled[1]
      self.assertEqual(puts.call_count, 2)
      resident = tiles.Tiles(np.ones((9000, 6)), budget=2**30)
      self.assertEqual(puts.call_count, 2 + len(resident))
      resident[1], resident[1]
      self.assertEqual(puts.call_count, 2 + len(resident))

  def test_devices_and_processes_hold_parts(self):
    x = np.random.default_rng(0).normal(size=(1000, 16)).astype(np.float32)
    shares = [
      tiles.Tiles(x, (np.arange(1000),), budget=2**30, process=(p, 3))
      for p in range(3)
    ]
    self.assertEqual({len(share) for share in shares}, {1})
    self.assertEqual({share.num_padding for share in shares}, {3 * 512 - 1000})
    found = np.concatenate([np.asarray(s[0][1][0]) for s in shares])
    np.testing.assert_array_equal(found[found >= 0], np.arange(1000))
    rows, _ = shares[0][0]
    self.assertEqual(rows.sharding.shard_shape(rows.shape), (128, 16))
    self.assertEqual(shares[0].num_bytes, 512 * 16 * 4)

  @parameterized.parameters(
    (1, 2**30, 8), (5000, 2**30, 512), (5000, 20_000, 16), (100, 2**30, 128)
  )
  def test_block_rows(self, num_queries, budget, expected):
    tiled = tiles.Tiles(np.ones((10, 3)), budget=0)
    rows = tiled.block_rows(num_queries, row_bytes=1000, budget=budget)
    self.assertEqual(rows, expected)

  def test_queries_are_padded(self):
    tiled = tiles.Tiles(np.ones((10, 3)), budget=0)
    rows, (index,) = tiled.put_queries(
      np.full((5, 3), 2.0), (np.arange(5),), block_rows=8
    )
    self.assertEqual(rows.sharding.shard_shape(rows.shape), (8, 3))
    np.testing.assert_allclose(rows[:5], 3**-0.5, rtol=1e-6)
    np.testing.assert_array_equal(index, [0, 1, 2, 3, 4, -1, -1, -1])


if __name__ == '__main__':
  absltest.main()
