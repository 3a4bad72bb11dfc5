"""A head whose classes are shared out equals the head that has them all."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from retrieval_jax.core import arrays, class_shards, collectives
from retrieval_jax.losses.proxy import softmax

AXIS = 'devices'
ROWS, DIM = 8, 5


def plain_softmax(cosines, labels, **kwargs):
  return softmax.softmax_terms(
    5.0 * cosines,
    labels,
    5.0 * softmax.own_cosines(cosines, labels, kwargs['shard']),
    **kwargs,
  )


def arcface(cosines, labels, **kwargs):
  def target(c):
    sine = jnp.sqrt(jnp.maximum(1 - c * c, 1e-6))
    return c * math.cos(0.5) - sine * math.sin(0.5)

  return softmax.margin_softmax(cosines, labels, target, 16.0, **kwargs)


def margin_on_others(cosines, labels, **kwargs):
  own = softmax.own_cosines(cosines, labels, kwargs['shard'])
  logits = jnp.where(cosines > own[:, None] - 0.1, 1.2 * cosines, cosines)
  return softmax.softmax_terms(9.0 * logits, labels, 9.0 * own, **kwargs)


def smoothed(cosines, labels, **kwargs):
  return softmax.margin_softmax(
    cosines, labels, lambda c: c - 0.3, 16.0, label_smoothing=0.3, **kwargs
  )


LOSSES = {
  f.__name__: f for f in (plain_softmax, arcface, margin_on_others, smoothed)
}


def make_batch(num_classes, sub_centers=1, seed=0):
  random = np.random.default_rng(seed)
  return {
    'embeddings': random.normal(size=(ROWS, DIM)).astype(np.float32),
    'labels': random.integers(0, num_classes, (ROWS, 2)).astype(np.int32),
    'weights': random.uniform(0.1, 1, ROWS).astype(np.float32),
    'proxies': random.normal(size=(num_classes * sub_centers, DIM)).astype(
      np.float32
    ),
  }


def device_loss(inputs, rows, key, loss, axis_name, **options):
  """The loss of two labels a row, of this device's rows and classes."""
  embeddings, proxies = inputs
  embeddings, (labels, weights) = collectives.all_gather_rows(
    (embeddings, rows), axis_name
  )
  columns = class_shards.select_columns(
    proxies, labels, axis_name=axis_name, key=key, **options
  )
  sub_centers = options['sub_centers']
  cosines = arrays.proxy_cosines(embeddings, columns.proxies, sub_centers)
  first, second = (
    LOSSES[loss](
      cosines, columns.labels[:, i], weights=share, shard=columns.shard
    )['loss']
    for i, share in enumerate((weights, 1 - weights))
  )
  values, counts = jax.tree.map(jnp.add, first, second)
  scalars = [
    class_shards.top_k_accuracy(cosines, columns.labels[:, 0], k, columns.shard)
    for k in (1, 2, 5)
  ]
  return collectives.masked_mean(values, counts, axis_name), jnp.array(scalars)


@functools.cache
def compiled(loss, num_devices, **options):
  function = functools.partial(
    device_loss, loss=loss, axis_name=AXIS, **options
  )
  return jax.pmap(
    jax.value_and_grad(function, has_aux=True),
    AXIS,
    in_axes=(0, 0, None),
    devices=jax.devices()[:num_devices],
  )


