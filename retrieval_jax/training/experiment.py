"""All that is built from a config before the first step."""

import logging
from typing import NamedTuple

import jax
import ml_collections
import optax

from retrieval_jax import data, models
from retrieval_jax.training import config as config_lib
from retrieval_jax.training import (
  config_checks,
  optim,
  parameter_groups,
  steps,
)
from retrieval_jax.training import evaluation as evaluation_lib
from retrieval_jax.training import state as state_lib

_log = logging.getLogger(__name__)


class Experiment(NamedTuple):
  """A validated config with all that is built from it, but no weights."""

  config: ml_collections.ConfigDict
  dataset: data.Dataset
  load_batch: data.TrainLoader
  task: steps.Task
  evaluator: evaluation_lib.Evaluator
  num_steps: int
  schedule: optax.Schedule
  optimizer: optax.GradientTransformation

  @property
  def epoch_steps(self) -> int:
    """The steps of an epoch."""
    return config_lib.steps_per_epoch(self.config, len(self.dataset.train))

  def initial_state(self) -> state_lib.TrainState:
    """The state of step 0, on the host."""
    return state_lib.create_state(
      self.config.seed,
      self.task.networks,
      self.task.objective,
      self.optimizer,
      self.dataset.image_shape,
      averages=self.task.ema_decay is not None,
    )

  def replicate(self, state: state_lib.TrainState) -> state_lib.TrainState:
    """Puts a state of the host on the devices."""
    classes = state_lib.class_sharding(self.task.objective)
    return state_lib.replicate(state, classes)

  def unreplicate(self, state: state_lib.TrainState) -> state_lib.TrainState:
    """Returns a state of the devices on the host."""
    classes = state_lib.class_sharding(self.task.objective)
    return state_lib.unreplicate(state, classes)


def make_experiment(config: ml_collections.ConfigDict) -> Experiment:
  """Loads the data and builds the networks of a config.

  Raises:
    InputError: for any mistake in the config or the data.
  """
  config_checks.validate(config, jax.device_count())
  dataset = data.load_dataset(**config_lib.dataset_options(config))
  _log.info('%s', data.describe(dataset))
  config_checks.validate_dataset(config, dataset)
  classes = config_lib.Classes.of(dataset)
  task = steps.make_task(config, classes, dataset.image_shape)
  steps.check_views(task)
  parameter_groups.check_frozen(
    state_lib.parameter_shapes(
      task.networks, task.objective, dataset.image_shape
    ),
    config.optimizer.frozen,
  )
  num_steps = config_lib.num_train_steps(config, len(dataset.train))
  schedule = optim.make_schedule(config.optimizer, num_steps)
  sampler = data.make_sampler(
    dataset.train.labels,
    seed=config.seed,
    categories=dataset.categories,
    parts=dataset.parts,
    **config_lib.sampler_options(config),
  )
  _log.info(
    '%s',
    data.coverage(
      sampler,
      dataset.train.labels,
      config_lib.steps_per_epoch(config, len(dataset.train)),
      images_per_class=config_lib.images_per_class(config),
    ),
  )
  return Experiment(
    config=config,
    dataset=dataset,
    load_batch=data.TrainLoader(
      dataset.train,
      sampler,
      canvas=task.augmentation.needs_canvas,
      max_unreadable_share=config.data.max_unreadable_share,
      process_index=jax.process_index(),
      process_count=jax.process_count(),
    ),
    task=task,
    evaluator=evaluation_lib.Evaluator(config, task, dataset.class_categories),
    num_steps=num_steps,
    schedule=schedule,
    optimizer=make_optimizer(config, schedule),
  )


def make_optimizer(
  config: ml_collections.ConfigDict, schedule: optax.Schedule
) -> optax.GradientTransformation:
  """Returns the optimizer of a config, for its backbone and head."""
  return optim.make_optimizer(
    config.optimizer,
    schedule,
    shard_axis=state_lib.AXIS if config.head.sharded else None,
    layers=models.BACKBONES[config.model.name].layers,
  )
