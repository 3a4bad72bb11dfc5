"""Softmax losses over pairs and losses of whole batches, against loops."""

import functools
import importlib
import math
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from retrieval_jax.core import collectives
from retrieval_jax.core.errors import InputError
from retrieval_jax.losses.contrast import LOSSES
from tests.compiling import compiled

DIM = 4
LABELS = np.array([0, 1, 2, 0, 1, 4, 0, 2, 1])
REF_LABELS = np.array([2, 0, 1, 0, 5])
# [L] label sets of the rows, as relevance, for `multi_label_supcon`.
SETS = np.random.RandomState(3).rand(9, 6) < 0.45


def embeddings(num_rows=9, seed=0):
  return np.random.RandomState(seed).randn(num_rows, DIM)


def unit(x):
  return x / np.linalg.norm(x, axis=1, keepdims=True)


def jaccard(a, b):
  either = np.sum(a[:, None] | b[None, :], axis=2)
  return np.sum(a[:, None] & b[None, :], axis=2) / np.maximum(either, 1)


def terms(name, x, labels, y=None, y_labels=None, relevance=None, **hyper):
  """Calls a loss as the objective does; y are references or second views."""
  row = LOSSES[name]
  ids = jnp.arange(len(labels))
  y_ids = ids if y is None else jnp.full(len(y), -1)
  if row.views == 2:
    y_labels = jnp.where(labels >= 0, ids, -1)
    labels = y_labels
  y, y_labels = (x, labels) if y is None else (y, y_labels)
  valid = (labels >= 0)[:, None] & (y_labels >= 0)[None, :]
  valid &= ids[:, None] != y_ids[None, :]
  same = labels[:, None] == y_labels[None, :]
  if relevance is not None:
    same = relevance > 0
  else:
    relevance = jnp.where(same & valid, 1.0, 0.0)
  distance = hyper.pop('distance', row.distance)
  needs = {
    'inverted': distance and distance.inverted,
    'labels': labels,
    'candidate_labels': y_labels,
    'ids': ids,
    'candidate_ids': y_ids,
    'relevance': relevance,
  }
  hyper |= {need: needs[need] for need in row.needs}
  masks = same & valid, ~same & valid
  if row.kind == 'pair':
    return row.function(distance.matrix(x, y), *masks, **hyper)
  if distance is not None:
    hyper['distance'] = distance
  return row.function(x, y, *masks, **hyper)


def loss_of(*args, **kwargs):
  return sum(
    collectives.masked_mean(*term) for term in terms(*args, **kwargs).values()
  )


def run_whole(function, name, x, labels, **more):
  arrays = {
    k: np.float32(v) for k, v in more.items() if k in ('y', 'relevance')
  }
  hyper = {k: v for k, v in more.items() if k not in arrays}
  run = compiled(
    lambda x, labels, arrays: function(name, x, labels, **arrays, **hyper)
  )
  return run(np.float32(x), labels, arrays)


# `terms` and `loss_of`, compiled.
terms_of = functools.partial(run_whole, terms)
value_of = functools.partial(run_whole, loss_of)


# Loops in float64, written from the papers.


def pairs(labels, y_labels, y_is_x):
  for i, label in enumerate(labels):
    others = [j for j in range(len(y_labels)) if not (y_is_x and i == j)]
    positives = [j for j in others if y_labels[j] == label]
    yield i, positives, [j for j in others if y_labels[j] != label]


def softmax_loops(loss, x, labels, y=None, y_labels=None, squared=False, **h):
  y_is_x = y is None
  y, y_labels = (x, labels) if y_is_x else (y, y_labels)
  s = unit(x) @ unit(y).T
  if squared:
    s = -((unit(x)[:, None] - unit(y)[None, :]) ** 2).sum(2)
  values = []
  for i, positives, negatives in pairs(labels, y_labels, y_is_x):
    values += loss(s[i], positives, negatives, **h)
  return np.mean(values)


def ntxent_row(s, positives, negatives, temperature=0.07):
  e = np.exp(s / temperature)
  return [-math.log(e[p] / (e[p] + sum(e[negatives]))) for p in positives]


