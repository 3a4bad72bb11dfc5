"""Data: sources of images and labels, samplers, batches, and transforms.

To add a data set: a function `data_dir -> Dataset`, and a line in `DATASETS`.
"""

import functools
from collections.abc import Callable

from retrieval_jax.core import errors
from retrieval_jax.data import embedded, prepared, transforms
from retrieval_jax.data.loader import load_batch, padded_batches, prefetch
from retrieval_jax.data.samplers import make_sampler
from retrieval_jax.data.sources import Dataset, Source
from retrieval_jax.data.validation import check_dataset

__all__ = [
  'DATASETS',
  'Dataset',
  'Source',
  'check_dataset',
  'load_batch',
  'load_dataset',
  'make_sampler',
  'padded_batches',
  'prefetch',
  'transforms',
]

DATASETS: dict[str, Callable[[str | None], Dataset]] = {
  'mnist_5k': embedded.mnist_5k,
  'mnist': functools.partial(prepared.load_prepared, 'mnist'),
  'fashion_mnist': functools.partial(prepared.load_prepared, 'fashion_mnist'),
}


def load_dataset(name: str, data_dir: str | None = None) -> Dataset:
  """Loads a data set and checks it.

  Args:
    name: one of `DATASETS`.
    data_dir: where its files are or shall be; None is the default place.

  Raises:
    InputError: for an unknown name, or data that cannot be had or used.

  Example:
    >>> dataset = load_dataset('mnist_5k')
    >>> len(dataset.train), len(dataset.query), dataset.image_shape
    (4000, 1000, (28, 28, 1))
  """
  if name not in DATASETS:
    raise errors.unknown_name('data.name', name, DATASETS)
  dataset = DATASETS[name](data_dir)
  check_dataset(dataset)
  return dataset
