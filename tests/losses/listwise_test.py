"""Losses over rankings against their definitions, written as plain loops."""

import functools
import json
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from retrieval_jax import losses
from retrieval_jax.core.distances import Distance
from retrieval_jax.core.errors import InputError
from retrieval_jax.losses import listwise

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden' / 'pml_listwise.json'


def sigmoid(x):
  return 0.5 * (1 + math.tanh(x / 2))


def ap_row(s, relevant, negatives, *, temperature):
  """Brown et al.: one query, one positive at a time."""
  total = 0.0
  for p in relevant:
    nearer = [sigmoid((s[q] - s[p]) / temperature) for q in relevant if q != p]
    before = [sigmoid((s[n] - s[p]) / temperature) for n in negatives]
    total += (1 + sum(nearer)) / (1 + sum(nearer) + sum(before))
  return 1 - total / len(relevant)


def roadmap_row(
  s, relevant, negatives, *, temperature, rho, delta, offset, **_
):
  if offset is None:
    offset = sigmoid(delta / temperature) + 0.5 - rho * delta

  def step(d):
    if d > delta:
      return rho * d + offset
    return sigmoid(d / temperature) + (0.5 if d > 0 else 0)

  total = 0.0
  for p in relevant:
    rank = 1 + sum(s[q] >= s[p] for q in relevant if q != p)
    total += rank / (rank + sum(step(s[n] - s[p]) for n in negatives))
  return 1 - total / len(relevant)


def pnp_row(s, relevant, negatives, *, b, alpha, anneal, variant):
  total = 0.0
  for p in relevant:
    rank = sum(sigmoid((s[n] - s[p]) / anneal) for n in negatives)
    total += {
      'O': rank,
      'Iu': (1 + rank) * math.log(1 + rank),
      'Ib': (b * rank - math.log(1 + b * rank)) / b**2,
      'Ds': math.log(1 + rank),
      'Dq': 1 - (1 + rank) ** -alpha,
    }[variant]
  return total / len(relevant)


def recall_row(s, relevant, negatives, *, ks, temperature, rank_temperature):
  ranks = [
    1
    + sum(
      sigmoid((s[j] - s[p]) / temperature)
      for j in [*relevant, *negatives]
      if j != p
    )
    for p in relevant
  ]
  recalls = []
  for k in ks:
    found = sum(sigmoid((k - rank) / rank_temperature) for rank in ranks)
    recalls.append(min(k, found) / min(k, len(relevant)))
  return 1 - sum(recalls) / len(recalls)


def fast_ap_row(d, relevant, negatives, *, num_bins):
  width = 4 / num_bins
  total = above = above_all = 0.0
  for r in range(num_bins + 1):
    of_p, of_n = (
      sum(max(0, 1 - abs(d[j] - r * width) / width) for j in columns)
      for columns in (relevant, negatives)
    )
    above += of_p
    above_all += of_p + of_n
    if of_p > 0:
      total += of_p * above / above_all
  return 1 - total / len(relevant)


ROWS = {
  'fast_ap': fast_ap_row,
  'pnp': pnp_row,
  'recall_at_k': recall_row,
  'roadmap': roadmap_row,
  'smooth_ap': ap_row,
}
ROADMAP = {'temperature': 0.1, 'rho': 3.0, 'delta': 0.2, 'offset': None}
ROADMAP |= {'pos_margin': 0.7, 'neg_margin': -0.2, 'calibration_weight': 0.5}
PNP = {'b': 1.5, 'alpha': 2.5, 'anneal': 0.2}
CASES = {
  'fast_ap': ('fast_ap', {'num_bins': 7}),
  **{f'pnp_{v}': ('pnp', PNP | {'variant': v}) for v in listwise.VARIANTS},
  'recall_at_k': (
    'recall_at_k',
    {'ks': (1, 3, 9), 'temperature': 0.1, 'rank_temperature': 2.0},
  ),
  'roadmap': ('roadmap', ROADMAP),
  'roadmap_offset': ('roadmap', ROADMAP | {'offset': 1.44}),
  'smooth_ap': ('smooth_ap', {'temperature': 0.2}),
}
EXTREMES = {
  'fast_ap': ('fast_ap', {'num_bins': 1}),
  'pnp': ('pnp', PNP | {'anneal': 0.001, 'variant': 'Iu'}),
  'recall_at_k': (
    'recall_at_k',
    {'ks': (1, 64), 'temperature': 0.001, 'rank_temperature': 0.001},
  ),
  'roadmap': (
    'roadmap',
    ROADMAP | {'temperature': 0.001, 'rho': 1e3, 'delta': 0.0, 'offset': 1.44},
  ),
  'smooth_ap': ('smooth_ap', {'temperature': 0.001}),
}
IDS = np.array([7, 30, 4])
CANDIDATE_IDS = np.arange(20)


