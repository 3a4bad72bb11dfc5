"""From rows to batches on their way to the devices.

Every process computes the rows of the whole batch, which costs nothing, and
loads only its own: process i of n takes the i-th of n equal parts.
"""

import collections
import concurrent.futures
import logging
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from retrieval_jax.core import relations
from retrieval_jax.core.errors import InputError
from retrieval_jax.data.samplers.uniform import Sampler
from retrieval_jax.data.sources import Source

Batch = dict[str, np.ndarray]

_log = logging.getLogger(__name__)

# Of a class whose first replacements cannot be read either.
_MAX_REPLACEMENTS = 10
_MAX_LOGGED = 10


class TrainLoader:
  """Loads the part of each step's batch that belongs to this process.

  An image that cannot be read is replaced by the next of its class, the same
  one on every process and in every run; it is logged with its path, counted,
  and fatal once too large a share of the images is such.

  Example:
    >>> source = Source.of_array(np.zeros((6, 8, 8, 1), np.uint8), np.arange(6))
    >>> load = TrainLoader(
    ...   source, lambda step: np.array([5, 2, 3, 1]),
    ...   process_index=1, process_count=2)
    >>> load(0)['labels']
    array([3, 1], dtype=int32)
  """

  def __init__(
    self,
    source: Source,
    sampler: Sampler,
    *,
    canvas: bool = False,
    max_unreadable_share: float = 0.01,
    process_index: int = 0,
    process_count: int = 1,
  ):
    """Loads nothing yet.

    Args:
      source: the training set.
      sampler: step -> rows of the whole batch.
      canvas: whether the whole pictures are wanted, to be cropped on the
        device; see `Source.load`.
      max_unreadable_share: of the images of the source, in [0, 1].
      process_index: of this process.
      process_count: must divide the batch.
    """
    self._source = source
    self._sampler = sampler
    self._canvas = canvas
    self._max_unreadable = max_unreadable_share * len(source)
    self._process = process_index, process_count
    self._of_class = None
    # {row: why it cannot be read}, of this process.
    self.unreadable: dict[int, str] = {}

  def __call__(self, step: int) -> Batch:
    """Loads a batch.

    Args:
      step: from 0.

    Returns:
      {'images': [b, H, W, C] uint8, 'labels': [b] int32, or [b, L] of a source
      with label sets}, and with `canvas` 'aspect_ratios': [b] float32. The
      parts of all processes, in order, are the batch, on any number of
      processes.

    Raises:
      InputError: if the processes do not divide the batch, or too many images
        cannot be read.
    """
    rows = self.rows(step)
    images, ratios, errors = self._source.load(rows, canvas=self._canvas)
    for place, reason in errors.items():
      self._note(int(rows[place]), reason)
      rows[place], loaded = self._replacement(int(rows[place]))
      images[place], ratios[place] = loaded.images[0], loaded.aspect_ratios[0]
    batch = {
      'images': images,
      'labels': self._source.labels[rows].astype(np.int32),
    }
    return batch | ({'aspect_ratios': ratios} if self._canvas else {})

  def rows(self, step: int) -> np.ndarray:
    """Returns [b] the rows of the source in this process's part of a batch.

    Those that turn out to be unreadable are replaced when they are loaded.
    """
    rows = self._sampler(step)
    return np.array(rows[_part(len(rows), *self._process)])

  def _note(self, row, reason):
    """Counts an image that cannot be read; the first ones are logged."""
    if row in self.unreadable:
      return
    self.unreadable[row] = reason
    if len(self.unreadable) <= _MAX_LOGGED:
      _log.warning('%s; another image of its class takes its place', reason)
    if len(self.unreadable) == _MAX_LOGGED:
      _log.warning('further images that cannot be read are only counted')
    if len(self.unreadable) > self._max_unreadable:
      raise too_many_unreadable(
        'training', len(self.unreadable), len(self._source), reason
      )

  def _replacement(self, row):
    """Returns the next row of the class that can be read, and its image.

    The class of a label set is its first label.
    """
    labels = relations.first_labels(self._source.labels)
    if self._of_class is None:
      order = np.argsort(labels, kind='stable')
      self._of_class = order, labels[order]
    order, ordered = self._of_class
    low, high = np.searchsorted(ordered, [labels[row], labels[row] + 1])
    place = low + int(np.searchsorted(order[low:high], row))
    for ahead in range(1, min(high - low, _MAX_REPLACEMENTS + 1)):
      other = int(order[low + (place - low + ahead) % (high - low)])
      if other in self.unreadable:
        continue
      loaded = self._source.load(np.array([other]), canvas=self._canvas)
      if not loaded.errors:
        return other, loaded
      self._note(other, loaded.errors[0])
    raise InputError(
      f'{self.unreadable[row]}; no other image of its class (of '
      f'{high - low}) can be read to take its place: repair them, or remove '
      'the class'
    )


