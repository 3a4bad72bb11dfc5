"""The counters against a loop over all pairs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from retrieval_jax.core import tiles
from retrieval_jax.metrics import comparing, counting, ranks, selecting
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
@pytest.mark.parametrize(
  'counter', ['compare', 'select', 'sort', 'sort in parts']
)
@pytest.mark.parametrize('kind', ['spread', 'tied', 'equal'])
def test_counts_of_a_loop(kind, counter, num_devices, monkeypatch):
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
  query_class[3] = 9  # A class without rows.
  own[3] = -np.inf
  gallery = tiles.Tiles(
    rows,
    (classes, np.arange(700)),
    budget=2**20,
    devices=jax.local_devices()[:num_devices],
    tile_rows=256,
    prepare=np.asarray,  # They are unit rows; again would change their bits.
  )
  present = own > -np.inf
  if counter in ('compare', 'select'):
    block = counting.Block(*gallery.put((queries, own)))
    most_keys = 0
    if counter == 'select':
      most_keys = 16 * 256  # Of the first of three tiles, if all are picked.
      monkeypatch.setattr(selecting, 'most_share', lambda _: 1)
      monkeypatch.setattr(comparing, 'add_rows', None)
    (counts,) = counting.count_by_comparison(
      gallery, [block], most_keys=most_keys
    )
    np.testing.assert_array_equal(counts.present, present[:, :-1])
    above, reached = (
      [
        np.sort(of_query[mine])
        for of_query, mine in zip(of, counts.present, strict=True)
      ]
      for of in (counts.above, counts.reached)
    )
  else:
    own_keys = None
    num_positives = present.sum(axis=1)
    if counter == 'sort in parts':
      monkeypatch.setattr(counting, 'SORTED_COLUMNS', 512)
      own_keys = np.asarray(ranks.to_keys(jnp.asarray(own)))
      own_keys = np.where(present, own_keys, ranks.LAST_KEY)
    places = np.full(16, -1, np.int32)
    counts = counting.count_by_sorting(
      gallery,
      *gallery.put((queries, (query_class, places))),
      num_positives,
      own_keys,
    )
    above, reached = (
      np.split(of, np.cumsum(num_positives)[:-1]) for of in counts
    )
  for i in range(16):
    positives = np.round(own[i][present[i]] / RESOLUTION)
    negatives = multiples[i][classes != query_class[i]]
    expected = [np.sum(negatives > p) for p in np.sort(positives)[::-1]]
    assert above[i].tolist() == expected
    expected = [np.sum(negatives >= p) for p in np.sort(positives)[::-1]]
    assert reached[i].tolist() == expected


def _parts_of_tiles(num_devices=1):
  """Returns a gallery and blocks that are the halves of its tiles."""
  random = np.random.default_rng(0)
  gallery = tiles.Tiles(
    _case('spread', random, 512),
    budget=2**20,
    devices=jax.local_devices()[:num_devices],
    tile_rows=256,
  )
  blocks = []
  for start in range(0, 512, 128):
    rows = gallery.rows_at(start, 128)
    own = np.asarray(ranks.similarities(rows, gallery.rows_at(0, 128)))[:, :5]
    tile, first = divmod(start, 256)
    columns = slice(first, first + 128)
    blocks.append(counting.Block(rows, gallery.put(own), tile, columns))
  return gallery, blocks


def _assert_same_counts(found, expected):
  for one, other in zip(found, expected, strict=True):
    assert one.above.any()
    jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.mark.parametrize('threads', [2, 5])
def test_threads_share_blocks_that_are_parts_of_tiles(threads):
  gallery, blocks = _parts_of_tiles()
  _assert_same_counts(
    counting.count_by_comparison(gallery, blocks, threads),
    counting.count_by_comparison(gallery, blocks),
  )


@pytest.mark.parametrize('num_devices', [1, 4])
@pytest.mark.parametrize('threads', [1, 3])
@pytest.mark.parametrize('share', [0.2, 0.85, 1])
def test_what_is_selected_is_what_is_compared(
  share, threads, num_devices, monkeypatch
):
  gallery, blocks = _parts_of_tiles(num_devices)
  # Few rows reach the positives of this block, many those of the others.
  near = np.tile(np.linspace(0.99, 0.9, 5, dtype=np.float32), (128, 1))
  blocks[1] = blocks[1]._replace(own=gallery.put(near))
  expected = counting.count_by_comparison(gallery, blocks)
  monkeypatch.setattr(selecting, 'most_share', lambda _: share)
  picked = []
  pick = selecting.Selection.pick

  def record(self, *arguments):
    picked.append(pick(self, *arguments))
    return picked[-1]

  monkeypatch.setattr(selecting.Selection, 'pick', record)
  found = counting.count_by_comparison(
    gallery, blocks, threads, most_keys=128 * 256
  )
  _assert_same_counts(found, expected)
  assert any(picked)
  assert all(picked) == (share == 1)


def test_few_keys_are_counted_often(monkeypatch):
  gallery, blocks = _parts_of_tiles()
  expected = counting.count_by_comparison(gallery, blocks)
  monkeypatch.setattr(selecting, 'most_share', lambda _: 1)
  for most_keys in (128, 2**16):
    found = counting.count_by_comparison(gallery, blocks, most_keys=most_keys)
    _assert_same_counts(found, expected)


@pytest.mark.parametrize('share', [0, 0.01, 0.05, 0.1, 0.5, 1])
@pytest.mark.parametrize('number', [0, 5, 1000])
def test_places_of_what_is_true(share, number):
  mask = np.random.default_rng(0).random(number) < share
  expected = [i for i, is_true in enumerate(mask.tolist()) if is_true]
  assert ranks.true_places(mask).tolist() == expected


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
    comparing.count_reached(jnp.asarray(x), jnp.asarray(thresholds), chunk),
    (x[:, None, :] >= thresholds[:, :, None]).sum(axis=-1),
  )
  thresholds = random.integers(0, 9, (12, 64)).astype(np.float32)
  np.testing.assert_array_equal(
    comparing.count_reached_by_columns(
      jnp.asarray(x), jnp.asarray(thresholds), chunk
    ),
    (x[:, None, :] >= thresholds[None]).sum(axis=0),
  )


def test_counts_of_sorted_keys():
  random = np.random.default_rng(0)
  for largest in (0, 3, 40):
    keys = random.integers(-largest, largest + 1, (9, 50)).astype(np.int32)
    keys[4] |= 1  # No positive.
    keys[:, ::7] = ranks.LAST_KEY
    keys.sort(axis=1)
    num_positives, above, reached = ranks.count_in_order(keys)
    expected = [[], [], []]
    for row in keys.tolist():
      positives = [key for key in row if key % 2 == 0]
      negatives = [key for key in row if key % 2]
      expected[0].append(len(positives))
      for key in positives:
        expected[1].append(sum(other < key for other in negatives))
        expected[2].append(sum(other <= key + 1 for other in negatives))
    assert [
      num_positives.tolist(),
      above.tolist(),
      reached.tolist(),
    ] == expected
