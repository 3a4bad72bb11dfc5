"""What every loss owes: one row in `ROWS`, and all these tests run on it."""

import dataclasses
import functools
import json
import math
import pathlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from jax.test_util import check_grads

from retrieval_jax import losses
from retrieval_jax.core import arrays, collectives

GOLDEN = json.loads(
  (pathlib.Path(__file__).parents[1] / 'golden' / 'pml_losses.json').read_text()
)
BATCH, DIM, NUM_CLASSES = 20, 6, 5


# Loops in float64, written from the papers. `frozen` is the matrix that what
# carries no gradient is computed from.


def circle_loops(s, positives, negatives, frozen, margin=0.4, scale=80.0):
  values = []
  for i in range(len(s)):
    total_p = total_n = 0.0
    for j in range(s.shape[1]):
      if positives[i, j]:
        alpha = max(0.0, 1 + margin - frozen[i, j])
        total_p += math.exp(-scale * alpha * (s[i, j] - (1 - margin)))
      if negatives[i, j]:
        alpha = max(0.0, frozen[i, j] + margin)
        total_n += math.exp(scale * alpha * (s[i, j] - margin))
    if total_p and total_n:
      values.append(math.log(1 + total_p * total_n))
  return np.mean([v for v in values if v > 0])


def triplet_loops(
  d,
  positives,
  negatives,
  frozen,
  margin=0.05,
  reducer='nonzero_mean',
  miner=None,
):
  miner = miner or {}
  values = []
  for i in range(len(d)):
    for p in np.flatnonzero(positives[i]):
      for n in np.flatnonzero(negatives[i]):
        gap = frozen[i, n] - frozen[i, p]
        if miner and not (0 < gap <= miner['margin']):
          continue
        values.append(max(0.0, d[i, p] - d[i, n] + margin))
  if reducer == 'nonzero_mean':
    values = [v for v in values if v > 0]
  return np.mean(values)


def softmax_loops(cosines, labels, scale, target):
  values = []
  for row, label in zip(cosines, labels, strict=True):
    own = math.exp(scale * target(row[label]))
    others = sum(math.exp(scale * c) for j, c in enumerate(row) if j != label)
    values.append(-math.log(own / (own + others)))
  return np.mean(values)


def arcface_loops(cosines, labels, margin_deg=28.6, scale=64.0):
  margin = math.radians(margin_deg)

  def target(cosine):
    angle = math.acos(cosine)
    if angle <= math.pi - margin:
      return math.cos(angle + margin)
    return cosine - margin * math.sin(margin)

  return softmax_loops(cosines, labels, scale, target)


def cosface_loops(cosines, labels, margin=0.35, scale=64.0):
  return softmax_loops(cosines, labels, scale, lambda c: c - margin)


@dataclasses.dataclass(frozen=True)
class Case:
  name: str
  loss: str
  loops: Callable[..., float]
  hyper: dict


SEMIHARD = {
  'name': 'triplet_margin',
  'margin': 0.2,
  'type_of_triplets': 'semihard',
}
ROWS = (
  Case('circle', 'circle', circle_loops, {}),
  Case(
    'circle_soft',
    'circle',
    circle_loops,
    {'margin': 0.25, 'scale': 4.0},
  ),
  Case('triplet', 'triplet_margin', triplet_loops, {}),
  Case(
    'triplet_mean',
    'triplet_margin',
    triplet_loops,
    {'margin': 0.3, 'reducer': 'mean'},
  ),
  Case(
    'triplet_semihard',
    'triplet_margin',
    triplet_loops,
    {'margin': 0.15, 'miner': SEMIHARD},
  ),
  Case('arcface', 'arcface', arcface_loops, {}),
  Case(
    'arcface_soft', 'arcface', arcface_loops, {'margin_deg': 60.0, 'scale': 3.0}
  ),
  Case('cosface', 'cosface', cosface_loops, {}),
)
CASES = {case.name: case for case in ROWS}
EACH = tuple((name, case) for name, case in CASES.items())


def is_pair(case):
  return losses.LOSSES[case.loss].kind == 'pair'


def make_inputs(case, batch=BATCH, seed=0):
  """Returns the differentiable inputs, {name: [rows, DIM]}, and the labels."""
  random = np.random.RandomState(seed)
  labels = random.randint(NUM_CLASSES, size=batch).astype(np.int32)
  centers = random.randn(NUM_CLASSES, DIM)
  x = 0.8 * centers[labels] + random.randn(batch, DIM)
  inputs = {'embeddings': jnp.asarray(x, jnp.float32)}
  if not is_pair(case):
    proxies = centers + 0.5 * random.randn(NUM_CLASSES, DIM)
    inputs['proxies'] = jnp.asarray(proxies, jnp.float32)
  return inputs, labels


@functools.cache
def compiled(name):
  case = CASES[name]

  def loss_fn(inputs, labels):
    return losses.compute(case.loss, labels=labels, **inputs, **case.hyper)

  return jax.jit(jax.value_and_grad(loss_fn))


def value_and_grad(case, inputs, labels):
  return compiled(case.name)(inputs, labels)


