"""What every loss owes: one row in `CASES`, and all these tests run on it.

A loss is compiled twice, for one device and for four (and once more, steep, in
the slow tests); what is tested is in the data. Values are checked elsewhere:
against PML in `pml_test.py`, against loops in the test of each family.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import absltest, parameterized

from retrieval_jax import losses
from retrieval_jax.core import collectives

BATCH, DIM, NUM_CLASSES, DEVICES = 16, 6, 5, 4


@dataclasses.dataclass(frozen=True)
class Case:
  """How a loss is tested.

  Attributes:
    options: hyperparameters with which every pair has a say, so that a wrong
      gradient shows.
    steep: the same at a scale of 1,000; {} for losses without a scale.
    differentiable: whether the gradient is that of the value: not where a
      weight carries none.
    reads_lengths: whether embeddings are not normalised by definition, so that
      1e30-fold ones overflow.
    has_single_rows: whether a row alone has a loss, although it is no proxy
      loss.
  """

  options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  steep: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  differentiable: bool = True
  reads_lengths: bool = False
  has_single_rows: bool = False


CASES: dict[str, Case] = {
  'adacos': Case(),
  'adaface': Case({'scale': 4.0}, {'scale': 1000.0}),
  'angular': Case({'alpha': 25.0}, {'alpha': 89.0}),
  'arcface': Case({'scale': 4.0}, {'scale': 1000.0}),
  'circle': Case({'scale': 4.0}, {'scale': 1000.0}, differentiable=False),
  'circle_classification': Case(
    {'scale': 4.0}, {'scale': 1000.0}, differentiable=False
  ),
  'combined_margin': Case({'scale': 4.0}, {'scale': 1000.0}),
  'contrastive': Case(),
  'cosface': Case({'scale': 4.0}, {'scale': 1000.0}),
  'curricularface': Case({'scale': 4.0}, {'scale': 1000.0}),
  'decoupled_contrastive': Case({'temperature': 0.5}, {'temperature': 0.001}),
  'dynamic_margin': Case({'scale': 4.0}, {'scale': 1000.0}),
  'dynamic_soft_margin': Case(differentiable=False),
  'elasticface': Case({'scale': 4.0}, {'scale': 1000.0}),
  'fast_ap': Case(),
  'generalized_lifted_structure': Case(),
  'histogram': Case(),
  'instance': Case({'scale': 4.0}, {'scale': 1000.0}),
  'intra_pair_variance': Case(),
  'large_margin_softmax': Case(
    {'scale': 4.0}, {'scale': 1000.0}, reads_lengths=True
  ),
  'lifted_structure': Case(),
  'magface': Case({'scale': 4.0}, {'scale': 1000.0}),
  'manifold': Case(
    {'K': 3, 'lambdaC': 0.5, 'alpha': 0.7, 'margin': 0.1},
    {'alpha': 0.999},
    has_single_rows=True,
  ),
  'margin': Case({'reducer': 'mean'}),
  'multi_label_supcon': Case({'temperature': 0.5}, {'temperature': 0.001}),
  'multi_similarity': Case({'beta': 5.0}, {'beta': 1000.0}),
  'n_pairs': Case(),
  'nca': Case({'softmax_scale': 2.0}, {'softmax_scale': 1000.0}),
  'normalized_softmax': Case({'temperature': 0.5}, {'temperature': 0.001}),
  'ntxent': Case({'temperature': 0.5}, {'temperature': 0.001}),
  'p2s_grad': Case(),
  'pnp': Case(),
  'proxy_anchor': Case({'alpha': 4.0}, {'alpha': 1000.0}),
  'proxy_nca': Case({'softmax_scale': 2.0}, {'softmax_scale': 1000.0}),
  'proxy_nca_pp': Case({'temperature': 0.5}, {'temperature': 0.001}),
  'ranked_list': Case(
    {'margin': 0.4, 'negative_temperature': 2.0},
    {'negative_temperature': 1000.0},
  ),
  'recall_at_k': Case({'temperature': 0.5}, {'temperature': 0.001}),
  'roadmap': Case(
    {'temperature': 0.5}, {'temperature': 0.001}, differentiable=False
  ),
  'sigmoid': Case({'temperature': 0.5}, {'temperature': 0.001}),
  'signal_to_noise_ratio_contrastive': Case(),
  'smooth_ap': Case({'temperature': 0.2}, {'temperature': 0.001}),
  'soft_triple': Case(
    {'centers_per_class': 3, 'la': 4.0, 'gamma': 0.5}, {'la': 1000.0}
  ),
  'sphereface': Case({'scale': 4.0}, {'scale': 1000.0}, reads_lengths=True),
  'subcenter_arcface': Case({'scale': 4.0}, {'scale': 1000.0}),
  'supcon': Case({'temperature': 0.5}, {'temperature': 0.001}),
  'threshold_consistent_margin': Case(),
  # The mean over those above 0 jumps where one comes to 0.
  'triplet_margin': Case({'margin': 0.3, 'reducer': 'mean'}),
  'tuplet_margin': Case({'scale': 4.0}, {'scale': 1000.0}),
  'uniface': Case({'scale': 4.0}, {'scale': 1000.0}),
  'vicreg': Case({'eps': 0.2}, reads_lengths=True, has_single_rows=True),
}
EACH = tuple((name, name) for name in CASES)


@functools.cache
def objective(name, axis_name=None, steep=False):
  case = CASES[name]
  options = {'name': name, **case.options, **(case.steep if steep else {})}
  (part,) = losses.parse(options)
  return losses.Objective(
    (part,),
    num_classes=NUM_CLASSES,
    embedding_dim=DIM,
    class_counts=np.array([1.0, 4.0, 2.0, 30.0, 9.0], np.float32),
    num_views=max(1, part.row.views),
    axis_name=axis_name,
  )


def make_inputs(name, seed=0, num_rows=BATCH):
  """Returns what is differentiated, and [num_rows] labels."""
  rng = np.random.default_rng(seed)
  # One class has one image alone, and they are in no order.
  labels = rng.permutation(np.arange(num_rows) % (NUM_CLASSES - 1))
  labels[3] = NUM_CLASSES - 1
  centers = rng.normal(size=(NUM_CLASSES, DIM))
  x = 0.8 * centers[labels] + rng.normal(size=(num_rows, DIM))
  target = objective(name)
  inputs = {'embeddings': x}
  if target.num_views == 2:
    labels[num_rows // 2 :] = labels[: num_rows // 2]
  if target.centers:
    proxies = np.repeat(centers, target.centers, axis=0)
    inputs['proxies'] = proxies + 0.5 * rng.normal(size=proxies.shape)
  inputs = {k: jnp.asarray(v, jnp.float32) for k, v in inputs.items()}
  params = target.init_params(jax.random.key(1))
  if jax.tree.leaves(params):
    inputs['params'] = params
  return inputs, labels.astype(np.int32)


def outcome(target, inputs, labels, state):
  """Returns (loss, (state, scalars)) of a batch."""
  found = target(
    inputs.get('params', {}),
    state,
    losses.Batch(inputs['embeddings'], labels),
    proxies=inputs.get('proxies'),
    key=jax.random.key(7),
  )
  return found.loss, (found.state, found.scalars)


@functools.cache
def one_device(name, steep=False):
  """Returns (inputs, labels) -> ((loss, (state, scalars)), gradients)."""
  target = objective(name, steep=steep)

  def run(inputs, labels, state):
    return jax.value_and_grad(functools.partial(outcome, target), has_aux=True)(
      inputs, labels, state
    )

  compiled = jax.jit(run)
  # The state is an argument, so that nothing is folded away.
  return lambda inputs, labels: compiled(inputs, labels, target.init_state())


def four_devices(name, inputs, labels):
  """Does the same on four devices, each with a part of the rows."""
  target = objective(name, 'batch')
  views = target.num_views
  per_view = BATCH // views // DEVICES

  def run(inputs, labels, state, position):
    def mine(rows):
      # Each device has its share of every view.
      rows = rows.reshape(views, DEVICES, per_view, *rows.shape[1:])
      rows = rows[:, position]
      return rows.reshape(views * per_view, *rows.shape[2:])

    def loss_fn(inputs):
      # Every device holds all rows and takes its own, so that the averaged
      # gradient is that of the whole batch.
      own = inputs | {'embeddings': mine(inputs['embeddings'])}
      return outcome(target, own, mine(labels), state)

    found, gradients = jax.value_and_grad(loss_fn, has_aux=True)(inputs)
    return found, collectives.pmean(gradients, 'batch')

  return jax.pmap(
    run,
    axis_name='batch',
    in_axes=(None, None, None, 0),
    devices=jax.local_devices()[:DEVICES],
  )(inputs, labels, target.init_state(), np.arange(DEVICES))


def assert_close(actual, expected, rtol):
  """Compares trees, each leaf relative to its largest entry."""

  def compare(a, b):
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    atol = rtol * max(np.abs(b).max(initial=0), 1e-6)
    np.testing.assert_allclose(a, b, atol=atol, rtol=0)

  jax.tree.map(compare, actual, expected)


class ValueTest(parameterized.TestCase):
  @parameterized.named_parameters(*EACH)
  def test_there_is_a_loss_and_a_gradient(self, name):
    inputs, labels = make_inputs(name)
    (value, _), gradients = one_device(name)(inputs, labels)
    self.assertGreater(abs(float(value)), 1e-4)
    for leaf in jax.tree.leaves(gradients):
      self.assertGreater(np.abs(leaf).max(), 1e-5)

  @parameterized.named_parameters(
    (name, name) for name, case in CASES.items() if case.differentiable
  )
  def test_gradient_is_that_of_finite_differences(self, name):
    inputs, labels = make_inputs(name)
    run = one_device(name)
    (_, _), gradients = run(inputs, labels)
    rng = np.random.default_rng(1)
    step, found = 2e-3, []
    for _ in range(3):
      direction = jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32),
        inputs,
      )
      high, low = (
        float(
          run(
            jax.tree.map(
              lambda x, d, s=sign: x + s * step * d, inputs, direction
            ),
            labels,
          )[0][0]
        )
        for sign in (1, -1)
      )
      slope = sum(
        float(jnp.vdot(g, d))
        for g, d in zip(
          *map(jax.tree.leaves, (gradients, direction)), strict=True
        )
      )
      found.append(((high - low) / (2 * step), slope))
    numeric, exact = np.array(found).T
    np.testing.assert_allclose(
      exact, numeric, atol=0.03 * np.abs(numeric).max() + 1e-3
    )


class PaddingAndDevicesTest(parameterized.TestCase):
  @parameterized.named_parameters(*EACH)
  def test_what_stands_in_padding_changes_nothing(self, name):
    inputs, labels = make_inputs(name)
    padded = pad(name, labels, [1, 7])
    one = one_device(name)(inputs, padded)
    other = np.array(inputs['embeddings'])
    other[padded < 0] = 9.0
    two = one_device(name)(inputs | {'embeddings': jnp.asarray(other)}, padded)
    assert_close(two[0][0], one[0][0], 1e-6)
    assert_close(two[0][1][0], one[0][1][0], 1e-6)
    for _, gradients in (one, two):
      leaf = np.asarray(gradients['embeddings'])[padded < 0]
      self.assertEqual(np.abs(leaf).max(), 0)
    kept = padded >= 0
    one[1]['embeddings'] = one[1]['embeddings'][kept]
    two[1]['embeddings'] = two[1]['embeddings'][kept]
    assert_close(two[1], one[1], 1e-5)

  @parameterized.named_parameters(*EACH)
  def test_four_devices_equal_one_and_padding_equals_dropping(self, name):
    inputs, labels = make_inputs(name)
    # The last device has one row that is none, the others have all.
    padded = pad(name, labels, [BATCH - 1])
    (value, (state, _)), gradients = one_device(name)(inputs, padded)
    actual = jax.tree.map(np.asarray, four_devices(name, inputs, padded))
    for leaf in jax.tree.leaves(actual):
      np.testing.assert_array_equal(leaf, np.broadcast_to(leaf[:1], leaf.shape))
    actual = jax.tree.map(lambda leaf: leaf[0], actual)
    (p_value, (p_state, _)), p_gradients = actual
    assert_close(p_value, value, 1e-5)
    assert_close(p_gradients, gradients, 2e-5)
    assert_close(p_state, state, 1e-5)


def pad(name, labels, rows):
  """Returns the labels with some rows marked as padding, in every view."""
  labels = np.array(labels)
  views = objective(name).num_views
  per_view = len(labels) // views
  for row in rows:
    labels[[view * per_view + row % per_view for view in range(views)]] = -1
  return labels


def extreme(kind, name):
  """Returns inputs and labels, and whether nothing valid is left."""
  inputs, labels = make_inputs(name)
  x = inputs['embeddings']
  is_proxy = 'proxies' in inputs
  nothing = False
  if kind == 'identical':
    x = jnp.ones_like(x)
  elif kind == 'opposite':
    signs = jnp.where(jnp.arange(BATCH) % 2, 1.0, -1.0)
    x = signs[:, None] * jnp.broadcast_to(x[:1], x.shape)
  elif kind == 'zero':
    x = jnp.zeros_like(x)
  elif kind == 'huge':
    x = 1e30 * x
  elif kind == 'tiny':
    x = 1e-30 * x
  elif kind == 'no_positives':
    labels[:] = np.where(np.arange(BATCH) < NUM_CLASSES, np.arange(BATCH), -1)
  elif kind == 'one_class':
    labels[:] = 0
  elif kind == 'all_padding':
    labels[:] = -1
    nothing = True
  elif kind == 'one_row':
    labels[1:] = -1
    nothing = not is_proxy and not CASES[name].has_single_rows
  elif kind == 'on_the_center' and is_proxy:
    x = inputs['proxies'][:: objective(name).centers][labels]
  elif kind == 'against_the_center' and is_proxy:
    x = -inputs['proxies'][:: objective(name).centers][labels]
  inputs['embeddings'] = x
  return inputs, labels, nothing


EXTREMES = (
  'all_padding',
  'against_the_center',
  'huge',
  'identical',
  'no_positives',
  'on_the_center',
  'one_class',
  'one_row',
  'opposite',
  'tiny',
  'zero',
)


class ExtremesTest(parameterized.TestCase):
  @parameterized.named_parameters(*EACH)
  def test_loss_and_gradient_are_finite(self, name):
    self.check(name, one_device(name))

  @parameterized.named_parameters(
    (name, name) for name, case in CASES.items() if case.steep
  )
  @pytest.mark.slow  # Another program of each loss.
  def test_loss_and_gradient_are_finite_at_a_scale_of_1000(self, name):
    self.check(name, one_device(name, steep=True))

  def check(self, name, run):
    for kind in EXTREMES:
      if kind == 'huge' and CASES[name].reads_lengths:
        continue
      for dtype in ('float32', 'bfloat16'):
        with self.subTest(f'{kind}, {dtype}'):
          inputs, labels, nothing = extreme(kind, name)
          # What a model of that dtype can say; the loss is float32.
          inputs = jax.tree.map(
            lambda leaf, dtype=dtype: leaf.astype(dtype).astype(jnp.float32),
            inputs,
          )
          (value, (state, _)), gradients = run(inputs, labels)
          self.assertTrue(np.isfinite(value), value)
          for leaf in jax.tree.leaves((state, gradients)):
            self.assertTrue(np.isfinite(np.asarray(leaf)).all())
          if nothing:
            self.assertEqual(value, 0)
            for leaf in jax.tree.leaves(gradients):
              self.assertEqual(np.abs(leaf).max(initial=0), 0)

  @parameterized.named_parameters(*EACH)
  def test_nan_is_not_hidden(self, name):
    inputs, labels = make_inputs(name)
    inputs['embeddings'] = inputs['embeddings'].at[2, 0].set(jnp.nan)
    (value, _), _ = one_device(name)(inputs, labels)
    self.assertTrue(np.isnan(value), value)

  @parameterized.named_parameters(*EACH)
  def test_bfloat16_comes_in_and_float32_goes_out(self, name):
    target = objective(name)
    inputs, labels = make_inputs(name)
    half = inputs | {'embeddings': inputs['embeddings'].astype(jnp.bfloat16)}
    (value, _), gradients = jax.eval_shape(
      jax.value_and_grad(functools.partial(outcome, target), has_aux=True),
      half,
      jnp.asarray(labels),
      target.init_state(),
    )
    self.assertEqual(value.dtype, jnp.float32)
    self.assertEqual(gradients['embeddings'].dtype, jnp.bfloat16)


class RegistryTest(parameterized.TestCase):
  def test_every_loss_has_a_case(self):
    self.assertSameElements(losses.LOSSES, CASES)

  @parameterized.named_parameters(*EACH)
  def test_the_docstring_says_what_it_is(self, name):
    text = losses.LOSSES[name].function.__doc__
    for word in ('Use it ', 'Cost: ', 'Args:', 'Returns:', 'References:'):
      self.assertIn(word, text)


if __name__ == '__main__':
  absltest.main()
