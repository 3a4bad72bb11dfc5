"""Losses of pairs against loops in float64, written from their formulas."""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from retrieval_jax.core import collectives
from retrieval_jax.core.distances import Distance
from retrieval_jax.core.errors import InputError
from retrieval_jax.losses import pair
from retrieval_jax.losses.mining.triplets import Listed
from retrieval_jax.losses.pair import sums
from retrieval_jax.losses.terms import Reducer
from tests.compiling import compiled

LABELS = np.array([0, 1, 2, 0, 1, 0, 2, 3, 1])
ROWS, DIM = len(LABELS), 4


def mean(values):
  return sum(values) / len(values) if values else 0.0


def mean_above_zero(values):
  return mean([v for v in values if v > 0])


class Pairs:
  """What the loops see: a matrix m, and the pairs of an anchor."""

  def __init__(self, matrix, labels, frozen):
    self.m, self.labels, self.frozen = matrix, labels, frozen
    self.anchors = [i for i, y in enumerate(labels) if y >= 0]

  def positives(self, a):
    y = self.labels
    return [j for j in self.anchors if j != a and y[j] == y[a]]

  def negatives(self, a):
    y = self.labels
    return [j for j in self.anchors if y[j] != y[a]]

  def all_positives(self):
    return [(a, p) for a in self.anchors for p in self.positives(a)]

  def all_negatives(self):
    return [(a, n) for a in self.anchors for n in self.negatives(a)]

  def triplets(self):
    for a in self.anchors:
      yield from itertools.product([a], self.positives(a), self.negatives(a))


def circle_loops(q, margin=0.4, scale=80.0):
  values = []
  for a in q.anchors:
    total_p = total_n = 0.0
    for p in q.positives(a):
      alpha = max(0.0, 1 + margin - q.frozen[a, p])
      total_p += math.exp(-scale * alpha * (q.m[a, p] - (1 - margin)))
    for n in q.negatives(a):
      alpha = max(0.0, q.frozen[a, n] + margin)
      total_n += math.exp(scale * alpha * (q.m[a, n] - margin))
    if total_p and total_n:
      values.append(math.log(1 + total_p * total_n))
  return mean_above_zero(values)


def contrastive_loops(q, pos_margin=0.0, neg_margin=1.0):
  return mean_above_zero(
    [max(0.0, q.m[i] - pos_margin) for i in q.all_positives()]
  ) + mean_above_zero(
    [max(0.0, neg_margin - q.m[i]) for i in q.all_negatives()]
  )


def contrastive_cosine_loops(q, pos_margin, neg_margin):
  return mean_above_zero(
    [max(0.0, pos_margin - q.m[i]) for i in q.all_positives()]
  ) + mean_above_zero(
    [max(0.0, q.m[i] - neg_margin) for i in q.all_negatives()]
  )


def threshold_consistent_loops(
  q, lambda_plus, lambda_minus, margin_plus, margin_minus
):
  hard_p = [margin_plus - q.m[i] for i in q.all_positives()]
  hard_n = [q.m[i] - margin_minus for i in q.all_negatives()]
  return lambda_plus * mean_above_zero(hard_p) + (
    lambda_minus * mean_above_zero(hard_n)
  )


def multi_similarity_loops(q, alpha=2.0, beta=50.0, base=0.5):
  values = []
  for a in q.anchors:
    sum_p = sum(math.exp(-alpha * (q.m[a, p] - base)) for p in q.positives(a))
    sum_n = sum(math.exp(beta * (q.m[a, n] - base)) for n in q.negatives(a))
    values.append(math.log(1 + sum_p) / alpha + math.log(1 + sum_n) / beta)
  return mean(values)


def intra_pair_variance_loops(q, pos_eps=0.01, neg_eps=0.01):
  s_p = [q.m[i] for i in q.all_positives()]
  s_n = [q.m[i] for i in q.all_negatives()]
  mu_p, mu_n = mean(s_p), mean(s_n)
  return mean([max(0.0, (1 - pos_eps) * mu_p - s) ** 2 for s in s_p]) + mean(
    [max(0.0, s - (1 + neg_eps) * mu_n) ** 2 for s in s_n]
  )