def run(batch, loss, num_devices, num_classes, sub_centers=1, rate=1.0, step=0):
  """Returns (loss, accuracies, gradients of embeddings and proxies)."""

  def split(x):
    return x.reshape(num_devices, -1, *x.shape[1:])

  room = class_shards.classes_per_shard(num_classes, num_devices) * sub_centers
  proxies = batch['proxies']
  padding = num_devices * room - len(proxies)
  padded = np.pad(proxies, ((0, padding), (0, 0)))
  step = compiled(
    loss,
    num_devices,
    num_classes=num_classes,
    sub_centers=sub_centers,
    rate=rate,
  )(
    (split(batch['embeddings']), split(padded)),
    (split(batch['labels']), split(batch['weights'])),
    jax.random.fold_in(jax.random.key(7), step),
  )
  (values, accuracies), (embedding_gradient, proxy_gradient) = jax.device_get(
    step
  )
  # Alike on all devices, to the bit.
  assert all(np.array_equal(v, values[0], equal_nan=True) for v in values)
  assert all(np.array_equal(a, accuracies[0]) for a in accuracies)
  proxy_gradient = proxy_gradient.reshape(padded.shape) / num_devices
  assert not np.any(proxy_gradient[len(proxies) :])
  return (
    values[0],
    accuracies[0],
    embedding_gradient.reshape(-1, DIM) / num_devices,
    proxy_gradient[: len(proxies)],
  )


def unsharded(batch, loss, num_classes, sub_centers=1):
  """The same without any of the sharding's code."""

  def loss_fn(embeddings, proxies):
    cosines = arrays.proxy_cosines(embeddings, proxies, sub_centers)
    labels, weights = batch['labels'], batch['weights']
    first, second = (
      LOSSES[loss](
        cosines, jnp.asarray(labels[:, i]), weights=share, shard=None
      )['loss']
      for i, share in enumerate((weights, 1 - weights))
    )
    return collectives.masked_mean(*jax.tree.map(jnp.add, first, second))

  return jax.jit(jax.value_and_grad(loss_fn, argnums=(0, 1)))(
    batch['embeddings'], batch['proxies']
  )


# Ten classes leave the last of four devices with one and two rows of padding,
# five classes leave it with nothing.
@pytest.mark.parametrize(
  'loss, num_classes, sub_centers',
  [
    ('plain_softmax', 10, 1),
    ('arcface', 10, 3),
    ('arcface', 5, 1),
    ('margin_on_others', 10, 1),
    ('smoothed', 10, 3),
    ('smoothed', 5, 1),
  ],
)
def test_four_devices_equal_the_unsharded_head(loss, num_classes, sub_centers):
  batch = make_batch(num_classes, sub_centers)
  # A padded row, and a second label that is padding alone.
  batch['labels'][3] = -1
  batch['labels'][5, 1] = -1
  value, _, embedding_gradient, proxy_gradient = run(
    batch, loss, 4, num_classes, sub_centers
  )
  expected, gradients = unsharded(batch, loss, num_classes, sub_centers)
  np.testing.assert_allclose(value, expected, rtol=1e-5)
  np.testing.assert_allclose(embedding_gradient, gradients[0], atol=1e-5)
  np.testing.assert_allclose(proxy_gradient, gradients[1], atol=1e-5)
  assert np.abs(proxy_gradient).max() > 1e-3


@pytest.mark.parametrize('num_devices', [1, 4])
def test_a_class_that_does_not_exist_is_nan(num_devices):
  batch = make_batch(10)
  # On four devices it is a row of padding.
  batch['labels'][0, 0] = 10
  value, *_ = run(batch, 'plain_softmax', num_devices, 10)
  assert np.isnan(value)


def test_only_padding_is_zero_with_a_gradient_of_zero():
  batch = make_batch(10)
  batch['labels'][:] = -1
  value, accuracies, *gradients = run(batch, 'plain_softmax', 4, 10)
  assert value == 0
  assert not accuracies.any()
  for gradient in gradients:
    assert not gradient.any()


@pytest.mark.parametrize('num_devices', [1, 4])
def test_accuracies_equal_a_count(num_devices):
  batch = make_batch(10, seed=3)
  batch['labels'][2] = -1
  _, accuracies, *_ = run(batch, 'plain_softmax', num_devices, 10)
  rows, proxies = (
    x / np.linalg.norm(x, axis=1, keepdims=True)
    for x in (batch['embeddings'], batch['proxies'])
  )
  labels = batch['labels'][:, 0]
  order = np.argsort(-(rows @ proxies.T), axis=1)
  for k, accuracy in zip((1, 2, 5), accuracies, strict=True):
    found = [labels[i] in order[i, :k] for i in range(ROWS) if i != 2]
    np.testing.assert_allclose(accuracy, np.mean(found), rtol=1e-6)


