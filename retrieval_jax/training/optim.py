"""Optimizers and learning-rate schedules, by name."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from retrieval_jax.core.errors import unknown_name
from retrieval_jax.training import parameter_groups, sharding

# The rule that turns gradients into steps; weight decay and the learning rates
# are applied alike to all of them.
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
  layers: Sequence[str] = (),
) -> optax.GradientTransformation:
  """Returns the gradient transformation of `config.optimizer`.

  In order: the mean over `accumulate_steps` steps, the last of which updates;
  clip by the global norm, the optimizer's rule, decoupled weight decay
  (Loshchilov and Hutter, ICLR 2019) on leaves of rank two and more, the
  multipliers of the learning rate, the learning rate.

  What matches `frozen` is not changed, and has no optimizer state. In the first
  `head_only_steps` steps the backbone is not changed either; its optimizer
  starts after them, with a warm-up of its own (LP-FT: Kumar et al., ICLR 2022).

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
    layers: of the backbone, see `parameter_groups.learning_rates`.
  """
  every, delay = config['accumulate_steps'], config['head_only_steps']
  frozen = tuple(config['frozen'])

  def rate_of_update(update):
    # An update is at the rate of its last step.
    return schedule(update * every + every - 1)

  def delayed_rate(update):
    warmup = max(1, config['warmup_steps'])
    share = jnp.minimum(1.0, update * every / warmup)
    return share * rate_of_update(update + delay // every)

  parts = _rule(config, rate_of_update)
  if frozen or delay:
    late = optax.chain(*_rule(config, delayed_rate))
    parts = [
      optax.partition(
        {
          'trained': optax.chain(*parts),
          'backbone': start_after(delay // every, late),
          'frozen': optax.set_to_zero(),
        },
        functools.partial(_groups, frozen=frozen, delays=delay > 0),
      )
    ]
  if config['clip_norm'] is not None:
    parts.insert(0, clip_by_global_norm(config['clip_norm'], shard_axis))
  factors = {
    'decay': config['layer_decay'],
    'backbone': config['backbone_learning_rate_multiplier'],
    'head': config['head_learning_rate_multiplier'],
  }
  if set(factors.values()) != {1.0}:
    rates = functools.partial(
      parameter_groups.learning_rates, layers=layers, **factors
    )
    parts.append(_scale(rates))
  optimizer = optax.chain(*parts)
  return optimizer if every == 1 else accumulate(every, optimizer)


def _rule(config, rate):
  """Returns the parts that turn the gradients of a group into its updates."""
  parts = [OPTIMIZERS[config['name']]()]
  if config['weight_decay']:
    parts.append(
      optax.add_decayed_weights(config['weight_decay'], mask=_has_matrix_rank)
    )
  return [*parts, optax.scale_by_learning_rate(rate)]


def _scale(factors):
  """Returns what multiplies each update by its factor."""

  def scale(updates, params=None):
    del params
    return jax.tree.map(lambda u, f: u * f, updates, factors(updates))

  return optax.stateless(scale)


def _groups(params, *, frozen, delays):
  """Returns the tree of the group that each parameter is in."""
  patterns = (parameter_groups.BACKBONE,) if delays else ()

  def group(is_frozen, is_delayed):
    return 'frozen' if is_frozen else 'backbone' if is_delayed else 'trained'

  return jax.tree.map(
    group,
    parameter_groups.matches(params, frozen),
    parameter_groups.matches(params, patterns),
  )


def start_after(
  num_updates: int, inner: optax.GradientTransformation
) -> optax.GradientTransformation:
  """Does nothing for some updates, and then starts.

  Example:
    >>> late = start_after(1, optax.scale(-1.0))
    >>> state = late.init(jnp.ones(()))
    >>> update, state = late.update(jnp.ones(()), state)
    >>> update.item(), late.update(jnp.ones(()), state)[0].item()
    (0.0, -1.0)
  """

  def init(params):
    return jnp.zeros((), jnp.int32), inner.init(params)

  def update(gradients, state, params=None):
    count, before = state
    updates, after = inner.update(gradients, before, params)
    started = count >= num_updates
    updates = jax.tree.map(lambda u: jnp.where(started, u, 0), updates)
    return updates, (count + 1, _choose(started, after, before))

  return optax.GradientTransformation(init, update)


def accumulate(
  num_steps: int, inner: optax.GradientTransformation
) -> optax.GradientTransformation:
  """Updates by the mean gradient of some steps at the last of them.

  Between, updates are 0 and nothing changes but the sum.

  Example:
    >>> mean = accumulate(2, optax.identity())
    >>> state = mean.init(jnp.zeros(()))
    >>> found = []
    >>> for gradient in (1.0, 3.0, 5.0, 7.0):
    ...   update, state = mean.update(jnp.float32(gradient), state)
    ...   found.append(update.item())
    >>> found
    [0.0, 2.0, 0.0, 6.0]
  """

  def init(params):
    zeros = jax.tree.map(jnp.zeros_like, params)
    return jnp.zeros((), jnp.int32), zeros, inner.init(params)

  def update(gradients, state, params=None):
    count, total, before = state
    total = jax.tree.map(jnp.add, total, gradients)
    mean = jax.tree.map(lambda leaf: leaf / num_steps, total)
    updates, after = inner.update(mean, before, params)
    last = count == num_steps - 1
    updates = jax.tree.map(lambda u: jnp.where(last, u, 0), updates)
    total = jax.tree.map(lambda leaf: jnp.where(last, 0, leaf), total)
    return updates, (
      jnp.where(last, 0, count + 1),
      total,
      _choose(last, after, before),
    )

  return optax.GradientTransformation(init, update)


def _choose(condition, one, other):
  return jax.tree.map(lambda a, b: jnp.where(condition, a, b), one, other)


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