def lifted_structure_loops(q, neg_margin=1.0, pos_margin=0.0):
  values = []
  for a, p in q.all_positives():
    total = sum(math.exp(neg_margin - q.m[a, n]) for n in q.negatives(a))
    total += sum(math.exp(neg_margin - q.m[p, n]) for n in q.negatives(p))
    lifted = math.log(total) + q.m[a, p] - pos_margin
    values.append(max(0.0, lifted) ** 2 / 2)
  return mean(values)


def generalized_lifted_loops(q, neg_margin=1.0, pos_margin=0.0):
  values = []
  for a in q.anchors:
    far = [math.exp(q.m[a, p] - pos_margin) for p in q.positives(a)]
    near = [math.exp(neg_margin - q.m[a, n]) for n in q.negatives(a)]
    logs = [math.log(sum(x)) if x else 0.0 for x in (far, near)]
    values.append(max(0.0, sum(logs)))
  return mean(values)


def tuplet_margin_loops(q, margin_deg=5.73, scale=64.0):
  values = []
  for a, p in q.all_positives():
    eased = math.cos(math.acos(q.m[a, p]) - math.radians(margin_deg))
    total = sum(math.exp(scale * (q.m[a, n] - eased)) for n in q.negatives(a))
    values.append(math.log(1 + total))
  return mean(values)


def ranked_list_loops(
  q,
  margin=0.4,
  negative_temperature=10.0,
  imbalance=0.5,
  alpha=None,
  positive_temperature=0.0,
):
  alpha = 1 + margin / 2 if alpha is None else alpha

  def part(gaps, temperature):
    weights = [math.exp(temperature * gap) for gap in gaps]
    total = sum(w * gap for w, gap in zip(weights, gaps, strict=True))
    return total / (sum(weights) + 1e-5 * len(q.anchors))

  values = []
  for a in q.anchors:
    beyond = [q.m[a, p] - (alpha - margin) for p in q.positives(a)]
    within = [alpha - q.m[a, n] for n in q.negatives(a)]
    pull = part([g for g in beyond if g > 0], positive_temperature)
    push = part([g for g in within if g > 0], negative_temperature)
    values.append((1 - imbalance) * pull + imbalance * push)
  return mean(values)


def margin_loops(
  q,
  margin=0.2,
  beta=1.2,
  nu=0.0,
  learn_beta=False,
  beta_per_class=False,
  betas=None,
):
  total, counted, regularizer = 0.0, 0, 0.0
  for a, p, n in q.triplets():
    boundary = beta if betas is None else betas[q.labels[a]]
    cost_p = max(0.0, q.m[a, p] - boundary + margin)
    cost_n = max(0.0, boundary - q.m[a, n] + margin)
    total += cost_p + cost_n
    counted += int(cost_p > 0) + int(cost_n > 0)
    regularizer += nu * boundary
  if not learn_beta:
    return total / counted
  return total / counted + (
    regularizer / counted if beta_per_class else nu * beta
  )


def sigmoid_loops(q, temperature=10.0, bias=-10.0):
  def cost(label, s):
    return math.log(1 + math.exp(-label * (temperature * s + bias)))

  return mean(
    [
      sum(cost(1, q.m[a, p]) for p in q.positives(a))
      + sum(cost(-1, q.m[a, n]) for n in q.negatives(a))
      for a in q.anchors
    ]
  )


def histogram_of(q, past, min_val=-2.0, num_bins=10, momentum=0.01):
  """Returns the histogram of dynamic soft margin after a batch."""
  width = 2 * abs(min_val) / num_bins
  share = momentum if sum(past) else 1.0
  histogram = [(1 - share) * h for h in past]
  for a, p, n in q.triplets():
    place = (q.frozen[a, p] - q.frozen[a, n] - min_val) / width
    k = math.floor(place)
    histogram[k] += share * (1 - (place - k))
    histogram[min(k + 1, num_bins - 1)] += share * (place - k)
  return [h / sum(histogram) for h in histogram]


def dynamic_soft_margin_loops(
  q, min_val=-2.0, num_bins=10, momentum=0.01, past=None
):
  past = past or [0.0] * num_bins
  histogram = histogram_of(q, past, min_val, num_bins, momentum)
  width = 2 * abs(min_val) / num_bins
  values = []
  for a, p, n in q.triplets():
    k = math.floor((q.frozen[a, p] - q.frozen[a, n] - min_val) / width)
    values.append(sum(histogram[: k + 1]) * (q.m[a, p] - q.m[a, n]))
  return mean(values)


@dataclasses.dataclass(frozen=True)
class Case:
  loss: str
  loops: Callable[..., float]
  hyper: dict = dataclasses.field(default_factory=dict)
  distance: str | None = None


