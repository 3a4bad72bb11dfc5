"""The config: what it holds, and every mistake in it, said in one line.

A config is an `ml_collections.ConfigDict`, read from a file with
`get_config(arg=None)` and changed from the command line. `validate` finds what
can be found without the data; `validate_dataset` finds the rest. Both raise
`InputError` with the key, the value, what is allowed and the cure.
"""

import ast
import difflib
import importlib.util
import json
import math
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import ml_collections
import numpy as np

from retrieval_jax import data, losses, metrics, models
from retrieval_jax.core.errors import InputError, unknown_name
from retrieval_jax.training import optim
from retrieval_jax.training.config_rules import RULES

# What may differ when a run is continued: nothing that the weights depend on.
FREE_KEYS = (
  'eval',
  'log_every_steps',
  'checkpoint_every_steps',
  'data.num_threads',
)


# Sections with keys of their own besides those of RULES.
_OPEN_SECTIONS = ('loss', 'miner', 'model', 'augment', 'data.members')

# The keys of `data` that say what is in a batch.
_SAMPLER_KEYS = (
  'batch_size',
  'classes_per_batch',
  'categories_per_batch',
  'class_power',
  'mixing',
)


def load(path: str) -> ml_collections.ConfigDict:
  """Reads `configs/circle.py` or `configs/circle.py:mnist`.

  Args:
    path: a Python file with `get_config(arg=None)`, and after a colon the
      argument to call it with.

  Returns:
    The config, with its keys locked.

  Raises:
    InputError: no such file (with the nearest of its folder), no `get_config`,
      or an argument that it refuses.
  """
  file, _, argument = path.partition(':')
  if not os.path.isfile(file):
    folder = os.path.dirname(file) or '.'
    there = (
      sorted(name for name in os.listdir(folder) if name.endswith('.py'))
      if os.path.isdir(folder)
      else []
    )
    near = difflib.get_close_matches(os.path.basename(file), there, n=1)
    cure = (
      f'did you mean {os.path.join(folder, near[0])}?'
      if near
      else f'there are: {", ".join(there) or "no configs in " + folder}'
    )
    raise InputError(f'--config={path}: no file {file!r}; {cure}')
  # A config imports the default that it varies from beside it, as
  # `from configs import default`, wherever the command was started.
  root = os.path.dirname(os.path.dirname(os.path.abspath(file)))
  spec = importlib.util.spec_from_file_location('_retrieval_config', file)
  if spec is None:
    raise InputError(f'--config={path}: allowed is a Python file (*.py)')
  module = importlib.util.module_from_spec(spec)
  sys.path.insert(0, root)
  try:
    spec.loader.exec_module(module)
    config = module.get_config(argument) if argument else module.get_config()
  except Exception as error:  # Whatever a user's file raises is about it.
    raise InputError(
      f'--config={path}: {type(error).__name__}: '
      f'{" ".join(str(error).split())}; get_config(arg=None) has to return a '
      'ConfigDict'
    ) from error
  finally:
    sys.path.remove(root)
  if not isinstance(config, ml_collections.ConfigDict):
    raise InputError(
      f'--config={path}: get_config returned a {type(config).__name__}; '
      'allowed is an ml_collections.ConfigDict'
    )
  return config.lock()


def override(config: ml_collections.ConfigDict, key: str, text: str) -> None:
  """Sets `key` to the value written in `text`, as `--config.KEY=TEXT` does.

  Args:
    config: changed in place.
    key: dotted, such as `loss.margin`; it has to exist.
    text: a Python literal; anything else is a string.

  Raises:
    InputError: for an unknown key (with the nearest match), a whole section,
      or a value of another type.
  """
  try:
    value = ast.literal_eval(text)
  except (ValueError, SyntaxError):
    value = {'true': True, 'false': False}.get(text.lower(), text)
    if text.lower() in ('nan', 'inf', '-inf'):
      value = float(text)
  known = flatten(config)
  *sections, name = key.split('.')
  if key not in known and not _may_be_added(config, sections):
    raise unknown_name('--config key', key, known)
  section = config
  for part in sections:
    section = section[part]
  if key not in known:  # What it may be, the loss or the miner says.
    with section.unlocked():
      section[name] = value
    return
  old = section[name]
  if isinstance(old, tuple) and not isinstance(value, tuple | list):
    value = (value,)
  if section.get_type(name) is str and value is not None:
    value = text
  try:
    section[name] = value
  except TypeError:
    raise InputError(
      f'{key} is {text!r}; allowed is a value of type '
      f'{section.get_type(name).__name__}, such as {old!r}'
    ) from None


