"""The optimizers do what their config says, against worked values."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from retrieval_jax.core.errors import InputError
from retrieval_jax.training import optim

_CONFIG = {
  'name': 'adamw',
  'learning_rate': 0.1,
  'warmup_steps': 4,
  'schedule': 'cosine',
  'weight_decay': 0.0,
  'clip_norm': None,
  'head_learning_rate_multiplier': 1.0,
  'backbone_learning_rate_multiplier': 1.0,
  'layer_decay': 1.0,
  'frozen': (),
  'head_only_steps': 0,
  'accumulate_steps': 1,
}


def _params():
  return {
    'embedder': {'kernel': jnp.full((2, 2), 2.0), 'bias': jnp.full(2, 2.0)},
    'head': {'proxies': jnp.full((3, 2), 2.0)},
  }


def _updates(gradient=1.0, **changes):
  config = _CONFIG | changes
  optimizer = optim.make_optimizer(config, lambda step: 0.1)
  params = _params()
  gradients = jax.tree.map(lambda leaf: jnp.full_like(leaf, gradient), params)
  updates, _ = optimizer.update(gradients, optimizer.init(params), params)
  return updates


def test_warmup_then_cosine():
  schedule = optim.make_schedule(_CONFIG, 12)
  steps = np.arange(13)
  expected = np.where(
    steps < 4, 0.1 * steps / 4, 0.05 * (1 + np.cos(np.pi * (steps - 4) / 8))
  )
  np.testing.assert_allclose(
    [schedule(step) for step in steps], expected, atol=1e-7
  )


def test_constant_and_short_runs():
  constant = optim.make_schedule(_CONFIG | {'schedule': 'constant'}, 12)
  np.testing.assert_allclose(constant(12), 0.1, rtol=1e-6)
  short = optim.make_schedule(_CONFIG, 2)
  assert 0 < short(1) < 0.1
  none = optim.make_schedule(_CONFIG | {'warmup_steps': 0}, 10)
  np.testing.assert_allclose(none(0), 0.1, rtol=1e-6)


def test_first_adam_step_is_the_learning_rate():
  for leaf in jax.tree.leaves(_updates()):
    np.testing.assert_allclose(leaf, -0.1, rtol=1e-5)


def test_weight_decay_leaves_biases_alone():
  updates = _updates(weight_decay=0.5)
  np.testing.assert_allclose(updates['embedder']['bias'], -0.1, rtol=1e-5)
  np.testing.assert_allclose(
    updates['embedder']['kernel'], -0.1 * (1 + 0.5 * 2), rtol=1e-5
  )


def test_head_multiplier_is_for_the_head():
  updates = _updates(head_learning_rate_multiplier=10.0)
  np.testing.assert_allclose(updates['head']['proxies'], -1.0, rtol=1e-5)
  np.testing.assert_allclose(updates['embedder']['kernel'], -0.1, rtol=1e-5)


def _deep_params():
  backbone = {f'conv_{i}': {'kernel': jnp.full((2, 2), 2.0)} for i in range(2)}
  return {
    'embedder': {'backbone': backbone, 'projection': jnp.full((2, 2), 3.0)},
    'head': {'proxies': jnp.full((3, 2), 2.0)},
  }


def _run(optimizer, params, gradients):
  """Returns the parameters after each of some updates."""

  @jax.jit
  def update(params, state, gradient):
    updates, state = optimizer.update(gradient, state, params)
    return optax.apply_updates(params, updates), state

  state, found = optimizer.init(params), []
  for gradient in gradients:
    params, state = update(params, state, gradient)
    found.append(params)
  return found


def _gradients(params, count, seed=0):
  rng = np.random.default_rng(seed)
  return [
    jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape)), params)
    for _ in range(count)
  ]


def _assert_close(one, other, **tolerance):
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, **tolerance), one, other
  )


def test_learning_rates_by_depth():
  config = _CONFIG | {
    'layer_decay': 0.5,
    'backbone_learning_rate_multiplier': 0.1,
    'head_learning_rate_multiplier': 10.0,
  }
  params = _deep_params()
  optimizer = optim.make_optimizer(
    config, lambda step: 0.1, layers=[r'conv_(\d+)/.*']
  )
  ones = jax.tree.map(jnp.ones_like, params)
  (after,) = _run(optimizer, params, [ones])
  moved = jax.tree.map(lambda a, b: float((b - a).ravel()[0]), after, params)
  layers = moved['embedder']['backbone']
  np.testing.assert_allclose(layers['conv_0']['kernel'], 0.0025, rtol=1e-3)
  np.testing.assert_allclose(layers['conv_1']['kernel'], 0.005, rtol=1e-3)
  np.testing.assert_allclose(moved['embedder']['projection'], 0.1, rtol=1e-3)
  np.testing.assert_allclose(moved['head']['proxies'], 1.0, rtol=1e-3)


def test_what_is_frozen_stays_and_has_no_state():
  config = _CONFIG | {'frozen': ('backbone/.*',), 'weight_decay': 0.5}
  params = _deep_params()
  optimizer = optim.make_optimizer(config, lambda step: 0.1)
  found = _run(optimizer, params, _gradients(params, 2))[-1]
  jax.tree.map(
    np.testing.assert_array_equal,
    found['embedder']['backbone'],
    params['embedder']['backbone'],
  )
  plain = optim.make_optimizer(_CONFIG | {'weight_decay': 0.5}, lambda _: 0.1)
  other = _run(plain, params, _gradients(params, 2))[-1]
  _assert_close(found['head'], other['head'], rtol=1e-6)
  sizes = [leaf.size for leaf in jax.tree.leaves(optimizer.init(params))]
  assert sum(size for size in sizes if size > 1) == 2 * (4 + 6)


def test_the_backbone_starts_later_as_if_fresh():
  config = _CONFIG | {'head_only_steps': 3, 'weight_decay': 0.1}
  schedule = optim.make_schedule(config, 12)
  params, gradients = _deep_params(), _gradients(_deep_params(), 8)
  found = _run(optim.make_optimizer(config, schedule), params, gradients)
  for after in found[:3]:
    np.testing.assert_array_equal(
      after['embedder']['backbone']['conv_1']['kernel'],
      params['embedder']['backbone']['conv_1']['kernel'],
    )
  # The rest trains as ever; the backbone from step 3 on, warming up over 4.
  usual = _run(
    optim.make_optimizer(config | {'head_only_steps': 0}, schedule),
    params,
    gradients,
  )
  _assert_close(found[-1]['head'], usual[-1]['head'], rtol=1e-6)
  late = _run(
    optim.make_optimizer(
      config | {'head_only_steps': 0},
      lambda count: jnp.minimum(1.0, count / 4) * schedule(count + 3),
    ),
    params,
    gradients[3:],
  )
  _assert_close(
    found[-1]['embedder']['backbone'],
    late[-1]['embedder']['backbone'],
    rtol=1e-6,
  )


@pytest.mark.parametrize('name, clip_norm', [('adamw', 1.0), ('sgd', None)])
def test_accumulated_gradients_are_those_of_the_large_batch(name, clip_norm):
  config = _CONFIG | {
    'name': name,
    'weight_decay': 0.1,
    'clip_norm': clip_norm,
  }
  schedule = optim.make_schedule(config, 12)
  params, gradients = _deep_params(), _gradients(_deep_params(), 9)
  found = _run(
    optim.make_optimizer(config | {'accumulate_steps': 3}, schedule),
    params,
    gradients,
  )
  means = [
    jax.tree.map(lambda *g: sum(g) / 3, *gradients[i : i + 3])
    for i in (0, 3, 6)
  ]
  large = _run(
    optim.make_optimizer(config, lambda count: schedule(3 * count + 2)),
    params,
    means,
  )
  for step in range(9):
    expected = params if step < 2 else large[(step - 2) // 3]
    _assert_close(found[step], expected, rtol=1e-5)


def test_clipping_by_the_global_norm():
  # Nesterov's first step is 1.9 times the gradient.
  updates = _updates(gradient=100.0, name='sgd', clip_norm=1.0)
  norm = optax.tree.norm(updates)
  np.testing.assert_allclose(norm, 0.1 * 1.9, rtol=1e-5)


@pytest.mark.parametrize('name', optim.OPTIMIZERS)
def test_every_optimizer_descends(name):
  for leaf in jax.tree.leaves(_updates(name=name)):
    assert np.all(leaf < 0)


def test_unknown_names():
  with pytest.raises(InputError, match='optimizer.name'):
    optim.check_names('adam2', 'cosine')
  with pytest.raises(InputError, match='optimizer.schedule'):
    optim.check_names('adamw', 'linear')
