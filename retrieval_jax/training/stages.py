"""The stages of a run: what changes from one to the next, and when.

`config.stages` is a tuple of dictionaries, each with what differs from the rest
of the config. A config without stages has one, which is the config itself.
"""

import contextlib
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import ml_collections

from retrieval_jax.core.errors import InputError, unknown_name
from retrieval_jax.training.config_rules import RULES

# What a stage may set, and the key of the config that it stands for.
KEYS = {
  'num_epochs': 'num_epochs',
  'num_train_steps': 'num_train_steps',
  'image_size': 'data.image_size',
  'batch_size': 'data.batch_size',
  'classes_per_batch': 'data.classes_per_batch',
  'chunk_size': 'gradient_cache.chunk_size',
  'learning_rate': 'optimizer.learning_rate',
  'warmup_steps': 'optimizer.warmup_steps',
  'head_only_steps': 'optimizer.head_only_steps',
  'accumulate_steps': 'optimizer.accumulate_steps',
}


class Stage(NamedTuple):
  """A stage with its place among the steps of the run.

  Attributes:
    config: as it is in this stage, without stages.
    first_step: steps of the run that are done before.
    num_steps: of this stage.
    epoch_steps: in which as many images are seen as there are.
  """

  config: ml_collections.ConfigDict
  first_step: int
  num_steps: int
  epoch_steps: int

  @property
  def end(self) -> int:
    """Steps of the run that are done after it."""
    return self.first_step + self.num_steps


def check(stages: Any) -> None:
  """Raises `InputError` unless stages are what `config.stages` may be.

  Args:
    stages: the value of that key.
  """
  if stages is None:
    return
  if not isinstance(stages, tuple) or not stages:
    raise InputError(
      f'stages is {stages!r}; allowed is a tuple of at least one dictionary, '
      "such as ({'num_epochs': 8, 'image_size': 224},), or None: set "
      '--config.stages=None'
    )
  for index, stage in enumerate(stages):
    if not isinstance(stage, Mapping):
      raise InputError(
        f'stages.{index} is {stage!r}; allowed is a dictionary, such as '
        "{'num_epochs': 8, 'image_size': 224}"
      )
    for key, value in stage.items():
      if key not in KEYS:
        raise unknown_name(f'key of stages.{index}', key, KEYS)
      if not RULES[KEYS[key]].holds(value):
        raise InputError(
          f'stages.{index}.{key} is {value!r}; allowed is '
          f'{RULES[KEYS[key]].allowed}: set --config.stages.{index}.{key}'
        )


def configs(
  config: ml_collections.ConfigDict,
) -> tuple[ml_collections.ConfigDict, ...]:
  """Returns the config of each stage; (config,) if it has no stages.

  What a stage does not set is as in the rest of the config.

  Raises:
    InputError: see `check`; sizes of images that do not grow; or a number of
      steps of the config that no stage would have.
  """
  stages = config.get('stages')
  check(stages)
  if stages is None:
    return (config,)
  found = [_of_stage(config, i, stage) for i, stage in enumerate(stages)]
  for index, stage in enumerate(found):
    size = stage.data.image_size
    if size is None and len(found) > 1:
      raise InputError(
        f'stages.{index} has no image_size; allowed is one in each of several '
        f'stages: set --config.stages.{index}.image_size'
      )
    before = found[index - 1].data.image_size if index else 0
    if size is not None and size <= before:
      raise InputError(
        f'stages.{index} has image_size {size} after {before}; allowed are '
        f'sizes that grow from stage to stage: set '
        f'--config.stages.{index}.image_size, or make one stage of the two'
      )
  return tuple(found)


def _of_stage(config, index, stage):
  """Returns the config of a stage."""
  found = ml_collections.ConfigDict(config.to_dict())
  found.stages = None
  if 'num_epochs' in stage and 'num_train_steps' not in stage:
    if config.num_train_steps is not None:
      raise InputError(
        f'num_train_steps is {config.num_train_steps}; allowed is None where '
        f'stages.{index} has its own num_epochs: set '
        f'--config.stages.{index}.num_train_steps'
      )
  for key, value in stage.items():
    *sections, name = KEYS[key].split('.')
    section = found
    for part in sections:
      section = section[part]
    section[name] = value
  return found.lock()


def of_measured(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
  """Returns the config of the last stage, whose images are measured."""
  return configs(config)[-1]


@contextlib.contextmanager
def in_words_of(
  config: ml_collections.ConfigDict, index: int
) -> Iterator[None]:
  """Has messages name the keys of a stage, and not those they stand for.

  Example:
    >>> config = ml_collections.ConfigDict({'stages': ({'batch_size': 3},)})
    >>> with in_words_of(config, 0):
    ...   raise InputError('data.batch_size is 3: set --config.data.batch_size')
    Traceback (most recent call last):
    ...
    retrieval_jax.core.errors.InputError: stages.0.batch_size is 3: set \
--config.stages.0.batch_size
  """
  try:
    yield
  except InputError as error:
    text = str(error)
    stages = config.get('stages')
    for key in () if stages is None else stages[index]:
      text = re.sub(
        rf'(?<!\w){re.escape(KEYS[key])}(?!\w)', f'stages.{index}.{key}', text
      )
    if text == str(error):
      raise
    raise InputError(text) from error


def steps_per_epoch(
  config: ml_collections.ConfigDict, num_examples: int
) -> int:
  """Returns the steps in which as many images are seen as there are."""
  return math.ceil(num_examples / config.data.batch_size)


def schedule(
  config: ml_collections.ConfigDict, num_examples: int
) -> tuple[Stage, ...]:
  """Returns the stages of a run one after the other.

  Args:
    config: of the run.
    num_examples: that it trains on.
  """
  found, first = [], 0
  for own in configs(config):
    epoch = steps_per_epoch(own, num_examples)
    steps = own.num_train_steps
    steps = own.num_epochs * epoch if steps is None else steps
    found.append(Stage(own, first, steps, epoch))
    first += steps
  return tuple(found)
