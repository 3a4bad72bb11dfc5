"""Miners select what PML's and OML's do, and draw as they say."""

import functools
import itertools
import json
import pathlib
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from retrieval_jax import losses
from retrieval_jax.core import relations
from retrieval_jax.core.distances import Distance
from retrieval_jax.core.errors import InputError
from retrieval_jax.losses import mining
from retrieval_jax.losses.mining import counting, ranks

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden' / 'pml_miners.json'
RECORDED = json.loads(GOLDEN.read_text())


def make_pairs(rows, columns, seed=0, positive=0.3):
  """Random masks, of no class structure, and distances with many ties."""
  random = np.random.RandomState(seed)
  distances = random.randint(17, size=(rows, columns)).astype(np.float32) / 8
  kind = random.rand(rows, columns)
  positives = kind < positive
  negatives = kind > positive + 0.1
  return distances, positives, negatives


def list_triplets(positives, negatives):
  for a in range(len(positives)):
    yield from itertools.product(
      [a], np.flatnonzero(positives[a]), np.flatnonzero(negatives[a])
    )


def select(name, options, x, y, ref_x=None, ref_y=None, seed=0):
  """Returns (what a miner returns, positives, negatives)."""
  options = dict(options)
  row = mining.MINERS[name]
  distance = row.distance
  if 'distance' in options:
    given = options.pop('distance')
    given = {'name': given} if isinstance(given, str) else given
    distance = Distance(**given)
  x = jnp.asarray(x, jnp.float32)
  y = jnp.asarray(y, jnp.int32)
  ids = candidate_ids = jnp.arange(len(x))
  if ref_x is None:
    ref_x, ref_y = x, y
  else:
    ref_x = jnp.asarray(ref_x, jnp.float32)
    ref_y = jnp.asarray(ref_y, jnp.int32)
    candidate_ids = len(x) + jnp.arange(len(ref_x))
  positives, negatives = relations.pair_masks(y, ref_y, ids, candidate_ids)
  needs = {
    'inverted': distance.inverted,
    'labels': y,
    'candidate_labels': ref_y,
    'ids': ids,
    'candidate_ids': candidate_ids,
    'candidates': ref_x,
    'distance': distance,
    'row_keys': jax.random.split(jax.random.key(seed), len(x)),
  }
  found = row.function(
    distance.matrix(x, ref_x),
    positives,
    negatives,
    **{name: needs[name] for name in row.needs},
    **options,
  )
  return found, np.asarray(positives), np.asarray(negatives)


def indices(mask):
  return np.argwhere(np.asarray(mask)).tolist()


def cube(triplets, positives, negatives):
  """Returns [B, G, G] bool of the triplets that are used."""
  columns = jnp.arange(positives.shape[1])[None, :]
  columns = jnp.broadcast_to(columns, positives.shape)
  used = np.asarray(triplets.select(columns, triplets.arrays))
  return used & positives[:, :, None] & negatives[:, None, :]


class PmlTest(parameterized.TestCase):
  @parameterized.named_parameters(RECORDED['cases'].items())
  def test_selects_the_pairs_or_triplets_of_pml(self, case):
    found, positives, negatives = select(
      case['miner'], case['options'], *RECORDED['batches'][case['batch']]
    )
    if isinstance(found, mining.Listed):
      listed = np.stack([found.positives, found.negatives], axis=-1)
      rows, places = np.nonzero(found.used)
      triplets = [[a, *listed[a, t]] for a, t in zip(rows, places, strict=True)]
      self.assertEqual(triplets, case['triplets'])
      return
    if mining.MINERS[case['miner']].kind == 'triplet':
      used = cube(found, positives, negatives)
      self.assertEqual(indices(used), case['triplets'])
      counts = mining.pair_counts(
        found, jnp.asarray(positives), jnp.asarray(negatives)
      )
      np.testing.assert_array_equal(counts[0], used.sum(axis=2))
      np.testing.assert_array_equal(counts[1], used.sum(axis=1))
      return
    if 'triplets' in case:
      triplets = [list(t) for t in list_triplets(*map(np.asarray, found))]
      self.assertEqual(triplets, case['triplets'])
      return
    self.assertEqual(indices(found[0]), case['positives'])
    self.assertEqual(indices(found[1]), case['negatives'])

  def test_every_miner_of_pml_but_the_random_ones_is_recorded(self):
    recorded = {case['miner'] for case in RECORDED['cases'].values()}
    self.assertEqual(
      set(mining.MINERS) - recorded,
      # Random, or of OML: checked below.
      {'distance_weighted', 'hard_cluster', 'n_hard', 'uniform_histogram'},
    )