def _may_be_added(
  config: ml_collections.ConfigDict, sections: Sequence[str]
) -> bool:
  """Returns whether a section takes keys that its config does not have yet."""
  node: Any = config
  for part in sections:
    if not isinstance(node, ml_collections.ConfigDict) or part not in node:
      return False
    node = node[part]
  return bool(sections) and sections[0] in ('loss', 'miner')


def flatten(config: Mapping, prefix: str = '') -> dict[str, Any]:
  """Returns {'data.batch_size': 32, ...} of nested mappings."""
  flat = {}
  for key, value in config.items():
    if isinstance(value, Mapping | ml_collections.ConfigDict):
      flat.update(flatten(value, f'{prefix}{key}.'))
    else:
      flat[prefix + key] = value
  return flat


def options(section: Mapping, *without: str) -> dict[str, Any]:
  """Returns a section's hyperparameters: all but its name and `without`."""
  return {k: v for k, v in section.items() if k not in ('name', *without)}


def model_options(config: ml_collections.ConfigDict) -> dict[str, Any]:
  """Returns what `models.build_embedder` takes besides the name."""
  return options(config.model, 'embedding_dim', 'init_from')


def dataset_options(config: ml_collections.ConfigDict) -> dict[str, Any]:
  """Returns what `data.load_dataset` takes."""
  names = ('name', *data.option_names())
  return {key: config.data[key] for key in names} | {
    'members': config.data.members.to_dict()
  }


def sampler_options(config: ml_collections.ConfigDict) -> dict[str, Any]:
  """Returns what `data.make_sampler` takes besides the labels and the seed."""
  options = {key: config.data[key] for key in _SAMPLER_KEYS}
  return options | {'name': config.data.sampler}


def images_per_class(config: ml_collections.ConfigDict) -> int:
  """Returns K of P x K batches, 1 if images are drawn and not classes."""
  classes = config.data.classes_per_batch
  return config.data.batch_size // classes if classes else 1


def augmentation(
  config: ml_collections.ConfigDict,
) -> data.augmentation.Augmentation:
  """Returns what is done to the images of a training step."""
  return data.augmentation.Augmentation.from_options(config.augment.to_dict())


def loss_options(config: ml_collections.ConfigDict) -> dict[str, Any]:
  """Returns what `losses.parse` takes: the loss, and its miner if any."""
  found = config.loss.to_dict()
  if config.miner.name:
    found['miner'] = config.miner.to_dict()
  return found


class Classes(NamedTuple):
  """What a loss may know of the classes that are trained on.

  Attributes:
    number: C.
    counts: [C] int, training images of each; None if nobody asks.
    labels_per_row: L of label sets, 0 for one int an image.
  """

  number: int
  counts: np.ndarray | None = None
  labels_per_row: int = 0

  @classmethod
  def of(cls, dataset: data.Dataset) -> 'Classes':
    """Returns the classes of a data set's training images."""
    labels = dataset.train.labels
    return cls(
      number=dataset.num_classes,
      counts=np.bincount(
        labels[labels >= 0].reshape(-1), minlength=dataset.num_classes
      ),
      labels_per_row=labels.shape[1] if labels.ndim == 2 else 0,
    )


def objective(
  config: ml_collections.ConfigDict,
  classes: Classes,
  axis_name: str | None = None,
) -> losses.Objective:
  """Returns the loss of a validated config."""
  counts = classes.counts
  return losses.Objective(
    parts=losses.parse(loss_options(config)),
    num_classes=classes.number,
    embedding_dim=config.model.embedding_dim,
    class_counts=None if counts is None else counts.astype(np.float32),
    labels_per_row=classes.labels_per_row,
    num_views=config.data.views_per_image,
    memory_size=config.memory.size,
    memory_warmup_steps=config.memory.warmup_steps,
    axis_name=axis_name,
    # One device has all classes.
    shards_classes=config.head.sharded and axis_name is not None,
    sample_rate=config.head.sample_rate,
  )


