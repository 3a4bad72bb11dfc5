"""Checks a data set before training and evaluation start."""

import numpy as np

from retrieval_jax.core import relations
from retrieval_jax.core.errors import InputError
from retrieval_jax.data.sources import Dataset, Source


def check_dataset(dataset: Dataset) -> None:
  """Raises what is wrong with a data set, in one line.

  Raises:
    InputError: for an empty set; images that are not uint8 of `image_shape`;
      labels that are not one integer an image, or are out of range in the
      training set; queries none of which has its class in the gallery.
  """
  for part in ('train', 'gallery', 'query'):
    _check_source(dataset, part, getattr(dataset, part))
  labels = dataset.train.labels
  if labels.min() < 0 or labels.max() >= dataset.num_classes:
    raise InputError(
      f'data set {dataset.name!r}: labels of the training set range from '
      f'{labels.min()} to {labels.max()}; allowed are 0 to '
      f'{dataset.num_classes - 1}: number the classes from 0, or correct '
      'num_classes'
    )
  query, gallery = np.unique(dataset.query.labels), dataset.gallery.labels
  if not np.isin(query, gallery).any():
    raise InputError(
      f'data set {dataset.name!r}: no query has a match, none of the '
      f'{len(query)} classes of the queries is in the gallery: check that both '
      'are labelled alike'
    )


def _check_source(dataset: Dataset, part: str, source: Source) -> None:
  """Checks one part by itself."""
  where = f'data set {dataset.name!r}, {part}'
  relations.check_labels(source.labels, f'{where}: labels')
  if not len(source):
    raise InputError(f'{where}: no images; at least one is needed')
  if isinstance(source, Source) and len(source.images) != len(source.labels):
    raise InputError(
      f'{where}: {len(source.images)} images but {len(source.labels)} labels; '
      'there must be one label an image'
    )
  image = source.images_at(np.zeros(1, np.int64))
  if image.dtype != np.uint8 or image.shape[1:] != tuple(dataset.image_shape):
    raise InputError(
      f'{where}: images are {image.dtype} of shape {image.shape[1:]}; allowed '
      f'are uint8 of shape {tuple(dataset.image_shape)}'
    )
