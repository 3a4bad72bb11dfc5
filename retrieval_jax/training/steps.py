"""The two steps, pure and not compiled: train, and embed.

Both run on one device with `axis_name=None`, and under `jax.pmap` with the name
of its axis, on the same global batch to the same result.
"""

import functools
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import flax
import jax
import jax.numpy as jnp
import ml_collections
import optax

from retrieval_jax import losses
from retrieval_jax.core import arrays, collectives
from retrieval_jax.core.errors import InputError
from retrieval_jax.data import augmentation as augmentation_lib
from retrieval_jax.data import transforms
from retrieval_jax.training import config as config_lib
from retrieval_jax.training import state as state_lib
from retrieval_jax.training.state import Networks, TrainState

Scalars = dict[str, jax.Array]


class Views(NamedTuple):
  """How an image is seen when it is embedded; the views are averaged.

  Attributes:
    flip: whether also from left to right.
    scales: of height and width; 1.0 is the image as it is.
  """

  flip: bool = False
  scales: tuple[float, ...] = (1.0,)


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
    image_shape: (H, W, C) that the network sees.
    augmentation: what is done to the images of a training step.
    views: how an image is seen when it is embedded.
  """

  networks: Networks
  loss: str
  loss_options: Mapping[str, Any]
  miner: Mapping[str, Any] | None
  mean: tuple[float, ...]
  std: tuple[float, ...]
  seed: int
  image_shape: tuple[int, int, int]
  augmentation: augmentation_lib.Augmentation
  views: Views


def make_task(
  config: ml_collections.ConfigDict,
  num_classes: int,
  image_shape: tuple[int, int, int],
  axis_name: str | None = state_lib.AXIS,
) -> Task:
  """Returns the task of a validated config, for such classes and images."""
  return Task(
    networks=state_lib.build_networks(config, num_classes, axis_name),
    loss=config.loss.name,
    loss_options=config_lib.options(config.loss),
    miner=config_lib.miner_spec(config),
    mean=tuple(config.data.mean),
    std=tuple(config.data.std),
    seed=config.seed,
    image_shape=tuple(image_shape),
    augmentation=config_lib.augmentation(config),
    views=Views(bool(config.eval.flip), tuple(config.eval.scales)),
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
      rows of the global batch; where crops are drawn, the images are canvases
      and 'aspect_ratios' [B] float32 goes with them.
    task: what is trained.
    optimizer: turns gradients into updates.
    schedule: step -> learning rate, to be reported.
    axis_name: of the devices, or None.

  Returns:
    (the next state, float32 scalars of the global batch): the loss, each of its
    terms if there are several, the norms of the gradient and of the embeddings
    before normalisation, the learning rate, and with proxies the accuracies.
  """
  augment_key, key = jax.random.split(
    jax.random.fold_in(jax.random.key(task.seed), state.step)
  )
  images, targets = augmented(batch, augment_key, task, axis_name)
  images = transforms.normalize(images.astype(jnp.float32), task.mean, task.std)
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
    terms, scalars = _loss_terms(params, embeddings, targets, task, axis_name)
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


class Targets(NamedTuple):
  """What a batch is labelled with.

  Attributes:
    labels: [B] int32.
    second_labels: [B] int32 where images are mixed, else None.
    weights: [B] float32 in [0, 1], the share of the first label, or None.
  """

  labels: jax.Array
  second_labels: jax.Array | None = None
  weights: jax.Array | None = None


def augmented(
  batch: Mapping[str, jax.Array],
  key: jax.Array,
  task: Task,
  axis_name: str | None,
) -> tuple[jax.Array, Targets]:
  """Returns the images that the network trains on, and their targets.

  Args:
    batch: see `train_step`.
    key: of the step, equal on all devices.
    task: what is trained.
    axis_name: of the devices, or None.

  Returns:
    (images [B, H, W, C], targets). Row i of the global batch is changed by
    `fold_in(key, i)`, so that any number of devices sees the same pixels.
  """
  options = task.augmentation
  labels = batch['labels']
  if options.is_off:
    return batch['images'], Targets(labels)
  row_ids = collectives.row_ids(len(labels), axis_name)
  images = augmentation_lib.augment(
    batch['images'],
    batch.get('aspect_ratios'),
    key,
    row_ids,
    task.image_shape,
    options,
    task.mean,
  )
  if not options.mixes_labels:
    return images, Targets(labels)
  images, second_labels, weights = augmentation_lib.mix(
    images, labels, key, row_ids, options
  )
  return images, Targets(labels, second_labels, weights)


def _loss_terms(params, embeddings, targets, task, axis_name):
  """Returns the terms of the rows of this device, and scalars about them."""
  labels = targets.labels
  if task.networks.head is not None:
    cosines = task.networks.head.apply({'params': params['head']}, embeddings)
    return _proxy_terms(cosines, targets, task), {
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


def _proxy_terms(cosines, targets, task):
  """Returns the terms of a proxy loss, of mixed images against both labels."""
  terms = functools.partial(
    losses.proxy_terms, task.loss, cosines, **task.loss_options
  )
  if targets.second_labels is None:
    return terms(targets.labels)
  first = terms(targets.labels, weights=targets.weights)
  second = terms(targets.second_labels, weights=1 - targets.weights)
  return jax.tree.map(jnp.add, first, second)


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

  With several views (`eval.flip`, `eval.scales`) the embedding is the
  normalised sum of theirs.

  Args:
    variables: {'params': of the embedder, 'batch_stats'}.
    images: uint8 [B, H, W, C] of this device.
    task: what was trained.
    axis_name: of the devices, or None.

  Returns:
    [G, D] float32, unit rows, of all devices in order.
  """
  x = transforms.to_model_input(images, task.mean, task.std)
  embeddings = sum(
    task.networks.embedder.apply(variables, view, train=False)
    for view in _views(x, task.views)
  )
  if task.views != Views():
    embeddings = arrays.normalize(embeddings)
  return collectives.all_gather_rows(embeddings, axis_name)


def _views(images: jax.Array, views: Views) -> Iterator[jax.Array]:
  """Yields the images at each scale, and flipped."""
  batch, height, width, channels = images.shape
  for scale in views.scales:
    size = round(height * scale), round(width * scale)
    view = images
    if size != (height, width):
      shape = (batch, *size, channels)
      view = jax.image.resize(images, shape, 'linear', antialias=True)
    yield view
    if views.flip:
      yield view[:, :, ::-1]


def check_views(task: Task) -> None:
  """Raises `InputError` if the network cannot see every view of an image."""

  def variables():
    image = jnp.zeros((1, *task.image_shape), jnp.float32)
    found = task.networks.embedder.init(jax.random.key(0), image, train=False)
    return {key: found.get(key, {}) for key in ('params', 'batch_stats')}

  shapes = jax.eval_shape(variables)
  image = jax.ShapeDtypeStruct((1, *task.image_shape), jnp.uint8)
  for scale in task.views.scales:
    one = task._replace(views=Views(scales=(scale,)))
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
