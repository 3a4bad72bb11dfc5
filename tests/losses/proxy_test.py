"""What is particular to the softmax losses with a margin."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from retrieval_jax.core.errors import InputError
from retrieval_jax.losses.proxy import adacos as adacos_lib
from retrieval_jax.losses.proxy import margin_softmax, multiplicative_margin
from retrieval_jax.losses.proxy.margin_rows import LOSSES
from retrieval_jax.losses.proxy.norm_margin import adaface, magface
from retrieval_jax.losses.proxy.varied_margin import elasticface
from tests.compiling import compiled


def call(name, cosines, labels, norms=None, weights=None, **hyper):
  """Returns the terms of a loss, with what it needs filled in."""
  rows, num_classes = cosines.shape
  given = {
    'norms': jnp.full(rows, 20.0) if norms is None else norms,
    'proxy_norms': jnp.linspace(0.5, 2.0, num_classes),
    'class_counts': jnp.linspace(1.0, 50.0, rows),
    'row_keys': jax.random.split(jax.random.key(0), rows),
  }
  row = LOSSES[name]
  more = {need: given[need] for need in row.needs if need in given}
  if row.state is not None:
    more['state'] = row.state({}, num_classes, 8)
  if 'scale' not in row.hyperparameters:
    hyper.pop('scale', None)
  found = row.function(cosines, labels, weights=weights, **hyper, **more)
  return found if row.state is None else found[0]


def mean(terms):
  total = 0.0
  for values, counts in terms.values():
    count = jnp.sum(counts)
    total += jnp.sum(values) / jnp.where(count > 0, count, 1.0)
  return total


@functools.cache
def extreme(name, dtype='float32'):
  """Returns a compiled value and gradients of six rows and three classes."""

  def loss_fn(cosines, norms, labels, weights):
    terms = call(name, cosines, labels, norms, weights, scale=1000.0)
    return mean(terms)

  step = compiled(jax.value_and_grad(loss_fn, argnums=(0, 1)))
  return lambda cosines, *rest: step(np.asarray(cosines, dtype), *rest)


NORMS = np.float32([0.0, 1e30, 20.0, 30.0, 1.0, 50.0])
ONES = np.ones(6, np.float32)
ENDS = np.array([
  [1.0, -1.0, 1.0],
  [-1.0, 1.0, -1.0],
  [1.0000002, -1.0000002, 1.0000002],
  [-1.0000002, 1.0000002, -1.0000002],
  [1.0, 1.0, 1.0],
  [0.0, 0.0, 0.0],
])  # fmt: skip


class EdgesTest(parameterized.TestCase):
  @parameterized.parameters(
    *((name, 'float32') for name in sorted(LOSSES)),
    *((name, 'bfloat16') for name in ('arcface', 'cosface', 'sphereface')),
  )
  def test_value_and_gradient_are_finite_at_both_ends(self, name, dtype):
    labels = np.array([0, 0, 0, 0, 2, -1])
    value, gradients = extreme(name, dtype)(ENDS, NORMS, labels, ONES)
    self.assertTrue(np.isfinite(value))
    self.assertEqual(gradients[0].dtype, dtype)
    for gradient in gradients:
      self.assertTrue(np.isfinite(np.asarray(gradient, np.float32)).all())
    self.assertEqual(np.abs(np.asarray(gradients[0][-1], np.float32)).max(), 0)

  @parameterized.parameters(*sorted(LOSSES))
  def test_padding_alone_costs_nothing(self, name):
    labels = np.full(6, -1)
    value, gradients = extreme(name)(ENDS, NORMS, labels, ONES)
    self.assertEqual(value, 0)
    self.assertEqual(max(np.abs(g).max() for g in gradients), 0)

  @parameterized.parameters(*sorted(LOSSES))
  def test_a_nan_and_a_label_without_a_proxy_are_nan(self, name):
    step = extreme(name)
    labels = np.array([0, 1, 2, 0, 1, -1])
    nan = np.where(np.arange(6)[:, None] == 1, np.nan, ENDS)
    self.assertTrue(np.isnan(step(nan, NORMS, labels, ONES)[0]))
    labels[2] = 3
    self.assertTrue(np.isnan(step(ENDS, NORMS, labels, ONES)[0]))

  @parameterized.parameters(*sorted(set(LOSSES) - {'adacos', 'curricularface'}))
  def test_a_weight_of_zero_equals_leaving_the_row_out(self, name):
    random = np.random.RandomState(0)
    step = extreme(name)
    cosines = random.uniform(-0.9, 0.9, (6, 3))
    labels = np.array([0, 1, 2, 1, 0, 2])
    norms = np.full(6, 20, np.float32)
    weights = np.float32([1.0, 0.0, 2.0, 0.0, 1.0, 0.0])
    weighted, _ = step(cosines, norms, labels, weights)
    kept = np.where(weights > 0, labels, -1)
    dropped, _ = step(cosines, norms, kept, np.maximum(weights, 0.5))
    np.testing.assert_allclose(weighted, dropped, rtol=1e-6)

  @parameterized.parameters(
    'adacos', 'arcface', 'circle_classification', 'large_margin_softmax'
  )
  def test_a_single_class_costs_nothing(self, name):
    terms = compiled(functools.partial(call, name))(
      np.full((2, 1), 0.4, np.float32), np.array([0, 0])
    )
    self.assertEqual(terms['loss'][0].tolist(), [0, 0])
    self.assertEqual(terms['loss'][1].tolist(), [1, 1])

  @parameterized.parameters('arcface', 'cosface')
  def test_far_from_every_class_the_loss_is_still_exact(self, name):
    # All exponentials of 64 (c - 1) are 0 in float32.
    step = compiled(functools.partial(call, name, scale=256.0))
    terms = step(np.full((1, 4), -1, np.float32), np.array([2]))
    margin = {'arcface': math.radians(28.6), 'cosface': 0.35}[name]
    own = -1 - margin * (math.sin(margin) if name == 'arcface' else 1)
    expected = 256 * (-1 - own) + math.log(3)
    np.testing.assert_allclose(terms['loss'][0][0], expected, rtol=1e-5)

  @parameterized.parameters('adaface', 'arcface', 'cosface')
  def test_no_second_matrix_of_logits(self, name):
    rows, num_classes = 64, 4096

    def loss_fn(cosines, labels):
      return mean(call(name, cosines, labels))

    cosines = jax.ShapeDtypeStruct((rows, num_classes), jnp.float32)
    labels = jax.ShapeDtypeStruct((rows,), jnp.int32)
    step = jax.jit(jax.value_and_grad(loss_fn)).lower(cosines, labels)
    memory = step.compile().memory_analysis()
    # The gradient is the output; beside it there is room for vectors only.
    matrix = 4 * rows * num_classes
    self.assertLess(memory.temp_size_in_bytes, matrix / 2)


class TargetTest(parameterized.TestCase):
  def logits(self, loss, angles, **more):
    """Returns the own logits at a scale of 1, read off the loss."""
    # With one more class, at a cosine of 0, the loss is log(1 + e^-t).
    cosines = np.stack([np.cos(angles), np.zeros(len(angles))], axis=1)
    labels = np.zeros(len(angles), np.int32)
    step = compiled(functools.partial(loss, scale=1.0, **more))
    terms = step(cosines.astype(np.float32), labels)
    return -np.log(np.expm1(np.asarray(terms['loss'][0], np.float64)))

  @parameterized.parameters(28.6, 60.0, 90.0)
  def test_arcface_moves_the_angle_and_falls_with_it(self, margin_deg):
    margin = math.radians(margin_deg)
    angles = np.linspace(0, math.pi, 181)
    logits = self.logits(margin_softmax.arcface, angles, margin_deg=margin_deg)
    expected = np.where(
      angles <= math.pi - margin,
      np.cos(angles + margin),
      np.cos(angles) - margin * math.sin(margin),
    )
    # The angle that is on the edge may fall to either side of it.
    kept = np.abs(angles - (math.pi - margin)) > 1e-3
    np.testing.assert_allclose(logits[kept], expected[kept], atol=2e-5)
    self.assertLess(np.diff(logits[kept]).max(), 1e-5)

  @parameterized.parameters((1.0, 0.5), (2.0, 0.0), (1.35, 1.5), (4.0, 0.3))
  def test_combined_margin_falls_without_a_jump(self, m1, m2):
    angles = np.linspace(0, math.pi, 721)
    logits = self.logits(
      margin_softmax.combined_margin, angles, m1=m1, m2=m2, m3=0.0
    )
    steps = np.diff(logits)
    self.assertLess(steps.max(), 1e-4)
    self.assertGreater(steps.min(), -1.1 * m1 * math.pi / 720)

  def test_combined_margin_is_each_of_its_parts(self):
    thetas, norms = np.linspace(0.1, 2.5, 7), np.ones(7, np.float32)
    combined = functools.partial(
      self.logits, margin_softmax.combined_margin, thetas
    )
    pairs = (
      (
        combined(m1=1.0, m2=0.5, m3=0.0),
        self.logits(
          margin_softmax.arcface, thetas, margin_deg=math.degrees(0.5)
        ),
      ),
      (
        combined(m1=1.0, m2=0.0, m3=0.3),
        self.logits(margin_softmax.cosface, thetas, margin=0.3),
      ),
      (
        combined(m1=3.0, m2=0.0, m3=0.0),
        self.logits(
          multiplicative_margin.sphereface, thetas, margin=3, norms=norms
        ),
      ),
    )
    for found, expected in pairs:
      np.testing.assert_allclose(found, expected, atol=1e-5)

  @parameterized.parameters(1, 2, 3, 4, 7)
  def test_sphereface_falls_from_1_and_its_slope_at_the_ends_is_exact(self, m):
    def target(c):
      return multiplicative_margin._multiply_angle(c, m)

    cosines = np.cos(np.linspace(0, math.pi, 500)).astype(np.float32)
    falling, slopes = compiled(jax.vmap(jax.value_and_grad(target)))(cosines)
    self.assertEqual((cosines[0], cosines[-1]), (1, -1))
    self.assertLess(np.diff(falling).max(), 1e-5)
    ends, slopes = falling[[0, -1]], slopes[[0, -1]]
    np.testing.assert_allclose(ends, [1, 1 - 2 * m])
    np.testing.assert_allclose(slopes, [m * m, m * m], rtol=1e-5)

  def test_gradient_near_the_center_is_that_of_the_angle(self):
    # d cos(theta + m) / d cos(theta) = sin(theta + m) / sin(theta)
    def loss_fn(cosine):
      cosines = jnp.stack([cosine, jnp.zeros_like(cosine)])[None]
      labels = jnp.zeros(1, jnp.int32)
      terms = margin_softmax.arcface(cosines, labels, scale=1.0)
      return terms['loss'][0][0]

    derivative = compiled(jax.grad(loss_fn))
    margin = math.radians(28.6)
    for angle in (0.01, 0.1, 1.0):
      cosine = np.float32(math.cos(angle))
      exact = math.acos(float(cosine))
      gradient = derivative(cosine)
      own = math.cos(exact + margin)
      slope = math.sin(exact + margin) / math.sin(exact)
      expected = -slope / (1 + math.exp(own))
      np.testing.assert_allclose(gradient, expected, rtol=1e-4)

  def test_adaface_has_no_gradient_where_its_angle_is_clipped(self):
    # The longest embedding takes its margin off the angle, the shortest adds.
    cosines = np.float32([[math.cos(0.01), 0.2], [math.cos(3.1), 0.2]])
    state = {'mean': np.float32(20.0), 'std': np.float32(1.0)}

    def total(cosines):
      terms, _ = adaface(
        cosines,
        jnp.array([0, 0]),
        norms=jnp.array([90.0, 1.0]),
        state=state,
        decay=0.9,
        scale=1.0,
      )
      return jnp.sum(terms['loss'][0])

    gradient = compiled(jax.grad(total))(cosines)
    self.assertEqual(gradient[:, 0].tolist(), [0, 0])
    self.assertGreater(gradient[:, 1].min(), 0)


class StatisticsTest(absltest.TestCase):
  def test_adacos_follows_the_batch_within_bounds(self):
    step = compiled(adacos_lib.adacos)

    def after(cosines, scale):
      state = {'scale': np.float32(scale)}
      return step(np.float32(cosines), np.array([0, 1]), state=state)[1]

    state = adacos_lib.adacos_state({}, 2)
    self.assertEqual(float(state['scale']), 1)
    # Two classes far from each other: the logarithm is below 0.
    state = after([[0.9, -0.9], [-0.9, 0.9]], state['scale'])
    self.assertEqual(state['scale'], 1)
    # All alike: the scale would grow at each step.
    state = after(np.ones((2, 2)), 1000.0)
    self.assertEqual(state['scale'], 1000)
    state = after(np.full((2, 2), 0.5), 900.0)
    np.testing.assert_allclose(state['scale'], 450 * math.sqrt(2), rtol=1e-5)

  def test_a_nan_batch_leaves_the_statistics_as_they_were(self):
    cosines = np.full((2, 3), np.nan, np.float32)
    for name in ('adacos', 'adaface', 'curricularface'):
      row = LOSSES[name]
      state = row.state({}, 3, 8)
      more = {'norms': cosines[:, 0]} if 'norms' in row.needs else {}
      terms, after = compiled(row.function)(
        cosines, np.array([0, 1]), state=state, **more
      )
      self.assertTrue(np.isnan(terms['loss'][0]).all())
      self.assertEqual(jax.tree.map(float, after), jax.tree.map(float, state))

  def test_elasticface_plus_gives_the_largest_margin_to_the_farthest(self):
    cosines = np.stack([np.linspace(0.9, -0.2, 8), np.zeros(8)], axis=1)
    labels = np.array([0, 0, 0, -1, 0, 0, 0, 0])
    keys = jax.random.split(jax.random.key(1), 8)
    margins = {}
    for plus in (False, True):
      step = functools.partial(
        elasticface, base='cos', margin=1.0, sigma=0.2, plus=plus, scale=1.0
      )
      terms = compiled(step)(np.float32(cosines), labels, row_keys=keys)
      own = -np.log(np.expm1(np.delete(terms['loss'][0], 3)))
      margins[plus] = np.delete(cosines[:, 0], 3) - own
    self.assertGreater(np.diff(margins[True]).min(), 0)
    np.testing.assert_allclose(
      margins[True], np.sort(margins[False]), rtol=1e-4
    )

  def test_magface_pulls_the_length_up_and_its_margin_down(self):
    def parts(norms):
      terms = magface(
        jnp.array([[0.7, 0.6]]), jnp.array([0]), norms=norms, scale=8.0
      )
      return jnp.stack([terms[k][0][0] for k in ('loss', 'magnitude')])

    derivative = compiled(jax.jacobian(parts))
    jacobian = derivative(np.float32([50.0]))[:, 0]
    self.assertGreater(jacobian[0], 0)
    self.assertLess(jacobian[1], 0)
    beyond = derivative(np.float32([500.0]))[:, 0]
    self.assertEqual(beyond.tolist(), [0, 0])

  def test_magface_says_that_its_bounds_are_the_wrong_way_round(self):
    with self.assertRaisesRegex(InputError, 'norm_max is 5.0'):
      magface(
        jnp.zeros((1, 2)), jnp.array([0]), norms=jnp.ones(1), norm_max=5.0
      )

  def test_dynamic_margin_lies_between_its_bounds(self):
    cosines = np.zeros((3, 2), np.float32)
    step = compiled(functools.partial(call, 'dynamic_margin', scale=1.0))
    found = step(cosines, np.array([0, 0, -1]))['loss'][0]
    # cos(90 degrees + m) = -sin m, against a cosine of 0.
    most, least = (math.log1p(math.exp(math.sin(m))) for m in (0.5, 0.05))
    np.testing.assert_allclose(found[0], most, rtol=1e-6)
    self.assertBetween(found[1], least, most - 1e-3)


if __name__ == '__main__':
  absltest.main()
