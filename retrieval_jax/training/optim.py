"""Optimizers and learning-rate schedules, by name."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from retrieval_jax.core.errors import unknown_name
from retrieval_jax.training import sharding

# The rule that turns gradients into steps; weight decay, the multiplier of the
# head and the learning rate are applied alike to all of them.
OPTIMIZERS = {
  'adamw': optax.scale_by_adam,
  'lion': optax.scale_by_lion,
  'sgd': lambda: optax.trace(decay=0.9, nesterov=True),
}

SCHEDULES = ('constant', 'cosine')


def check_names(optimizer: str, schedule: str) -> None:
  """Raises `InputError` for an unknown optimizer or schedule."""
  if optimizer not in OPTIMIZERS:
    raise unknown_name('optimizer.name', optimizer, OPTIMIZERS)
  if schedule not in SCHEDULES:
    raise unknown_name('optimizer.schedule', schedule, SCHEDULES)


def make_schedule(
  config: Mapping[str, Any], num_train_steps: int
) -> optax.Schedule:
  """Returns step -> learning rate: linear warm-up, then cosine or constant.

  Args:
    config: `config.optimizer`.
    num_train_steps: the step at which the cosine reaches zero.

  Example:
    >>> schedule = make_schedule(
    ...   {'learning_rate': 1.0, 'warmup_steps': 2, 'schedule': 'cosine'}, 10
    ... )
    >>> [round(float(schedule(step)), 3) for step in (0, 1, 2, 6, 10)]
    [0.0, 0.5, 1.0, 0.5, 0.0]
  """
  peak = config['learning_rate']
  # A run shorter than its warm-up still ends in the warm-up.
  warmup = min(config['warmup_steps'], num_train_steps)
  if config['schedule'] == 'constant':
    after = optax.constant_schedule(peak)
  else:
    after = optax.cosine_decay_schedule(peak, max(1, num_train_steps - warmup))
  if not warmup:
    return after
  return optax.join_schedules(
    [optax.linear_schedule(0.0, peak, warmup), after], [warmup]
  )


def make_optimizer(
  config: Mapping[str, Any],
  schedule: optax.Schedule,
  shard_axis: str | None = None,
) -> optax.GradientTransformation:
  """Returns the gradient transformation of `config.optimizer`.

  In order: clip by the global norm, the optimizer's rule, decoupled weight
  decay (Loshchilov and Hutter, ICLR 2019) on leaves of rank two and more, the
  learning-rate multiplier of the head, the learning rate.

  The gradient of the proxies is dense. If a class-sharded head samples its
  classes, one that is not taken in a step has a gradient of zero and is updated
  all the same, as any parameter with a gradient of zero is: momentum carries it
  on along its past gradients, their averages decay, and weight decay shortens
  it. (InsightFace's Partial FC does so too.) The length of a proxy does not
  change its cosines, only how fast it turns.

  Args:
    config: `config.optimizer`.
    schedule: step -> learning rate.
    shard_axis: of the devices, if the head is sharded over them; None: every
      leaf is whole.
  """
  multiplier = config['head_learning_rate_multiplier']
  parts = [OPTIMIZERS[config['name']]()]
  if config['clip_norm'] is not None:
    parts.insert(0, clip_by_global_norm(config['clip_norm'], shard_axis))
  if config['weight_decay']:
    parts.append(
      optax.add_decayed_weights(config['weight_decay'], mask=_has_matrix_rank)
    )
  if multiplier != 1.0:
    parts.append(optax.masked(optax.scale(multiplier), _is_head))
  return optax.chain(*parts, optax.scale_by_learning_rate(schedule))


def clip_by_global_norm(
  max_norm: float, shard_axis: str | None = None
) -> optax.GradientTransformation:
  """Scales gradients down to a norm, that of all parts of sharded leaves.

  Args:
    max_norm: gradients of at most this norm pass unchanged.
    shard_axis: of the devices, if the head is sharded over them, or None.

  Example:
    >>> clip = clip_by_global_norm(2.5)
    >>> gradients = jnp.array([3.0, 4.0])
    >>> print(clip.update(gradients, clip.init(gradients))[0])
    [1.5 2. ]
  """

  def clip(gradients, params=None):
    del params
    norm = sharding.global_norm(gradients, shard_axis)
    # A norm that is NaN passes the gradients on, so that it is seen.
    above = norm > max_norm
    factor = max_norm / jnp.where(above, norm, max_norm)
    return jax.tree.map(lambda g: g * factor.astype(g.dtype), gradients)

  return optax.stateless(clip)


def _has_matrix_rank(params):
  return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


def _is_head(params):
  return {
    name: jax.tree.map(lambda _, mine=(name == 'head'): mine, tree)
    for name, tree in params.items()
  }
