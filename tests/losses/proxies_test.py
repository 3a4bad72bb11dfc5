"""Losses with proxies besides the margin softmaxes, against plain loops."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from retrieval_jax.core.class_shards import Shard
from retrieval_jax.losses.objective import reduce_terms
from retrieval_jax.losses.proxy.proxy_rows import LOSSES
from tests.compiling import compiled

LABELS = (0, 1, 2, -1, 0, 2, 0, 2)
NUM_CLASSES, CENTERS = 4, 2  # No row is of the last class.
BIAS = 1.5
SOFT = {
  'normalized_softmax': {'temperature': 0.4, 'label_smoothing': 0.3},
  'p2s_grad': {},
  'proxy_anchor': {'margin': 0.2, 'alpha': 3.0},
  'proxy_nca': {'softmax_scale': 2.0},
  'proxy_nca_pp': {'temperature': 0.3},
  'soft_triple': {'la': 4.0, 'gamma': 0.3, 'margin': 0.15},
  'uniface': {'margin': 0.3, 'scale': 3.0, 'negative_weight': 0.4},
}
named = parameterized.parameters(*LOSSES)


def inputs(name):
  """Returns cosines [B, C], of `soft_triple` [B, C, K]."""
  random = np.random.RandomState(0)
  cosines = random.uniform(-0.95, 0.95, (len(LABELS), NUM_CLASSES, CENTERS))
  return cosines if LOSSES[name].separate_centers else cosines[..., 0]


# A loop takes float64 cosines, the labels and the hyperparameters, and returns
# the loss of the batch.


def over_rows(row_loss):
  def loop(cosines, labels, **hyper):
    found = [
      row_loss(cosines[i], y, **hyper) for i, y in enumerate(labels) if y >= 0
    ]
    return sum(found) / len(found)

  return loop


@over_rows
def normalized_softmax(c, y, temperature=0.05, label_smoothing=0.0):
  total = sum(math.exp(z / temperature) for z in c)
  logs = [math.log(math.exp(z / temperature) / total) for z in c]
  wanted = [label_smoothing / len(c)] * len(c)
  wanted[y] += 1 - label_smoothing
  return -sum(p * z for p, z in zip(wanted, logs, strict=True))


@over_rows
def proxy_nca(c, y, softmax_scale=1.0):
  square = [2 - 2 * z for z in c]  # Of the distance of unit vectors.
  total = sum(math.exp(-softmax_scale * d) for d in square)
  return -math.log(math.exp(-softmax_scale * square[y]) / total)


@over_rows
def proxy_nca_pp(c, y, temperature=1 / 9):
  total = sum(math.exp(-(2 - 2 * z) / temperature) for z in c)
  return -math.log(math.exp(-(2 - 2 * c[y]) / temperature) / total)


@over_rows
def p2s_grad(c, y):
  return sum((z - (j == y)) ** 2 for j, z in enumerate(c)) / len(c)


@over_rows
def soft_triple(c, y, la=20.0, gamma=0.1, margin=0.01):
  similarities = []
  for centers in c:
    total = sum(math.exp(z / gamma) for z in centers)
    similarities.append(sum(math.exp(z / gamma) / total * z for z in centers))
  similarities[y] -= margin
  total = sum(math.exp(la * s) for s in similarities)
  return -math.log(math.exp(la * similarities[y]) / total)


@over_rows
def uniface(c, y, margin=0.4, scale=64.0, negative_weight=1.0, bias=BIAS):
  positive = math.log1p(math.exp(-(scale * (c[y] - margin) - bias)))
  negatives = [
    math.log1p(math.exp(scale * z - bias)) for j, z in enumerate(c) if j != y
  ]
  return positive + negative_weight * sum(negatives)


def proxy_anchor_parts(cosines, labels, margin=0.1, alpha=32.0):
  pull, push = [], []
  for j in range(NUM_CLASSES):
    own = [c[j] for c, y in zip(cosines, labels, strict=True) if y == j]
    others = [
      c[j] for c, y in zip(cosines, labels, strict=True) if y not in (j, -1)
    ]
    if own:
      pull.append(
        math.log(1 + sum(math.exp(-alpha * (c - margin)) for c in own))
      )
    push.append(
      math.log(1 + sum(math.exp(alpha * (c + margin)) for c in others))
    )
  return pull, push


def proxy_anchor(cosines, labels, **hyper):
  pull, push = proxy_anchor_parts(cosines, labels, **hyper)
  return sum(pull) / len(pull) + sum(push) / NUM_CLASSES


LOOPS = {
  'normalized_softmax': normalized_softmax,
  'p2s_grad': p2s_grad,
  'proxy_anchor': proxy_anchor,
  'proxy_nca': proxy_nca,
  'proxy_nca_pp': proxy_nca_pp,
  'soft_triple': soft_triple,
  'uniface': uniface,
}


reduced = compiled(reduce_terms)


def terms_of(name, cosines, labels, bias=BIAS, **options):
  if LOSSES[name].params is not None:
    options['params'] = {'bias': bias}
  return LOSSES[name].function(cosines, labels, **options)


@functools.cache
def terms_program(name, options):
  return compiled(lambda c, y: terms_of(name, c, y, **dict(options)))


def run(name, cosines, labels=LABELS, **options):
  """Returns terms."""
  return terms_program(name, tuple(options.items()))(
    np.asarray(cosines, np.float32), np.asarray(labels)
  )


@functools.cache
def step_of(name, soft):
  """One program a loss: the loss and its gradients."""

  def loss_fn(cosines, bias, labels, weights):
    hyper = SOFT[name] if soft else {}
    terms = terms_of(name, cosines, labels, bias, weights=weights, **hyper)
    return reduce_terms(terms)[0]

  return compiled(jax.value_and_grad(loss_fn, (0, 1)))


def value_and_gradients(name, cosines, labels=LABELS, soft=True, weights=None):
  weights = np.ones(len(labels)) if weights is None else weights
  return step_of(name, soft)(
    np.asarray(cosines, np.float32),
    np.float32(BIAS),
    np.asarray(labels),
    np.asarray(weights, np.float32),
  )


class LoopsTest(parameterized.TestCase):
  @named
  def test_the_value_is_that_of_the_loop(self, name):
    cosines = inputs(name)
    for soft in (False, True):
      value, _ = value_and_gradients(name, cosines, soft=soft)
      hyper = SOFT[name] if soft else {}
      expected = LOOPS[name](cosines.tolist(), LABELS, **hyper)
      np.testing.assert_allclose(value, expected, rtol=1e-5)

  @named
  def test_the_gradient_is_that_of_the_loop(self, name):
    cosines = inputs(name)
    _, (gradient, _) = value_and_gradients(name, cosines)
    for place in np.ndindex(*cosines.shape):
      step = np.zeros_like(cosines)
      step[place] = 1e-5
      high, low = (
        LOOPS[name](x.tolist(), LABELS, **SOFT[name])
        for x in (cosines + step, cosines - step)
      )
      np.testing.assert_allclose(
        gradient[place], (high - low) / 2e-5, rtol=1e-3, atol=1e-6
      )

  @named
  def test_a_label_without_a_proxy_is_nan(self, name):
    labels = (*LABELS[:-1], NUM_CLASSES)
    value, _ = value_and_gradients(name, inputs(name), labels)
    self.assertTrue(np.isnan(value))

  @named
  def test_a_weight_of_zero_equals_leaving_the_row_out(self, name):
    cosines, labels = inputs(name), np.array(LABELS)
    weights = np.array([1.0, 0, 1, 1, 1, 0, 1, 1])
    weighted = value_and_gradients(name, cosines, weights=weights)
    labels[weights == 0] = -1
    padded = value_and_gradients(name, cosines, labels)
    for found, expected in zip(
      jax.tree.leaves(weighted), jax.tree.leaves(padded), strict=True
    ):
      np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)


class SoftmaxTest(parameterized.TestCase):
  def test_proxy_nca_keeps_a_row_whose_probability_underflows(self):
    # PML leaves it out, and would return 0.
    terms = run('proxy_nca', [[-1.0, 1.0]], [0], softmax_scale=100.0)
    np.testing.assert_allclose(reduced(terms)[0], 400.0, rtol=1e-6)

  def test_soft_triple_of_a_small_gamma_takes_the_nearest_center(self):
    cosines = inputs('soft_triple')
    hyper = {'la': 5.0, 'margin': 0.2}
    found = run('soft_triple', cosines, gamma=1e-4, **hyper)
    nearest = np.max(cosines, axis=-1, keepdims=True)
    expected = run('soft_triple', nearest, **hyper)
    np.testing.assert_allclose(found['loss'][0], expected['loss'][0], rtol=1e-4)

  def test_p2s_grad_has_the_gradient_of_the_paper(self):
    # Up to a factor, c_ij minus 1 at the own class.
    cosines = inputs('p2s_grad')
    _, (gradient, _) = value_and_gradients('p2s_grad', cosines)
    valid = np.array(LABELS) >= 0
    expected = cosines - np.eye(NUM_CLASSES)[list(LABELS)]
    expected *= 2 * valid[:, None] / (NUM_CLASSES * valid.sum())
    np.testing.assert_allclose(gradient, expected, atol=1e-6)


class UnifaceTest(parameterized.TestCase):
  def test_the_bias_learns(self):
    cosines = inputs('uniface')
    _, (_, gradient) = value_and_gradients('uniface', cosines)
    high, low = (
      uniface(cosines.tolist(), LABELS, bias=BIAS + step, **SOFT['uniface'])
      for step in (1e-5, -1e-5)
    )
    np.testing.assert_allclose(gradient, (high - low) / 2e-5, rtol=1e-4)

  def test_the_bias_starts_where_the_paper_has_it(self):
    params = LOSSES['uniface'].params({}, 50, 8, jax.random.key(0))
    np.testing.assert_allclose(params['bias'], math.log(500), rtol=1e-6)

  def test_a_row_far_off_still_has_a_gradient(self):
    # The authors' code ends it where an exponent reaches the scale.
    _, (gradient, _) = value_and_gradients(
      'uniface', [[-1.0, 1.0]], [0], soft=False
    )
    np.testing.assert_allclose(gradient, [[-64.0, 64.0]], rtol=1e-5)


class ProxyAnchorTest(parameterized.TestCase):
  def test_a_term_is_divided_by_its_classes(self):
    cosines = inputs('proxy_anchor')
    pull, push = proxy_anchor_parts(cosines.tolist(), LABELS)
    self.assertLen(pull, NUM_CLASSES - 1)
    _, parts = reduced(run('proxy_anchor', cosines))
    np.testing.assert_allclose(parts['positive'], np.mean(pull), rtol=1e-5)
    np.testing.assert_allclose(parts['negative'], np.mean(push), rtol=1e-5)

  def test_the_reducer_is_of_classes(self):
    # Own cosines of 1 and others of -1 leave nothing in float32.
    cosines = [[1.0, -1.0, -0.5, -1.0], [-1.0, 1.0, -1.0, -1.0]]
    terms = run('proxy_anchor', cosines, [0, 1], alpha=300.0)
    few = run(
      'proxy_anchor', cosines, [0, 1], alpha=300.0, reducer='nonzero_mean'
    )
    self.assertEqual(np.sum(terms['negative'][1]), 4)
    self.assertEqual(np.sum(few['negative'][1]), 0)
    self.assertEqual(np.sum(few['positive'][1]), 0)
    cosines[1][2] = 0.5
    few = run(
      'proxy_anchor', cosines, [0, 1], alpha=300.0, reducer='nonzero_mean'
    )
    self.assertEqual(np.sum(few['negative'][1]), 1)
    np.testing.assert_allclose(reduced(few)[0], 180.0, rtol=1e-5)

  def test_a_weight_of_two_equals_a_row_that_is_there_twice(self):
    cosines = inputs('proxy_anchor')
    weights = np.array([1.0, 2, 1, 1, 1, 1, 1, 1])
    weighted = value_and_gradients(
      'proxy_anchor', cosines, (0, 1, 0, *[-1] * 5), weights=weights
    )
    twice = value_and_gradients(
      'proxy_anchor', cosines[[0, 1, 1, 2, 3, 4, 5, 6]], (0, 1, 1, 0, *[-1] * 4)
    )
    np.testing.assert_allclose(weighted[0], twice[0], rtol=1e-6)

  def test_a_large_alpha_is_exact(self):
    terms = run('proxy_anchor', [[-1.0, 1.0]], [0], alpha=1000.0)
    _, parts = reduced(terms)
    np.testing.assert_allclose(parts['positive'], 1100.0, rtol=1e-6)
    np.testing.assert_allclose(parts['negative'], 1100.0 / 2, rtol=1e-6)

  def test_rows_shared_out_over_devices_change_nothing(self):
    cosines = np.float32(inputs('proxy_anchor'))
    labels = np.array(LABELS)

    def device_loss(cosines, labels):
      terms = terms_of(
        'proxy_anchor', cosines, labels, axis_name='d', **SOFT['proxy_anchor']
      )
      return reduce_terms(terms, 'd')[0]

    step = jax.pmap(jax.value_and_grad(device_loss), axis_name='d')
    values, gradients = jax.device_get(
      step(cosines.reshape(4, 2, -1), labels.reshape(4, 2))
    )
    expected, (gradient, _) = value_and_gradients('proxy_anchor', cosines)
    np.testing.assert_allclose(values, np.full(4, expected), rtol=1e-6)
    # A device's gradient counts each of the four equal losses.
    np.testing.assert_allclose(
      gradients.reshape(gradient.shape) / 4, gradient, rtol=1e-5, atol=1e-8
    )


class ShardsTest(parameterized.TestCase):
  def test_classes_shared_out_over_devices_change_nothing(self):
    # Three columns a device, of which one stands for no class.
    present = np.array([True, False, True])
    cosines = {}
    for name in LOSSES:
      x = np.float32(inputs(name))
      x = x.reshape(len(LABELS), 2, 2, *x.shape[2:])
      x = np.insert(x, 1, 0.7, axis=2)
      cosines[name] = np.moveaxis(x, 1, 0)

    def device_losses(cosines):
      first = 2 * jax.lax.axis_index('d')
      labels = jnp.asarray(LABELS)
      local = labels - first
      column = jnp.where(local == 1, 2, local)
      column = jnp.where((local < 0) | (local > 1), 3, column)
      column = jnp.where(labels < 0, -1, column)
      found = {}
      for name, x in cosines.items():
        terms = terms_of(
          name, x, column, shard=Shard('d', present), **SOFT[name]
        )
        # Each device has all rows, and the terms of all classes.
        found[name] = reduce_terms(terms)[0]
      return sum(found.values()), found

    step = jax.pmap(
      jax.value_and_grad(device_losses, has_aux=True),
      axis_name='d',
      devices=jax.devices()[:2],
    )
    (_, values), gradients = jax.device_get(step(cosines))
    for name in LOSSES:
      expected, (gradient, _) = value_and_gradients(name, inputs(name))
      np.testing.assert_allclose(
        values[name], np.full(2, expected), rtol=1e-6, err_msg=name
      )
      found = np.moveaxis(gradients[name], 0, 1)
      self.assertEqual(np.abs(found[:, :, 1]).max(), 0, name)
      # A device's gradient counts both of the equal losses.
      found = found[:, :, ::2].reshape(gradient.shape) / 2
      np.testing.assert_allclose(
        found, gradient, rtol=1e-5, atol=1e-7, err_msg=name
      )


class MemoryTest(parameterized.TestCase):
  @parameterized.parameters('p2s_grad', 'proxy_anchor', 'proxy_nca', 'uniface')
  def test_no_second_matrix_of_logits(self, name):
    rows, num_classes = 64, 4096
    arguments = (
      jax.ShapeDtypeStruct((rows, num_classes), jnp.float32),
      jax.ShapeDtypeStruct((), jnp.float32),
      jax.ShapeDtypeStruct((rows,), jnp.int32),
    )

    def loss_fn(cosines, bias, labels):
      return reduce_terms(terms_of(name, cosines, labels, bias))[0]

    step = jax.jit(jax.value_and_grad(loss_fn)).lower(*arguments)
    memory = step.compile().memory_analysis()
    # The gradient is the output; beside it there is room for vectors only.
    self.assertLess(memory.temp_size_in_bytes, 4 * rows * num_classes / 2)


if __name__ == '__main__':
  absltest.main()