def validate(config: ml_collections.ConfigDict, num_devices: int = 1) -> None:
  """Raises `InputError` for the first mistake that needs no data to be seen.

  Args:
    config: the whole config.
    num_devices: over all processes; it has to divide both batch sizes.
  """
  flat = flatten(config)
  for key in RULES:
    if key not in flat:
      raise InputError(
        f'{key} is missing from the config; allowed is '
        f'{RULES[key].allowed}: add it, as configs/default.py has it'
      )
  for key, value in flat.items():
    if key not in RULES and not _is_in(key, _OPEN_SECTIONS):
      raise unknown_name('config key', key, RULES)
    if key in RULES and not RULES[key].holds(value):
      raise InputError(
        f'{key} is {value!r}; allowed is {RULES[key].allowed}: '
        f'set --config.{key}'
      )
  data.check_name(config.data.name)
  models.check_model(
    config.model.name,
    {'embedding_dim': config.model.embedding_dim, **model_options(config)},
  )
  parts = losses.parse(loss_options(config))
  _validate_parts(config, parts, num_devices)
  optim.check_names(config.optimizer.name, config.optimizer.schedule)
  metrics.check_metrics(config.eval.metrics)
  _validate_batch(config, parts, num_devices)
  _validate_augmentation(config, parts, num_devices)


def _validate_parts(
  config: ml_collections.ConfigDict,
  parts: Sequence[losses.Part],
  num_devices: int,
):
  """Checks what the losses need of the other sections."""
  views = config.data.views_per_image
  kinds = {part.row.kind for part in parts}
  for part in parts:
    if part.row.views > views:
      raise InputError(
        f'data.views_per_image is {views}; allowed are at least '
        f'{part.row.views} for loss {part.name!r}, which compares views of an '
        f'image: set --config.data.views_per_image={part.row.views}'
      )
    if part.positives == 'image' and views < 2:
      raise InputError(
        f'data.views_per_image is {views}; allowed are at least 2 where loss '
        f"{part.name!r} has positives='image': set "
        '--config.data.views_per_image=2'
      )
    if (
      config.head.sharded
      and part.row.kind == 'proxy'
      and not part.row.shardable
    ):
      able = [name for name, row in losses.LOSSES.items() if row.shardable]
      raise InputError(
        f'head.sharded is True, which loss {part.name!r} does not take; '
        f'losses that do: {", ".join(sorted(able))}'
      )
    if config.head.sharded and part.weight_regularizer is not None:
      raise InputError(
        f'head.sharded is True, and loss {part.name!r} has a '
        f'weight_regularizer, {part.weight_regularizer.name!r}, which compares '
        'all proxies; allowed is None: leave one of them out'
      )
  if config.head.sharded and 'proxy' not in kinds:
    raise InputError(
      'head.sharded is True; allowed is False without a loss against proxies: '
      'set --config.head.sharded=False'
    )
  if config.head.sample_rate < 1 and not config.head.sharded:
    raise InputError(
      f'head.sample_rate is {config.head.sample_rate}; allowed is 1.0 unless '
      'head.sharded is True: set --config.head.sharded=True'
    )
  if config.memory.size and kinds == {'proxy'}:
    raise InputError(
      f'memory.size is {config.memory.size}; allowed is 0 for losses against '
      'proxies, which compare no images: set --config.memory.size=0'
    )
  _validate_gradient_cache(config, num_devices)


def _validate_gradient_cache(
  config: ml_collections.ConfigDict, num_devices: int
):
  chunk, batch = config.gradient_cache.chunk_size, config.data.batch_size
  if chunk is None:
    return
  if batch % chunk or chunk % num_devices:
    raise InputError(
      f'gradient_cache.chunk_size is {chunk}; allowed is a divisor of '
      f'data.batch_size {batch} and a multiple of the {num_devices} devices'
    )
  if config.model.get('normalization') == 'batch':
    raise InputError(
      f'gradient_cache.chunk_size is {chunk} with '
      "model.normalization='batch', whose statistics of a chunk are not those "
      'of the batch, so that the gradient would be another; allowed is None: '
      'set --config.model.normalization=none'
    )


