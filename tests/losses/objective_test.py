"""What the objective adds to a loss: sums, chunks, memory, views, weights."""

import dataclasses
import functools
import math
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from retrieval_jax import losses
from retrieval_jax.core import collectives
from retrieval_jax.core.errors import InputError
from retrieval_jax.losses import pair_terms as pair_terms_lib

RNG = np.random.default_rng(0)
X = RNG.normal(size=(12, 5)).astype(np.float32)
Y = np.array([0, 1, 2, 0, 1, 2, 0, 1, 3, 0, 1, 2], np.int32)
PROXIES = RNG.normal(size=(4, 5)).astype(np.float32)


def objective(options, **more):
  options = {'name': options} if isinstance(options, str) else options
  return losses.Objective(
    losses.parse(options), num_classes=4, embedding_dim=5, **more
  )


def compute(name, *arrays, **options):
  # Compiled whole: operation by operation takes five times as long.
  return jax.jit(functools.partial(losses.compute, name, **options))(*arrays)


def loss_of(target, x=X, labels=Y, state=None, **batch):
  def run(state, batch):
    return target(
      target.init_params(jax.random.key(0)),
      state,
      batch,
      proxies=jnp.asarray(PROXIES) if target.centers else None,
    )

  state = target.init_state() if state is None else state
  batch = losses.Batch(jnp.asarray(x), jnp.asarray(labels), **batch)
  return jax.jit(run)(state, batch)


class SumTest(parameterized.TestCase):
  def test_parts_are_added_by_weight_and_shown(self):
    options = {
      'name': 'weighted_sum',
      'parts': {
        'pairs': {'name': 'contrastive', 'weight': 0.5},
        'classes': {'name': 'cosface', 'weight': 2.0},
      },
    }
    found = loss_of(objective(options))
    pairs = compute('contrastive', X, Y)
    classes = compute('cosface', X, Y, proxies=PROXIES)
    np.testing.assert_allclose(found.loss, 0.5 * pairs + 2 * classes, rtol=1e-5)
    np.testing.assert_allclose(
      found.scalars['loss_classes'], classes, rtol=1e-5
    )
    terms = [
      value
      for name, value in found.scalars.items()
      if name.startswith('loss_pairs_')
    ]
    self.assertLen(terms, 2)
    np.testing.assert_allclose(sum(terms), pairs, rtol=1e-5)

  def test_class_weights_are_those_of_the_anchors(self):
    weights = (1.0, 0.5, 2.0, 0.0)
    value = compute('cosface', X, Y, proxies=PROXIES, class_weights=weights)
    each = jax.jit(
      jax.vmap(
        lambda x, y: losses.compute(
          'cosface', x[None], y[None], proxies=PROXIES
        )
      )
    )(X, Y)
    expected = np.mean(
      [w * v for w, v in zip(np.take(weights, Y), each, strict=True)]
    )
    np.testing.assert_allclose(value, expected, rtol=1e-5)

  def test_weights_of_classes_by_their_images(self):
    counts = np.array([1.0, 3.0, 0.0, 12.0])
    named = compute(
      'cosface',
      X,
      Y,
      proxies=PROXIES,
      class_weights='inverse_log',
      class_counts=counts,
    )
    weights = [1 / math.log(2), 1 / math.log(4), 0.0, 1 / math.log(13)]
    mean = sum(w * n for w, n in zip(weights, counts, strict=True)) / 16
    by_hand = compute(
      'cosface',
      X,
      Y,
      proxies=PROXIES,
      class_weights=tuple(w / mean for w in weights),
    )
    np.testing.assert_allclose(named, by_hand, rtol=1e-5)
    self.assertGreater(by_hand, 0.0)
    with self.assertRaisesRegex(InputError, 'needs class_counts'):
      losses.compute(
        'cosface', X, Y, proxies=PROXIES, class_weights='inverse_log'
      )

  def test_reducers_by_hand(self):
    # Rows of 2, 1 and 0 pairs above zero.
    terms = {
      'sum': 6.0,
      'mean': 1.0,
      'nonzero_mean': 2.0,
      'per_anchor': 1.0,
    }
    values = jnp.array([[1.0, 3.0], [2.0, 0.0], [0.0, 0.0]])
    valid = jnp.ones((3, 2), bool)
    for name, expected in terms.items():
      term = losses.terms.reduce_row(values, valid, name)
      loss, _ = losses.reduce_terms({'loss': term}, is_sum=name == 'sum')
      self.assertEqual(loss, expected, name)
    reducer = losses.Reducer('threshold', low=0.5, high=3.0)
    term = losses.terms.reduce_row(values, valid, reducer)
    self.assertEqual(losses.reduce_terms({'loss': term})[0], 1.5)


