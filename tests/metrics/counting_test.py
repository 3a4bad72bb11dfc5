"""The two counters against a loop over all pairs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from retrieval_jax.core import tiles
from retrieval_jax.metrics import counting, ranks
from retrieval_jax.metrics.ranks import RESOLUTION


def _unit(x):
  return tiles.unit_rows(x.astype(np.float32))


def _case(kind, random, number, dim=6):
  x = random.normal(size=(number, dim))
  if kind == 'tied':
    x = np.eye(dim)[random.integers(0, dim, number)]
  if kind == 'equal':
    x = np.ones((number, dim))
  return _unit(x)


@pytest.mark.parametrize('num_devices', [1, 4])
@pytest.mark.parametrize('counter', ['compare', 'sort'])
@pytest.mark.parametrize('kind', ['spread', 'tied', 'equal'])
def test_counts_of_a_loop(kind, counter, num_devices):
  random = np.random.default_rng(0)
  classes = np.sort(random.integers(0, 9, 700)).astype(np.int32)
  rows = _case(kind, random, 700)
  query_class = random.integers(0, 9, 16).astype(np.int32)
  queries = _case(kind, random, 16)
  # As the matrix product of tiles gives them.
  size = 256 // num_devices
  padded = np.pad(rows, ((0, 68), (0, 0)))
  similarities = np.concatenate(
    [
      ranks.similarities(queries, padded[start : start + size])
      for start in range(0, 768, size)
    ],
    axis=1,
  )[:, :700]
  multiples = np.round(similarities / RESOLUTION)
  width = 128
  own = np.full((16, width + 1), -np.inf, np.float32)
  for i, found in enumerate(similarities):
    mine = np.flatnonzero(classes == query_class[i])
    own[i, : len(mine)] = found[mine]
  own[3] = -np.inf
  gallery = tiles.Tiles(
    rows,
    (classes,),
    budget=2**20,
    devices=jax.local_devices()[:num_devices],
    tile_rows=256,
    prepare=np.asarray,  # They are unit rows; again would change their bits.
  )
  block = counting.Block(*gallery.put((queries, own, query_class)))
  if counter == 'compare':
    (counts,) = counting.count_by_comparison(gallery, [block])
  else:
    counts = counting.count_by_sorting(gallery, block)
  for i in range(16):
    positives = np.round(own[i][own[i] > -np.inf] / RESOLUTION)
    negatives = multiples[i][classes != query_class[i]]
    present = counts.present[i]
    expected = [np.sum(negatives > p) for p in np.sort(positives)[::-1]]
    assert np.sort(counts.above[i][present]).tolist() == expected
    expected = [np.sum(negatives >= p) for p in np.sort(positives)[::-1]]
    assert np.sort(counts.reached[i][present]).tolist() == expected


def test_least_similarities_are_the_first_that_round():
  multiples = np.random.default_rng(0).integers(-(2**22), 2**22, 2000)
  multiples = np.append(multiples, [0, 1, -1, 2**22, -(2**22)]).astype(np.int32)
  least = np.asarray(ranks.least_similarities(jnp.asarray(multiples)))
  below = np.nextafter(least, np.float32(-2))
  np.testing.assert_array_equal(ranks.multiples(least), multiples)
  assert (np.asarray(ranks.multiples(below)) < multiples).all()


@pytest.mark.parametrize('chunk', [None, 5, 8])
def test_counts_of_rows_and_columns(chunk):
  random = np.random.default_rng(0)
  x = random.integers(0, 9, (32, 64)).astype(np.float32)
  thresholds = random.integers(0, 9, (32, 12)).astype(np.float32)
  np.testing.assert_array_equal(
    counting.count_reached(jnp.asarray(x), jnp.asarray(thresholds), chunk),
    (x[:, None, :] >= thresholds[:, :, None]).sum(axis=-1),
  )
  thresholds = random.integers(0, 9, (12, 64)).astype(np.float32)
  np.testing.assert_array_equal(
    counting.count_reached_by_columns(
      jnp.asarray(x), jnp.asarray(thresholds), chunk
    ),
    (x[:, None, :] >= thresholds[None]).sum(axis=0),
  )
