"""Measures a run on other data than it was trained with."""

import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections

from retrieval_jax import data, neighbors
from retrieval_jax.core.errors import InputError
from retrieval_jax.training import checkpoint as checkpoint_lib
from retrieval_jax.training import config as config_lib
from retrieval_jax.training import (
  config_checks,
  dataset_checks,
  evaluation,
  report_queries,
  reporting,
  results,
  stages,
  state,
  steps,
  tasks,
  whitening,
)

# In the workdir of a run, with a folder for each measurement.
FOLDER = 'evaluations'

_log = logging.getLogger(__name__)

# What may be set for a measurement; anything else is the run's.
_KEYS = ('data', 'eval')
# How pictures become arrays, which stays the run's unless it is set.
_SHAPING = ('image_size', 'resize_size', 'channels', 'canvas_size')
# Stay the run's though they are of its data: they cannot be None.
_KEPT = (
  'test_fraction',
  'split_seed',
  'validation_folds',
  'validation_fold',
  'num_threads',
  *_SHAPING,
)


def measurement_config(
  workdir: str, overrides: Sequence[tuple[str, str]]
) -> ml_collections.ConfigDict:
  """Returns the config of a run with other data to be measured on.

  Args:
    workdir: of the run.
    overrides: (key, text) of `data.*` and `eval.*`. With another `data.name`
      whatever else says which data were read is left out.

  Raises:
    InputError: not a run, or a key or value that is not allowed.
  """
  config = stages.of_measured(checkpoint_lib.read_config(workdir))
  for key, _ in overrides:
    if not config_lib.is_in(key, _KEYS):
      raise InputError(
        f'--config.{key} is given; allowed are data.* and eval.* here, since '
        f'the rest is what {workdir} was trained with: leave it out'
      )
  if any(key == 'data.name' for key, _ in overrides):
    for name in data.option_names():
      if name not in _KEPT:
        value = config.data[name]
        config.data[name] = False if isinstance(value, bool) else None
    config.data.members = {}
  for key, text in overrides:
    config_lib.override(config, key, text)
  config_checks.validate(config, jax.device_count())
  return config


def evaluate_on(
  workdir: str,
  overrides: Sequence[tuple[str, str]],
  *,
  name: str | None = None,
  step: int | None = None,
) -> dict[str, dict[str, float]]:
  """Measures a run on other data, and keeps it beside the run's own results.

  Written are `results.json`, the values per query, the pages, the history and
  TensorBoard events, in `evaluations/<name>/` of the run. The same measurement
  again, such as after more steps of training, takes the place of the last one.

  Args:
    workdir: of the run.
    overrides: see `measurement_config`.
    name: of the measurement; None: that of the data.
    step: a checkpointed step; None: the one that the run's results are of.

  Returns:
    set -> metric -> value.

  Raises:
    InputError: not a run, no such checkpoint, data that cannot be had or
      that the model cannot take, or another measurement of this name.
  """
  config = measurement_config(workdir, overrides)
  folder = os.path.join(workdir, FOLDER, _folder_name(name, config.data.name))
  checkpoint_lib.check_same_config(folder, config, flag='--name')
  dataset = data.load_dataset(
    **config_lib.dataset_options(config),
    preprocessing=_preprocessing(workdir, overrides),
    for_training=False,
  )
  _log.info('%s', data.describe(dataset))
  train = _training_images(workdir, config)
  dataset_checks.validate_evaluation(
    config, dataset, 0 if train is None else len(train)
  )
  info = checkpoint_lib.read_dataset_info(workdir)
  task = tasks.make_task(
    config, config_lib.Classes(info['num_classes']), dataset.image_shape
  )
  steps.check_views(task)
  with checkpoint_lib.Checkpoints(workdir) as checkpoints:
    was_asked = step is not None
    step = step if was_asked else checkpoints.selected_step()
    restored = checkpoints.restore_params(step)
    score = checkpoints.score(step)
  selection = results.Selection(
    step, () if score is None else ('its validation set',), score, was_asked
  )
  variables = {
    'params': restored['params']['embedder'],
    'batch_stats': restored['batch_stats'],
  }
  _check_shapes(task, variables, workdir)
  if config.eval.whiten:
    variables['whitening'] = whitening.load(workdir, step)
  evaluator = evaluation.Evaluator(config, task, dataset.class_categories)
  variables = state.replicate(variables)
  found = evaluator.measure(variables, dataset.tests, curves=True)
  ablation = evaluator.ablate(variables, found, train)
  checkpoint_lib.make_folder(folder)
  results.describe_run(folder, config, dataset)
  with reporting.Reporter(
    folder, first_step=step - 1, num_steps=step, is_lead=True
  ) as reporter:
    measured = {key: own.result for key, own in found.items()}
    reporter.evaluation(step, measured)
    reporter.finish()
    pages = results.write_results(
      folder, config, dataset, found, selection, ablation
    )
    for key, page in pages.items():
      reporter.image(
        step, f'eval/gallery/{key}', report_queries.gallery_image(page)
      )
  return {key: result.metrics for key, result in measured.items()}


def _folder_name(name: str | None, data_name: str) -> str:
  """Returns what the folder of a measurement is called."""
  if name is None:
    return data_name.replace('/', '-')
  if not name or name.startswith('.') or os.path.basename(name) != name:
    raise InputError(
      f'--name is {name!r}; allowed is the name of a folder, not a path, that '
      'does not begin with a dot'
    )
  return name


def _preprocessing(
  workdir: str, overrides: Sequence[tuple[str, str]]
) -> data.Preprocessing | None:
  """Returns the run's own, unless its sizes are to be others."""
  if any(key == f'data.{own}' for key, _ in overrides for own in _SHAPING):
    return None
  info = checkpoint_lib.read_dataset_info(workdir)
  return data.Preprocessing.from_dict(info['preprocessing'])


def _training_images(
  workdir: str, config: ml_collections.ConfigDict
) -> data.Source | None:
  """Returns the images that the run was trained on, if they are needed."""
  if not neighbors.needs(config_lib.postprocessing(config), 'train'):
    return None
  own = checkpoint_lib.read_config(workdir)
  return data.load_dataset(**config_lib.dataset_options(own)).train


def _check_shapes(
  task: tasks.Task, variables: Mapping[str, Any], workdir: str
) -> None:
  """Raises `InputError` if the model does not take images of this size."""
  shape = task.image_shape
  expected = jax.eval_shape(
    lambda: task.networks.embedder.init(
      jax.random.key(0), jnp.zeros((1, *shape)), train=False
    )
  )['params']
  *_, differing = state.merge_params(expected, variables['params'])
  if differing:
    raise InputError(
      f'the model of {workdir} does not take images of {shape}, height, width '
      f'and channels: {differing[0]} would have another shape; allowed are '
      'those that it was trained with: leave data.image_size and data.channels '
      'out'
    )
