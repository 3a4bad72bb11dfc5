"""Checks a data set before training and evaluation start."""

import numpy as np

from retrieval_jax.core import relations
from retrieval_jax.core.errors import InputError
from retrieval_jax.data.dataset import Dataset
from retrieval_jax.data.evaluation_set import EvaluationSet
from retrieval_jax.data.sources import Source


def check_dataset(dataset: Dataset) -> None:
  """Raises what is wrong with a data set, in one line.

  Raises:
    InputError: for an empty set; images that are not uint8 of `image_shape`;
      labels that are not one integer an image (or a set of them, in all parts),
      or are out of range in the training set; a training set of one class;
      queries none of which has its class in the gallery.
  """
  groups = dataset.tests | dataset.validations
  if dataset.train is not None:
    _check_training(dataset)
  for name, group in groups.items():
    _check_source(dataset, f'queries of {name}', group.query)
    _check_source(dataset, f'gallery of {name}', group.searched)
    if not _has_match(group):
      raise InputError(
        f'data set {dataset.name!r}, {name}: no query has a match, nothing '
        f'that is relevant to one of {len(group.query)} is in the gallery: '
        'check that both are labelled alike'
      )


def _has_match(group: EvaluationSet) -> bool:
  """Returns whether any query has something to find."""
  if group.relevant is not None:
    return any(map(len, group.relevant))
  asked = group.query.labels if group.answers is None else group.answers
  _, asked = relations.incidences(asked)
  if group.gallery is None:
    return bool((np.unique(asked, return_counts=True)[1] > 1).any())
  _, searched = relations.incidences(group.gallery.labels)
  return bool(np.isin(asked, searched).any())


def _check_training(dataset: Dataset) -> None:
  """Checks the training set and its classes."""
  _check_source(dataset, 'train', dataset.train)
  _, labels = relations.incidences(dataset.train.labels)
  if labels.min() < 0 or labels.max() >= dataset.num_classes:
    raise InputError(
      f'data set {dataset.name!r}: labels of the training set range from '
      f'{labels.min()} to {labels.max()}; allowed are 0 to '
      f'{dataset.num_classes - 1}: number the classes from 0, or correct '
      'num_classes'
    )
  if dataset.num_classes < 2:
    raise InputError(
      f'data set {dataset.name!r}: the training set has one class; allowed are '
      'at least two, since images are told apart by their classes: add '
      'classes, or correct the labels'
    )


def _check_source(dataset: Dataset, part: str, source: Source) -> None:
  """Checks one part by itself."""
  where = f'data set {dataset.name!r}, {part}'
  relations.check_labels(source.labels, f'{where}: labels', label_sets=True)
  if (source.labels.ndim == 2) != dataset.is_multi_label:
    raise InputError(
      f'{where}: labels have shape {source.labels.shape}, other than those of '
      'the training set; allowed are one label an '
      'image in both, or label sets in both'
    )
  if not len(source):
    raise InputError(f'{where}: no images; at least one is needed')
  if source.labels.ndim == 2:
    is_label = source.labels >= 0
    if not is_label.any(axis=1).all():
      row = int(is_label.any(axis=1).argmin())
      raise InputError(
        f'{where}: {source.describe(row)} has no label; allowed is at least '
        'one: add its labels, or remove the row'
      )
  # Of a data set with many bad files some are found here, and the rest as they
  # are read.
  image = source.load(np.zeros(1, np.int64)).images
  if image.dtype != np.uint8 or image.shape[1:] != tuple(dataset.image_shape):
    raise InputError(
      f'{where}: images are {image.dtype} of shape {image.shape[1:]}; allowed '
      f'are uint8 of shape {tuple(dataset.image_shape)}'
    )
