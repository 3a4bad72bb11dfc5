"""The divergence doctor: where the first NaN of a run came from.

A step whose loss or gradient is not finite leaves the state as it was, and so
do all after it. When the loop notices, the weights are therefore those of just
before, and the batch is a function of the step: the step is done once more, on
one device and piece by piece, until the first piece that is not finite.
"""

import functools
import io
import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax
import jax
import jax.numpy as jnp
import numpy as np

from retrieval_jax import losses
from retrieval_jax.core import arrays, files, relations
from retrieval_jax.training import step_inputs, tasks
from retrieval_jax.training.state import TrainState

FOLDER = 'divergence'
# Weights start near 0.1 and embeddings near 1; beyond this they have run away.
_RUNAWAY = 1e3
# Hyperparameters that a logit is multiplied with, or divided by.
_SCALES = ('scale', 'temperature', 'softmax_scale', 'alpha', 'beta', 'la')


class Diagnosis(NamedTuple):
  """What is known of the first step that is not finite.

  Attributes:
    step: the number of steps done before it.
    where: the first piece that is not finite.
    cause: the likely reason, and the cure.
    lines: further facts, for the log.
    arrays: to be saved: images, labels, rows, embeddings, cosines.
  """

  step: int
  where: str
  cause: str
  lines: tuple[str, ...]
  arrays: Mapping[str, np.ndarray]

  def sentence(self) -> str:
    """Returns the finding in one line."""
    return (
      f'step {self.step + 1} is not finite: {self.where}; the likely cause: '
      f'{self.cause}'
    )


def diagnose(
  state: TrainState,
  batch: Mapping[str, np.ndarray],
  rows: np.ndarray,
  describe: Callable[[int], str],
  *,
  task: tasks.Task,
  loss_options: Mapping[str, Any],
  learning_rate: float,
) -> Diagnosis:
  """Does a step once more, piece by piece, to the first that is not finite.

  Args:
    state: of just before the step, on the host.
    batch: of the step, as `steps.train_step` takes it.
    rows: [B] of the training set, that the batch was made of.
    describe: row -> what a user knows the image by.
    task: built for one device.
    loss_options: what the user said of the loss, for the cure.
    learning_rate: of the step, for the cure.
  """
  step = int(state.step)
  # A piece is compiled whole: operation by operation takes far longer.
  images, targets, dropout_key, loss_key = jax.jit(
    lambda batch: step_inputs.network_inputs(batch, step, task, axis_name=None)
  )(dict(batch))
  rows = np.tile(rows, task.objective.num_views)
  labels = np.asarray(targets.labels)
  saved = {'images': np.asarray(batch['images']), 'rows': rows}
  saved['labels'] = labels

  def name_rows(bad):
    places = np.flatnonzero(bad)
    shown = [
      f'{describe(int(rows[i]))} (row {rows[i]}, class '
      f'{relations.first_labels(labels[i : i + 1])[0]})'
      for i in places[:3]
    ]
    more = f' and {len(places) - 3} more' if len(places) > 3 else ''
    return ', '.join(shown) + more

  def found(where, cause, *lines):
    return Diagnosis(step, where, cause, lines, saved)

  rate_cure = (
    f'optimizer.learning_rate, {learning_rate:.3g} at this step: lower it, or '
    'set optimizer.clip_norm=1.0'
  )
  bad = ~_finite_rows(images)
  if bad.any():
    return found(
      f'the pixels of {name_rows(bad)}',
      'a broken image, or what augment does to it: look at it with '
      'python -m retrieval_jax.check_data',
    )
  weights = flax.traverse_util.flatten_dict(state.params, sep='/')
  broken = [name for name, leaf in weights.items() if not _is_finite(leaf)]
  if broken:
    return found(f'the weights of {broken[0]}', rate_cure)
  largest = max(weights, key=lambda name: np.abs(weights[name]).max(initial=0))
  size = float(np.abs(weights[largest]).max())
  facts = [f'largest weight: {size:.3g} in {largest}']

  paths = []

  def embed(variables, images, dropout_key):
    embeddings, updates = task.networks.embedder.apply(
      variables,
      images,
      train=True,
      mutable=['batch_stats', 'intermediates'],
      capture_intermediates=True,
      rngs={'dropout': dropout_key},
    )
    layers = flax.traverse_util.flatten_dict(updates['intermediates'])
    # In the order in which they ran; a mapping comes out sorted by name.
    paths[:] = layers
    return embeddings, list(layers.values())

  embeddings, outputs_of_layers = jax.jit(embed)(
    {'params': state.params['embedder'], 'batch_stats': state.batch_stats},
    images,
    dropout_key,
  )
  saved['embeddings'] = np.asarray(embeddings)
  for path, outputs in zip(paths, outputs_of_layers, strict=True):
    outputs = jax.tree.leaves(outputs)  # A backbone gives several maps.
    if all(_is_finite(output) for output in outputs):
      continue
    bad = ~np.all([_finite_rows(output) for output in outputs], axis=0)
    layer = '/'.join(path[:-1]) or 'the embedder'
    overflow = (
      f'{layer} overflows; the largest weight is {size:.3g} in {largest}: '
    )
    return found(
      f'the output of layer {layer} for {name_rows(bad)}',
      overflow + rate_cure,
      *facts,
    )
  norms = np.asarray(jax.jit(arrays.norms)(embeddings))
  facts.append(f'embedding norms: {norms.min():.3g} to {norms.max():.3g}')
  cosines = np.asarray(
    jax.jit(functools.partial(_cosines, task.objective))(
      state.params, embeddings, targets.labels
    )
  )
  saved['cosines'] = cosines
  facts.append(
    f'cosines with the own class: {cosines.min():.6g} to {cosines.max():.6g}'
  )

  def loss_fn(embeddings, proxies, params):
    outcome = task.objective(
      params,
      state.loss_state,
      losses.Batch(embeddings, *targets, step=step),
      proxies=proxies,
      key=loss_key,
    )
    return outcome.loss

  proxies = state.params.get('head', {}).get('proxies')
  value, gradient = jax.jit(jax.value_and_grad(loss_fn))(
    embeddings, proxies, state.params.get('loss', {})
  )
  bad = ~_finite_rows(gradient)
  if not np.isfinite(value) or bad.any():
    what = 'the loss' if not np.isfinite(value) else 'the gradient of the loss'
    if not bad.any():
      bad = np.ones(len(rows), bool)
    places = np.flatnonzero(bad)[:3]
    shown = ', '.join(f'{cosines[i]:.6g}' for i in places)
    scales = [
      f'loss.{name}={loss_options[name]}'
      for name in _SCALES
      if name in loss_options
    ]
    cause = (
      f'{" and ".join(scales)}, too large or too small for float32: go back '
      'to the default'
      if scales
      else rate_cure
    )
    if norms.max() > _RUNAWAY or size > _RUNAWAY:
      cause = rate_cure
    return found(
      f'{what} at cosine {shown} with the own class, for {name_rows(bad)}',
      cause,
      *facts,
    )
  return found(
    'the gradient of the weights, while the loss and its gradient at the '
    'embeddings are finite',
    f'the backward pass overflows: {rate_cure}',
    *facts,
  )