class ChunksTest(parameterized.TestCase):
  @parameterized.parameters(
    'contrastive',
    'ntxent',
    'smooth_ap',
    'triplet_margin',
    'recall_at_k',
  )
  def test_chunks_change_nothing(self, name):
    def value_and_grad(x):
      return jax.value_and_grad(lambda x: losses.compute(name, x, Y))(x)

    expected = jax.jit(value_and_grad)(X)
    # 12 x 12 pairs in chunks of 5 anchors, the last of them padded.
    with mock.patch.object(pair_terms_lib, 'MAX_PAIRS', 60):
      actual = jax.jit(lambda x: value_and_grad(x))(X)
    np.testing.assert_allclose(actual[0], expected[0], rtol=1e-5)
    np.testing.assert_allclose(actual[1], expected[1], atol=1e-5)

  def test_a_large_batch_needs_a_few_chunks_of_memory(self):
    """The peak is that of 16 MiB chunks, not of [B, B] matrices."""
    rows = 8192
    x = jax.ShapeDtypeStruct((rows, 16), jnp.float32)
    y = jax.ShapeDtypeStruct((rows,), jnp.int32)
    (part,) = losses.parse({'name': 'ntxent'})
    target = losses.Objective((part,), embedding_dim=16)

    def run(x, y):
      return target({}, {}, losses.Batch(x, y)).loss

    compiled = jax.jit(jax.value_and_grad(run)).lower(x, y).compile()
    peak = compiled.memory_analysis().temp_size_in_bytes
    self.assertLess(peak, 10 * 16 * 2**20)
    self.assertGreater(4 * rows * rows, 10 * 16 * 2**20)


class MemoryTest(parameterized.TestCase):
  def test_past_rows_are_candidates_without_gradient(self):
    target = objective('contrastive', memory_size=12)
    first = loss_of(target, X, Y)
    np.testing.assert_allclose(
      first.loss, compute('contrastive', X, Y), rtol=1e-6
    )
    later = X[::-1] + 0.1

    def run(x):
      return loss_of(target, x, Y, state=first.state, step=1).loss

    value, gradient = jax.jit(jax.value_and_grad(run))(later)
    # The same by hand: the batch against itself and the first batch.
    matrix = np.zeros((12, 24), bool)
    matrix[:, :12] = np.eye(12)

    def expected(x):
      both = jnp.concatenate([x, X])
      part = target.parts[0]
      d = part.distance.matrix(x, both)
      labels = np.concatenate([Y, Y])
      same = Y[:, None] == labels[None, :]
      terms = part.row.function(
        d,
        same & ~matrix,
        ~same & ~matrix,
        inverted=False,
        reducer='nonzero_mean',
      )
      return losses.reduce_terms(terms)[0]

    by_hand = jax.jit(jax.value_and_grad(expected))(jnp.asarray(later))
    np.testing.assert_allclose(value, by_hand[0], rtol=1e-5)
    np.testing.assert_allclose(gradient, by_hand[1], atol=1e-6)

  def test_warm_up_waits(self):
    target = objective('contrastive', memory_size=12, memory_warmup_steps=2)
    state, gaps = None, []
    for step in range(3):
      x = np.roll(X, step, axis=0)
      found = loss_of(target, x, Y, state=state, step=step)
      state = found.state
      gaps.append(abs(found.loss - compute('contrastive', x, Y)))
    np.testing.assert_allclose(gaps[:2], 0, atol=1e-5)
    self.assertGreater(gaps[2], 1e-3)

  def test_a_ring_keeps_the_latest(self):
    target = objective('contrastive', memory_size=15)
    state = None
    for step in range(3):
      labels = np.full(12, step, np.int32)
      found = loss_of(target, X + step, labels, state=state, step=step)
      state = found.state
    kept = np.asarray(state['memory']['labels'])
    self.assertEqual(np.bincount(kept).tolist(), [0, 3, 12])
    self.assertEqual(int(state['memory']['steps']), 3)

  def test_padding_is_never_remembered_as_a_class(self):
    target = objective('contrastive', memory_size=12)
    labels = np.where(np.arange(12) < 6, Y, -1)
    state = loss_of(target, X, labels).state
    found = loss_of(target, X, Y, state=state, step=1).loss
    dropped = objective('contrastive', memory_size=6)
    state = loss_of(dropped, X[:6], Y[:6]).state
    expected = loss_of(dropped, X, Y, state=state, step=1).loss
    np.testing.assert_allclose(found, expected, rtol=1e-6)

  def test_four_devices_equal_one(self):
    one = objective('multi_similarity', memory_size=20)
    four = dataclasses.replace(one, axis_name='batch')

    def run(target, x, labels, state, step):
      def loss_fn(x):
        found = target(
          {},
          state,
          losses.Batch(x, labels, step=step),
        )
        return found.loss, found.state

      return jax.value_and_grad(loss_fn, has_aux=True)(x)

    p_run = jax.pmap(
      lambda *args: run(four, *args),
      axis_name='batch',
      in_axes=(0, 0, None, None),
      devices=jax.local_devices()[:4],
    )
    run_one = jax.jit(functools.partial(run, one))
    state = p_state = one.init_state()
    for step in range(3):
      x = X + 0.3 * step
      (value, state), gradient = run_one(jnp.asarray(x), Y, state, step)
      (p_value, p_state), p_gradient = p_run(
        x.reshape(4, 3, 5), Y.reshape(4, 3), p_state, step
      )
      p_state = jax.tree.map(lambda leaf: leaf[0], p_state)
      np.testing.assert_allclose(p_value, np.full(4, value), rtol=1e-5)
      # Here a device's gradient is that of its own rows, times the devices.
      np.testing.assert_allclose(
        p_gradient.reshape(12, 5) / 4, gradient, atol=1e-6
      )
      jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6),
        p_state,
        state,
      )