def loops_value(case, inputs, labels, frozen=None):
  """Returns the loss, and the matrix it was computed from."""
  x = {k: np.asarray(v, np.float64) for k, v in inputs.items()}
  x = {k: v / np.linalg.norm(v, axis=1, keepdims=True) for k, v in x.items()}
  if not is_pair(case):
    matrix = x['embeddings'] @ x['proxies'].T
    return case.loops(matrix, labels, **case.hyper), matrix
  matrix = x['embeddings'] @ x['embeddings'].T
  if losses.LOSSES[case.loss].matrix == 'euclidean':
    matrix = np.sqrt(np.maximum(2 - 2 * matrix, 0))
  same = labels[:, None] == labels[None, :]
  positives = same & ~np.eye(len(labels), dtype=bool)
  if frozen is None:
    frozen = matrix
  value = case.loops(matrix, positives, ~same, frozen, **case.hyper)
  return value, matrix


def loops_gradient(case, inputs, labels, step=1e-5):
  """Central differences of the loops, in float64."""
  frozen = loops_value(case, inputs, labels)[1]
  inputs = {k: np.asarray(v, np.float64) for k, v in inputs.items()}
  gradient = {k: np.zeros_like(v) for k, v in inputs.items()}
  for key, array in inputs.items():
    for index in np.ndindex(array.shape):
      sides = []
      for sign in (1, -1):
        moved = array.copy()
        moved[index] += sign * step
        moved = inputs | {key: moved}
        sides.append(loops_value(case, moved, labels, frozen)[0])
      gradient[key][index] = (sides[0] - sides[1]) / (2 * step)
  return gradient


def assert_close(actual, expected, rtol):
  """Compares trees, each leaf relative to its largest entry."""

  def compare(a, b):
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    np.testing.assert_allclose(a, b, atol=rtol * np.abs(b).max(), rtol=0)

  jax.tree.map(compare, actual, expected)


class ReferenceTest(parameterized.TestCase):
  @parameterized.named_parameters(*EACH)
  def test_value_and_gradient_are_those_of_the_loops(self, case):
    inputs, labels = make_inputs(case)
    value, gradient = value_and_grad(case, inputs, labels)
    expected, _ = loops_value(case, inputs, labels)
    self.assertGreater(expected, 0)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    assert_close(gradient, loops_gradient(case, inputs, labels), rtol=1e-4)

  @parameterized.named_parameters((name, name) for name in GOLDEN['cases'])
  def test_value_and_gradient_are_those_of_pml(self, name):
    row = GOLDEN['cases'][name]
    inputs = {k: jnp.asarray(GOLDEN[k], jnp.float32) for k in row['gradients']}
    arguments = {'labels': np.array(GOLDEN['labels'])} | row['arguments']
    if 'ref_embeddings' in inputs:
      arguments['ref_labels'] = np.array(GOLDEN['ref_labels'])

    def loss_fn(inputs):
      return losses.compute(row['loss'], **inputs, **arguments)

    value, gradient = jax.jit(jax.value_and_grad(loss_fn))(inputs)
    np.testing.assert_allclose(value, row['value'], rtol=2e-6)
    assert_close(
      gradient, jax.tree.map(np.array, row['gradients'], is_leaf=is_rows), 1e-5
    )

  @parameterized.named_parameters(
    (name, CASES[name]) for name in ('triplet', 'arcface', 'cosface')
  )
  def test_gradient_is_that_of_finite_differences(self, case):
    # Not for Circle, whose weights carry no gradient: the loops hold them.
    inputs, labels = make_inputs(case, batch=8)

    def loss_fn(inputs):
      return losses.compute(case.loss, labels=labels, **inputs, **case.hyper)

    check_grads(
      jax.jit(loss_fn),
      (inputs,),
      order=1,
      modes=['rev'],
      atol=1e-2,
      rtol=1e-2,
      eps=1e-3,
    )


def is_rows(x):
  return isinstance(x, list)