def decoupled_row(s, positives, negatives, temperature=0.1):
  total = math.log(sum(np.exp(s[negatives] / temperature)))
  return [total - s[p] / temperature for p in positives]


def supcon_row(s, positives, negatives, temperature=0.1):
  e = np.exp(s / temperature)
  total = sum(e[positives]) + sum(e[negatives])
  logs = [-math.log(e[p] / total) for p in positives]
  return [np.mean(logs)] if logs else []


def nca_row(s, positives, negatives, softmax_scale=1.0):
  e = np.exp(softmax_scale * s)
  total = sum(e[positives]) + sum(e[negatives])
  return [-math.log(sum(e[positives]) / total)] if positives else []


def multi_label_loops(x, relevance, temperature=0.1, threshold=0.5):
  s = unit(x) @ unit(x).T / temperature
  values = []
  for i in range(len(x)):
    others = [j for j in range(len(x)) if j != i]
    total = math.log(sum(math.exp(s[i, j]) for j in others))
    r = relevance[i]
    chosen = [j for j in others if r[j] > 0 and r[j] >= threshold]
    if chosen:
      values.append(np.mean([r[j] * (total - s[i, j]) for j in chosen]))
  return np.mean(values)


def n_pairs_loops(x, labels, y=None, y_labels=None):
  found = {}
  y_is_x = y is None
  y, y_labels = (x, labels) if y_is_x else (y, y_labels)
  for i, positives, _ in pairs(labels, y_labels, y_is_x):
    if positives:
      found.setdefault(labels[i], (i, positives[0]))
  s = unit(x) @ unit(y).T
  values = []
  for a, p in found.values():
    total = sum(math.exp(s[a, q]) for _, q in found.values())
    values.append(-math.log(math.exp(s[a, p]) / total))
  return np.mean(values)


def instance_loops(x, labels, scale=64.0):
  s = scale * unit(x) @ unit(x).T
  classes = sorted(set(labels))
  values = []
  for i, label in enumerate(labels):
    total = math.log(sum(np.exp(s[i] - 64)))
    values.append(64 + total - s[i, classes.index(label)])
  return np.mean(values)


def angular_loops(
  x, labels, y=None, y_labels=None, alpha=40.0, normalize_negatives=False
):
  y_is_x = y is None
  y, y_labels = (x, labels) if y_is_x else (y, y_labels)
  t = math.tan(math.radians(alpha)) ** 2
  a, p, n = unit(x), unit(y), unit(y) if normalize_negatives else y
  values = []
  for i, positives, negatives in pairs(labels, y_labels, y_is_x):
    for j in positives:
      own = 2 * (1 + t) * a[i] @ p[j]
      f = [4 * t * (a[i] + p[j]) @ n[k] - own for k in negatives]
      largest = max([0.0, *f])
      total = math.exp(-largest) + sum(math.exp(v - largest) for v in f)
      values.append(largest + math.log(total))
  return np.mean(values)


def manifold_loops(x, labels, proxies, lambdaC=1.0, alpha=0.8, margin=5e-4):
  nodes = unit(np.concatenate([x, proxies]))
  graph = np.exp(np.maximum(nodes @ nodes.T, 0) / 0.5)
  np.fill_diagonal(graph, 0)
  degrees = graph.sum(1)
  steps = graph / np.sqrt(degrees[:, None] * degrees[None, :])
  # The walk itself, step by step.
  walk, power = np.zeros_like(steps), np.eye(len(steps))
  for _ in range(150):
    walk, power = walk + (1 - alpha) * power, alpha * steps @ power
  centers = walk[len(x) :]
  cosines = unit(walk[: len(x)]) @ unit(centers).T
  values = []
  for i, label in enumerate(labels):
    own = label % len(proxies)
    parts = []
    for f in (walk[i, len(x) :], cosines[i]):
      gaps = [f[k] - f[own] + margin for k in range(len(proxies)) if k != own]
      parts.append(math.log(1 + sum(math.exp(g) for g in gaps if g >= 0)))
    values.append(parts[0] + lambdaC * parts[1])
  return np.mean(values)