def make_pairs(ends=False):
  """Three rows: one is the candidate 7, one has no positive, one is the 4."""
  random = np.random.RandomState(0)
  s = random.uniform(-0.95, 0.95, size=(3, 20))
  if ends:
    s = random.randint(-1, 2, size=(3, 20)).astype(np.float64)
  kind = random.rand(3, 20)
  itself = IDS[:, None] == CANDIDATE_IDS
  positives = (kind < 0.4) & ~itself
  negatives = (kind > 0.5) & ~itself
  # From end to end, so that the positives take two blocks.
  positives[0, [0, 19]], negatives[0, [0, 19]] = True, False
  positives[1] = False
  return s, positives, negatives


def loop_loss(name, s, positives, negatives, hyper, itself=True):
  """Returns the loss of PML's reduction, in float64."""
  values = []
  for a in range(len(s)):
    relevant = list(np.flatnonzero(positives[a]))
    if not relevant:
      continue
    if itself and name in ('pnp', 'roadmap', 'smooth_ap'):
      relevant += list(np.flatnonzero(IDS[a] == CANDIDATE_IDS))
    columns = np.flatnonzero(negatives[a])
    values.append(ROWS[name](s[a], relevant, columns, **hyper))
  total = np.mean(values)
  if name == 'roadmap':
    for margins in (
      hyper['pos_margin'] - s[positives],
      s[negatives] - hyper['neg_margin'],
    ):
      costly = margins[margins > 0]
      total += hyper['calibration_weight'] * costly.mean()
  return total


@functools.cache
def step_of(case, extreme=False):
  """Returns the compiled value and gradient of a case."""
  name, hyper = (EXTREMES if extreme else CASES)[case]
  if name in ('pnp', 'roadmap', 'smooth_ap'):
    hyper = hyper | {'ids': IDS, 'candidate_ids': CANDIDATE_IDS}

  def loss_fn(s, positives, negatives):
    terms = getattr(listwise, name)(s, positives, negatives, **hyper)
    return losses.reduce_terms(terms)[0]

  return jax.jit(jax.value_and_grad(loss_fn))


def run(case, s, positives, negatives, extreme=False):
  step = step_of(case, extreme)
  return jax.device_get(step(np.float32(s), positives, negatives))


class DefinitionTest(parameterized.TestCase):
  @parameterized.parameters(*CASES)
  def test_value_and_gradient_are_those_of_the_loops(self, case):
    name, hyper = CASES[case]
    s, positives, negatives = make_pairs()
    if name == 'fast_ap':
      s = 2 - 2 * s
    value, gradient = run(case, s, positives, negatives)
    expected = loop_loss(name, s, positives, negatives, hyper)
    np.testing.assert_allclose(value, expected, rtol=1e-5)

    compared = np.zeros_like(s)
    for place in np.ndindex(*s.shape):
      ends = []
      for move in (1e-6, -1e-6):
        moved = s.copy()
        moved[place] += move
        ends.append(loop_loss(name, moved, positives, negatives, hyper))
      compared[place] = (ends[0] - ends[1]) / 2e-6
    self.assertGreater(np.abs(compared).max(), 0.01)
    np.testing.assert_allclose(gradient, compared, rtol=1e-3, atol=1e-5)

  @parameterized.parameters(*EXTREMES)
  def test_ties_and_ends_at_the_sharpest_settings(self, case):
    name, hyper = EXTREMES[case]
    s, positives, negatives = make_pairs(ends=True)
    if name == 'fast_ap':
      s = 2 - 2 * s
    value, gradient = run(case, s, positives, negatives, extreme=True)
    expected = loop_loss(name, s, positives, negatives, hyper)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    self.assertTrue(np.isfinite(gradient).all())

  @parameterized.parameters(*EXTREMES)
  def test_without_positives_or_negatives(self, name):
    case = next(key for key in CASES if CASES[key][0] == name)
    s, positives, negatives = make_pairs()
    s = 2 - 2 * s if name == 'fast_ap' else s
    none = np.zeros_like(positives)
    for a, b in ((none, none), (positives, none), (none, negatives)):
      value, gradient = run(case, s, a, b)
      self.assertTrue(np.isfinite(value))
      self.assertTrue(np.isfinite(gradient).all())
    value, gradient = run(case, s, none, none)
    self.assertEqual(value, 0)
    np.testing.assert_array_equal(gradient, 0)

  @parameterized.parameters(*EXTREMES)
  def test_nan_is_not_hidden(self, name):
    case = next(key for key in CASES if CASES[key][0] == name)
    s, positives, negatives = make_pairs()
    for column in (
      np.flatnonzero(positives[0])[0],
      np.flatnonzero(negatives[0])[0],
    ):
      broken = s.copy()
      broken[0, column] = np.nan
      value, _ = run(case, broken, positives, negatives)
      self.assertTrue(np.isnan(value))