def test_a_collapsed_model_has_an_accuracy_of_zero_on_any_number_of_devices():
  batch = make_batch(10)
  batch['proxies'][:] = 1.0
  _, accuracies, *_ = run(batch, 'plain_softmax', 4, 10)
  assert not accuracies.any()


def test_sampled_classes_give_the_softmax_over_them():
  num_classes = 101
  batch = make_batch(num_classes)
  value, _, embedding_gradient, proxy_gradient = run(
    batch, 'plain_softmax', 4, num_classes, rate=0.7
  )
  taken = np.flatnonzero(np.abs(proxy_gradient).sum(axis=1))
  # 18 of each 26 classes there is room for, of which the last device has 23.
  assert len(taken) == 4 * 18
  assert set(batch['labels'].ravel()) <= set(taken)
  part = batch | {
    'proxies': batch['proxies'][taken],
    'labels': np.searchsorted(taken, batch['labels']),
  }
  expected, gradients = unsharded(part, 'plain_softmax', len(taken))
  np.testing.assert_allclose(value, expected, rtol=1e-5)
  np.testing.assert_allclose(embedding_gradient, gradients[0], atol=1e-5)
  np.testing.assert_allclose(proxy_gradient[taken], gradients[1], atol=1e-5)


def test_another_step_and_another_device_draw_other_classes():
  num_classes = 100
  batch = make_batch(num_classes)
  batch['labels'][:] = 0
  drawn = [
    np.abs(run(batch, 'plain_softmax', 4, num_classes, rate=0.7, step=step)[3])
    .sum(axis=1)
    .astype(bool)
    .reshape(4, 25)
    for step in (0, 0, 1)
  ]
  np.testing.assert_array_equal(drawn[0], drawn[1])
  assert (drawn[0] != drawn[2]).any(axis=1).all()
  assert (drawn[0][1] != drawn[0][2]).any()


def test_every_class_is_drawn_as_often_as_any_other():
  labels = jnp.array([4, -1, 12, 4])
  keys = jax.random.split(jax.random.key(0), 2000)
  drawn = jax.jit(
    jax.vmap(lambda key: class_shards.sample_classes(labels, 12, 10, 5, key))
  )(keys)
  assert (np.diff(drawn, axis=1) > 0).all()
  often = np.bincount(np.ravel(drawn), minlength=12) / len(keys)
  assert often[4] == 1
  np.testing.assert_array_equal(often[10:], 0)
  np.testing.assert_allclose(np.delete(often[:10], 4), 4 / 9, atol=0.04)


def test_all_classes_of_the_batch_are_taken_though_the_rate_is_small():
  batch = make_batch(1000)
  value, accuracies, *_ = run(batch, 'arcface', 4, 1000, rate=1e-3)
  assert np.isfinite(value)
  assert accuracies[2] >= 0


def test_no_array_of_all_rows_and_all_classes_is_made():
  rows, num_classes, dim, rate = 64, 40_000, 4, 0.1

  def loss_fn(embeddings, proxies, labels, key):
    columns = class_shards.select_columns(
      proxies,
      labels,
      axis_name=None,
      num_classes=num_classes,
      rate=rate,
      key=key,
    )
    cosines = arrays.proxy_cosines(embeddings, columns.proxies)
    terms = softmax.margin_softmax(
      cosines, columns.labels, lambda c: c - 0.3, 64.0, shard=columns.shard
    )
    return collectives.masked_mean(*terms['loss'])

  step = jax.jit(jax.value_and_grad(loss_fn, argnums=(0, 1))).lower(
    jax.ShapeDtypeStruct((rows, dim), jnp.float32),
    jax.ShapeDtypeStruct((num_classes, dim), jnp.float32),
    jax.ShapeDtypeStruct((rows,), jnp.int32),
    jax.random.key(0),
  )
  temporary = step.compile().memory_analysis().temp_size_in_bytes
  assert temporary < 4 * rows * num_classes / 2
