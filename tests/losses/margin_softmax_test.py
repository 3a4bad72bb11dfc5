"""The softmax losses with a margin, against loops written from the papers."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from retrieval_jax.core.class_shards import Shard
from retrieval_jax.losses.proxy import angles, margin_rows
from tests.compiling import compiled

LABELS = (0, 1, 2, -1, 3, 0, 4)
ROWS = tuple(i for i, label in enumerate(LABELS) if label >= 0)
NUM_CLASSES = 5
COUNTS = (1.0, 3.0, 40.0, 1.0, 900.0, 1.0, 16.0)
KEYS = jax.random.split(jax.random.key(7), len(LABELS))
DRAWS = np.asarray(jax.jit(jax.vmap(jax.random.normal))(KEYS), np.float64)


def inputs():
  """Cosines and lengths: near, beyond the edge, and hard."""
  random = np.random.RandomState(0)
  cosines = random.uniform(-0.9, 0.9, (len(LABELS), NUM_CLASSES))
  cosines[0, 0], cosines[1, 1], cosines[2, 2] = 0.97, -0.97, 0.4
  cosines[2, 3] = 0.7
  proxy_norms = random.uniform(0.5, 2.0, NUM_CLASSES)
  norms = np.array([4.0, 12.0, 30.0, 70.0, 55.0, 130.0, 21.0])
  return {'cosines': cosines, 'norms': norms, 'proxy_norms': proxy_norms}


# A loop takes what is differentiated (x), the same held fixed (f), the row, and
# the hyperparameters; it returns the terms of the row.


def own(x, i):
  return x['cosines'][i][LABELS[i]]


def others(x, i):
  return [c for j, c in enumerate(x['cosines'][i]) if j != LABELS[i]]


def cross_entropy(own_logit, other_logits, label_smoothing=0.0):
  logits = [own_logit, *other_logits]
  largest = max(logits)
  total = largest + math.log(sum(math.exp(z - largest) for z in logits))
  wanted = [label_smoothing / len(logits)] * len(logits)
  wanted[0] += 1 - label_smoothing
  return {
    'loss': -sum(p * (z - total) for p, z in zip(wanted, logits, strict=True))
  }


def arc(c, m):
  theta = math.acos(c)
  if theta <= math.pi - m:
    return math.cos(theta + m)
  return c - m * math.sin(m)


def arcface(x, f, i, margin_deg=28.6, scale=64.0, **smoothing):
  t = arc(own(x, i), math.radians(margin_deg))
  return cross_entropy(
    scale * t, [scale * c for c in others(x, i)], **smoothing
  )


def cosface(x, f, i, margin=0.35, scale=64.0, **smoothing):
  t = own(x, i) - margin
  return cross_entropy(
    scale * t, [scale * c for c in others(x, i)], **smoothing
  )


def combined_margin(
  x, f, i, m1=1.0, m2=0.3, m3=0.2, scale=64.0, filter_threshold=None
):
  theta = m1 * math.acos(own(x, i)) + m2
  k = math.floor(theta / math.pi)
  t = (-1) ** k * math.cos(theta) - 2 * k - m3
  kept = [
    c for c in others(x, i) if filter_threshold is None or c <= filter_threshold
  ]
  return cross_entropy(scale * t, [scale * c for c in kept])


def psi(c, m):
  theta = math.acos(c)
  k = math.floor(theta / (math.pi / m))
  return (-1) ** k * math.cos(m * theta) - 2 * k


def sphereface(x, f, i, margin=4, scale=1.0):
  a = scale * x['norms'][i]
  return cross_entropy(
    a * psi(own(x, i), margin), [a * c for c in others(x, i)]
  )


def large_margin_softmax(x, f, i, margin=4, scale=1.0):
  a = [scale * x['norms'][i] * w for w in x['proxy_norms']]
  return cross_entropy(
    a[LABELS[i]] * psi(own(x, i), margin),
    [a[j] * c for j, c in enumerate(x['cosines'][i]) if j != LABELS[i]],
  )


def circle_classification(
  x, f, i, margin=0.25, scale=256.0, stop_gradient=True, **smoothing
):
  f = f if stop_gradient else x
  own_logit = max(0.0, 1 + margin - own(f, i)) * (own(x, i) - 1 + margin)
  pairs = zip(others(x, i), others(f, i), strict=True)
  return cross_entropy(
    scale * own_logit,
    [scale * max(0.0, g + margin) * (c - margin) for c, g in pairs],
    **smoothing,
  )


def dynamic_margin(
  x,
  f,
  i,
  margin_min=0.05,
  margin_max=0.5,
  exponent=0.25,
  scale=64.0,
  **smoothing,
):
  m = margin_min + (margin_max - margin_min) * COUNTS[i] ** -exponent
  t = arc(own(x, i), m)
  return cross_entropy(
    scale * t, [scale * c for c in others(x, i)], **smoothing
  )


def elasticface(
  x, f, i, base='arc', margin=None, sigma=0.0125, plus=False, scale=64.0
):
  if margin is None:
    margin = {'arc': 0.5, 'cos': 0.35}[base]
  draws = [DRAWS[j] for j in ROWS]
  rank = ROWS.index(i)
  if plus:
    draws = sorted(draws)
    rank = sum(own(f, j) > own(f, i) for j in ROWS)
  m = margin + sigma * draws[rank]
  t = arc(own(x, i), m) if base == 'arc' else own(x, i) - m
  return cross_entropy(scale * t, [scale * c for c in others(x, i)])


def magface(
  x,
  f,
  i,
  margin_min=0.45,
  margin_max=0.8,
  norm_min=10.0,
  norm_max=110.0,
  lambda_g=35.0,
  scale=64.0,
):
  a = min(max(x['norms'][i], norm_min), norm_max)
  share = (a - norm_min) / (norm_max - norm_min)
  t = arc(own(x, i), margin_min + (margin_max - margin_min) * share)
  found = cross_entropy(scale * t, [scale * c for c in others(x, i)])
  return found | {'magnitude': lambda_g * (a / norm_max**2 + 1 / a)}


def adaface_statistics(f, decay=0.99):
  lengths = [min(max(f['norms'][j], 1e-3), 100.0) for j in ROWS]
  mean, std = np.mean(lengths), np.std(lengths, ddof=1)
  return {
    'mean': decay * 20.0 + (1 - decay) * mean,
    'std': decay * 100.0 + (1 - decay) * std,
  }


def adaface(x, f, i, margin=0.4, h=0.333, decay=0.99, scale=64.0):
  found = adaface_statistics(f, decay)
  length = min(max(f['norms'][i], 1e-3), 100.0)
  k = h * (length - found['mean']) / (found['std'] + 1e-3)
  k = min(max(k, -1.0), 1.0)
  theta = min(max(math.acos(own(x, i)) - margin * k, 0.0), math.pi)
  t = math.cos(theta) - (margin + margin * k)
  return cross_entropy(scale * t, [scale * c for c in others(x, i)])


def curricularface_statistics(f, decay=0.99):
  return {'t': (1 - decay) * np.mean([own(f, j) for j in ROWS])}


def curricularface(x, f, i, margin=0.5, decay=0.99, scale=64.0):
  t = curricularface_statistics(f, decay)['t']
  boundary = math.cos(math.acos(own(x, i)) + margin)
  return cross_entropy(
    scale * arc(own(x, i), margin),
    [scale * (c * (t + c) if c > boundary else c) for c in others(x, i)],
  )


def adacos_statistics(f, dynamic=True):
  scale = math.sqrt(2) * math.log(NUM_CLASSES - 1)
  if not dynamic:
    return {'scale': scale}
  sums = [sum(math.exp(scale * c) for c in others(f, j)) for j in ROWS]
  thetas = sorted(math.acos(own(f, j)) for j in ROWS)
  median = thetas[(len(thetas) - 1) // 2]
  scale = math.log(np.mean(sums)) / math.cos(min(math.pi / 4, median))
  return {'scale': scale}


def adacos(x, f, i, dynamic=True):
  s = adacos_statistics(f, dynamic)['scale']
  return cross_entropy(s * own(x, i), [s * c for c in others(x, i)])


STATISTICS = {
  'adacos': adacos_statistics,
  'adaface': adaface_statistics,
  'curricularface': curricularface_statistics,
}
# The second of each is soft: every class has a say in the gradient.
CASES = {
  'adacos': ('adacos', {}, adacos),
  'adacos_fixed': ('adacos', {'dynamic': False}, adacos),
  'adaface': ('adaface', {}, adaface),
  'adaface_soft': (
    'adaface',
    {'margin': 0.5, 'h': 1.0, 'decay': 0.0, 'scale': 3.0},
    adaface,
  ),
  'arcface': ('arcface', {}, arcface),
  'arcface_soft': ('arcface', {'margin_deg': 60.0, 'scale': 3.0}, arcface),
  'circle_classification': (
    'circle_classification',
    {},
    circle_classification,
  ),
  'circle_classification_soft': (
    'circle_classification',
    {'margin': 0.4, 'scale': 3.0},
    circle_classification,
  ),
  'circle_classification_through_the_weights': (
    'circle_classification',
    {'scale': 3.0, 'stop_gradient': False},
    circle_classification,
  ),
  'combined_margin': ('combined_margin', {}, combined_margin),
  'combined_margin_of_all': (
    'combined_margin',
    {'m1': 1.7, 'm2': 0.6, 'm3': 0.1, 'scale': 3.0},
    combined_margin,
  ),
  'combined_margin_with_a_filter': (
    'combined_margin',
    {'scale': 3.0, 'filter_threshold': 0.4},
    combined_margin,
  ),
  'cosface': ('cosface', {}, cosface),
  'cosface_soft': ('cosface', {'margin': 0.1, 'scale': 3.0}, cosface),
  'curricularface': ('curricularface', {}, curricularface),
  'curricularface_soft': (
    'curricularface',
    {'margin': 0.8, 'decay': 0.2, 'scale': 3.0},
    curricularface,
  ),
  'dynamic_margin': ('dynamic_margin', {}, dynamic_margin),
  'dynamic_margin_soft': (
    'dynamic_margin',
    {'margin_min': 0.2, 'margin_max': 0.9, 'exponent': 0.5, 'scale': 3.0},
    dynamic_margin,
  ),
  'elasticface': ('elasticface', {}, elasticface),
  'elasticface_arc_plus': (
    'elasticface',
    {'sigma': 0.2, 'plus': True, 'scale': 3.0},
    elasticface,
  ),
  'elasticface_cos_plus': (
    'elasticface',
    {'base': 'cos', 'sigma': 0.2, 'plus': True, 'scale': 3.0},
    elasticface,
  ),
  'large_margin_softmax': ('large_margin_softmax', {}, large_margin_softmax),
  'large_margin_softmax_soft': (
    'large_margin_softmax',
    {'margin': 3, 'scale': 0.05},
    large_margin_softmax,
  ),
  'magface': ('magface', {}, magface),
  'magface_soft': (
    'magface',
    {'norm_min': 15.0, 'norm_max': 60.0, 'lambda_g': 3.0, 'scale': 3.0},
    magface,
  ),
  'sphereface': ('sphereface', {}, sphereface),
  'sphereface_soft': ('sphereface', {'margin': 3, 'scale': 0.05}, sphereface),
  'subcenter_arcface': ('subcenter_arcface', {'scale': 3.0}, arcface),
} | {
  f'{name}_smoothed': (name, {'scale': 3.0, 'label_smoothing': 0.3}, loop)
  for name, loop in (
    ('arcface', arcface),
    ('circle_classification', circle_classification),
    ('cosface', cosface),
    ('dynamic_margin', dynamic_margin),
    ('subcenter_arcface', arcface),
  )
}


def needs_of(name, x, labels):
  """Returns what a row of the registry needs."""
  given = {
    'norms': x['norms'],
    'proxy_norms': x['proxy_norms'],
    'class_counts': jnp.asarray(COUNTS),
    'row_keys': KEYS,
    'axis_name': None,
    'shard': None,
  }
  row = margin_rows.LOSSES[name]
  more = {need: given[need] for need in row.needs}
  if row.state is not None:
    more['state'] = row.state({}, NUM_CLASSES, 8)
  return more


def value_of(found, row, axis_name=None):
  """Returns (value, state), the terms divided and added."""
  terms, state = found if row.state is not None else (found, {})
  total = 0.0
  for values, counts in terms.values():
    sums = jnp.sum(values), jnp.sum(counts)
    if axis_name is not None:
      sums = jax.lax.psum(sums, axis_name)
    total += sums[0] / sums[1]
  return total, state


@functools.cache
def computed(case):
  """Returns (value, state, gradients) of ours."""
  name, hyper, _ = CASES[case]
  row, labels = margin_rows.LOSSES[name], jnp.asarray(LABELS)

  def loss_fn(x):
    more = needs_of(name, x, labels)
    return value_of(row.function(x['cosines'], labels, **hyper, **more), row)

  step = compiled(jax.value_and_grad(loss_fn, has_aux=True))
  (value, state), gradients = step(
    {k: np.float32(v) for k, v in inputs().items()}
  )
  return value, state, gradients


def looped(case, x, fixed):
  """Returns the value of the loops: each term's mean over the rows."""
  _, hyper, loop = CASES[case]
  rows = [loop(x, fixed, i, **hyper) for i in ROWS]
  return sum(np.mean([row[name] for row in rows]) for name in rows[0])