def vicreg_loops(
  x, y, invariance_lambda=25.0, variance_mu=25.0, covariance_v=1.0, eps=1e-4
):
  value = invariance_lambda * np.mean((x - y) ** 2)
  for z in (x, y):
    c = np.cov(z.T)
    for k in range(DIM):
      gap = max(0.0, 1 - math.sqrt(c[k, k] + eps))
      value += variance_mu * gap / 2 / DIM
      value += (
        covariance_v * sum(c[k, j] ** 2 for j in range(DIM) if j != k) / DIM
      )
  return value


def row_loops(row, **fixed):
  return functools.partial(softmax_loops, row, **fixed)


PROXIES = np.random.RandomState(5).randn(3, DIM)
# (loss, hyperparameters, loops, whether it is tried with references)
CASES = (
  ('ntxent', {'temperature': 0.5}, row_loops(ntxent_row), True),
  ('supcon', {'temperature': 0.5}, row_loops(supcon_row), True),
  ('nca', {'softmax_scale': 2.0}, row_loops(nca_row, squared=True), True),
  (
    'decoupled_contrastive',
    {'temperature': 0.5},
    row_loops(decoupled_row),
    True,
  ),
  ('n_pairs', {}, n_pairs_loops, True),
  ('instance', {'scale': 3.0}, instance_loops, False),
  ('angular', {'alpha': 25.0}, angular_loops, True),
  (
    'angular',
    {'alpha': 25.0, 'normalize_negatives': True},
    angular_loops,
    False,
  ),
  (
    'manifold',
    {'lambdaC': 0.5, 'alpha': 0.7, 'margin': 0.1},
    manifold_loops,
    False,
  ),
  (
    'vicreg',
    {'invariance_lambda': 2.0, 'variance_mu': 3.0, 'eps': 0.2},
    vicreg_loops,
    False,
  ),
  ('multi_label_supcon', {'threshold': 0.4}, multi_label_loops, False),
)


class LoopsTest(parameterized.TestCase):
  @parameterized.parameters(*CASES)
  def test_value_and_gradient_are_those_of_loops(
    self, name, hyper, loops, references
  ):
    floats = {'x': embeddings()}
    fixed = {}
    ours = dict(hyper)
    if references:
      floats['y'] = embeddings(len(REF_LABELS), seed=1)
    elif name == 'vicreg':
      floats['y'] = floats['x'] + 0.3 * embeddings(seed=2)
    elif name == 'manifold':
      floats['proxies'] = PROXIES
    elif name == 'multi_label_supcon':
      fixed['relevance'] = jaccard(SETS, SETS) * (1 - np.eye(len(SETS)))

    def ours_of(floats):
      floats = dict(floats)
      if 'proxies' in floats:
        floats |= {'params': {'proxies': floats.pop('proxies')}, 'K': 3}
      return loss_of(
        name,
        labels=jnp.asarray(LABELS),
        y_labels=jnp.asarray(REF_LABELS),
        **floats,
        **ours,
        **jax.tree.map(jnp.float32, fixed),
      )

    def theirs_of(floats):
      more = dict(fixed)
      if name not in ('vicreg', 'multi_label_supcon'):
        more['labels'] = LABELS
      if references:
        more['y_labels'] = REF_LABELS
      return loops(**floats, **more, **hyper)

    both = [floats]
    if references:
      both.append({'x': floats['x']})
    for floats in both:
      step = compiled(jax.value_and_grad(ours_of))
      value, gradients = step(jax.tree.map(jnp.float32, floats))
      self.assertAlmostEqual(value, theirs_of(floats), delta=1e-5 * (1 + value))
      random = np.random.RandomState(7)
      for leaf in floats:
        for _ in range(3):
          direction = random.randn(*floats[leaf].shape)
          ahead, behind = (
            theirs_of({**floats, leaf: floats[leaf] + step * direction})
            for step in (1e-5, -1e-5)
          )
          slope = np.sum(np.asarray(gradients[leaf], np.float64) * direction)
          np.testing.assert_allclose(
            slope, (ahead - behind) / 2e-5, rtol=1e-3, atol=1e-4
          )