class SmoothApTest(absltest.TestCase):
  def test_pml_is_right_on_a_square_batch_alone(self):
    recorded = json.loads(GOLDEN.read_text())['smooth_ap']

    step = jax.jit(
      functools.partial(losses.compute, 'smooth_ap', temperature=0.3)
    )

    def ours(row):
      return step(np.float32(row['embeddings']), np.array(row['labels']))

    def definition(row):
      x, y = np.array(row['embeddings']), np.array(row['labels'])
      x /= np.linalg.norm(x, axis=1, keepdims=True)
      values = [
        ap_row(
          x @ x[a],
          np.flatnonzero(y == y[a]),
          np.flatnonzero(y != y[a]),
          temperature=0.3,
        )
        for a in range(len(y))
      ]
      return np.mean(values)

    for batch, right in (
      ('square', True),
      ('interleaved', False),
      ('oblong', False),
    ):
      row = recorded[f'{batch}_0.3']
      np.testing.assert_allclose(ours(row), definition(row), rtol=1e-5)
      off = abs(row['value'] / definition(row) - 1)
      self.assertEqual(off < 1e-6, right)
      if not right:
        self.assertGreater(off, 0.1)
    # The same rows: their order is no matter.
    self.assertAlmostEqual(
      ours(recorded['interleaved_0.3']).item(),
      recorded['square_0.3']['value'],
      places=5,
    )

  def test_memory_is_that_of_a_few_matrices(self):
    size = 512
    matrix = jax.ShapeDtypeStruct((size, size), jnp.float32)
    mask = jax.ShapeDtypeStruct((size, size), bool)

    def loss_fn(s, positives, negatives):
      return losses.reduce_terms(listwise.smooth_ap(s, positives, negatives))[0]

    step = jax.jit(jax.value_and_grad(loss_fn))
    memory = step.lower(matrix, mask, mask).compile().memory_analysis()
    self.assertLess(memory.temp_size_in_bytes, 24 * 4 * size * size)


class RoadmapTest(absltest.TestCase):
  def test_it_is_an_upper_bound(self):
    s, positives, negatives = make_pairs()
    step = jax.jit(listwise.roadmap)
    terms = step(np.float32(s), positives, negatives)
    values, counts = jax.device_get(terms['ap'])
    np.testing.assert_array_equal(counts, [1, 0, 1])
    for a in (0, 2):
      relevant, others = (
        np.flatnonzero(mask[a]) for mask in (positives, negatives)
      )
      exact = ap_row(s[a], relevant, others, temperature=1e-7)
      self.assertGreater(exact, 0)
      self.assertGreater(values[a], exact)


class RecallTest(absltest.TestCase):
  def test_more_than_k_among_k_is_not_rewarded(self):
    s = np.float32([[0.9, 0.8, 0.7, 0.6, -0.5]])
    positives = np.array([[True, True, True, True, False]])
    step = functools.partial(
      listwise.recall_at_k, ks=(1,), rank_temperature=20.0
    )
    terms = jax.jit(step)(s, positives, ~positives)
    # Four sigmoids of nearly 1 / 2 are 2 of 1 without the cap.
    self.assertEqual(terms['loss'][0].item(), 0)


