"""Sharded leaves go to the devices and back, and count once in a norm."""

import functools
import os
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

from retrieval_jax.training import optim, sharding

AXIS = 'batch'
# On four devices three classes each, and two rows of padding on the last.
CLASSES = sharding.ClassSharding(AXIS, num_classes=10, sub_centers=2)
CONFIG = {
  'name': 'adamw',
  'learning_rate': 0.1,
  'weight_decay': 0.01,
  'clip_norm': 0.5,
  'head_learning_rate_multiplier': 3.0,
  'backbone_learning_rate_multiplier': 1.0,
  'layer_decay': 1.0,
  'frozen': (),
  'head_only_steps': 0,
  'accumulate_steps': 1,
}


def make_params(seed=0):
  random = np.random.default_rng(seed)
  return {
    'embedder': {'kernel': random.normal(size=(3, 4)).astype(np.float32)},
    'head': {'proxies': random.normal(size=(20, 3)).astype(np.float32)},
  }


def place(tree):
  """What `state.replicate` does with a class-sharded head."""
  devices = sharding.device_axis(AXIS)

  def put(path, leaf):
    if sharding.is_class_sharded(path):
      return sharding.split(leaf, CLASSES)
    leaf = np.asarray(leaf)
    return jax.device_put(np.broadcast_to(leaf, (4, *leaf.shape)), devices)

  return jax.tree.map_with_path(put, tree)


def test_split_and_merge_are_inverse():
  leaf = make_params()['head']['proxies']
  parts = sharding.split(leaf, CLASSES)
  assert parts.shape == (4, 6, 3)
  np.testing.assert_array_equal(parts[2], leaf[12:18])
  np.testing.assert_array_equal(parts[3, :2], leaf[18:])
  np.testing.assert_array_equal(parts[3, 2:], 0)
  merged = sharding.merge(parts, CLASSES)
  np.testing.assert_array_equal(merged, leaf)
  assert merged.dtype == leaf.dtype


def test_a_device_holds_its_part_alone():
  leaf = np.zeros((20, 3), np.float32)
  for part in sharding.split(leaf, CLASSES).addressable_shards:
    assert part.data.nbytes == 6 * 3 * 4


def test_fewer_classes_than_devices():
  classes = sharding.ClassSharding(AXIS, num_classes=2)
  leaf = np.arange(6, dtype=np.float32).reshape(2, 3)
  parts = sharding.split(leaf, classes)
  assert parts.shape == (4, 1, 3)
  np.testing.assert_array_equal(sharding.merge(parts, classes), leaf)


def test_a_pmapped_step_keeps_the_placement_that_split_gives():
  parts = sharding.split(make_params()['head']['proxies'], CLASSES)
  after = jax.pmap(lambda x: 2 * x, AXIS)(parts)
  assert after.sharding.is_equivalent_to(parts.sharding, parts.ndim)
  np.testing.assert_array_equal(
    sharding.merge(after, CLASSES), 2 * make_params()['head']['proxies']
  )


@pytest.mark.parametrize('shape', [(), (19, 3), (3,)])
def test_a_leaf_with_other_rows_is_an_error(shape):
  with pytest.raises(ValueError, match='20 proxies'):
    sharding.split(np.zeros(shape), CLASSES)


@pytest.mark.parametrize('name', optim.OPTIMIZERS)
def test_what_the_optimizer_keeps_for_the_proxies_is_sharded(name):
  optimizer = optim.make_optimizer(CONFIG | {'name': name}, lambda _: 0.1)
  params = make_params()
  state = {'params': params, 'opt_state': optimizer.init(params)}
  for path, leaf in jax.tree.leaves_with_path(state):
    assert sharding.is_class_sharded(path) == (jnp.shape(leaf) == (20, 3))


def test_a_shard_has_its_gradient_once():
  # Of sum_d sum(w p_d) with w on every device and p_d the parts of p.
  def loss_fn(params, factor):
    own = factor * jnp.sum(params['head']['proxies'])
    return lax.psum(params['embedder']['kernel'] * own, AXIS)

  def step(params, factor):
    gradients = jax.grad(loss_fn)(params, factor)
    return sharding.mean_gradients(gradients, AXIS, AXIS)

  params = {
    'embedder': {'kernel': jnp.full(4, 2.0)},
    'head': {'proxies': jnp.arange(8.0).reshape(4, 2)},
  }
  gradients = jax.pmap(step, AXIS)(params, jnp.arange(1.0, 5.0))
  proxies = gradients['head']['proxies']
  np.testing.assert_allclose(proxies[:, 0], 2 * np.arange(1.0, 5.0))
  expected = sum((d + 1) * (4 * d + 1) for d in range(4))
  np.testing.assert_allclose(gradients['embedder']['kernel'], expected)


