"""Rows of an array, in memory or in a file that is not mapped.

A memory map counts against the memory of a process page by page as it is read,
until the whole file does. Rows of `numpy.memmap` arrays are therefore read into
buffers of their own, with the position in the file taken from the map.
"""

import os
import weakref

import numpy as np

from retrieval_jax.core.errors import InputError


def map_array(path: str | os.PathLike, name: str) -> np.ndarray:
  """Returns the array of an .npy file as a memory map.

  Args:
    path: of the file.
    name: how the message calls it.

  Raises:
    InputError: the file cannot be read, or is no array.
  """
  try:
    return np.load(path, mmap_mode='r', allow_pickle=False)
  except (OSError, ValueError, EOFError) as error:
    raise InputError(
      f'{name} {os.fspath(path)!r}: {" ".join(str(error).split())}; allowed is '
      'the path of an .npy file: write it with numpy.save'
    ) from error


class RowReader:
  """Reads rows [n, D] of an array [N, D]; of a memory map, from its file.

  Safe to be used by several threads.

  Attributes:
    shape: (N, D).
    dtype: of the rows.
    is_file: whether rows are read from a file.
  """

  def __init__(self, array: np.ndarray):
    """Opens the file, if there is one.

    Args:
      array: [N, D].

    Raises:
      InputError: the file of a memory map is gone, or shorter than the array.
    """
    self.shape, self.dtype = array.shape, array.dtype
    place = _place_in_file(array)
    self.is_file = place is not None
    if not self.is_file:
      self._array = array
      return
    self._path, self._offset = place
    end = self._offset + array.nbytes
    try:
      self._descriptor = os.open(self._path, os.O_RDONLY)
    except OSError as error:
      raise InputError(
        f'{self._path}: {error.strerror}; allowed is the file that was mapped: '
        'leave it in its place while it is used'
      ) from error
    weakref.finalize(self, os.close, self._descriptor)
    if os.fstat(self._descriptor).st_size < end:
      raise self._truncated(end)

  def __len__(self) -> int:
    """Returns N."""
    return self.shape[0]

  def __getitem__(self, picked: slice | np.ndarray) -> np.ndarray:
    """Returns rows [n, D]: those of a slice, or of indices [n] >= 0."""
    if not self.is_file:
      return self._array[picked]
    if isinstance(picked, slice):
      start, stop, _ = picked.indices(len(self))
      rows = np.empty((max(stop - start, 0), self.shape[1]), self.dtype)
      self._read(rows, start)
      return rows
    # In the order of the file, and neighbours in one go.
    order = np.argsort(picked, kind='stable')
    indices = np.asarray(picked)[order]
    rows = np.empty((len(indices), self.shape[1]), self.dtype)
    starts = np.flatnonzero(np.diff(indices, prepend=-2) != 1)
    for start, stop in zip(
      starts, np.append(starts[1:], len(indices)), strict=True
    ):
      self._read(rows[start:stop], int(indices[start]))
    inverse = np.empty_like(order)
    inverse[order] = np.arange(len(order))
    return rows[inverse]

  def _read(self, rows, first):
    left = memoryview(rows.view(np.uint8).reshape(-1))
    position = self._offset + first * self.shape[1] * self.dtype.itemsize
    while len(left):
      count = os.preadv(self._descriptor, [left], position)
      if not count:
        raise self._truncated(position + len(left))
      left, position = left[count:], position + count

  def _truncated(self, end):
    size = os.fstat(self._descriptor).st_size
    return InputError(
      f'{self._path} has {size} bytes; allowed is at least {end}, as when it '
      'was mapped: was it written anew?'
    )


def _place_in_file(array) -> tuple[str, int] | None:
  """Returns (path, offset in bytes) of a memory-mapped array, or None."""
  root = array
  while root is not None and not isinstance(root, np.memmap):
    root = getattr(root, 'base', None)
  # The map of a slice has the offset of the whole, so look for the whole.
  while root is not None and isinstance(root.base, np.memmap):
    root = root.base
  if root is None or root.filename is None or root.mode == 'c':
    return None
  if not array.flags.c_contiguous:
    return None
  address = array.__array_interface__['data'][0]
  inside = address - root.__array_interface__['data'][0]
  return str(root.filename), root.offset + inside
