"""From rows to batches on their way to the devices.

Every process computes the rows of the whole batch, which costs nothing, and
loads only its own: process i of n takes the i-th of n equal parts.
"""

import collections
import concurrent.futures
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from retrieval_jax.core.errors import InputError
from retrieval_jax.data.samplers import Sampler
from retrieval_jax.data.sources import Source

Batch = dict[str, np.ndarray]


def load_batch(
  source: Source,
  sampler: Sampler,
  step: int,
  *,
  process_index: int = 0,
  process_count: int = 1,
) -> Batch:
  """Loads the part of a step's batch that belongs to this process.

  Args:
    source: the training set.
    sampler: step -> rows of the whole batch.
    step: from 0.
    process_index: of this process.
    process_count: must divide the batch.

  Returns:
    {'images': [b, H, W, C] uint8, 'labels': [b] int32}; the parts of all
    processes, in order, are the batch, on any number of processes.

  Raises:
    InputError: if the processes do not divide the batch.

  Example:
    >>> source = Source(np.zeros((6, 8, 8, 1), np.uint8), np.arange(6))
    >>> def sampler(step):
    ...   return np.array([5, 2, 3, 1])
    >>> load_batch(
    ...   source, sampler, 0, process_index=1, process_count=2)['labels']
    array([3, 1], dtype=int32)
  """
  rows = sampler(step)
  rows = rows[_part(len(rows), process_index, process_count)]
  return {
    'images': source.images_at(rows),
    'labels': source.labels[rows].astype(np.int32),
  }


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
    {'images': [b, H, W, C] uint8, 'labels': [b] int32, 'mask': [b] bool}. Every
    example is in one batch of one process with mask True. Padding has mask
    False, label -1 and black images. All processes yield ceil(N / batch_size)
    batches; the parts of a batch, in order of the processes, are consecutive
    rows of the source.

  Raises:
    InputError: if batch_size is not positive, or the processes do not divide
      it.

  Example:
    >>> source = Source(np.zeros((3, 8, 8, 1), np.uint8), np.arange(3))
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
    rows = np.where(mask, rows, 0)
    images = source.images_at(rows)
    images[~mask] = 0
    labels = np.where(mask, source.labels[rows], -1).astype(np.int32)
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