class FactsTest(parameterized.TestCase):
  def test_ntxent_keeps_its_gradient_where_pml_underflows(self):
    s = jnp.array([[1.0, -1.0, 1.0]])
    positives = jnp.array([[False, True, False]])
    negatives = jnp.array([[False, False, True]])

    def value(s):
      row = LOSSES['ntxent'].function
      return row(s, positives, negatives, temperature=0.01)['loss'][0][0]

    found, gradient = compiled(jax.value_and_grad(value))(s)
    np.testing.assert_allclose(found, 200.0, rtol=1e-6)
    np.testing.assert_allclose(gradient[0], [0.0, -100.0, 100.0], rtol=1e-5)

  def test_a_pair_without_negatives_counts_in_ntxent_and_not_in_dcl(self):
    x, labels = embeddings(3), np.zeros(3, int)
    _, counts = terms_of('ntxent', x, labels)['loss']
    np.testing.assert_array_equal(counts, [2, 2, 2])
    values, counts = terms_of('decoupled_contrastive', x, labels)['loss']
    np.testing.assert_array_equal(counts, [0, 0, 0])
    np.testing.assert_array_equal(values, [0, 0, 0])

  def test_decoupled_contrastive_pulls_a_positive_however_near_it_is(self):
    positives = np.array([[True, False]])

    def value(s):
      row = LOSSES['decoupled_contrastive'].function
      return row(s, positives, ~positives, temperature=0.5)['loss'][0][0]

    step = compiled(jax.grad(value))
    for near in (-1.0, 0.0, 1.0):
      gradient = step(np.float32([[near, 0.0]]))
      np.testing.assert_allclose(gradient[0], [-2.0, 2.0], rtol=1e-6)

  def test_supcon_without_negatives_contrasts_the_positives(self):
    x = embeddings(3)
    value = value_of('supcon', x, np.zeros(3, int))
    expected = softmax_loops(supcon_row, x, np.zeros(3, int))
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    self.assertGreater(value, 0.1)

  def test_multi_label_supcon_of_single_labels_is_supcon(self):
    x = embeddings()
    np.testing.assert_allclose(
      value_of('multi_label_supcon', x, LABELS),
      softmax_loops(supcon_row, x, LABELS),
      rtol=1e-5,
    )

  def test_multi_label_threshold_is_closed(self):
    x, labels = embeddings(3), np.arange(3)
    relevance = np.array([[0, 0.5, 0.25], [0.5, 0, 0], [0.25, 0, 0]])
    for threshold, expected in ((0.5, [1, 1, 0]), (0.51, [0, 0, 0])):
      _, counts = terms_of(
        'multi_label_supcon',
        x,
        labels,
        relevance=relevance,
        threshold=threshold,
      )['loss']
      np.testing.assert_array_equal(counts, expected)

  def test_nca_counts_a_row_whose_positives_underflow(self):
    d = jnp.array([[0.0, 4.0, 0.0]])
    positives = jnp.array([[False, True, False]])
    negatives = jnp.array([[False, False, True]])
    loss = functools.partial(LOSSES['nca'].function, softmax_scale=1000.0)
    values, counts = compiled(loss)(d, positives, negatives)['loss']
    np.testing.assert_allclose(values, [4000.0])
    np.testing.assert_array_equal(counts, [1])

  def test_n_pairs_takes_the_first_two_images_of_a_class(self):
    values, counts = terms_of('n_pairs', embeddings(), LABELS)['loss']
    np.testing.assert_array_equal(counts, [1, 1, 1, 0, 0, 0, 0, 0, 0])
    np.testing.assert_array_equal(values > 0, counts > 0)

  def test_n_pairs_does_not_depend_on_the_size_of_a_block(self):
    x, labels = embeddings(160), np.arange(160) % 75
    value = value_of('n_pairs', x, labels)
    np.testing.assert_allclose(value, n_pairs_loops(x, labels), rtol=1e-5)

  def test_instance_takes_the_column_of_the_rank_of_the_label(self):
    # The defect that PML has: row 0, of class 9, is to be like row 1.
    x, labels = embeddings(3), np.array([9, 4, 4])
    s = unit(x) @ unit(x).T
    values, _ = terms_of('instance', x, labels, scale=1.0)['loss']
    expected = np.log(np.exp(s).sum(1)) - [s[0, 1], s[1, 0], s[2, 0]]
    np.testing.assert_allclose(values, expected, rtol=1e-5)

  @parameterized.parameters(
    ('instance', instance_loops),
    ('n_pairs', n_pairs_loops),
    ('angular', angular_loops),
    ('vicreg', vicreg_loops),
  )
  def test_padding_between_rows_takes_no_place(self, name, loops):
    x, labels = embeddings(), LABELS.copy()
    labels[[0, 4]] = -1
    kept = labels >= 0
    if name == 'vicreg':
      value = value_of(name, x, labels, y=x + 1)
      expected = loops(x[kept], x[kept] + 1)
    else:
      value = value_of(name, x, labels)
      expected = loops(x[kept], labels[kept])
    np.testing.assert_allclose(value, expected, rtol=1e-5)

  @parameterized.parameters(1.0, 60.0)
  def test_angular_is_exact_for_any_norm_and_block(self, norm):
    x = norm * embeddings()
    # The package has a function of the same name as the module.
    module = importlib.import_module('retrieval_jax.losses.contrast.angular')
    with mock.patch.object(module, '_BLOCK', 4):
      step = compiled(
        jax.value_and_grad(lambda x: loss_of('angular', x, jnp.asarray(LABELS)))
      )
      value, gradient = step(jnp.float32(x))
    self.assertAlmostEqual(
      value, angular_loops(x, LABELS), delta=1e-5 * float(value)
    )
    direction = embeddings(seed=8)
    ahead, behind = (
      angular_loops(x + step * direction, LABELS) for step in (1e-5, -1e-5)
    )
    np.testing.assert_allclose(
      np.sum(np.asarray(gradient) * direction),
      (ahead - behind) / 2e-5,
      rtol=1e-3,
    )

  def test_manifold_refuses_proxies_of_another_number(self):
    params = {'proxies': np.float32(PROXIES)}
    with self.assertRaisesRegex(InputError, 'has 3 proxies and loss.K is 50'):
      terms_of('manifold', embeddings(), LABELS, params=params)

  def test_manifold_starts_with_normal_proxies(self):
    make = LOSSES['manifold'].params
    proxies = make({'K': 7}, 100, DIM, jax.random.key(0))['proxies']
    self.assertEqual(proxies.shape, (7, DIM))
    self.assertEqual(
      make({}, 100, DIM, jax.random.key(0))['proxies'].shape, (50, DIM)
    )

  def test_vicreg_of_one_image_has_no_variance_and_no_covariance(self):
    one = np.ones((1, DIM))
    found = terms_of('vicreg', one, np.zeros(1, int), y=one)
    values = {name: float(value[0]) for name, (value, _) in found.items()}
    self.assertEqual(values['invariance_loss'], 0.0)
    self.assertEqual(values['covariance_loss'], 0.0)
    np.testing.assert_allclose(
      values['variance_loss1'], DIM * 25 * (1 - 0.01) / 2, rtol=1e-6
    )

  @parameterized.parameters('angular', 'instance', 'manifold')
  def test_label_sets_are_refused_where_a_row_needs_one_class(self, name):
    row = LOSSES[name]
    x, masks = np.ones((2, 2), np.float32), np.zeros((2, 2), bool)
    needs = {need: np.zeros((2, 3), int) for need in row.needs}
    more = {'params': {'proxies': np.ones((50, 2))}} if row.params else {}
    inputs = (x,) if row.kind == 'pair' else (x, x)
    with self.assertRaisesRegex(InputError, r'labels has shape \(2, 3\)'):
      row.function(*inputs, masks, masks, **needs, **more)


if __name__ == '__main__':
  absltest.main()
