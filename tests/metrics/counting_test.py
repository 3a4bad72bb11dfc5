"""The two counters against a loop over all pairs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from retrieval_jax.core import tiles
from retrieval_jax.metrics import counting
from retrieval_jax.metrics.ranks import LAST_KEY, RESOLUTION

COUNTERS = (counting.compare_negatives, counting.search_negatives)


def _similarities(kind, random, shape):
  uniform = random.uniform(-1, 1, shape)
  return {
    'spread': uniform,
    # Many ties, of positives with each other too.
    'coarse': np.round(uniform * 5) / 5,
    # All but two values in a few buckets: the search takes many steps.
    'crowded': np.where(abs(uniform) > 0.999, uniform, 0.5 + uniform * 1e-5),
    'equal': np.full(shape, 0.25),
  }[kind].astype(np.float32)


@pytest.mark.parametrize('num_devices', [1, 4])
@pytest.mark.parametrize('counter', COUNTERS, ids=lambda f: f.__name__)
@pytest.mark.parametrize('kind', ['spread', 'coarse', 'crowded', 'equal'])
@pytest.mark.parametrize('whole_blocks', [False, True])
def test_counts_of_a_loop(
  whole_blocks, kind, counter, num_devices, monkeypatch
):
  if whole_blocks:  # As on accelerators.
    monkeypatch.setattr(counting, '_GROUP', 2**20)
    monkeypatch.setattr(counting, '_CHUNK', None)
  random = np.random.default_rng(0)
  num_rows, num_tiles, tile_rows, width = 32, 3, 64, 128
  # Rows without a positive are what a block is filled up with.
  num_positives = np.append(0, random.integers(1, width + 1, num_rows - 1))
  num_positives[1:4] = width, width - 1, 1
  keys = -2 * np.round(
    _similarities(kind, random, (num_rows, width)) / RESOLUTION
  )
  positives = np.full((num_rows, width), LAST_KEY, np.int32)
  for row, size in enumerate(num_positives):
    positives[row, :size] = np.sort(keys[row, :size])
  negatives = _similarities(kind, random, (num_tiles, num_rows, tile_rows))
  query_class = random.integers(0, 3, num_rows).astype(np.int32)
  gallery_class = random.integers(-1, 3, (num_tiles, tile_rows)).astype(
    np.int32
  )

  devices = jax.local_devices()[:num_devices]
  gallery = tiles.Tiles(np.ones((64, 2)), budget=2**20, devices=devices)
  everywhere = jax.sharding.NamedSharding(
    gallery.mesh, jax.sharding.PartitionSpec()
  )
  counts = counter(
    gallery,
    gallery.put_rows(query_class),
    positives,
    [
      (gallery.put_rows(tile), jax.device_put(classes, everywhere))
      for tile, classes in zip(negatives, gallery_class, strict=True)
    ],
  )

  tied = {}
  for row, size in enumerate(num_positives):
    counted = (gallery_class != query_class[row]) & (gallery_class >= 0)
    others = -2 * np.round(negatives[:, row][counted] / RESOLUTION)
    for column in range(size):
      key = positives[row, column]
      assert counts.above[row, column] == np.sum(others < key)
      if np.any(others == key):
        tied[row, column] = np.sum(others == key)
  assert list(zip(counts.tied_rows, counts.tied_columns, strict=True)) == list(
    tied
  )
  assert counts.num_tied.tolist() == list(tied.values())
  assert bool(tied) == (kind != 'spread')


@pytest.mark.parametrize('size', [64, 128, 4096])
def test_sums_before(size):
  x = np.random.default_rng(0).integers(0, 900, (3, size)).astype(np.int32)
  x[1] = 0
  x[2, :] = 2**24 // size - 1  # As large as the sums may become.
  np.testing.assert_array_equal(
    counting._sums_before(jnp.asarray(x)), np.cumsum(x, axis=1) - x
  )