class ViewsTest(parameterized.TestCase):
  def test_positives_are_views_of_one_image(self):
    options = {'name': 'ntxent', 'positives': 'image'}
    target = objective(options, num_views=2)
    labels = np.concatenate([Y[:6], Y[:6]])
    found = loss_of(target, X, labels).loss
    images = np.concatenate([np.arange(6), np.arange(6)])
    expected = compute('ntxent', X, images)
    np.testing.assert_allclose(found, expected, rtol=1e-6)

  def test_four_devices_equal_one(self):
    # Rows of a device: its share of the first views, then of the second.
    options = {'name': 'ntxent', 'positives': 'image'}
    images = np.arange(4)
    x = X[:8]
    value = loss_of(
      objective(options, num_views=2), x, np.concatenate([images, images])
    ).loss
    four = objective(options, num_views=2, axis_name='batch')
    shares = x.reshape(2, 4, 1, 5).swapaxes(0, 1).reshape(4, 2, 5)
    labels = np.tile(images[:, None], (1, 2))
    values = jax.pmap(
      lambda x, y: four({}, {}, losses.Batch(x, y)).loss,
      axis_name='batch',
      devices=jax.local_devices()[:4],
    )(shares, labels)
    np.testing.assert_allclose(values, np.full(4, value), rtol=1e-5)

  def test_vicreg_takes_the_views_apart(self):
    target = objective('vicreg', num_views=2)
    found = loss_of(target, X, np.concatenate([Y[:6], Y[:6]])).loss
    expected = compute('vicreg', X[:6], Y[:6], ref_embeddings=X[6:])
    np.testing.assert_allclose(found, expected, rtol=1e-5)


class RegularizersTest(parameterized.TestCase):
  def test_they_are_added_by_their_weight(self):
    plain = compute('cosface', X, Y, proxies=PROXIES)
    value = compute(
      'cosface',
      X,
      Y,
      proxies=PROXIES,
      embedding_regularizer='lp',
      embedding_reg_weight=0.1,
    )
    norms = np.linalg.norm(X, axis=1)
    np.testing.assert_allclose(value - plain, 0.1 * norms.mean(), rtol=1e-4)

  @parameterized.parameters(*sorted(losses.REGULARIZERS))
  def test_each_runs_from_options(self, name):
    kinds = losses.REGULARIZERS[name].kinds
    for kind, option in (
      ('embeddings', 'embedding_regularizer'),
      ('proxies', 'weight_regularizer'),
    ):
      if kind not in kinds:
        continue
      value = compute(
        'cosface',
        X,
        Y,
        proxies=np.repeat(PROXIES, 2, 0)
        + 0.1 * RNG.normal(size=(8, 5)).astype(np.float32),
        sub_centers=2,
        **{option: name},
      )
      self.assertTrue(np.isfinite(value))


class SumReducerOnDevicesTest(parameterized.TestCase):
  @parameterized.parameters(
    'contrastive', 'cosface', 'histogram', 'proxy_anchor'
  )
  def test_the_sum_is_that_of_one_device(self, name):
    options = {'name': name, 'reducer': 'sum'}
    value = loss_of(objective(options)).loss
    four = objective(options, axis_name='batch')
    values = jax.pmap(
      lambda x, y: (
        four({}, {}, losses.Batch(x, y), proxies=jnp.asarray(PROXIES)).loss
      ),
      axis_name='batch',
      devices=jax.local_devices()[:4],
    )(X.reshape(4, 3, 5), Y.reshape(4, 3))
    np.testing.assert_allclose(values, np.full(4, value), rtol=1e-5)


def test_collectives_say_how_many_devices_there_are():
  assert collectives.axis_size(None) == 1
  sizes = jax.pmap(
    lambda x: x * collectives.axis_size('batch'),
    axis_name='batch',
    devices=jax.local_devices()[:4],
  )(np.ones(4))
  np.testing.assert_array_equal(sizes, np.full(4, 4.0))


if __name__ == '__main__':
  absltest.main()
