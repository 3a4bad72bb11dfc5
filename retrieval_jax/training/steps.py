"""The two steps, pure and not compiled: train, and embed.

Both run on one device with `axis_name=None`, and under `jax.pmap` with the name
of its axis, on the same global batch to the same result.
"""

import functools
from collections.abc import Mapping
from typing import Any

import flax
import jax
import jax.numpy as jnp
import optax

from retrieval_jax import losses
from retrieval_jax.core import arrays, collectives
from retrieval_jax.core.errors import InputError
from retrieval_jax.data import transforms
from retrieval_jax.training import (
  parameter_groups,
  sharding,
  step_inputs,
  whitening,
)
from retrieval_jax.training import state as state_lib
from retrieval_jax.training import views as views_lib
from retrieval_jax.training.state import TrainState
from retrieval_jax.training.tasks import Task
from retrieval_jax.training.views import Views

Scalars = dict[str, jax.Array]


def train_step(
  state: TrainState,
  batch: Mapping[str, jax.Array],
  *,
  task: Task,
  optimizer: optax.GradientTransformation,
  schedule: optax.Schedule,
  axis_name: str | None = state_lib.AXIS,
  head_only: bool = False,
) -> tuple[TrainState, Scalars]:
  """Does one step of training.

  Args:
    state: of this device, equal on all.
    batch: {'images': uint8 [B, H, W, C], 'labels': int32 [B] or [B, L]}, this
      device's rows of the global batch; where crops are drawn, the images are
      canvases and 'aspect_ratios' [B] float32 goes with them.
    task: what is trained.
    optimizer: turns gradients into updates.
    schedule: step -> learning rate, to be reported.
    axis_name: of the devices, or None.
    head_only: whether the backbone has no gradient, which is not computed
      then; the optimizer leaves it alone in the same steps.

  Returns:
    (the next state, float32 scalars of the global batch): the loss, each of its
    terms if there are several, the norms of the gradient and of the embeddings
    before normalisation, the learning rate, and with proxies the accuracies.
    A step whose loss or gradient is not finite changes nothing but `diverged`.
  """
  images, targets, dropout_key, loss_key = step_inputs.network_inputs(
    batch, state.step, task, axis_name
  )
  if axis_name is not None:
    dropout_key = jax.random.fold_in(dropout_key, jax.lax.axis_index(axis_name))

  frozen = task.frozen
  if head_only:
    frozen = (*frozen, parameter_groups.BACKBONE)

  def loss_fn(params):
    params = parameter_groups.freeze(params, frozen)
    embeddings, batch_stats = embed_for_training(
      params['embedder'], state.batch_stats, images, dropout_key, task
    )
    outcome = task.objective(
      params.get('loss', {}),
      state.loss_state,
      losses.Batch(embeddings, *targets, step=state.step),
      proxies=params.get('head', {}).get('proxies'),
      key=loss_key,
    )
    norms = arrays.norms(jax.lax.stop_gradient(embeddings))
    scalars = outcome.scalars | {
      'embedding_norm': collectives.pmean(jnp.mean(norms), axis_name)
    }
    return outcome.loss, (batch_stats, outcome.state, scalars)

  (loss, (batch_stats, loss_state, scalars)), gradients = jax.value_and_grad(
    loss_fn, has_aux=True
  )(state.params)
  shard_axis = axis_name if task.objective.shards_classes else None
  gradients = sharding.mean_gradients(gradients, axis_name, shard_axis)
  updates, opt_state = optimizer.update(
    gradients, state.opt_state, state.params
  )
  scalars |= {
    'loss': loss,
    'gradient_norm': sharding.global_norm(gradients, shard_axis),
    'learning_rate': jnp.asarray(schedule(state.step), jnp.float32),
  }
  params = optax.apply_updates(state.params, updates)
  next_state = TrainState(
    step=state.step + 1,
    diverged=state.diverged,
    params=params,
    batch_stats=batch_stats,
    loss_state=loss_state,
    opt_state=opt_state,
    averages=moving_averages(
      state.averages,
      {'params': params['embedder'], 'batch_stats': batch_stats},
      state.step,
      task,
    ),
  )
  # From the first step on that is not finite, the state stays as it was before
  # it, for `doctor.diagnose` to look at.
  finite = jnp.isfinite(loss) & jnp.isfinite(scalars['gradient_norm'])
  healthy = finite & ~state.diverged
  state = jax.tree.map(
    lambda new, old: jnp.where(healthy, new, old), next_state, state
  )
  return state.replace(diverged=~healthy), scalars