def too_many_unreadable(
  name: str, unreadable: int, images: int, reason: str
) -> InputError:
  """Returns the error for a set of which too many images cannot be read."""
  return InputError(
    f'{unreadable} of the {images} images of the {name} set cannot be read, '
    f'more than data.max_unreadable_share allows; the last: {reason}; list '
    'them by `python -m retrieval_jax.check_data`, repair or remove them'
  )


def padded_batches(
  source: Source,
  batch_size: int,
  *,
  process_index: int = 0,
  process_count: int = 1,
) -> Iterator[Batch]:
  """Walks through a source once, in order, the last batch filled up.

  Args:
    source: [N] examples.
    batch_size: over all processes; every batch has this size, so that a
      compiled function sees one shape.
    process_index: of this process.
    process_count: must divide batch_size.

  Yields:
    {'images': [b, H, W, C] uint8, 'labels': [b] int32, or [b, L] of a source
    with label sets, 'mask': [b] bool}. Every example is in one batch of one
    process. Padding has mask False, label -1 and black images; so has, but for
    its label, an image that cannot be read, which is logged. All processes
    yield ceil(N / batch_size) batches; the parts of a batch, in order of the
    processes, are consecutive rows of the source.

  Raises:
    InputError: if batch_size is not positive, or the processes do not divide
      it.

  Example:
    >>> source = Source.of_array(np.zeros((3, 8, 8, 1), np.uint8), np.arange(3))
    >>> for batch in padded_batches(source, 2):
    ...   print(batch['labels'], batch['mask'])
    [0 1] [ True  True]
    [ 2 -1] [ True False]
  """
  if batch_size < 1:
    raise InputError(
      f'batch_size is {batch_size}; allowed is an integer of at least 1'
    )
  part = _part(batch_size, process_index, process_count)
  return _padded_batches(source, batch_size, part)


def _padded_batches(
  source: Source, batch_size: int, part: slice
) -> Iterator[Batch]:
  """Is apart from its checks, which a generator would make too late."""
  for index in range(math.ceil(len(source) / batch_size)):
    rows = np.arange(index * batch_size, (index + 1) * batch_size)[part]
    mask = rows < len(source)
    size = int(mask.sum())
    loaded = source.load(rows[:size])
    images = np.zeros((len(rows), *source.image_shape), np.uint8)
    labels = np.full((len(rows), *source.labels.shape[1:]), -1, np.int32)
    images[:size] = loaded.images
    labels[:size] = source.labels[rows[:size]]
    for place, reason in loaded.errors.items():
      mask[place] = False
      _log.warning('%s; it is left out of the evaluation', reason)
    yield {'images': images, 'labels': labels, 'mask': mask}


def prefetch(
  make_batch: Callable[[Any], Any],
  steps: Iterable[Any],
  put: Callable[[Any], Any] = lambda batch: batch,
  *,
  depth: int = 2,
) -> Iterator[Any]:
  """Makes the next batches in a thread while the devices work on this one.

  Args:
    make_batch: step -> batch of the host.
    steps: what to call it with, in order; may be endless.
    put: batch -> batch on the devices.
    depth: batches that may be ready before they are asked for.

  Yields:
    `put(make_batch(step))` for each step. An exception of either comes out
    where its batch would have. The generator joins its thread when it ends and
    when it is closed: use `contextlib.closing` if the loop may leave early.

  Example:
    >>> list(prefetch(lambda step: [step] * 2, range(2), tuple))
    [(0, 0), (1, 1)]
  """
  executor = concurrent.futures.ThreadPoolExecutor(1, 'prefetch')
  pending = collections.deque()
  try:
    for step in steps:
      pending.append(executor.submit(lambda s: put(make_batch(s)), step))
      if len(pending) > depth:
        yield pending.popleft().result()
    while pending:
      yield pending.popleft().result()
  finally:
    executor.shutdown(wait=True, cancel_futures=True)


def _part(batch_size: int, process_index: int, process_count: int) -> slice:
  """Returns the rows of a batch that belong to a process."""
  if batch_size % process_count:
    raise InputError(
      f'data.batch_size is {batch_size}; allowed are multiples of '
      f'{process_count}, the number of processes'
    )
  size = batch_size // process_count
  return slice(process_index * size, (process_index + 1) * size)