class HardestTest(parameterized.TestCase):
  @parameterized.parameters(0, 1, 3, 100)
  def test_the_largest_are_those_of_a_stable_sort(self, count):
    values, mask, _ = make_pairs(5, 23, positive=0.5)
    values = values - 1.0
    values[0, :3] = [-0.0, np.inf, -np.inf]
    found = ranks.largest(
      jnp.asarray(values), jnp.asarray(mask), jnp.full(5, count, jnp.int32)
    )
    for row, (value, there) in enumerate(zip(values, mask, strict=True)):
      order = [i for i in np.argsort(-value, kind='stable') if there[i]]
      self.assertEqual(
        np.flatnonzero(found[row]).tolist(), sorted(order[:count])
      )

  @parameterized.parameters((1, 1), (2, 3), ((2, 3), 1), (1, (3, 4)), (9, 99))
  def test_n_hard_takes_the_ranks_of_oml(self, n_positive, n_negative):
    random = np.random.RandomState(0)
    x, y = random.randn(12, 4), np.arange(12) % 3
    options = {
      'n_positive': n_positive,
      'n_negative': n_negative,
      'distance': {'name': 'lp', 'normalize': False},
    }
    found, positives, negatives = select('n_hard', options, x, y)
    d = np.linalg.norm(x[:, None] - x[None], axis=2)
    for a in range(12):
      for kept, mask, n, sign in (
        (found[0], positives, n_positive, -1),
        (found[1], negatives, n_negative, 1),
      ):
        first, last = (1, n) if isinstance(n, int) else n
        order = [j for j in np.argsort(sign * d[a]) if mask[a, j]]
        expected = sorted(order[first - 1 : last])
        self.assertEqual(np.flatnonzero(kept[a]).tolist(), expected)

  def test_hard_cluster_takes_the_image_and_the_class_of_oml(self):
    random = np.random.RandomState(1)
    x, y = random.randn(12, 3), np.array([0, 1, 2, 3, 2, 1, 0, 3, 3, 0, 1, 2])
    options = {'distance': {'name': 'lp', 'normalize': False}}
    # The last row is padding.
    padded = np.concatenate([x, 9 * np.ones((1, 3))]), np.append(y, -1)
    found, _, _ = select('hard_cluster', options, *padded)
    means = np.stack([x[y == c].mean(axis=0) for c in range(4)])
    expected = np.zeros((2, 13, 13), bool)
    for c in range(4):
      members = np.flatnonzero(y == c)
      far = members[np.linalg.norm(x[members] - means[c], axis=1).argmax()]
      between = np.linalg.norm(means - means[c], axis=1)
      between[c] = np.inf
      for a in members:
        if a != far:
          expected[0, a, far] = True
          expected[1, a, :12] = y == between.argmin()
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_array_equal(found[1], expected[1])

  def test_strategies_that_need_each_other_are_refused(self):
    for p, n in (('semihard', 'semihard'), ('all', 'semihard')):
      with self.assertRaisesRegex(InputError, 'miner.pos_strategy is'):
        mining.batch_easy_hard_miner(
          jnp.zeros((1, 1)),
          jnp.ones((1, 1), bool),
          jnp.ones((1, 1), bool),
          pos_strategy=p,
          neg_strategy=n,
        )


