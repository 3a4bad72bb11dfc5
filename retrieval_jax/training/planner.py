"""What a config needs: memory of a device, images a second, hours.

The step of the config is traced for so many devices, which need not be there,
from shapes alone. The bytes of the state and the operations of a step are then
counted; how much a compiler keeps at a time and how fast a device computes are
estimates, and are named as such.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

from retrieval_jax import data, losses, models
from retrieval_jax.core import backend
from retrieval_jax.core.errors import InputError
from retrieval_jax.training import config as config_lib
from retrieval_jax.training import (
  config_checks,
  dataset_checks,
  optim,
  program_cost,
  sharding,
  stages,
  steps,
  tasks,
)
from retrieval_jax.training import state as state_lib
from retrieval_jax.training.experiment import make_optimizer

# Temporary memory is taken as so many times what is counted: the compiler for
# CPUs allocated 1.3 to 2.8 times as much, 2 in the median (docs/planning.md).
MARGIN = 2.0
# Batches on the devices: the one of the step, and those that wait for it.
_BATCHES = 3
# Images of a device, beyond which no larger batch is looked for.
_MAX_ROWS = 2**15
# The largest batch is found to within this share of it.
_PRECISION = 1 / 32


class Facts(NamedTuple):
  """What a plan has to know of the data.

  Attributes:
    classes: of the training images.
    num_images: that are trained on.
    preprocessing: how pictures become what the network sees.
  """

  classes: config_lib.Classes
  num_images: int
  preprocessing: data.Preprocessing

  def scaled_to(self, side: int) -> 'Facts':
    """Returns the facts with images of other pixels."""
    return self._replace(preprocessing=self.preprocessing.scaled_to(side))


class Memory(NamedTuple):
  """Bytes of one device in training.

  Attributes:
    state: what lies there between steps, by name.
    batches: of images that were sent to it.
    temporary: at the worst moment of a step, as counted.
    gradients: of all parameters here, a part of `temporary`.
    cosines: of the rows with the proxies of this device, if there are: one such
      matrix, of the few that are a part of `temporary`.
  """

  state: dict[str, int]
  batches: int
  temporary: int
  gradients: int
  cosines: int

  @property
  def total(self) -> int:
    """What is needed, with the margin."""
    held = sum(self.state.values()) + self.batches
    return held + math.ceil(MARGIN * self.temporary)


class Step(NamedTuple):
  """What a step costs one device.

  Attributes:
    memory: in bytes.
    flops: see `program_cost.Cost`.
    traffic: bytes that are read and written, likewise.
  """

  memory: Memory
  flops: int
  traffic: int


class Plan(NamedTuple):
  """What is known of a stage before it runs.

  Attributes:
    facts: of the data.
    num_devices: that share a batch.
    batch_size: over all devices.
    num_steps: of the stage.
    step: of this batch.
    temporary: with `model.remat` as named, if the backbone has that.
    budget: bytes of a device that JAX takes.
    largest_batch: over all devices, that fits; 0: none does.
  """

  facts: Facts
  num_devices: int
  batch_size: int
  num_steps: int
  step: Step
  temporary: dict[bool, int]
  budget: int
  largest_batch: int


def find_facts(
  config: ml_collections.ConfigDict,
  num_classes: int | None = None,
  num_images: int | None = None,
) -> Facts:
  """Returns the facts of the data, which are loaded only if one is not given.

  Args:
    config: validated; of stages, the last, whose images are the largest.
    num_classes: C; None: of the data.
    num_images: that are trained on; None: of the data.

  Raises:
    InputError: there are no such data, or the network does not take them.
  """
  side, network = config.data.image_size, models.BACKBONES[config.model.name]
  channels = config.data.channels or network.channels
  if None in (num_classes, num_images, side, channels):
    try:
      dataset = data.load_dataset(**config_lib.dataset_options(config))
    except InputError as error:
      raise InputError(
        f'{error}; without the data, give --num_classes, --num_images, '
        '--config.data.image_size and --config.data.channels'
      ) from error
    dataset_checks.validate_dataset(config, dataset)
    preprocessing = dataset.preprocessing
    classes = config_lib.Classes.of(dataset)
    num_images = num_images or len(dataset.train)
    if num_classes not in (None, classes.number):
      classes = _even_classes(num_classes, num_images)
  else:
    classes = _even_classes(num_classes, num_images)
    preprocessing = data.Preprocessing(
      (side, side, channels),
      config.data.resize_size or side,
      config.data.canvas_size or math.ceil(1.5 * side),
    )
  return Facts(classes, num_images, preprocessing)


def _even_classes(num_classes, num_images):
  each = math.ceil(num_images / num_classes)
  return config_lib.Classes(num_classes, np.full(num_classes, each))


def measure(
  config: ml_collections.ConfigDict,
  facts: Facts,
  num_devices: int,
  batch_size: int,
) -> Step:
  """Counts what a training step costs a device; nothing is computed.

  Args:
    config: validated.
    facts: of the data.
    num_devices: that share the batch; they need not be there.
    batch_size: over all of them.

  Returns:
    The cost of the program that GPUs run.
  """
  axis = state_lib.AXIS
  task = tasks.make_task(
    config, facts.classes, facts.preprocessing.image_shape, axis
  )
  chunk = config.gradient_cache.chunk_size
  task = task._replace(chunk_size=chunk and max(1, chunk // num_devices))
  schedule = optim.make_schedule(config.optimizer, 1)
  optimizer = make_optimizer(config, schedule)
  batch = _batch_shapes(task, facts, batch_size // num_devices)
  with backend.assume('gpu'):
    state = _state_on_a_device(config, task, optimizer, num_devices)
    program = jax.make_jaxpr(
      functools.partial(
        steps.train_step,
        task=task,
        optimizer=optimizer,
        schedule=schedule,
        axis_name=axis,
      ),
      axis_env=[(axis, num_devices)],
    )(state, batch)
  cost = program_cost.of(program)
  size = program_cost.bytes_of
  params = dict(state.params)
  proxies = params.get('head', {}).get('proxies')
  memory = Memory(
    state={
      'parameters of the embedder': size(params['embedder']),
      'parameters of the head': size(params.get('head')),
      'optimizer': size(state.opt_state),
      'moving averages': size(state.averages),
      'statistics, and state of the loss': size(
        (state.batch_stats, state.loss_state, params.get('loss'))
      ),
    },
    batches=_BATCHES * size(batch),
    temporary=cost.peak_bytes,
    gradients=size(params),
    cosines=_cosine_bytes(task.objective, proxies, batch_size, num_devices),
  )
  return Step(memory, cost.flops, cost.traffic_bytes)


def _cosine_bytes(
  objective: losses.Objective, proxies: Any, batch_size: int, num_devices: int
) -> int:
  """Returns the bytes of a matrix of cosines, float32 [rows, proxies]."""
  if proxies is None:
    return 0
  # Each shard of the classes is compared with the rows of all devices.
  shared = 1 if objective.shards_classes else num_devices
  rows = objective.num_views * batch_size // shared
  compared = proxies.shape[0]
  if objective.shards_classes and objective.sample_rate < 1:
    compared = math.ceil(compared * objective.sample_rate)
  return 4 * rows * compared


def _batch_shapes(task, facts, num_rows):
  """Returns the shapes of the batch of a device."""
  shape, labels = facts.preprocessing.image_shape, (num_rows,)
  if facts.classes.labels_per_row:
    labels = (num_rows, facts.classes.labels_per_row)
  batch = {'labels': jax.ShapeDtypeStruct(labels, jnp.int32)}
  if task.augmentation.needs_canvas:
    side = facts.preprocessing.canvas_size
    shape = (side, side, shape[-1])
    batch['aspect_ratios'] = jax.ShapeDtypeStruct((num_rows,), jnp.float32)
  images = jax.ShapeDtypeStruct((num_rows, *shape), jnp.uint8)
  return {'images': images, **batch}


def _state_on_a_device(
  config: ml_collections.ConfigDict,
  task: tasks.Task,
  optimizer: optax.GradientTransformation,
  num_devices: int,
) -> state_lib.TrainState:
  """Returns the shapes of the state, of shared leaves those of a part."""
  state = jax.eval_shape(
    functools.partial(task.new_state, optimizer), config.seed
  )
  classes = state_lib.class_sharding(task.objective)

  def part(path, leaf):
    if classes is None or not sharding.is_class_sharded(path):
      return leaf
    rows = classes.rows(num_devices)
    return jax.ShapeDtypeStruct((rows, *leaf.shape[1:]), leaf.dtype)

  return jax.tree.map_with_path(part, state)


def make_plans(
  config: ml_collections.ConfigDict,
  num_devices: int,
  budget: int,
  num_classes: int | None = None,
  num_images: int | None = None,
) -> tuple[Plan, ...]:
  """Plans each stage of a config; it is one if it has no stages.

  Args:
    config: see `configs/default.py`.
    num_devices: that share a batch.
    budget: bytes of a device that JAX takes.
    num_classes: see `find_facts`.
    num_images: see `find_facts`.

  Raises:
    InputError: a mistake in the config, or data that are not there.
  """
  config_checks.validate(config, num_devices)
  last = stages.of_measured(config)
  facts = find_facts(last, num_classes, num_images)
  plans = []
  for index, stage in enumerate(stages.schedule(config, facts.num_images)):
    own, side = facts, stage.config.data.image_size
    if side != last.data.image_size:
      own = facts.scaled_to(side)
    with stages.in_words_of(config, index):
      shape = own.preprocessing.image_shape
      dataset_checks.validate_images(stage.config, shape, config.data.name)
      plans.append(
        _plan_stage(stage.config, own, num_devices, budget, stage.num_steps)
      )
  return tuple(plans)


def _plan_stage(config, facts, num_devices, budget, num_steps) -> Plan:
  """Plans a stage, of its own config."""
  if config.data.batch_size > facts.num_images:
    raise InputError(
      f'data.batch_size is {config.data.batch_size}; allowed is at most '
      f'{facts.num_images}, the number of training images: set it lower'
    )
  step_of = functools.cache(
    functools.partial(measure, config, facts, num_devices)
  )
  batch_size = config.data.batch_size
  step = step_of(batch_size)
  temporary = {}
  if 'remat' in models.BACKBONES[config.model.name].options:
    for remat in (False, True):
      other = ml_collections.ConfigDict(config.to_dict())
      other.model.remat = remat
      is_same = remat == bool(config.model.remat)
      found = (
        step if is_same else measure(other, facts, num_devices, batch_size)
      )
      temporary[remat] = found.memory.temporary
  # What a batch has to be a multiple of.
  unit = math.lcm(
    num_devices,
    config_lib.images_per_class(config),
    config.gradient_cache.chunk_size or 1,
  )
  return Plan(
    facts=facts,
    num_devices=num_devices,
    batch_size=batch_size,
    num_steps=num_steps,
    step=step,
    temporary=temporary,
    budget=budget,
    largest_batch=largest(
      lambda units: step_of(units * unit).memory.total,
      budget,
      first=max(1, batch_size // unit),
      most=min(_MAX_ROWS * num_devices, facts.num_images) // unit,
    )
    * unit,
  )


def largest(
  total: Callable[[int], int], budget: int, *, first: int, most: int
) -> int:
  """Returns the largest size that fits, to within 1/32 of it.

  Args:
    total: size -> what it needs; it grows with the size, about linearly.
    budget: that there is.
    first: size to begin with, at least 1.
    most: size.

  Returns:
    A size of which `total` was seen to fit; 0 if not even 1 does.

  Example:
    >>> largest(lambda size: 100 + 10 * size, 1000, first=4, most=1000)
    90
  """
  fits, exceeds = 0, most + 1
  known: dict[int, int] = {}
  guess = min(first, most)
  while exceeds - fits > max(1, math.floor(fits * _PRECISION)):
    known[guess] = total(guess)
    if known[guess] <= budget:
      fits = guess
    else:
      exceeds = guess
    if len(known) == 1:
      guess = 2 * guess if fits else guess // 2
    else:
      # The line through the two sizes next to the answer.
      (a, of_a), (b, of_b) = sorted(
        known.items(), key=lambda item: abs(item[1] - budget)
      )[:2]
      slope = (of_b - of_a) / (b - a)
      guess = math.floor(a + (budget - of_a) / slope) if slope > 0 else exceeds
      if guess in known:  # It fits; the next step says if more does.
        guess += max(1, math.floor(guess * _PRECISION))
    if not fits < guess < exceeds:
      guess = (fits + exceeds) // 2
  return fits