def _cosines(objective, params, embeddings, labels):
  """Returns [B], each row's cosine with its class.

  That is its proxy, or without proxies the nearest other image of its class
  (1 for an image that is alone).
  """
  if objective.centers:
    cosines = arrays.proxy_cosines(
      embeddings, params['head']['proxies'], objective.centers
    )
    return jnp.take_along_axis(cosines, labels[:, None], axis=1)[:, 0]
  ids = jnp.arange(len(labels), dtype=jnp.int32)
  positives, _ = relations.pair_masks(labels, labels, ids, ids)
  cosines = arrays.cosine_similarities(embeddings, embeddings)
  nearest = jnp.max(jnp.where(positives, cosines, -jnp.inf), axis=1)
  return jnp.where(jnp.any(positives, axis=1), nearest, 1.0)


def _finite_rows(x) -> np.ndarray:
  """Returns [B] bool, the rows of [B, ...] without a NaN or infinity."""
  x = np.asarray(x, np.float32)
  return np.isfinite(x).reshape(len(x), -1).all(axis=1)


def _is_finite(x) -> bool:
  return bool(np.isfinite(np.asarray(x, np.float32)).all())


def save(diagnosis: Diagnosis, workdir: str, suffix: str = '') -> str:
  """Writes the batch and the findings; returns the path of the batch.

  Args:
    diagnosis: to be written.
    workdir: of the run; `divergence/` in it is made.
    suffix: of the files, to keep several processes apart.
  """
  folder = os.path.join(workdir, FOLDER)
  os.makedirs(folder, exist_ok=True)
  path = os.path.join(folder, f'step_{diagnosis.step + 1}{suffix}.npz')
  content = io.BytesIO()
  np.savez_compressed(content, **diagnosis.arrays)
  files.write_bytes(path, content.getvalue())
  text = '\n'.join((diagnosis.sentence(), *diagnosis.lines)) + '\n'
  files.write_text(path.removesuffix('.npz') + '.txt', text)
  return path
