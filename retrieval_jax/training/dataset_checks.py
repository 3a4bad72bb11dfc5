"""What does not fit between a config and its data, said in one line.

What can be said without the data, `config_checks` says before.
"""

import ml_collections

from retrieval_jax import data, losses, models, neighbors
from retrieval_jax.core.errors import InputError
from retrieval_jax.metrics import averages, protocols
from retrieval_jax.training import config as config_lib
from retrieval_jax.training import config_checks


def validate_dataset(
  config: ml_collections.ConfigDict, dataset: data.Dataset
) -> None:
  """Raises `InputError` where the config and the data do not fit."""
  dim = _whitened_dim(config)
  if dim is not None and dim >= len(dataset.train):
    raise InputError(
      f'eval.pca_whitening.dim is {dim}; allowed is less than the '
      f'{len(dataset.train)} training images that it is fitted on'
    )
  classes = config_lib.Classes.of(dataset)
  has_sets = classes.labels_per_row > 0
  for part in losses.parse(config_lib.loss_options(config)):
    weights = part.class_weights
    if has_sets and isinstance(weights, str):
      raise InputError(
        f'loss.class_weights is {weights!r}; allowed is None, since the images '
        f'of {dataset.name} have several labels: leave it out'
      )
    if isinstance(weights, tuple) and (
      has_sets or len(weights) != dataset.num_classes
    ):
      raise InputError(
        f'loss.class_weights has {len(weights)} numbers; allowed is one for '
        f'each of the {dataset.num_classes} classes of {dataset.name}, if its '
        'images have one class each'
      )
    if has_sets and part.row.kind == 'proxy':
      raise InputError(
        f'loss.name is {part.name!r}, against one proxy of the class of an '
        f'image, but the images of {dataset.name} have several labels; '
        'allowed are losses of pairs, such as multi_label_supcon'
      )
  if has_sets:
    config_checks.trace_loss(config, classes)
  validate_evaluation(config, dataset, len(dataset.train))


def validate_evaluation(
  config: ml_collections.ConfigDict, dataset: data.Dataset, num_train: int
) -> None:
  """Raises `InputError` where the evaluation and the data do not fit.

  Args:
    config: `eval` and how pictures are normalised are read.
    dataset: whose sets are measured.
    num_train: images that post-processing may be fitted on.
  """
  validate_images(config, dataset.image_shape, dataset.name)
  _validate_facts(config, dataset)
  _validate_category_means(config, dataset)
  _validate_postprocessing(config, dataset, num_train)


def validate_images(
  config: ml_collections.ConfigDict,
  image_shape: tuple[int, int, int],
  name: str,
) -> None:
  """Raises `InputError` where the network does not take the images.

  Args:
    config: `model` and how pictures are normalised are read.
    image_shape: (H, W, C).
    name: of the data, for messages.
  """
  models.check_images(config.model.name, image_shape)
  channels = image_shape[-1]
  for key in ('mean', 'std'):
    if len(config.data[key]) not in (1, channels):
      raise InputError(
        f'data.{key} has {len(config.data[key])} numbers; allowed is 1 or '
        f'{channels}, the channels of {name}'
      )


def _validate_facts(
  config: ml_collections.ConfigDict, dataset: data.Dataset
) -> None:
  """Raises if the evaluation asks for what the data do not know."""
  asked = config.eval
  if asked.same_category_grade > 0 and dataset.class_categories is None:
    raise InputError(
      f'eval.same_category_grade is {asked.same_category_grade}, but '
      f'{dataset.name} does not have one category for each class; allowed is '
      '0: add a column `category`, or leave it out'
    )
  cures = {
    'sequence': 'add a column `sequence`',
    'domain': 'set data.domain_column to a column of cameras',
  }
  for name, group in (dataset.tests | dataset.validations).items():
    for own in asked.ignore:
      if getattr(group, f'{own}s') is None:
        raise InputError(
          f'eval.ignore has {own!r}, but the {name} set of {dataset.name} has '
          f'no {own}s; allowed are data that have: {cures[own]}, or leave it '
          'out'
        )


def _validate_category_means(
  config: ml_collections.ConfigDict, dataset: data.Dataset
) -> None:
  """Raises if means by category are asked for, and no set can have any.

  A set that has none where another has leaves them out, with a warning, as long
  as it has something else to measure.
  """
  names = config.eval.metrics
  by_category = [n for n in names if averages.split_name(n)[0] == 'category']
  if not by_category:
    return
  groups = dataset.tests | dataset.validations
  without = [
    name
    for name, group in groups.items()
    if group.categories is None or (group.categories < 0).all()
  ]
  if len(without) == len(groups):
    raise InputError(
      f'eval.metrics has {by_category[0]!r}, but no query of {dataset.name} '
      f'has a category (sets: {", ".join(groups)}); allowed are data with '
      'queries that have: add a column `category`, or leave it out'
    )
  for name in without:
    is_own = groups[name].benchmark in protocols.METRICS
    if len(by_category) == len(names) and not is_own:
      raise InputError(
        f'eval.metrics has nothing but {", ".join(by_category)}, but no query '
        f'of the {name} set of {dataset.name} has a category; allowed is at '
        'least one metric that all sets have a value of: add precision_at_1'
      )


def _validate_postprocessing(
  config: ml_collections.ConfigDict, dataset: data.Dataset, num_train: int
) -> None:
  """Checks that there are as many images as post-processing asks for."""
  steps = config_lib.postprocessing(config)
  if not steps:
    return
  if dataset.is_multi_label and neighbors.needs(steps, 'train_labels'):
    names = [s.name for s in steps if 'train_labels' in s.row.needs]
    raise InputError(
      f'eval.postprocessing has {names[0]!r}, which takes one label an image, '
      f'but the images of {dataset.name} have several: leave it out'
    )
  for group in (*dataset.tests.values(), *dataset.validations.values()):
    num_gallery = len(group.searched)
    neighbors.check_sizes(
      steps,
      neighbors.Sizes(
        found=num_gallery - (group.gallery is None),
        gallery=num_gallery,
        train=num_train,
        # Or fewer, if the whitening finds no more.
        dim=_whitened_dim(config) or config.model.embedding_dim,
        list_length=config.eval.list_length,
      ),
      section='eval.',
      list_length_key='eval.list_length',
    )


def _whitened_dim(config: ml_collections.ConfigDict) -> int | None:
  """Returns the dimension that `eval.whiten` is to leave, None for all."""
  return config.eval.pca_whitening.dim if config.eval.whiten else None