PAST = [0.0, 0.1, 0.1, 0.2, 0.2, 0.1, 0.1, 0.1, 0.1, 0.0]
BETAS = [1.1, 0.9, 1.3, 1.0]
CASES = {
  'circle': Case('circle', circle_loops, {'margin': 0.25, 'scale': 4.0}),
  'contrastive': Case('contrastive', contrastive_loops, {'pos_margin': 0.3}),
  'contrastive_cosine': Case(
    'contrastive',
    contrastive_cosine_loops,
    {'pos_margin': 0.9, 'neg_margin': 0.1},
    'cosine',
  ),
  'snr': Case(
    'signal_to_noise_ratio_contrastive',
    contrastive_loops,
    {'pos_margin': 0.3, 'neg_margin': 2.0},
  ),
  'threshold_consistent_margin': Case(
    'threshold_consistent_margin',
    threshold_consistent_loops,
    {
      'lambda_plus': 0.7,
      'lambda_minus': 1.5,
      'margin_plus': 0.8,
      'margin_minus': 0.1,
    },
  ),
  'multi_similarity': Case('multi_similarity', multi_similarity_loops),
  'multi_similarity_soft': Case(
    'multi_similarity',
    multi_similarity_loops,
    {'alpha': 3.0, 'beta': 4.0, 'base': 0.2},
  ),
  'intra_pair_variance': Case(
    'intra_pair_variance',
    intra_pair_variance_loops,
    {'pos_eps': 0.3, 'neg_eps': 0.2},
  ),
  'lifted_structure': Case('lifted_structure', lifted_structure_loops),
  'lifted_structure_hinge': Case(
    'lifted_structure',
    lifted_structure_loops,
    {'neg_margin': -1.8, 'pos_margin': 0.5},
  ),
  'generalized_lifted_structure': Case(
    'generalized_lifted_structure',
    generalized_lifted_loops,
    {'neg_margin': -1.5, 'pos_margin': 0.2},
  ),
  'tuplet_margin': Case(
    'tuplet_margin', tuplet_margin_loops, {'margin_deg': 20.0, 'scale': 3.0}
  ),
  'ranked_list': Case('ranked_list', ranked_list_loops),
  'ranked_list_soft': Case(
    'ranked_list',
    ranked_list_loops,
    {
      'margin': 0.5,
      'negative_temperature': 1.5,
      'imbalance': 0.3,
      'alpha': 1.4,
      'positive_temperature': 2.0,
    },
  ),
  'margin': Case('margin', margin_loops, {'margin': 0.1, 'beta': 1.0}),
  'margin_learnt': Case(
    'margin', margin_loops, {'nu': 0.3, 'beta': 1.0, 'learn_beta': True}
  ),
  'sigmoid': Case('sigmoid', sigmoid_loops),
  'sigmoid_soft': Case(
    'sigmoid', sigmoid_loops, {'temperature': 3.0, 'bias': -0.5}
  ),
  'dynamic_soft_margin': Case('dynamic_soft_margin', dynamic_soft_margin_loops),
}


def batch(seed=0):
  random = np.random.RandomState(seed)
  centers = random.randn(LABELS.max() + 1, DIM)
  return (centers[LABELS] + 0.9 * random.randn(ROWS, DIM)).astype(np.float32)


def call(case, x, labels, state=None, params=None):
  """Returns (loss, next state or None)."""
  row = pair.LOSSES[case.loss]
  distance = row.distance if case.distance is None else Distance(case.distance)
  same = labels[:, None] == labels[None, :]
  valid = (labels[:, None] >= 0) & (labels[None, :] >= 0)
  valid &= ~jnp.eye(len(labels), dtype=bool)
  masks = same & valid, ~same & valid
  needs = {'inverted': distance.inverted, 'labels': labels, 'row_keys': None}
  more = {name: needs[name] for name in row.needs}
  more |= {'reducer': Reducer(row.reducer)} | case.hyper
  if row.params is not None:
    made = row.params(case.hyper, 4, DIM, jax.random.key(0))
    more['params'] = made if params is None else params
  if row.state is not None:
    made = row.state(case.hyper, 4, DIM)
    more['state'] = made if state is None else state
  if row.kind == 'batch':
    found = row.function(x, x, *masks, distance=distance, **more)
  else:
    found = row.function(distance.matrix(x, x), *masks, **more)
  terms, state = found if row.state is not None else (found, None)
  parts = [collectives.masked_mean(*term) for term in terms.values()]
  return sum(parts), state