class CountTest(parameterized.TestCase):
  @parameterized.parameters(
    (1, 1), (2, 15), (3, 16), (2, 17), (4, 63), (2, 65), (3, 131)
  )
  def test_counts_are_those_of_the_list(self, rows, columns):
    distances, positives, negatives = make_pairs(rows, columns)
    lower, upper = distances - 0.25, distances + 0.5
    for low in (None, lower):
      expected_p = np.zeros((rows, columns))
      expected_n = np.zeros((rows, columns))
      for a, p, n in list_triplets(positives, negatives):
        above = low is None or distances[a, n] > low[a, p]
        if above and distances[a, n] <= upper[a, p]:
          expected_p[a, p] += 1
          expected_n[a, n] += 1
      counts = jax.jit(counting.count_triplets)(
        distances, positives, negatives, low, upper
      )
      np.testing.assert_array_equal(counts[0], expected_p)
      np.testing.assert_array_equal(counts[1], expected_n)

  def test_blocks_of_rows_are_the_same_counts(self):
    d, positives, negatives = map(jnp.asarray, make_pairs(7, 37))
    arguments = d, positives, negatives, d - 0.25, d + 0.5
    expected = jax.jit(counting.count_triplets)(*arguments)
    with mock.patch.multiple(counting, _MAX_PAIRS=100, _BLOCK=75):
      for low in (arguments[3], None):
        # Another function, so that it is traced anew.
        found = jax.jit(lambda *given: counting.count_triplets(*given))(
          *arguments[:3], low, arguments[4]
        )
        if low is not None:
          np.testing.assert_array_equal(found[0], expected[0])
          np.testing.assert_array_equal(found[1], expected[1])
        self.assertEqual(found[0].sum(), found[1].sum())

  @parameterized.parameters((0, 3), (3, 0))
  def test_no_rows_and_no_columns(self, *shape):
    names = set(mining.MINERS) - {'hard_cluster', 'packaged_triplets'}

    @jax.jit
    def run(empty, row_keys):
      mask = empty > 0
      found = {'': counting.count_triplets(empty, mask, mask, None, empty)}
      for name in names:
        row = mining.MINERS[name]
        needs = {
          'inverted': False,
          'candidates': jnp.ones((shape[1], 4)),
          'distance': row.distance,
          'row_keys': row_keys,
        }
        found[name] = row.function(
          empty, mask, mask, **{name: needs[name] for name in row.needs}
        )
        if row.kind == 'triplet':
          found[name] = mining.triplets_to_masks(found[name], mask, mask)
      return found

    keys = jax.random.split(jax.random.key(0), shape[0])
    for name, found in run(jnp.zeros(shape), keys).items():
      self.assertEqual(found[0].shape, shape, name)
      self.assertEqual(found[1].shape, shape, name)


