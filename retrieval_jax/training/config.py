"""The config: how it is read, changed, and turned into what a run is made of.

A config is an `ml_collections.ConfigDict`, read from a file with
`get_config(arg=None)` and changed from the command line. What is wrong with one
is said by `config_checks`.
"""

import ast
import difflib
import importlib.util
import json
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import ml_collections
import numpy as np

from retrieval_jax import data, losses, metrics, models, neighbors
from retrieval_jax.core import relations
from retrieval_jax.core.errors import InputError, unknown_name
from retrieval_jax.training import stages

# What may differ when a run is continued: nothing that the weights depend on.
FREE_KEYS = (
  'eval',
  'log_every_steps',
  'checkpoint_every_steps',
  'data.num_threads',
)


# The keys of `data` that say what is in a batch.
_SAMPLER_KEYS = (
  'batch_size',
  'classes_per_batch',
  'categories_per_batch',
  'class_power',
  'mixing',
)

# The keys of `model` that say what the weights start from.
_WEIGHTS_KEYS = ('init_from', 'pretrained', 'pretrained_sha256')


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
  *sections, name = key.split('.')
  if sections and sections[0] == 'stages':
    _override_stage(config, key, value)
    return
  known = flatten(config) | {'stages': None}
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
  if isinstance(old, tuple) and not isinstance(value, tuple | list | None):
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


def _override_stage(
  config: ml_collections.ConfigDict, key: str, value: Any
) -> None:
  """Sets `stages.INDEX.NAME`; what it may be, `stages.check` says."""
  known = {
    f'stages.{index}.{name}': (index, name)
    for index in range(len(config.stages or ()))
    for name in stages.KEYS
  }
  if key not in known:
    raise unknown_name('--config key', key, known or ('stages',))
  index, name = known[key]
  changed = [dict(stage) for stage in config.stages]
  changed[index][name] = value
  config.stages = tuple(changed)


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
  """Returns {'data.batch_size': 32, ...} of nested mappings.

  Those in a tuple go by their places: {'stages.0.batch_size': 32, ...}.
  """
  flat = {}
  for key, value in config.items():
    if isinstance(value, tuple) and any(isinstance(v, Mapping) for v in value):
      value = {str(place): item for place, item in enumerate(value)}
    if isinstance(value, Mapping | ml_collections.ConfigDict):
      flat.update(flatten(value, f'{prefix}{key}.'))
    else:
      flat[prefix + key] = value
  return flat


def options(section: Mapping, *without: str) -> dict[str, Any]:
  """Returns a section's hyperparameters: all but its name and `without`."""
  return {k: v for k, v in section.items() if k not in ('name', *without)}


def model_options(config: ml_collections.ConfigDict) -> dict[str, Any]:
  """Returns what `models.build_embedder` takes besides name and dimension.

  None is what the network has by itself, which need not know the option.
  """
  found = options(config.model.to_dict(), 'embedding_dim', *_WEIGHTS_KEYS)
  return {key: value for key, value in found.items() if value is not None}


def measured_model_options(
  config: ml_collections.ConfigDict,
) -> dict[str, Any]:
  """Returns `model_options` with what the evaluation pools otherwise."""
  found = model_options(config)
  pooling, power = config.eval.get('pooling'), config.eval.get('gem_p')
  if pooling is not None:
    found['pooling'] = pooling
  if power is not None:
    name = models.pooling_name(config.model.name, found)
    fixed = {'p': power, 'learn_p': False}
    found[name] = {**found.get(name, {}), **fixed}
  return found


def dataset_options(config: ml_collections.ConfigDict) -> dict[str, Any]:
  """Returns what `data.load_dataset` takes; of stages, for the last."""
  config = stages.of_measured(config)
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


def postprocessing(
  config: ml_collections.ConfigDict,
) -> tuple[neighbors.Step, ...]:
  """Returns the chain of post-processing that is measured."""
  return neighbors.parse_postprocessing(
    config.eval.postprocessing,
    {name: config.eval[name].to_dict() for name in neighbors.POSTPROCESSING},
    prefix='eval.postprocessing',
    section='eval.',
  )


def grades(
  config: ml_collections.ConfigDict, class_categories: np.ndarray | None
) -> np.ndarray | None:
  """Returns the relevance [C, C] of each class to each that is measured by.

  Args:
    config: `eval.same_category_grade` is read.
    class_categories: [C] int, the category of each class.

  Returns:
    None if a class is relevant to itself alone.
  """
  if config.eval.same_category_grade <= 0:
    return None
  return relations.category_grades(
    class_categories, config.eval.same_category_grade
  )


def ignored(
  config: ml_collections.ConfigDict, group: data.EvaluationSet
) -> metrics.Ignored | None:
  """Returns what the queries of a set are not judged by.

  That is what the benchmark lists for each, or what `eval.ignore` says.
  """
  if group.ignored is not None:
    return metrics.Ignored(group.ignored)
  columns = config.eval.ignore
  if not columns:
    return None
  return metrics.Ignored(
    sequences=group.sequences if 'sequence' in columns else None,
    cameras=group.domains if 'domain' in columns else None,
  )


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


def to_json(config: ml_collections.ConfigDict) -> str:
  """Returns the config as JSON text, sorted by key."""
  return json.dumps(config.to_dict(), indent=2, sort_keys=True) + '\n'


def from_json(text: str) -> ml_collections.ConfigDict:
  """Returns the config that `to_json` wrote, lists as tuples."""

  def tuples(node):
    if isinstance(node, dict):
      return {key: tuples(value) for key, value in node.items()}
    return tuple(map(tuples, node)) if isinstance(node, list) else node

  return ml_collections.ConfigDict(tuples(json.loads(text))).lock()


def is_free(key: str) -> bool:
  """Returns whether a key may differ when a run is continued."""
  return is_in(key, FREE_KEYS)


def is_in(key: str, sections: Sequence[str]) -> bool:
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