@functools.cache
def value_and_gradient(name):
  return compiled(
    jax.value_and_grad(lambda x, labels: call(CASES[name], x, labels)[0])
  )


def matrix_of(case, x):
  x = x / np.linalg.norm(x, axis=1, keepdims=True)
  distance = case.distance or pair.LOSSES[case.loss].distance.name
  if distance == 'cosine':
    return x @ x.T
  apart = x[:, None] - x[None, :]
  if distance == 'lp':
    return np.sqrt(np.sum(apart**2, axis=2))
  return np.var(apart, axis=2) / np.var(x, axis=1)[:, None]


def loops_value(case, x, labels, frozen=None, **more):
  matrix = matrix_of(case, np.asarray(x, np.float64))
  frozen = matrix if frozen is None else frozen
  return case.loops(Pairs(matrix, labels, frozen), **case.hyper, **more)


def loops_gradient(case, x, labels, step=1e-6):
  """Central differences; what carries no gradient is kept at x."""
  x = np.asarray(x, np.float64)
  frozen = matrix_of(case, x)
  gradient = np.zeros_like(x)
  for index in np.ndindex(x.shape):
    sides = []
    for sign in (1, -1):
      moved = x.copy()
      moved[index] += sign * step
      sides.append(loops_value(case, moved, labels, frozen))
    gradient[index] = (sides[0] - sides[1]) / (2 * step)
  return gradient


class LoopsTest(parameterized.TestCase):
  @parameterized.parameters(*CASES)
  def test_value_and_gradient_are_those_of_the_loops(self, name):
    case, x = CASES[name], batch()
    value, gradient = value_and_gradient(name)(x, LABELS)
    expected = loops_value(case, x, LABELS)
    self.assertGreater(abs(expected), 1e-3)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    expected = loops_gradient(case, x, LABELS)
    largest = np.abs(expected).max()
    np.testing.assert_allclose(gradient, expected, rtol=0, atol=1e-3 * largest)

  @parameterized.parameters(*CASES)
  def test_padding_is_as_if_it_were_not_there(self, name):
    case, x = CASES[name], batch(1)
    labels = LABELS.copy()
    labels[[1, 6]] = -1
    value, gradient = value_and_gradient(name)(x, labels)
    np.testing.assert_allclose(value, loops_value(case, x, labels), rtol=1e-5)
    np.testing.assert_array_equal(gradient[np.array([1, 6])], 0)

  def test_every_loss_has_loops(self):
    self.assertEqual({case.loss for case in CASES.values()}, set(pair.LOSSES))


class MarginTest(absltest.TestCase):
  def test_boundaries_of_classes_are_learnt_by_their_own_anchors(self):
    hyper = {'nu': 0.3, 'learn_beta': True, 'beta_per_class': True}
    case = Case('margin', margin_loops, hyper)
    # Every anchor with a triplet has a pair that counts.
    x = batch()
    betas = np.array(BETAS, np.float32)
    made = pair.init_margin(hyper | {'beta': 0.7}, 4, DIM, None)
    np.testing.assert_allclose(made['beta'], [0.7] * 4)

    def loss_fn(betas):
      return call(case, x, LABELS, params={'beta': betas})[0]

    value, gradient = compiled(jax.value_and_grad(loss_fn))(betas)
    np.testing.assert_allclose(
      value, loops_value(case, x, LABELS, betas=BETAS), rtol=1e-5
    )
    for c in range(4):
      sides = []
      for step in (1e-6, -1e-6):
        moved = list(BETAS)
        moved[c] += step
        sides.append(loops_value(case, x, LABELS, betas=moved))
      expected = (sides[0] - sides[1]) / 2e-6
      np.testing.assert_allclose(gradient[c], expected, rtol=1e-3, atol=1e-6)
    # The class of one image has no triplet.
    self.assertEqual(gradient[3], 0)

  def test_a_pair_counts_as_often_as_a_miner_lists_it(self):
    d = np.float32([[0.0, 1.25, 1.0, 1.125]])
    positives = np.array([[False, True, False, False]])
    triplets = Listed(
      positives=np.array([[1, 1, 1]]),
      negatives=np.array([[2, 2, 3]]),
      used=np.array([[True, True, False]]),
    )
    negatives = np.array([[False, False, True, True]])
    margin = functools.partial(pair.margin, beta=1.0, margin=0.25)
    terms = compiled(margin)(d, positives, negatives, triplets=triplets)
    values, counts = terms['loss']
    self.assertAlmostEqual(float(values[0]), 2 * 0.5 + 2 * 0.25)
    self.assertEqual(counts[0], 4)

  def test_drawn_triplets_are_so_many_for_each_anchor(self):
    d = np.float32([[0.0, 1.0, 1.0, 1.0], [1.0, 0.0, 1.0, 1.0]])
    positives = np.array([[0, 1, 0, 0], [0, 0, 0, 0]], bool)
    negatives = np.array([[0, 0, 1, 1], [1, 0, 1, 1]], bool)
    margin = functools.partial(pair.margin, beta=1.0, triplets_per_anchor=5)
    keys = jax.random.split(jax.random.key(0))
    terms = compiled(margin)(d, positives, negatives, row_keys=keys)
    np.testing.assert_array_equal(terms['loss'][1], [10, 0])

  def test_label_sets_have_no_boundary_of_a_class(self):
    with self.assertRaisesRegex(InputError, 'loss.beta_per_class is True'):
      pair.margin(
        np.ones((2, 2), np.float32),
        np.eye(2) > 0,
        np.eye(2) < 0,
        learn_beta=True,
        params={'beta': np.ones(3, np.float32)},
        labels=np.array([[0, 1], [1, 2]]),
      )


