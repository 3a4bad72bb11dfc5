"""All that is built from a config before the first step."""

import dataclasses
import logging
from typing import NamedTuple

import jax
import ml_collections
import numpy as np
import optax

from retrieval_jax import data, models
from retrieval_jax.core.errors import InputError
from retrieval_jax.training import checkpoint as checkpoint_lib
from retrieval_jax.training import config as config_lib
from retrieval_jax.training import (
  config_checks,
  dataset_checks,
  optim,
  parameter_groups,
  steps,
  tasks,
)
from retrieval_jax.training import evaluation as evaluation_lib
from retrieval_jax.training import stages as stages_lib
from retrieval_jax.training import state as state_lib

_log = logging.getLogger(__name__)


class BuiltStage(NamedTuple):
  """A stage with all that its steps are made of, but no weights.

  Steps are counted over the run.

  Attributes:
    plan: its config and its place in the run.
    train: the images that it trains on, in its size.
    load_batch: step -> batch.
    task: what is trained.
    schedule: step -> learning rate.
    optimizer: which begins with the stage.
  """

  plan: stages_lib.Stage
  train: data.Source
  load_batch: data.TrainLoader
  task: tasks.Task
  schedule: optax.Schedule
  optimizer: optax.GradientTransformation

  def initial_state(self, backbone: bool = True) -> state_lib.TrainState:
    """The state of step 0, on the host; see `state.create_state`."""
    return state_lib.create_state(
      self._new_state, self.plan.config.seed, backbone=backbone
    )

  def empty_state(self) -> state_lib.TrainState:
    """The same with nothing in its arrays, to read a checkpoint into."""
    return state_lib.empty_state(self._new_state)

  def _new_state(self, seed):
    return self.task.new_state(self.optimizer, seed)

  def starting_from(self, state: state_lib.TrainState) -> state_lib.TrainState:
    """Returns the state that the stage before left, with a new optimizer."""
    opt_state = jax.device_get(self.optimizer.init(state.params))
    return state.replace(opt_state=opt_state)


class Experiment(NamedTuple):
  """A validated config with all that is built from it, but no weights.

  Attributes:
    config: of the run.
    dataset: in the size of the last stage, in which all is measured.
    stages: at least one.
    evaluator: of the last stage.
  """

  config: ml_collections.ConfigDict
  dataset: data.Dataset
  stages: tuple[BuiltStage, ...]
  evaluator: evaluation_lib.Evaluator

  @property
  def num_steps(self) -> int:
    """The steps of the run."""
    return self.stages[-1].plan.end

  def stage_of(self, step: int) -> BuiltStage:
    """Returns the stage that does a step."""
    return next(stage for stage in self.stages if step < stage.plan.end)

  def load_batch(self, step: int) -> dict[str, np.ndarray]:
    """Loads the batch of a step."""
    return self.stage_of(step).load_batch(step)

  @property
  def num_unreadable(self) -> int:
    """How many training images could not be read so far."""
    return len(set().union(*(s.load_batch.unreadable for s in self.stages)))

  def restore(
    self, checkpoints: checkpoint_lib.Checkpoints, step: int
  ) -> state_lib.TrainState:
    """Returns the state after a step, as the stage that did it left it."""
    stage = self.stage_of(max(0, step - 1))
    return checkpoints.restore(stage.empty_state(), step)

  def replicate(self, state: state_lib.TrainState) -> state_lib.TrainState:
    """Puts a state of the host on the devices."""
    return state_lib.replicate(state, self._class_sharding)

  def unreplicate(self, state: state_lib.TrainState) -> state_lib.TrainState:
    """Returns a state of the devices on the host."""
    return state_lib.unreplicate(state, self._class_sharding)

  @property
  def _class_sharding(self):
    return state_lib.class_sharding(self.stages[-1].task.objective)


def make_experiment(config: ml_collections.ConfigDict) -> Experiment:
  """Loads the data and builds the networks of a config.

  Raises:
    InputError: for any mistake in the config or the data.
  """
  config_checks.validate(config, jax.device_count())
  dataset = data.load_dataset(**config_lib.dataset_options(config))
  _log.info('%s', data.describe(dataset))
  plans = stages_lib.schedule(config, len(dataset.train))
  with stages_lib.in_words_of(config, len(plans) - 1):
    dataset_checks.validate_dataset(config, dataset)
  built = []
  for index, plan in enumerate(plans):
    with stages_lib.in_words_of(config, index):
      built.append(_build_stage(plan, index, len(plans), dataset))
  task = built[-1].task
  steps.check_views(task)
  shapes = [
    state_lib.parameter_shapes(
      stage.task.networks, stage.task.objective, stage.task.image_shape
    )
    for stage in built
  ]
  if any(other != shapes[0] for other in shapes):
    options = config_lib.model_options(config)
    pooling = models.pooling_name(config.model.name, options)
    raise InputError(
      f'stages have several image sizes, but with model.pooling {pooling!r} '
      'the parameters depend on the size; allowed are networks of any size, '
      "such as with model.pooling='average': set it, or --config.stages=None"
    )
  parameter_groups.check_frozen(shapes[0], config.optimizer.frozen)
  return Experiment(
    config=config,
    dataset=dataset,
    stages=tuple(built),
    evaluator=evaluation_lib.Evaluator(config, task, dataset.class_categories),
  )


def _build_stage(
  plan: stages_lib.Stage, index: int, count: int, dataset: data.Dataset
) -> BuiltStage:
  """Builds the stage of an index, of so many."""
  config, train = plan.config, dataset.train
  if index < count - 1:
    preprocessing = train.preprocessing.scaled_to(config.data.image_size)
    train = dataclasses.replace(train, preprocessing=preprocessing)
    dataset_checks.validate_images(config, train.image_shape, dataset.name)
  sampler = data.make_sampler(
    train.labels,
    # Not the epochs of the stage before once more.
    seed=config.seed + index,
    categories=dataset.categories,
    parts=dataset.parts,
    **config_lib.sampler_options(config),
  )
  if count > 1:
    _log.info(
      'stage %d of %d: %d steps of %d images of %d x %d pixels',
      index + 1,
      count,
      plan.num_steps,
      config.data.batch_size,
      *train.image_shape[:2],
    )
  _log.info(
    '%s',
    data.coverage(
      sampler,
      train.labels,
      plan.epoch_steps,
      images_per_class=config_lib.images_per_class(config),
    ),
  )
  first, classes = plan.first_step, config_lib.Classes.of(dataset)
  task = tasks.make_task(config, classes, train.image_shape, first_step=first)
  schedule = optim.make_schedule(config.optimizer, plan.num_steps)
  return BuiltStage(
    plan=plan,
    train=train,
    load_batch=data.TrainLoader(
      train,
      lambda step: sampler(step - first),
      canvas=task.augmentation.needs_canvas,
      max_unreadable_share=config.data.max_unreadable_share,
      process_index=jax.process_index(),
      process_count=jax.process_count(),
    ),
    task=task,
    schedule=_later(schedule, first),
    optimizer=make_optimizer(config, schedule),
  )


def _later(schedule: optax.Schedule, first_step: int) -> optax.Schedule:
  """Returns a schedule that begins at a step of the run."""
  return (lambda step: schedule(step - first_step)) if first_step else schedule


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
