"""The self-test of a config: its very loss, miner, model and precision.

Whether several devices compute what one computes is a property of a loss, a
miner and a model together. Here a training step of the config, on its own
images, is done on one device and on several, and compared.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

from retrieval_jax import losses
from retrieval_jax.core import relations
from retrieval_jax.training import config as config_lib
from retrieval_jax.training import state as state_lib
from retrieval_jax.training import steps, tasks
from retrieval_jax.training.experiment import BuiltStage, make_experiment

# What rounding may do, relative to the largest entry, by what is computed in.
TOLERANCES = {'float32': 1e-5, 'bfloat16': 3e-2}
# Or so many times what the last bit of the parameters does: a steep loss, such
# as a sigmoid of temperature 0.01, multiplies the rounding of the embeddings.
_ROUNDINGS = 4
# One row in so many is padding.
_PADDED_SHARE = 4


class Check(NamedTuple):
  """A line of the table.

  Attributes:
    name: what is checked.
    found: the largest difference, relative to the largest entry.
    allowed: the most that passes.
  """

  name: str
  found: float
  allowed: float

  @property
  def passed(self) -> bool:
    """Whether it holds; NaN does not."""
    return bool(self.found <= self.allowed)


def run(config: ml_collections.ConfigDict) -> list[Check]:
  """Checks a config on all devices that there are.

  Dropout, which differs from device to device, is left out, and a sharded head
  compares with all classes.

  Args:
    config: its data are loaded.

  Returns:
    The checks, in order; those of several devices only where there are.

  Raises:
    InputError: for any mistake in the config or the data.
  """
  config = ml_collections.ConfigDict(config.to_dict())
  if 'dropout' in config.model:
    config.model.dropout = 0.0
  config.head.sample_rate = 1.0
  experiment = make_experiment(config)
  classes = config_lib.Classes.of(experiment.dataset)
  count = len(experiment.stages)
  checks = []
  for number, stage in enumerate(experiment.stages, start=1):
    prefix = f'stage {number} of {count}: ' if count > 1 else ''
    checks += [
      check._replace(name=prefix + check.name)
      for check in _check_stage(stage, classes)
    ]
  return checks


def _check_stage(stage: BuiltStage, classes: config_lib.Classes) -> list[Check]:
  """Checks the first step of a stage, from weights of the seed."""
  config, shape = stage.plan.config, stage.task.image_shape
  batch = stage.load_batch(stage.plan.first_step)
  checks = []
  make_step = functools.partial(
    _make_step, classes=classes, image_shape=shape, batch=batch
  )
  if jax.device_count() > 1:
    step, state = make_step(config, num_devices=1)
    one = step(state)
    nudged = step(state.replace(params=_nudge(state.params)))
    step, state = make_step(config, num_devices=jax.device_count())
    several = step(state)
    checks += [
      Check(
        f'{name}: {jax.device_count()} devices equal 1',
        difference(several[name], one[name]),
        max(
          TOLERANCES[config.model.dtype],
          _ROUNDINGS * difference(nudged[name], one[name]),
        ),
      )
      for name in one
      if jax.tree.leaves(one[name])
    ]
  checks += _check_objective(config, classes, batch['labels'])
  half = ml_collections.ConfigDict(config.to_dict())
  half.model.dtype = 'bfloat16'
  step, state = make_step(half, num_devices=1)
  found = step(state)
  checks.append(
    Check(
      'model in bfloat16: loss and gradient are finite',
      _unless_finite((found['loss'], found['gradient'])),
      0.0,
    )
  )
  return checks


def difference(tree: Any, expected: Any) -> float:
  """Returns the largest difference of two trees, relative leaf by leaf.

  A leaf whose terms cancel, such as a bias that the loss does not see, holds
  the rounding of the others alone, so it counts as no smaller than a hundredth
  of the largest entry of all.

  Example:
    >>> difference({'a': np.array([1.0, 2.0])}, {'a': np.array([1.0, 1.0])})
    1.0
    >>> difference([np.ones(1), np.array([2e-8])], [np.ones(1), np.zeros(1)])
    2e-06
  """
  worst = 0.0
  sizes = [np.abs(leaf).max(initial=0) for leaf in jax.tree.leaves(expected)]
  least = max(0.01 * float(max(sizes, default=0.0)), 1e-6)
  pairs = zip(jax.tree.leaves(tree), jax.tree.leaves(expected), strict=True)
  for a, b in pairs:
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    scale = max(np.abs(b).max(initial=0), least)
    found = np.abs(a - b).max(initial=0) / scale
    worst = found if not found <= worst else worst  # A NaN stays.
  return float(worst)


def _make_step(config, classes, image_shape, batch, num_devices):
  """Returns (state -> what a step finds, on the host; the state to begin)."""
  axis_name = None if num_devices == 1 else state_lib.AXIS
  task = tasks.make_task(config, classes, image_shape, axis_name)
  state = state_lib.create_state(
    functools.partial(task.new_state, _keep_gradient()), config.seed
  )
  train_step = functools.partial(
    steps.train_step,
    task=task,
    optimizer=_keep_gradient(),
    schedule=optax.constant_schedule(1.0),
    axis_name=axis_name,
  )
  sharded = state_lib.class_sharding(task.objective)
  if num_devices == 1:
    compiled = jax.jit(train_step)
  else:
    compiled = jax.pmap(train_step, axis_name=axis_name)

  def step(state) -> dict[str, Any]:
    if num_devices == 1:
      after, scalars = jax.device_get(compiled(state, batch))
    else:
      replicated, p_scalars = compiled(
        state_lib.replicate(state, sharded), state_lib.shard(batch)
      )
      after = state_lib.unreplicate(replicated, sharded)
      scalars = jax.tree.map(lambda leaf: np.asarray(leaf)[0], p_scalars)
    return {
      'loss': scalars['loss'],
      'gradient': after.opt_state,
      'state of the loss': after.loss_state,
      'statistics of BatchNorm': after.batch_stats,
    }

  return step, state


def _nudge(params):
  """Returns parameters of which every other one is larger by its last bit."""

  def nudge(leaf):
    leaf = np.asarray(leaf)
    odd = np.arange(leaf.size).reshape(leaf.shape) % 2 == 1
    return np.where(odd, np.nextafter(leaf, np.full_like(leaf, np.inf)), leaf)

  return jax.tree.map(nudge, params)


def _keep_gradient() -> optax.GradientTransformation:
  """Returns an optimizer that changes nothing and keeps the gradient."""
  return optax.GradientTransformation(
    init=lambda params: jax.tree.map(jnp.zeros_like, params),
    update=lambda gradients, _, params=None: (
      jax.tree.map(jnp.zeros_like, gradients),
      gradients,
    ),
  )


def _loss_at(objective, labels):
  """Returns a function from embeddings to (loss, gradient)."""
  params = objective.init_params(jax.random.key(0))
  state = objective.init_state()
  proxies = None
  if objective.centers:
    rows = objective.num_classes * objective.centers
    proxies = jax.random.normal(
      jax.random.key(1), (rows, objective.embedding_dim)
    )

  def loss_fn(embeddings):
    batch = losses.Batch(embeddings, jnp.asarray(labels))
    return objective(params, state, batch, proxies=proxies).loss

  return jax.jit(jax.value_and_grad(loss_fn))


def _check_objective(config, classes, labels) -> list[Check]:
  """Checks padding and extremes at embeddings drawn at random."""
  objective = config_lib.objective(config, classes)
  views = objective.num_views
  rng = np.random.default_rng(config.seed)
  first = relations.first_labels(labels)
  centers = rng.normal(size=(int(first.max()) + 1, objective.embedding_dim))
  x = centers[np.tile(first, views)]
  x = (x + 0.7 * rng.normal(size=x.shape)).astype(np.float32)

  # Padding at the end, so that what is random stays with its row.
  kept = np.arange(len(labels)) < len(labels) - len(labels) // _PADDED_SHARE
  padded = np.array(labels)
  padded[~kept] = -1
  everywhere = np.tile(kept, views)
  repeat = (views,) + (1,) * (labels.ndim - 1)
  value, gradient = _loss_at(objective, np.tile(padded, repeat))(x)
  expected = _loss_at(objective, np.tile(labels[kept], repeat))(x[everywhere])
  beside = np.abs(gradient[~everywhere]).max(initial=0)
  found = difference((value, gradient[everywhere]), expected)
  checks = [
    Check('padding: rows of no class change nothing', found + beside, 1e-5)
  ]
  run = _loss_at(objective, np.tile(labels, repeat))
  signs = np.where(np.arange(len(x)) % 2, 1, -1)[:, None]
  for name, rows in (
    ('identical', np.ones_like(x)),
    ('opposite', (signs * x[:1]).astype(np.float32)),
  ):
    checks.append(
      Check(
        f'{name} embeddings: loss and gradient are finite',
        _unless_finite(run(rows)),
        0.0,
      )
    )
  return checks


def _unless_finite(tree) -> float:
  """Returns 0 if all leaves are finite, else infinity."""
  leaves = (np.asarray(leaf, np.float32) for leaf in jax.tree.leaves(tree))
  return 0.0 if all(np.isfinite(leaf).all() for leaf in leaves) else np.inf


def table(checks: list[Check]) -> str:
  """Returns the checks as lines of text.

  Example:
    >>> print(table([Check('loss: 2 devices equal 1', 2e-7, 1e-5)]))
    check                    difference  allowed
    loss: 2 devices equal 1       2e-07    1e-05  passed
  """
  width = max(len(check.name) for check in checks)
  lines = [f'{"check":{width}}  difference  allowed']
  lines += [
    f'{check.name:{width}}  {check.found:10.0e}  {check.allowed:7.0e}  '
    + ('passed' if check.passed else 'FAILED')
    for check in checks
  ]
  return '\n'.join(lines)