class DynamicSoftMarginTest(absltest.TestCase):
  def test_histogram_moves_with_the_batches(self):
    case, x = CASES['dynamic_soft_margin'], batch()
    state = {'histogram': np.float32(PAST)}
    value, kept = compiled(lambda x, s: call(case, x, LABELS, s))(x, state)
    expected = loops_value(case, x, LABELS, past=PAST)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    matrix = matrix_of(case, x.astype(np.float64))
    histogram = histogram_of(Pairs(matrix, LABELS, matrix), PAST)
    np.testing.assert_allclose(kept['histogram'], histogram, atol=1e-6)

  def test_histogram_outlives_a_batch_without_triplets_or_with_nan(self):
    case = CASES['dynamic_soft_margin']
    state = {'histogram': np.float32(PAST)}
    step = compiled(lambda x, y: call(case, x, y, state))
    value, kept = step(batch(), np.arange(ROWS))
    self.assertEqual(value, 0)
    np.testing.assert_array_equal(kept['histogram'], state['histogram'])
    value, kept = step(np.full((ROWS, DIM), np.nan, np.float32), LABELS)
    self.assertTrue(np.isnan(value))
    np.testing.assert_array_equal(kept['histogram'], state['histogram'])

  def test_hardest_triplet_there_can_be_is_in_the_last_bin(self):
    x = np.array([[1.0, 0.0], [-1.0, 0.0], [1.0, 0.0]], np.float32)
    case = CASES['dynamic_soft_margin']
    step = compiled(functools.partial(call, case))
    value, kept = step(x, np.array([0, 0, 1]))
    # One triplet at 2, and one at 0: the sixth bin.
    np.testing.assert_allclose(kept['histogram'][5], 0.5, atol=1e-6)
    np.testing.assert_allclose(kept['histogram'][9], 0.5, atol=1e-6)
    np.testing.assert_allclose(value, 1.0, atol=1e-6)


class LiftedStructureTest(absltest.TestCase):
  def test_references_keep_their_own_negatives(self):
    # PML compares places of anchors and references as if they were one list.
    random = np.random.RandomState(3)
    x, y = random.randn(2, 5, DIM), np.array([0, 1, 0, 2, 1])
    anchors, references = (v.astype(np.float32) for v in x)
    same = y[:, None] == y[None, :]
    terms = compiled(pair.lifted_structure)(anchors, references, same, ~same)
    a, r = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in x)
    d = np.linalg.norm(a[:, None] - r[None, :], axis=2)
    values = []
    for i, j in zip(*np.nonzero(same), strict=True):
      total = sum(math.exp(1 - d[i, n]) for n in range(5) if y[n] != y[i])
      total += sum(math.exp(1 - d[m, j]) for m in range(5) if y[m] != y[j])
      values.append(max(0.0, math.log(total) + d[i, j]) ** 2 / 2)
    found, counts = terms['loss']
    loss = found.sum() / counts.sum()
    np.testing.assert_allclose(loss, np.mean(values), rtol=1e-5)


