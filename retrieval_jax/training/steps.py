"""The two steps, pure and not compiled: train, and embed.

Both run on one device with `axis_name=None`, and under `jax.pmap` with the name
of its axis, on the same global batch to the same result.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import optax

from retrieval_jax import losses
from retrieval_jax.core import collectives
from retrieval_jax.data import transforms
from retrieval_jax.training import config as config_lib
from retrieval_jax.training import state as state_lib
from retrieval_jax.training.state import Networks, TrainState

Scalars = dict[str, jax.Array]


class Task(NamedTuple):
  """What is trained, without its weights.

  Attributes:
    networks: the modules.
    loss: the name of the loss, its hyperparameters, and its miner if any.
    loss_options: see `loss`.
    miner: see `loss`.
    mean: of the pixels in [0, 1], one number or one a channel.
    std: likewise.
    seed: of what is random in a step.
  """

  networks: Networks
  loss: str
  loss_options: Mapping[str, Any]
  miner: Mapping[str, Any] | None
  mean: tuple[float, ...]
  std: tuple[float, ...]
  seed: int


def make_task(
  config: ml_collections.ConfigDict,
  num_classes: int,
  axis_name: str | None = state_lib.AXIS,
) -> Task:
  """Returns the task of a validated config."""
  return Task(
    networks=state_lib.build_networks(config, num_classes, axis_name),
    loss=config.loss.name,
    loss_options=config_lib.options(config.loss),
    miner=config_lib.miner_spec(config),
    mean=tuple(config.data.mean),
    std=tuple(config.data.std),
    seed=config.seed,
  )


def train_step(
  state: TrainState,
  batch: Mapping[str, jax.Array],
  *,
  task: Task,
  optimizer: optax.GradientTransformation,
  schedule: optax.Schedule,
  axis_name: str | None = state_lib.AXIS,
) -> tuple[TrainState, Scalars]:
  """Does one step of training.

  Args:
    state: of this device, equal on all.
    batch: {'images': uint8 [B, H, W, C], 'labels': int32 [B]}, this device's
      rows of the global batch.
    task: what is trained.
    optimizer: turns gradients into updates.
    schedule: step -> learning rate, to be reported.
    axis_name: of the devices, or None.

  Returns:
    (the next state, float32 scalars of the global batch): the loss, each of its
    terms if there are several, the norms of the gradient and of the embeddings
    before normalisation, the learning rate, and with proxies the accuracies.
  """
  images = transforms.to_model_input(batch['images'], task.mean, task.std)
  key = jax.random.fold_in(jax.random.key(task.seed), state.step)
  if axis_name is not None:
    key = jax.random.fold_in(key, jax.lax.axis_index(axis_name))

  def loss_fn(params):
    embeddings, updates = task.networks.embedder.apply(
      {'params': params['embedder'], 'batch_stats': state.batch_stats},
      images,
      train=True,
      mutable=['batch_stats', 'intermediates'],
      rngs={'dropout': key},
    )
    terms, scalars = _loss_terms(
      params, embeddings, batch['labels'], task, axis_name
    )
    loss, parts = losses.reduce_terms(terms, axis_name)
    if len(parts) > 1:
      scalars |= {f'loss_{name}': value for name, value in parts.items()}
    (norms,) = updates['intermediates']['embedding_norm']
    scalars['embedding_norm'] = jnp.mean(norms)
    return loss, (updates.get('batch_stats', {}), scalars)

  (loss, (batch_stats, scalars)), gradients = jax.value_and_grad(
    loss_fn, has_aux=True
  )(state.params)
  gradients = collectives.pmean(gradients, axis_name)
  updates, opt_state = optimizer.update(
    gradients, state.opt_state, state.params
  )
  scalars = collectives.pmean(scalars, axis_name) | {
    'loss': loss,
    'gradient_norm': optax.tree.norm(gradients),
    'learning_rate': jnp.asarray(schedule(state.step), jnp.float32),
  }
  state = TrainState(
    step=state.step + 1,
    params=optax.apply_updates(state.params, updates),
    batch_stats=batch_stats,
    opt_state=opt_state,
  )
  return state, scalars


def _loss_terms(params, embeddings, labels, task, axis_name):
  """Returns the terms of the rows of this device, and scalars about them."""
  if task.networks.head is not None:
    cosines = task.networks.head.apply({'params': params['head']}, embeddings)
    terms = losses.proxy_terms(task.loss, cosines, labels, **task.loss_options)
    return terms, {
      'top_1_accuracy': top_k_accuracy(cosines, labels, 1),
      'top_5_accuracy': top_k_accuracy(cosines, labels, 5),
    }
  candidates, candidate_labels = collectives.all_gather_rows(
    (embeddings, labels), axis_name
  )
  terms = losses.pair_terms(
    task.loss,
    embeddings,
    labels,
    candidates=candidates,
    candidate_labels=candidate_labels,
    ids=collectives.row_ids(len(labels), axis_name),
    candidate_ids=jnp.arange(len(candidate_labels), dtype=jnp.int32),
    miner=task.miner,
    **task.loss_options,
  )
  return terms, {}


def top_k_accuracy(cosines: jax.Array, labels: jax.Array, k: int) -> jax.Array:
  """Returns the share of rows whose class is among the k nearest proxies.

  Classes as near as the right one count against it: a collapsed model scores
  0, not 1.

  Args:
    cosines: [B, C] free of margins.
    labels: [B] int.
    k: at least 1.

  Returns:
    float32 scalar in [0, 1].

  Example:
    >>> cosines = jnp.array([[0.9, 0.1], [0.5, 0.5]])
    >>> top_k_accuracy(cosines, jnp.array([0, 0]), 1).item()
    0.5
  """
  target = jnp.take_along_axis(cosines, labels[:, None], axis=1)
  # The class itself is no nearer than itself. Written with "not <", so that a
  # NaN counts against the row.
  above = jnp.sum(~(cosines < target), axis=1) - 1
  return jnp.mean((above < k).astype(jnp.float32))


def embed_step(
  variables: Mapping[str, Any],
  images: jax.Array,
  *,
  task: Task,
  axis_name: str | None = state_lib.AXIS,
) -> jax.Array:
  """Embeds images, the same way in training, evaluation and use.

  Args:
    variables: {'params': of the embedder, 'batch_stats'}.
    images: uint8 [B, H, W, C] of this device.
    task: what was trained.
    axis_name: of the devices, or None.

  Returns:
    [G, D] float32, unit rows, of all devices in order.
  """
  embeddings = task.networks.embedder.apply(
    variables,
    transforms.to_model_input(images, task.mean, task.std),
    train=False,
  )
  return collectives.all_gather_rows(embeddings, axis_name)