def test_without_a_sharded_head_every_gradient_is_a_mean():
  gradients = {'head': {'proxies': jnp.arange(4.0)}}
  mean = jax.pmap(lambda g: sharding.mean_gradients(g, AXIS), AXIS)(gradients)
  np.testing.assert_array_equal(mean['head']['proxies'], 1.5)


def test_the_global_norm_is_that_of_the_whole_tree():
  tree = make_params()
  expected = optax.tree.norm(tree)
  np.testing.assert_allclose(sharding.global_norm(tree), expected, rtol=1e-6)
  norm = functools.partial(sharding.global_norm, shard_axis=AXIS)
  found = np.asarray(jax.pmap(norm, AXIS)(place(tree)))
  np.testing.assert_allclose(found, expected, rtol=1e-6)
  assert len(set(found.tolist())) == 1


@pytest.mark.parametrize('name', ['embedder', 'head'])
@pytest.mark.parametrize('value', [np.nan, np.inf])
def test_one_bad_number_on_one_device_is_seen_by_all(name, value):
  finite = jax.pmap(
    functools.partial(sharding.all_finite, shard_axis=AXIS), AXIS
  )
  tree = make_params()
  assert finite(place(tree)).all()
  next(iter(tree[name].values()))[1] = value
  assert not finite(place(tree)).any()


@pytest.mark.parametrize('clip_norm', [0.5, 1e6])
def test_two_clipped_steps_equal_the_unsharded_ones(clip_norm):
  config = CONFIG | {'clip_norm': clip_norm}
  params, gradients = make_params(), [make_params(1), make_params(2)]

  def steps(params, gradients, shard_axis):
    optimizer = optim.make_optimizer(config, lambda _: 0.1, shard_axis)
    state = optimizer.init(params)
    for gradient in gradients:
      updates, state = optimizer.update(gradient, state, params)
      params = optax.apply_updates(params, updates)
    return params

  expected = steps(jax.tree.map(jnp.asarray, params), gradients, None)
  found = jax.pmap(functools.partial(steps, shard_axis=AXIS), AXIS)(
    place(params), [place(gradient) for gradient in gradients]
  )
  proxies = sharding.merge(found['head']['proxies'], CLASSES)
  np.testing.assert_allclose(proxies, expected['head']['proxies'], atol=1e-6)
  kernels = np.asarray(found['embedder']['kernel'])
  np.testing.assert_array_equal(kernels, kernels[:1].repeat(4, axis=0))
  np.testing.assert_allclose(
    kernels[0], expected['embedder']['kernel'], atol=1e-6
  )


def test_a_row_that_was_not_sampled_moves_by_momentum_and_shrinks():
  # As `optim.make_optimizer` says.
  config = CONFIG | {'name': 'sgd', 'clip_norm': None, 'weight_decay': 0.5}
  optimizer = optim.make_optimizer(config, lambda _: 0.1)
  params = {'head': {'proxies': jnp.ones((2, 1))}}
  state = optimizer.init(params)
  for gradient, expected in (([1.0, 0.0], [2.4, 0.5]), ([0, 0], [1.31, 0.5])):
    gradients = {'head': {'proxies': jnp.array(gradient)[:, None]}}
    updates, state = optimizer.update(gradients, state, params)
    moved = -updates['head']['proxies'][:, 0] / (0.1 * 3.0)
    np.testing.assert_allclose(moved, expected, rtol=1e-6)


_PROCESS = """
import sys
import jax
import numpy as np
from retrieval_jax.training import distributed, sharding

distributed.initialize(f'localhost:{sys.argv[1]}', 2, int(sys.argv[2]))
sharding._BLOCK_BYTES = 4 * 3 * 4 * 2  # Two rows of each part at a time.
classes = sharding.ClassSharding('batch', 10, 2)
leaf = np.arange(60, dtype=np.float32).reshape(20, 3)
parts = sharding.split(leaf, classes)
assert parts.shape == (2, 6, 3), parts.shape


def tag(part):
  # Six rows a device, from its place on the axis on.
  return part + 100 * jax.lax.axis_index('batch')


merged = sharding.merge(jax.pmap(tag, 'batch')(parts), classes)
np.testing.assert_array_equal(
  merged, leaf + 100 * (np.arange(20) // 6)[:, None]
)
print('merged')
"""


@pytest.mark.slow
def test_two_processes_split_and_merge():
  with socket.socket() as listener:
    listener.bind(('localhost', 0))
    port = listener.getsockname()[1]
  together = [
    subprocess.Popen(
      [sys.executable, '-c', _PROCESS, str(port), str(process)],
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
      env=os.environ | {'JAX_NUM_CPU_DEVICES': '2'},
    )
    for process in range(2)
  ]
  for process in together:
    output = process.communicate(timeout=300)[0]
    assert process.returncode == 0, output
    assert 'merged' in output
