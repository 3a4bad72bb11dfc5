"""Proxies that start as the mean embeddings of their classes."""

import logging
import math
from typing import NamedTuple

import jax
import ml_collections
import numpy as np
from flax import linen as nn

from retrieval_jax import data
from retrieval_jax.training import evaluation as evaluation_lib
from retrieval_jax.training import state as state_lib
from retrieval_jax.training import tasks
from retrieval_jax.training.views import Views

_log = logging.getLogger(__name__)


def with_class_means(
  state: state_lib.TrainState,
  config: ml_collections.ConfigDict,
  task: tasks.Task,
  train: data.Source,
) -> state_lib.TrainState:
  """Returns the state with proxies that are means of embeddings.

  The images are seen as they are, whatever `eval` says, since the weights may
  not depend on it, and by a network that trains. The BatchNorm of a new neck
  has no statistics yet: by those that it starts with, all embeddings are nearly
  one, and far from where the first step finds them. So batches are full, and in
  random order.

  Args:
    state: of step 0, on the host.
    config: whose `head.init_images` is read.
    task: what is trained.
    train: the images it is trained on, of one label each.
  """
  rows = first_of_each_class(train.labels, config.head.init_images)
  rows = np.random.default_rng(config.seed).permutation(rows)
  size = config.eval.batch_size
  # The last batch is filled with the first rows, which no mean has twice.
  images = train.subset(np.resize(rows, math.ceil(len(rows) / size) * size))
  networks = task.networks
  training = _Training(networks.embedder, jax.random.key(config.seed))
  plain = task._replace(
    networks=networks._replace(measured_embedder=training), views=Views()
  )
  embeddings, readable = evaluation_lib.Evaluator(config, plain).embed(
    state_lib.replicate(state.measured()), images, 'train'
  )
  readable[len(rows) :] = False
  head = state.params['head']
  proxies = class_means(
    embeddings[readable],
    images.labels[readable],
    head['proxies'],
    task.objective.centers,
  )
  _log.info('proxies from the embeddings of %d images', readable.sum())
  params = {**state.params, 'head': {**head, 'proxies': proxies}}
  return state.replace(params=params)


class _Training(NamedTuple):
  """A network that is always in training.

  Attributes:
    embedder: whose statistics stay as they are.
    key: of its dropout.
  """

  embedder: nn.Module
  key: jax.Array

  def apply(self, variables, images, train):
    """Returns embeddings as those of a training step, whatever `train` is."""
    del train
    embeddings, _ = self.embedder.apply(
      variables,
      images,
      train=True,
      mutable=['batch_stats'],
      rngs={'dropout': self.key},
    )
    return embeddings


def first_of_each_class(labels: np.ndarray, count: int) -> np.ndarray:
  """Returns the first rows of each class, ascending.

  Example:
    >>> first_of_each_class(np.array([1, 0, 1, 1, 0]), 2).tolist()
    [0, 1, 2, 4]
  """
  order = np.argsort(labels, kind='stable')
  ordered = labels[order]
  starts = np.searchsorted(ordered, ordered)
  return np.sort(order[np.arange(len(labels)) - starts < count])


def class_means(
  embeddings: np.ndarray,
  labels: np.ndarray,
  proxies: np.ndarray,
  sub_centers: int = 1,
) -> np.ndarray:
  """Returns proxies in the directions of means of embeddings.

  The n-th embedding of a class is in the mean of its sub-centre n mod K. Each
  proxy keeps the length that it has; one without an embedding stays as it is.

  Args:
    embeddings: [N, D] unit rows.
    labels: [N] int, of 0 to C - 1.
    proxies: [C * K, D] float32 as initialised.
    sub_centers: K.

  Example:
    >>> e = np.array([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
    >>> class_means(e, np.array([0, 0, 1]), np.full((3, 2), 1.0)).round(2)
    array([[1.  , 1.  ],
           [0.85, 1.13],
           [1.  , 1.  ]])

  References:
    The initialisation of proxies in Kim et al., Proxy Anchor Loss, CVPR 2020
    (their code).
  """
  order = np.argsort(labels, kind='stable')
  ordered = labels[order]
  places = np.arange(len(labels)) - np.searchsorted(ordered, ordered)
  sums = np.zeros(proxies.shape)
  np.add.at(
    sums, ordered * sub_centers + places % sub_centers, embeddings[order]
  )
  norms = np.linalg.norm(sums, axis=1, keepdims=True)
  lengths = np.linalg.norm(proxies, axis=1, keepdims=True)
  found = norms > 0
  means = sums / np.where(found, norms, 1) * lengths
  return np.where(found, means, proxies).astype(proxies.dtype)