class PaddingAndDevicesTest(parameterized.TestCase):
  @parameterized.named_parameters(*EACH)
  def test_padding_equals_dropping_rows(self, case):
    inputs, labels = make_inputs(case)
    padded = np.array(labels)
    padded[[1, 7, 19]] = -1
    kept = padded >= 0
    value, gradient = value_and_grad(case, inputs, padded)
    self.assertEqual(np.abs(gradient['embeddings'][~kept]).max(), 0)
    gradient['embeddings'] = gradient['embeddings'][kept]
    inputs['embeddings'] = inputs['embeddings'][kept]
    expected, _ = loops_value(case, inputs, labels[kept])
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    expected = loops_gradient(case, inputs, labels[kept])
    assert_close(gradient, expected, rtol=1e-4)

  @parameterized.named_parameters(*EACH)
  def test_four_devices_equal_one(self, case):
    devices = jax.local_devices()[:4]
    self.assertLen(devices, 4)
    inputs, labels = make_inputs(case)
    # The last device has only padding, and one row of the first is padded.
    labels[[2, 15, 16, 17, 18, 19]] = -1
    expected = value_and_grad(case, inputs, labels)

    def loss_fn(inputs, labels):
      # Every device holds all rows and takes its own, so that the averaged
      # gradient is that of the whole batch.
      rows = BATCH // 4
      index = jax.lax.axis_index('batch')
      x = inputs['embeddings'].reshape(4, rows, DIM)[index]
      if is_pair(case):
        terms = losses.pair_terms(
          case.loss,
          x,
          labels,
          candidates=collectives.all_gather_rows(x, 'batch'),
          candidate_labels=collectives.all_gather_rows(labels, 'batch'),
          ids=collectives.row_ids(rows, 'batch'),
          candidate_ids=jnp.arange(BATCH, dtype=jnp.int32),
          **case.hyper,
        )
      else:
        cosines = arrays.proxy_cosines(x, inputs['proxies'])
        terms = losses.proxy_terms(case.loss, cosines, labels, **case.hyper)
      return losses.reduce_terms(terms, 'batch')[0]

    def step(inputs, labels):
      value, gradient = jax.value_and_grad(loss_fn)(inputs, labels)
      return value, collectives.pmean(gradient, 'batch')

    step = jax.pmap(step, axis_name='batch', in_axes=(None, 0), devices=devices)
    actual = jax.tree.map(np.asarray, step(inputs, labels.reshape(4, -1)))
    for leaf in jax.tree.leaves(actual):
      np.testing.assert_array_equal(leaf, np.broadcast_to(leaf[:1], leaf.shape))
    actual = jax.tree.map(lambda leaf: leaf[0], actual)
    np.testing.assert_allclose(actual[0], expected[0], rtol=1e-6)
    assert_close(actual[1], expected[1], rtol=1e-5)


def extreme(name, case, dtype):
  """Returns inputs and labels, and whether nothing valid is left."""
  inputs, labels = make_inputs(case)
  x = inputs['embeddings']
  nothing = False
  if name == 'identical':
    x = jnp.ones_like(x)
  elif name == 'opposite':
    signs = jnp.where(jnp.arange(BATCH) % 2, 1.0, -1.0)
    x = jnp.broadcast_to(signs[:, None] * x[:1], x.shape)
  elif name == 'zero':
    x = jnp.zeros_like(x)
  elif name == 'huge':
    x = 1e30 * x
  elif name == 'tiny':
    x = 1e-30 * x
  elif name == 'no_positives':
    labels[:] = np.where(np.arange(BATCH) < NUM_CLASSES, np.arange(BATCH), -1)
    nothing = is_pair(case)
  elif name == 'one_class':
    labels[:] = 0
    nothing = is_pair(case)
  elif name == 'all_padding':
    labels[:] = -1
    nothing = True
  elif name == 'one_row':
    labels[1:] = -1
    nothing = is_pair(case)
  elif name == 'on_the_center' and not is_pair(case):
    x = inputs['proxies'][labels]
  elif name == 'against_the_center' and not is_pair(case):
    x = -inputs['proxies'][labels]
  inputs['embeddings'] = x
  return jax.tree.map(lambda a: a.astype(dtype), inputs), labels, nothing


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
  @parameterized.product(
    case=tuple(CASES),
    dtype=('float32', 'bfloat16'),
  )
  def test_loss_and_gradient_are_finite(self, case, dtype):
    for name in EXTREMES:
      with self.subTest(name):
        inputs, labels, nothing = extreme(name, CASES[case], dtype)
        value, gradient = value_and_grad(CASES[case], inputs, labels)
        self.assertEqual(value.dtype, jnp.float32)
        self.assertTrue(np.isfinite(value), value)
        self.assertGreaterEqual(value, 0)
        for key, leaf in gradient.items():
          self.assertEqual(leaf.dtype, dtype)
          leaf = np.asarray(leaf, np.float32)
          self.assertTrue(np.isfinite(leaf).all(), key)
          if nothing:
            self.assertEqual(np.abs(leaf).max(initial=0), 0, key)
        if nothing:
          self.assertEqual(value, 0)

  @parameterized.named_parameters(*EACH)
  def test_nan_is_not_hidden(self, case):
    inputs, labels = make_inputs(case)
    inputs['embeddings'] = inputs['embeddings'].at[3, 0].set(jnp.nan)
    value, _ = value_and_grad(case, inputs, labels)
    self.assertTrue(np.isnan(value), value)

  @parameterized.named_parameters(*EACH)
  def test_bfloat16_embeddings_lose_only_their_own_rounding(self, case):
    inputs, labels = make_inputs(case)
    rounded = jax.tree.map(lambda a: a.astype(jnp.bfloat16), inputs)
    value, _ = value_and_grad(case, rounded, labels)
    exact = jax.tree.map(lambda a: a.astype(jnp.float32), rounded)
    expected, _ = value_and_grad(case, exact, labels)
    np.testing.assert_allclose(value, expected, rtol=1e-6)


class RegistryTest(parameterized.TestCase):
  def test_every_loss_has_a_case_and_recorded_values(self):
    self.assertSameElements(
      losses.LOSSES, {case.loss for case in CASES.values()}
    )
    self.assertSameElements(
      losses.LOSSES, {row['loss'] for row in GOLDEN['cases'].values()}
    )


if __name__ == '__main__':
  absltest.main()