class RankedListTest(absltest.TestCase):
  def test_negatives_at_the_anchor_count(self):
    # PML leaves out what is at a distance of exactly 0.
    d = np.float32([[0.0, 0.0]])
    negatives = np.array([[False, True]])
    loss = compiled(pair.ranked_list)
    values, _ = loss(d, negatives & False, negatives)['loss']
    np.testing.assert_allclose(values, [0.5 * 1.2], rtol=1e-5)

  def test_high_temperatures_do_not_overflow(self):
    d = jnp.array([[0.0, 0.1, 0.9, 1.9]])
    positives = jnp.array([[False, False, False, True]])
    negatives = jnp.array([[False, True, True, False]])
    hyper = {'negative_temperature': 1e3, 'positive_temperature': 1e3}
    loss = compiled(functools.partial(pair.ranked_list, **hyper))
    values, _ = loss(d, positives, negatives)['loss']
    # Nothing but the nearest negative and the farthest positive is left.
    np.testing.assert_allclose(values, [0.5 * 1.1 + 0.5 * 1.1], rtol=1e-5)


class SigmoidTest(absltest.TestCase):
  def test_temperature_and_bias_are_learnt(self):
    case, x = CASES['sigmoid'], batch()
    params = pair.init_sigmoid({'temperature': 3.0, 'bias': -2.0}, 4, DIM, None)

    def loss_fn(params):
      return call(case, x, LABELS, params=params)[0]

    value, gradient = compiled(jax.value_and_grad(loss_fn))(params)

    def expected(temperature, bias):
      q = Pairs(matrix_of(case, x.astype(np.float64)), LABELS, None)
      return sigmoid_loops(q, temperature, bias)

    np.testing.assert_allclose(value, expected(3.0, -2.0), rtol=1e-5)
    step = 1e-6
    by_bias = expected(3, -2 + step) - expected(3, -2 - step)
    np.testing.assert_allclose(gradient['bias'], by_bias / 2 / step, rtol=1e-3)
    up, down = 3 * math.exp(step), 3 * math.exp(-step)
    by_log = (expected(up, -2) - expected(down, -2)) / 2 / step
    np.testing.assert_allclose(gradient['log_temperature'], by_log, rtol=1e-3)


class TupletMarginTest(absltest.TestCase):
  def test_gradient_is_finite_where_the_angle_has_none(self):
    s = jnp.array([[1.0, 1.0, -1.0, 0.3]])
    positives = jnp.array([[False, True, True, False]])
    negatives = jnp.array([[False, False, False, True]])

    def loss_fn(s):
      return jnp.sum(pair.tuplet_margin(s, positives, negatives)['loss'][0])

    self.assertTrue(np.isfinite(compiled(jax.grad(loss_fn))(s)).all())


class BlocksTest(absltest.TestCase):
  def test_blocks_of_anchors_change_nothing(self):
    names = ('lifted_structure', 'intra_pair_variance', 'dynamic_soft_margin')
    x = batch()
    expected = [value_and_gradient(name)(x, LABELS) for name in names]
    for name in ('by_blocks', 'sum_by_blocks'):
      whole = getattr(sums, name)
      setattr(sums, name, functools.partial(whole, size=4))
      self.addCleanup(setattr, sums, name, whole)

    @compiled
    def in_blocks(x):
      return [
        jax.value_and_grad(lambda x, c=CASES[name]: call(c, x, LABELS)[0])(x)
        for name in names
      ]

    for found, one in zip(in_blocks(x), expected, strict=True):
      np.testing.assert_allclose(found[0], one[0], rtol=1e-6)
      np.testing.assert_allclose(found[1], one[1], atol=1e-6)


class MinedTest(absltest.TestCase):
  def test_anchors_left_without_a_pair_count_with_a_loss_of_zero(self):
    s = np.float32([[1.0, 0.9], [0.9, 1.0], [0.1, 0.2]])
    positives = np.array([[False, True], [False, False], [False, False]])
    labels = np.array([0, 0, -1])
    for loss in (pair.multi_similarity, pair.generalized_lifted_structure):
      terms = compiled(loss)(s, positives, positives & False, labels=labels)
      _, counts = terms['loss']
      np.testing.assert_array_equal(counts, [1, 1, 0])


if __name__ == '__main__':
  absltest.main()