class RandomTest(parameterized.TestCase):
  def test_a_negative_is_drawn_as_often_as_its_weight_says(self):
    random = np.random.RandomState(0)
    dim, columns, rows = 5, 9, 20_000
    d = np.array([0.0, 0.3, 0.6, 0.9, 1.2, 1.39, 1.41, 1.9, 2.0])
    positives = np.arange(columns) == 0
    weights = np.maximum(d, 0.5) ** (2 - dim)
    weights *= (1 - np.clip(d, 0.5, 1.9) ** 2 / 4) ** (-0.5 * (dim - 3))
    weights[(d >= 1.4) | positives] = 0.0
    found = jax.jit(mining.distance_weighted_miner)(
      jnp.asarray(np.tile(d, (rows, 1)), jnp.float32),
      jnp.asarray(np.tile(positives, (rows, 1))),
      jnp.asarray(np.tile(~positives, (rows, 1))),
      candidates=jnp.asarray(random.randn(columns, dim)),
      row_keys=jax.random.split(jax.random.key(0), rows),
    )
    np.testing.assert_array_equal(found.used, np.tile(positives, (rows, 1)))
    shares = np.bincount(found.negatives[:, 0], minlength=columns) / rows
    np.testing.assert_allclose(
      shares, weights / weights.sum(), rtol=0, atol=0.012
    )

  def test_an_anchor_whose_negatives_are_far_has_no_triplet(self):
    d = jnp.array([[0.5, 1.5, 1.9], [0.5, 1.5, 0.7]])
    positives = jnp.array([[True, False, False]] * 2)
    keys = jax.random.split(jax.random.key(0), 2)
    found = mining.distance_weighted_miner(
      d, positives, ~positives, candidates=jnp.ones((3, 128)), row_keys=keys
    )
    counts = mining.pair_counts(found, positives, ~positives)
    np.testing.assert_array_equal(counts[0], [[0, 0, 0], [1, 0, 0]])
    np.testing.assert_array_equal(counts[1], [[0, 0, 0], [0, 0, 1]])

  def test_another_distance_is_refused(self):
    with self.assertRaisesRegex(InputError, 'unit sphere'):
      select(
        'distance_weighted',
        {'distance': {'name': 'lp', 'power': 2}},
        np.eye(4),
        np.arange(4) % 2,
      )

  @parameterized.parameters((10, 3, 4), (1, 5, 7), (127, 2, 1))
  def test_each_bin_gives_what_it_can(self, num_bins, pos_per_bin, neg_per_bin):
    random = np.random.RandomState(0)
    matrix = random.rand(12, 30).astype(np.float32)
    matrix[:, 0] = 1.0
    kind = random.rand(12, 30)
    masks = (kind < 0.3) & (matrix > 0.1), kind > 0.5
    miner = jax.jit(
      functools.partial(
        mining.uniform_histogram_miner,
        num_bins=num_bins,
        pos_per_bin=pos_per_bin,
        neg_per_bin=neg_per_bin,
      )
    )
    draws = [
      miner(
        jnp.asarray(matrix),
        *map(jnp.asarray, masks),
        row_keys=jax.random.split(jax.random.key(seed), 12),
      )
      for seed in (0, 1)
    ]
    for mask, per_bin, of_seeds in zip(
      masks, (pos_per_bin, neg_per_bin), zip(*draws, strict=True), strict=True
    ):
      low, high = matrix[mask].min(), matrix[mask].max()
      bins = np.floor((matrix - low) / (high - low) * num_bins)
      bins = np.clip(bins, 0, num_bins - 1).astype(int)
      available = np.bincount(bins[mask], minlength=num_bins)
      for kept in of_seeds:
        self.assertFalse(np.any(kept & ~mask))
        np.testing.assert_array_equal(
          np.bincount(bins[np.asarray(kept)], minlength=num_bins),
          np.minimum(available, per_bin),
        )
      if available.max() > per_bin:
        self.assertTrue(np.any(of_seeds[0] != of_seeds[1]))

  def test_equal_distances_are_all_in_the_last_bin(self):
    mask = jnp.ones((3, 4), bool)
    found = mining.uniform_histogram_miner(
      jnp.ones((3, 4)),
      mask,
      ~mask,
      row_keys=jax.random.split(jax.random.key(0), 3),
    )
    self.assertEqual([int(kept.sum()) for kept in found], [10, 0])


class ComputeTest(parameterized.TestCase):
  @parameterized.parameters(*mining.MINERS)
  def test_pair_and_triplet_losses_take_every_miner_and_see_a_nan(self, name):
    random = np.random.RandomState(0)
    x, y = random.randn(12, 4).astype(np.float32), np.arange(12) % 3

    def loss_fn(x):
      values = [
        losses.compute(loss, x, y, miner=name)
        for loss in ('contrastive', 'triplet_margin')
      ]
      return sum(values), values

    step = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))
    (_, values), gradient = step(x)
    self.assertTrue(np.all(np.isfinite(values)))
    self.assertTrue(np.all(np.isfinite(gradient)))
    lost = x.copy()
    lost[4] = np.nan
    (_, values), _ = step(lost)
    self.assertTrue(np.all(np.isnan(values)))


if __name__ == '__main__':
  absltest.main()