def _validate_augmentation(
  config: ml_collections.ConfigDict,
  parts: Sequence[losses.Part],
  num_devices: int,
):
  if not augmentation(config).mixes_labels:
    return
  for part in parts:
    if part.row.kind != 'proxy':
      raise InputError(
        'augment.mixup and augment.cutmix give an image two labels, which the '
        f'pair loss {part.name!r} does not take; allowed are losses '
        'against proxies, such as arcface: set both to 0'
      )
  if config.data.batch_size // num_devices % 2:
    raise InputError(
      f'data.batch_size is {config.data.batch_size} on {num_devices} devices; '
      'allowed is an even number on each with augment.mixup or augment.cutmix, '
      'which mix neighbours'
    )


def _validate_batch(
  config: ml_collections.ConfigDict,
  parts: Sequence[losses.Part],
  num_devices: int,
):
  for key in ('data.batch_size', 'eval.batch_size'):
    size = flatten(config)[key]
    if size % num_devices:
      raise InputError(
        f'{key} is {size}; allowed is a multiple of the {num_devices} devices: '
        f'set --config.{key}={-(-size // num_devices) * num_devices}'
      )
  # That P divides the batch, and that there are P classes, the sampler checks.
  batch, classes = config.data.batch_size, config.data.classes_per_batch
  pairs = [
    part.name
    for part in parts
    if part.row.kind != 'proxy' and part.positives == 'class'
  ]
  if pairs and batch == classes and config.data.views_per_image == 1:
    raise InputError(
      f'data.classes_per_batch is {classes} with data.batch_size {batch}, one '
      f'image a class; allowed are at least 2 for the pair loss '
      f'{pairs[0]!r}: set --config.data.classes_per_batch='
      f'{max(1, batch // 4)}'
    )


def validate_dataset(
  config: ml_collections.ConfigDict, dataset: data.Dataset
) -> None:
  """Raises `InputError` where the config and the data do not fit."""
  if dataset.train.labels.ndim == 2:
    for part in losses.parse(loss_options(config)):
      if part.row.kind == 'proxy':
        raise InputError(
          f'loss.name is {part.name!r}, against one proxy of the class of an '
          f'image, but the images of {dataset.name} have several labels; '
          'allowed are losses of pairs, such as multi_label_supcon'
        )
  channels = dataset.image_shape[-1]
  for key in ('mean', 'std'):
    if len(config.data[key]) not in (1, channels):
      raise InputError(
        f'data.{key} has {len(config.data[key])} numbers; allowed is 1 or '
        f'{channels}, the channels of {dataset.name}'
      )


def steps_per_epoch(
  config: ml_collections.ConfigDict, num_examples: int
) -> int:
  """Returns the steps in which as many images are seen as there are."""
  return math.ceil(num_examples / config.data.batch_size)


def num_train_steps(
  config: ml_collections.ConfigDict, num_examples: int
) -> int:
  """Returns `num_train_steps`, or the steps of `num_epochs` if it is None."""
  if config.num_train_steps is not None:
    return config.num_train_steps
  return config.num_epochs * steps_per_epoch(config, num_examples)


def to_json(config: ml_collections.ConfigDict) -> str:
  """Returns the config as JSON text, sorted by key."""
  return json.dumps(config.to_dict(), indent=2, sort_keys=True) + '\n'


def from_json(text: str) -> ml_collections.ConfigDict:
  """Returns the config that `to_json` wrote, lists as tuples."""

  def tuples(node):
    if isinstance(node, dict):
      return {key: tuples(value) for key, value in node.items()}
    return tuple(node) if isinstance(node, list) else node

  return ml_collections.ConfigDict(tuples(json.loads(text))).lock()


def is_free(key: str) -> bool:
  """Returns whether a key may differ when a run is continued."""
  return _is_in(key, FREE_KEYS)


def _is_in(key: str, sections: Sequence[str]) -> bool:
  """Returns whether a dotted key is, or lies in, one of some sections."""
  return any(key == name or key.startswith(f'{name}.') for name in sections)


def differing_keys(config: Mapping, other: Mapping) -> list[str]:
  """Returns the keys, in order, that forbid one run to continue the other."""
  one, two = flatten(config), flatten(other)
  missing = object()
  return sorted(
    key
    for key in one.keys() | two.keys()
    if one.get(key, missing) != two.get(key, missing) and not is_free(key)
  )