def moving_averages(
  averages: Any, variables: Any, step: jax.Array, task: Task
) -> Any:
  """Returns the moving averages after a step.

  a <- d a + (1 - d) w after an update of the weights w, with
  d = min(`ema_decay`, (1 + u) / (10 + u)) at update u = 0, 1, ... of a stage,
  so that the first weights, which are random or of smaller images, are soon
  forgotten.

  Args:
    averages: before the step, {} if none are kept.
    variables: after the step, with the structure of the averages.
    step: the number of steps of the run done before it.
    task: what is trained.

  References:
    Polyak and Juditsky, Acceleration of Stochastic Approximation by Averaging,
    SIAM J. Control and Optimization 1992; the bound on d is that of
    TensorFlow's ExponentialMovingAverage.
  """
  if not averages:
    return averages
  every = task.accumulate_steps
  if task.first_step:
    step = step - task.first_step
  update = step // every
  decay = jnp.minimum(task.ema_decay, (1 + update) / (10 + update))
  updated = step % every == every - 1
  share = jnp.where(updated, 1 - decay, 0.0)
  return jax.tree.map(lambda a, w: a + share * (w - a), averages, variables)


def embed_for_training(
  params: Any,
  batch_stats: Any,
  images: jax.Array,
  dropout_key: jax.Array,
  task: Task,
) -> tuple[jax.Array, Any]:
  """Embeds the images of a step, all at once or in chunks.

  In chunks, only the images and the embeddings stay in memory: the activations
  of a chunk are computed again when the gradient at the embeddings is known,
  one chunk at a time. The gradient is that of the whole batch, exactly.

  Args:
    params: of the embedder.
    batch_stats: running statistics of BatchNorm, or {}.
    images: [B, H, W, C] float32.
    dropout_key: of the step and this device.
    task: what is trained; `task.chunk_size` has to divide B.

  Returns:
    (embeddings [B, D] as the network gives them, the next statistics).

  References:
    Gao et al., Scaling Deep Contrastive Learning Batch Size under Memory
    Limited Setup, RepL4NLP 2021 (GradCache).
  """

  def embed(rows, key):
    return task.networks.embedder.apply(
      {'params': params, 'batch_stats': batch_stats},
      rows,
      train=True,
      mutable=['batch_stats'],
      rngs={'dropout': key},
    )

  if task.chunk_size is None or task.chunk_size >= len(images):
    embeddings, updates = embed(images, dropout_key)
    return embeddings, updates.get('batch_stats', {})
  chunks = images.reshape(-1, task.chunk_size, *images.shape[1:])

  @jax.checkpoint
  def embed_chunk(chunk):
    rows, index = chunk
    return embed(rows, jax.random.fold_in(dropout_key, index))[0]

  embeddings = jax.lax.map(embed_chunk, (chunks, jnp.arange(len(chunks))))
  # No statistics of a batch: `config_checks` sees to that.
  return embeddings.reshape(-1, embeddings.shape[-1]), batch_stats


def embed_step(
  variables: Mapping[str, Any],
  images: jax.Array,
  *,
  task: Task,
  axis_name: str | None = state_lib.AXIS,
) -> jax.Array:
  """Embeds images, the same way in training, evaluation and use.

  Several views of an image (`eval.flip`, `eval.scales`) are one embedding, see
  `views.embed`.

  Args:
    variables: {'params': of the embedder, 'batch_stats'}, and 'whitening' if
      the model ends with one.
    images: uint8 [B, H, W, C] of this device.
    task: what was trained.
    axis_name: of the devices, or None.

  Returns:
    [G, D] float32, unit rows, of all devices in order.
  """
  x = transforms.to_model_input(images, task.mean, task.std)
  own = dict(variables)
  layer = own.pop('whitening', None)
  network = functools.partial(
    task.networks.measured_embedder.apply, own, train=False
  )
  embeddings = views_lib.embed(network, x, task.views)
  if layer is not None:
    embeddings = whitening.apply(embeddings, layer)
  return collectives.all_gather_rows(embeddings, axis_name)


def check_views(task: Task) -> None:
  """Raises `InputError` if the network cannot see every view of an image."""

  def variables():
    image = jnp.zeros((1, *task.image_shape), jnp.float32)
    found = task.networks.embedder.init(jax.random.key(0), image, train=False)
    return {key: found.get(key, {}) for key in ('params', 'batch_stats')}

  shapes = jax.eval_shape(variables)
  image = jax.ShapeDtypeStruct((1, *task.image_shape), jnp.uint8)
  try:
    jax.eval_shape(
      functools.partial(
        embed_step, task=task._replace(views=Views()), axis_name=None
      ),
      shapes,
      image,
    )
  except flax.errors.FlaxError as error:
    raise InputError(
      'eval.pooling has other parameters or another number of features than '
      'model.pooling, which was trained; allowed is None, or a pooling that '
      'differs in options or without parameters: leave it out'
    ) from error
  for scale in task.views.scales:
    view = task.views._replace(
      flip=False, scales=(scale,), scale_pooling='mean'
    )
    one = task._replace(views=view)
    try:
      jax.eval_shape(
        functools.partial(embed_step, task=one, axis_name=None), shapes, image
      )
    except (InputError, flax.errors.FlaxError) as error:
      raise InputError(
        f'eval.scales has {scale}, but the network takes images of '
        f'{task.image_shape[0]} x {task.image_shape[1]} alone; allowed are '
        "networks of any size, such as with model.pooling='average': set it, "
        'or --config.eval.scales=1.0'
      ) from error
