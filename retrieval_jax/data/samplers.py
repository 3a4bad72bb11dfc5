"""Which examples form the batch of a step: pure functions of (seed, step).

Nothing is remembered between steps, so the step is the whole state of a run:
the batch of step 70,000 is the same in a run that went there, in one resumed
there, and on every process. Shuffling is numpy's Philox (Salmon et al., SC
2011), whose key is the seed and whose counter holds the class and the pass.
"""

import dataclasses
import logging
import threading
from collections.abc import Callable

import numpy as np

from retrieval_jax.core import relations
from retrieval_jax.core.errors import InputError

_log = logging.getLogger(__name__)

Sampler = Callable[[int], np.ndarray]
"""sampler(step) -> [batch_size] int64, rows of the training set."""


def make_sampler(
  labels: np.ndarray,
  *,
  seed: int,
  batch_size: int,
  classes_per_batch: int = 0,
) -> Sampler:
  """Returns the sampler of a config.

  Args:
    labels: [N] int, of the training set.
    seed: at least 0.
    batch_size: examples in a batch, over all devices and processes.
    classes_per_batch: P of P classes x K images, K = batch_size / P; 0 samples
      uniformly.

  Raises:
    InputError: for a batch that cannot be formed.

  Example:
    >>> labels = np.array([7, 7, 7, 8, 8, 9, 9, 9])
    >>> sampler = make_sampler(labels, seed=0, batch_size=4)
    >>> np.sort(np.concatenate([sampler(0), sampler(1)])).tolist()
    [0, 1, 2, 3, 4, 5, 6, 7]
    >>> balanced = make_sampler(
    ...   labels, seed=0, batch_size=4, classes_per_batch=2)
    >>> np.unique(labels[balanced(5)], return_counts=True)[1].tolist()
    [2, 2]
  """
  labels = relations.check_labels(labels, 'labels of the training set')
  _check_count('seed', seed, 0)
  _check_count('data.batch_size', batch_size, 1)
  _check_count('data.classes_per_batch', classes_per_batch, 0)
  if classes_per_batch:
    permutations = Permutations(seed)
    return _balanced_sampler(
      labels, permutations, batch_size, classes_per_batch
    )
  if batch_size > len(labels):
    raise InputError(
      f'data.batch_size is {batch_size}; allowed is at most {len(labels)}, the '
      'number of training images: set it lower'
    )
  return UniformSampler(len(labels), batch_size, Permutations(seed))


class Permutations:
  """Endless streams of random permutations, each a function of its place.

  The latest of each stream is kept, as most calls ask for it again; this
  changes what a call costs and nothing else. Threads may share one.

  Example:
    >>> draw = Permutations(seed=0)
    >>> second = draw(stream=7, index=1, size=4)
    >>> sorted(second.tolist())
    [0, 1, 2, 3]
    >>> first = draw(stream=7, index=0, size=4)
    >>> draw(stream=7, index=1, size=4).tolist() == second.tolist()
    True
  """

  def __init__(self, seed: int):
    """Takes the seed of all streams, at least 0."""
    self.seed = seed
    self._latest = {}
    # A new Philox costs more than all else here, so one is set to each place.
    self._philox = np.random.Philox(key=seed)
    self._generator = np.random.Generator(self._philox)
    self._place = self._philox.state
    self._lock = threading.Lock()

  def __call__(self, stream: int, index: int, size: int) -> np.ndarray:
    """Returns permutation `index` of a stream, [size] int64, read-only."""
    kept_index, order = self._latest.get(stream, (-1, None))
    if kept_index == index:
      return order
    with self._lock:
      # The low words of the counter count draws, so no two places overlap.
      self._place['state']['counter'][:] = 0, 0, index, stream
      self._philox.state = self._place
      order = self._generator.permutation(size)
    order.setflags(write=False)
    self._latest[stream] = index, order
    return order