class HistogramTest(parameterized.TestCase):
  def pairs_of(self, y):
    same = y[:, None] == y[None, :]
    return same & ~np.eye(len(y), dtype=bool), ~same

  def test_value_is_that_of_the_list_of_pairs(self):
    random = np.random.RandomState(0)
    y = np.array([0, 1, 0, 2, 1, 0, 3])
    x = random.randn(7, 4)
    x[2] = x[0]  # A cosine of 1, where PML fails.
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    num_bins, width = 8, 0.25
    found = {True: np.zeros(num_bins + 1), False: np.zeros(num_bins + 1)}
    for i in range(7):
      for j in range(i):
        # A pair of two classes of one image each is in no triplet.
        if {int(y[i]), int(y[j])} == {2, 3}:
          continue
        s = min(unit[i] @ unit[j], 1.0)
        for r in range(num_bins + 1):
          near = max(0, 1 - abs(s - (-1 + r * width)) / width)
          found[bool(y[i] == y[j])][r] += near
    p, n = (found[kind] / found[kind].sum() for kind in (True, False))
    expected = sum(n[r] * p[: r + 1].sum() for r in range(num_bins + 1))
    value, gradient = jax.jit(
      jax.value_and_grad(
        lambda x: losses.compute('histogram', x, jnp.asarray(y), n_bins=8)
      )
    )(jnp.asarray(x, jnp.float32))
    self.assertAlmostEqual(value.item(), expected, places=5)
    self.assertTrue(np.isfinite(gradient).all())

  def test_gradient_is_that_of_the_soft_histogram(self):
    random = np.random.RandomState(0)
    values = random.uniform(-0.99, 0.99, size=(9, 2))
    weights = random.rand(9, 2)
    into = random.randn(6, 2)

    def total(v):
      nodes = np.linspace(-1, 1, 6)[:, None, None]
      near = np.maximum(0, 1 - np.abs(v - nodes) / 0.4) * weights
      return (near.sum(axis=1) * into).sum()

    def ours(v):
      found = listwise.histograms.soft_histogram(
        v, jnp.asarray(weights, jnp.float32), -1.0, 0.4, 5
      )
      return jnp.sum(found * into)

    step = jax.jit(jax.value_and_grad(ours))
    value, gradient = step(jnp.asarray(values, jnp.float32))
    np.testing.assert_allclose(value, total(values), rtol=1e-5)
    compared = np.zeros_like(values)
    for place in np.ndindex(*values.shape):
      move = np.zeros_like(values)
      move[place] = 1e-6
      compared[place] = (total(values + move) - total(values - move)) / 2e-6
    np.testing.assert_allclose(gradient, compared, rtol=1e-3, atol=1e-4)

  @parameterized.parameters(
    ({'delta': 0.3}, 'delta is 0.3'),
    ({'delta': 0.5, 'n_bins': 5}, 'n_bins is 5 and loss.delta is 0.5'),
  )
  def test_bins_must_fill_the_range(self, hyper, message):
    y = np.array([0, 0, 1, 1])
    with self.assertRaisesRegex(InputError, message):
      listwise.histogram(np.eye(4), np.eye(4), *self.pairs_of(y), **hyper)


class FastApTest(absltest.TestCase):
  def test_bins_end_at_the_largest_distance(self):
    s, positives, negatives = make_pairs()
    squares = np.float32(2 - 2 * s)
    step = jax.jit(
      functools.partial(listwise.fast_ap, num_bins=7),
      static_argnames='distance',
    )
    squared = step(squares, positives, negatives)
    # The default ends at 4, the power 1 at 2: half of all is the same.
    halved = step(squares / 2, positives, negatives, distance=Distance('lp'))
    np.testing.assert_allclose(squared['loss'][0], halved['loss'][0], rtol=1e-5)

  def test_a_distance_without_an_end_is_refused(self):
    s, positives, negatives = make_pairs()
    with self.assertRaisesRegex(InputError, 'distance.p is 1'):
      listwise.fast_ap(
        jnp.asarray(s), positives, negatives, distance=Distance('lp', p=1)
      )


if __name__ == '__main__':
  absltest.main()
