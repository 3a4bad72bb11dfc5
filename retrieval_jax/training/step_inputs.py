"""What a training step computes from: images as the network sees, and labels.

All of it is a function of the seed and the step, on any number of devices.
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from retrieval_jax.core import collectives
from retrieval_jax.data import augmentation as augmentation_lib
from retrieval_jax.data import transforms
from retrieval_jax.training.tasks import Task


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


def network_inputs(
  batch: Mapping[str, jax.Array],
  step: jax.Array | int,
  task: Task,
  axis_name: str | None,
) -> tuple[jax.Array, Targets, jax.Array, jax.Array]:
  """Returns all that a step computes from, a function of the step.

  Args:
    batch: see `steps.train_step`.
    step: the number of steps done before.
    task: what is trained.
    axis_name: of the devices, or None.

  Returns:
    (images [B, H, W, C] float32 as the network takes them, targets, the key of
    dropout, the key of the loss).
  """
  key = jax.random.fold_in(jax.random.key(task.seed), step)
  augment_key, dropout_key, loss_key = jax.random.split(key, 3)
  images, targets = augmented(batch, augment_key, task, axis_name)
  images = transforms.normalize(images.astype(jnp.float32), task.mean, task.std)
  return images, targets, dropout_key, loss_key


def augmented(
  batch: Mapping[str, jax.Array],
  key: jax.Array,
  task: Task,
  axis_name: str | None,
) -> tuple[jax.Array, Targets]:
  """Returns the images that the network trains on, and their targets.

  Args:
    batch: see `steps.train_step`.
    key: of the step, equal on all devices.
    task: what is trained.
    axis_name: of the devices, or None.

  Returns:
    (images [B, H, W, C], targets). Row i of the global batch is changed by
    `fold_in(key, i)`, so that any number of devices sees the same pixels. With
    several views of each image, [V B, ...], all first views come first.
  """
  options = task.augmentation
  num_views = task.objective.num_views
  images, labels = batch['images'], batch['labels']
  aspect_ratios = batch.get('aspect_ratios')
  row_ids = collectives.row_ids(len(labels), axis_name)
  if num_views > 1:
    num_images = len(labels) * collectives.axis_size(axis_name)
    # The same numbers as of the objective, for the same rows.
    views = num_images * jnp.arange(num_views, dtype=jnp.int32)
    row_ids = (views[:, None] + row_ids[None, :]).reshape(-1)
    images, labels, aspect_ratios = (
      None if x is None else jnp.concatenate([x] * num_views)
      for x in (images, labels, aspect_ratios)
    )
  if options.is_off:
    return images, Targets(labels)
  images = augmentation_lib.augment(
    images,
    aspect_ratios,
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