class LoopTest(parameterized.TestCase):
  @parameterized.parameters(*CASES)
  def test_value_is_that_of_the_loops(self, case):
    x = inputs()
    np.testing.assert_allclose(computed(case)[0], looped(case, x, x), rtol=1e-5)

  @parameterized.parameters(*CASES)
  def test_gradient_is_that_of_the_loops_with_statistics_fixed(self, case):
    fixed, gradients, step = inputs(), computed(case)[2], 1e-6
    for name, gradient in gradients.items():
      expected = np.zeros(gradient.shape)
      for place in np.ndindex(expected.shape):
        sides = []
        for sign in (1, -1):
          moved = inputs()
          moved[name][place] += sign * step
          sides.append(looped(case, moved, fixed))
        expected[place] = (sides[0] - sides[1]) / (2 * step)
      largest = max(np.abs(expected).max(), 1e-6)
      np.testing.assert_allclose(
        gradient, expected, rtol=1e-3, atol=1e-4 * largest, err_msg=name
      )

  @parameterized.parameters(
    *(case for case in CASES if CASES[case][0] in STATISTICS)
  )
  def test_next_state_is_that_of_the_loops(self, case):
    name, hyper, _ = CASES[case]
    own_hyper = {k: v for k, v in hyper.items() if k in ('decay', 'dynamic')}
    expected = STATISTICS[name](inputs(), **own_hyper)
    found = computed(case)[1]
    self.assertEqual(set(found), set(expected))
    for key, value in expected.items():
      np.testing.assert_allclose(found[key], value, rtol=1e-5)


