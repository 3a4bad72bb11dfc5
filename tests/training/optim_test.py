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