@dataclasses.dataclass(frozen=True)
class UniformSampler:
  """Cuts an endless row of permutations of all examples into batches.

  Step s takes the positions [s B, (s + 1) B) of permutation 0, permutation 1,
  and so on. No remainder is dropped: after any number of steps, the numbers of
  times that two examples were seen differ by at most one. (Where two
  permutations meet in a batch, an example can be in it twice.)

  Attributes:
    num_examples: N.
    batch_size: B, at most N.
    permutations: of the examples.
  """

  num_examples: int
  batch_size: int
  permutations: Permutations

  def __call__(self, step: int) -> np.ndarray:
    """Returns [B] int64, the rows of a step."""
    epoch, start = divmod(int(step) * self.batch_size, self.num_examples)
    rows = self.permutations(0, epoch, self.num_examples)
    batch = rows[start : start + self.batch_size]
    missing = self.batch_size - len(batch)
    if missing:
      following = self.permutations(0, epoch + 1, self.num_examples)
      return np.concatenate([batch, following[:missing]])
    return batch.copy()


@dataclasses.dataclass(frozen=True, eq=False)
class BalancedSampler:
  """Draws P classes and K images of each; the rows of a class are adjacent.

  Classes: cycle e is a permutation of all classes, cut into floor(C / P)
  batches, so no class is in a batch twice, nor in two batches of a cycle. If P
  does not divide C, C mod P classes, others each time, sit a cycle out.

  Images: the n images of a class are walked through likewise, K in each cycle,
  floor(n / K) cycles for a permutation, so no image is in a batch twice. Only a
  class with n < K repeats its images, as evenly as can be.

  Attributes:
    rows_of_class: for each class that occurs, its rows in the training set.
    classes_per_batch: P.
    images_per_class: K.
    permutations: of the classes (stream 0) and of the images of class c
      (stream c + 1).
  """

  rows_of_class: tuple[np.ndarray, ...]
  classes_per_batch: int
  images_per_class: int
  permutations: Permutations

  def __call__(self, step: int) -> np.ndarray:
    """Returns [P K] int64, the rows of a step."""
    num_classes = len(self.rows_of_class)
    cycle, place = divmod(int(step), num_classes // self.classes_per_batch)
    order = self.permutations(0, cycle, num_classes)
    start = place * self.classes_per_batch
    chosen = order[start : start + self.classes_per_batch]
    return np.concatenate([self._images(c, cycle) for c in chosen.tolist()])

  def _images(self, class_index: int, cycle: int) -> np.ndarray:
    """Returns [K] rows of one class, for one cycle."""
    rows, k = self.rows_of_class[class_index], self.images_per_class
    walk, place = divmod(cycle, max(1, len(rows) // k))
    order = self.permutations(class_index + 1, walk, len(rows))
    if len(rows) < k:
      return rows[np.resize(order, k)]
    return rows[order[place * k : (place + 1) * k]]


def _balanced_sampler(
  labels: np.ndarray,
  permutations: Permutations,
  batch_size: int,
  classes_per_batch: int,
) -> BalancedSampler:
  """Checks P x K against the batch and the labels, and groups the rows."""
  if batch_size % classes_per_batch:
    raise InputError(
      f'data.classes_per_batch is {classes_per_batch}, which does not divide '
      f'data.batch_size {batch_size}: a batch is P classes x K images each'
    )
  images_per_class = batch_size // classes_per_batch
  order = np.argsort(labels, kind='stable')
  starts = np.unique(labels[order], return_index=True)[1]
  rows_of_class = tuple(np.split(order, starts[1:])) if len(labels) else ()
  if classes_per_batch > len(rows_of_class):
    raise InputError(
      f'data.classes_per_batch is {classes_per_batch}; allowed is at most '
      f'{len(rows_of_class)}, the number of classes of the training set'
    )
  sizes = np.array([len(rows) for rows in rows_of_class])
  if (small := int((sizes < images_per_class).sum())) > 0:
    _log.warning(
      '%d of %d classes have fewer than the %d images a class that a batch '
      'takes: their images repeat within a batch.',
      small,
      len(sizes),
      images_per_class,
    )
  return BalancedSampler(
    rows_of_class, classes_per_batch, images_per_class, permutations
  )


def _check_count(key: str, value: int, least: int) -> None:
  """Raises unless a value is an int of at least `least`."""
  is_int = isinstance(value, int | np.integer) and not isinstance(value, bool)
  if not is_int or value < least:
    raise InputError(
      f'{key} is {value!r}; allowed is an integer of at least {least}'
    )
