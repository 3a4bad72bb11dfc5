"""Data: collections of images, sources, samplers, batches, and transforms.

To add a data set: a function that returns a `Collection`, and a line in
`DATASETS` of `loading.py`; its keyword arguments become keys of `data.*`.
"""

from retrieval_jax.data import augmentation, preprocessing, transforms
from retrieval_jax.data.collection import Collection
from retrieval_jax.data.dataset import Dataset, describe
from retrieval_jax.data.evaluation_set import EvaluationSet
from retrieval_jax.data.loader import (
  TrainLoader,
  padded_batches,
  prefetch,
  too_many_unreadable,
)
from retrieval_jax.data.loading import (
  DATASETS,
  check_name,
  find_loader,
  load_collection,
  load_dataset,
  option_names,
)
from retrieval_jax.data.preprocessing import Preprocessing
from retrieval_jax.data.samplers import coverage, make_sampler
from retrieval_jax.data.sources import ImageArray, ImageFiles, Source
from retrieval_jax.data.validation import check_dataset

__all__ = [
  'DATASETS',
  'Collection',
  'Dataset',
  'EvaluationSet',
  'ImageArray',
  'ImageFiles',
  'Preprocessing',
  'Source',
  'TrainLoader',
  'augmentation',
  'check_dataset',
  'check_name',
  'coverage',
  'describe',
  'find_loader',
  'load_collection',
  'load_dataset',
  'make_sampler',
  'option_names',
  'padded_batches',
  'prefetch',
  'preprocessing',
  'too_many_unreadable',
  'transforms',
]