# vmap with a name stands for the devices, with the same collectives.
DEVICES = 2


class DevicesTest(parameterized.TestCase):
  @parameterized.parameters(
    'adacos',
    'adaface_soft',
    'curricularface_soft',
    'elasticface_arc_plus',
  )
  def test_rows_shared_out_over_devices_change_nothing(self, case):
    name, hyper, _ = CASES[case]
    row = margin_rows.LOSSES[name]
    padding = -len(LABELS) % DEVICES

    def share(leaf):
      leaf = jnp.concatenate([leaf, leaf[:padding]])
      return leaf.reshape(DEVICES, -1, *leaf.shape[1:])

    def device(cosines, norms, keys, labels):
      more = needs_of(name, {'norms': norms, 'proxy_norms': None}, labels)
      if 'row_keys' in more:
        more['row_keys'] = keys
      more['axis_name'] = 'devices'
      found = row.function(cosines, labels, **hyper, **more)
      return value_of(found, row, 'devices')

    def loss_fn(cosines, norms):
      labels = share(jnp.asarray(LABELS)).at[-1, -padding:].set(-1)
      values, states = jax.vmap(device, axis_name='devices')(
        share(cosines), share(norms), share(KEYS), labels
      )
      return jnp.mean(values), states

    x = inputs()
    step = compiled(jax.value_and_grad(loss_fn, has_aux=True))
    (value, states), gradient = step(x['cosines'], x['norms'])
    alone, state, gradients = computed(case)
    np.testing.assert_allclose(value, alone, rtol=1e-5)
    np.testing.assert_allclose(gradient, gradients['cosines'], atol=1e-5)
    for key, found in states.items():
      np.testing.assert_allclose(found, np.full(DEVICES, state[key]), 1e-5)

  @parameterized.parameters(
    'adacos',
    'adaface_soft',
    'circle_classification_soft',
    'combined_margin_with_a_filter',
    'curricularface_soft',
    'elasticface_arc_plus',
    'large_margin_softmax_soft',
    'magface_soft',
  )
  def test_classes_shared_out_over_devices_change_nothing(self, case):
    name, hyper, _ = CASES[case]
    row = margin_rows.LOSSES[name]
    width = -(-NUM_CLASSES // DEVICES)
    columns = np.arange(DEVICES * width).reshape(DEVICES, width)
    global_labels = np.array(LABELS)

    def device(cosines, proxy_norms, columns, x):
      here = global_labels - columns[0]
      elsewhere = (here < 0) | (here >= width)
      labels = jnp.where(elsewhere, width, here)
      labels = jnp.where(global_labels < 0, -1, labels)
      more = needs_of(name, x, labels)
      if 'proxy_norms' in more:
        more['proxy_norms'] = proxy_norms
      more['shard'] = Shard('devices', columns < NUM_CLASSES)
      return value_of(row.function(cosines, labels, **hyper, **more), row)

    def loss_fn(x):
      missing = DEVICES * width - NUM_CLASSES
      cosines = jnp.pad(
        x['cosines'], ((0, 0), (0, missing)), constant_values=0.99
      )
      cosines = cosines.reshape(-1, DEVICES, width).swapaxes(0, 1)
      proxy_norms = jnp.pad(x['proxy_norms'], (0, missing))
      values, states = jax.vmap(device, (0, 0, 0, None), axis_name='devices')(
        cosines, proxy_norms.reshape(DEVICES, width), columns, x
      )
      return jnp.mean(values), states

    step = compiled(jax.value_and_grad(loss_fn, has_aux=True))
    (value, states), found = step(
      {k: np.float32(v) for k, v in inputs().items()}
    )
    alone, state, gradients = computed(case)
    np.testing.assert_allclose(value, alone, rtol=1e-5)
    for key, leaf in gradients.items():
      np.testing.assert_allclose(found[key], leaf, atol=1e-5, err_msg=key)
    for key, leaf in states.items():
      np.testing.assert_allclose(leaf, np.full(DEVICES, state[key]), 1e-5)


class AngleTest(absltest.TestCase):
  def test_a_negative_margin_has_no_edge(self):
    cosines = np.float32(np.cos(np.linspace(0.4, 3.1, 20)))
    margins = np.full(20, -0.3, np.float32)
    found = compiled(angles.add_margin)(cosines, margins)
    np.testing.assert_allclose(
      found, np.cos(np.linspace(0.1, 2.8, 20)), atol=1e-5
    )


if __name__ == '__main__':
  absltest.main()
