"""Writes an index so that a kill at any moment leaves a whole one."""

import contextlib
import dataclasses
import os
import re
from typing import Any, BinaryIO

import numpy as np

from retrieval_jax.core.errors import InputError
from retrieval_jax.core.strings import Strings
from retrieval_jax.neighbors import index_files
from retrieval_jax.neighbors.index import Index
from retrieval_jax.neighbors.index_files import (
  ARRAY_FILE,
  ARRAYS,
  DUPLICATES,
  LOCK,
  MANIFEST,
  SKIPPED,
  Manifest,
  Stored,
)

_TEMPORARY = re.compile(rf'{re.escape(MANIFEST)}\.\d+\.tmp')
# Rows that are copied at once.
_BLOCK_ROWS = 4096


class IndexWriter:
  """Adds images to an index, alone: a second writer is refused.

  Rows come into force with `commit`. Use it as a context manager.

  Attributes:
    folder: of the index.
    manifest: what the index says once the rows so far are committed.

  Example:
    >>> import tempfile
    >>> folder = tempfile.mkdtemp()
    >>> with IndexWriter(folder, Manifest(2, {})) as writer:
    ...   writer.add(np.eye(2, dtype=np.float32), Strings.of(['/a', '/b']))
    ...   _ = writer.commit()
    ...   writer.add(np.eye(2, dtype=np.float32), Strings.of(['/c', '/d']))
    >>> list(Index.open(folder).paths)
    ['/a', '/b']
  """

  def __init__(
    self, folder: str, manifest: Manifest, replaces: Manifest | None = None
  ):
    """Locks a folder and opens its files.

    Args:
      folder: of the index; made if it is not there.
      manifest: that of the index, to go on from; or a new one.
      replaces: the manifest in whose place the first commit of a new one comes;
        None: the folder has none.

    Raises:
      InputError: the folder cannot be written, or another process writes or
        has written to it.
    """
    self.folder, self.manifest = folder, manifest
    self._committed = replaces if manifest.is_new else manifest
    self._files, self._lock = {}, None
    self._made = not os.path.isdir(folder)
    try:
      os.makedirs(folder, exist_ok=True)
      self._lock = _locked(folder)
      self._check_unchanged()
      self._open_files()
    except OSError as error:
      self.close()
      raise unwritable(folder, error) from error
    except InputError:
      self.close()
      raise

  def __enter__(self):
    return self

  def __exit__(self, *error):
    self.close()

  def add(self, embeddings: np.ndarray, paths: Strings) -> None:
    """Appends images.

    Args:
      embeddings: [n, D] float32, unit rows.
      paths: of the n images, absolute.

    Raises:
      InputError: the disk is full.
    """
    n, manifest = len(embeddings), self.manifest
    if embeddings.shape != (len(paths), manifest.embedding_dim):
      raise ValueError(
        f'embeddings of shape {embeddings.shape} for {len(paths)} paths in '
        f'{manifest.embedding_dim} dimensions'
      )
    begin = manifest.arrays['paths'].num_bytes
    content = {
      'embeddings': np.ascontiguousarray(embeddings, '<f4'),
      'paths': np.ascontiguousarray(paths.buffer),
      'offsets': (begin + np.cumsum(paths.lengths)).astype('<i8'),
    }
    arrays = {
      name: self._append(name, memoryview(array).cast('B') if n else b'')
      for name, array in content.items()
    }
    self.manifest = dataclasses.replace(
      manifest, num_images=manifest.num_images + n, arrays=arrays
    )

  def commit(self, **changes: Any) -> Manifest:
    """Brings what was added into force.

    Args:
      **changes: of the manifest's other fields.

    Returns:
      The manifest, as it is on disk.

    Raises:
      InputError: the disk is full.
    """
    self.manifest = dataclasses.replace(self.manifest, **changes)
    try:
      for file in self._files.values():
        file.flush()
        # A rename may reach the disk before what it tells of.
        os.fsync(file.fileno())
      index_files.write_manifest(self.folder, self.manifest)
      self._committed = self.manifest
      self._remove_unnamed()
    except OSError as error:
      raise unwritable(self.folder, error) from error
    return self.manifest

  def close(self) -> None:
    """Closes the files; what was not committed is gone."""
    for file in self._files.values():
      # What a full disk did not take was not committed either.
      with contextlib.suppress(OSError):
        file.close()
    self._files = {}
    if self._lock is None:
      return
    if self._committed is not None:
      self._remove_unnamed()
    elif not os.path.exists(os.path.join(self.folder, MANIFEST)):
      # No index has come into being; a folder that was there stays.
      self._remove_unnamed()
      os.remove(os.path.join(self.folder, LOCK))
      if self._made and not os.listdir(self.folder):
        os.rmdir(self.folder)
    self._lock.close()
    self._lock = None

  def _check_unchanged(self):
    """Raises if the index is not what the caller has read of it."""
    current = current_manifest(self.folder)
    if current != self._committed:
      self._committed = current
      raise InputError(
        f'{self.folder} was changed by another process a moment ago; allowed '
        'is one at a time: run the same command again'
      )

  def _open_files(self):
    """Opens the files behind what counts of them."""
    is_new = self.manifest.is_new
    if is_new:
      number = _next_generation(self.folder)
      self.manifest = dataclasses.replace(self.manifest, generation=number)
    else:
      # A file that is too short would be filled up with zeros.
      index_files.check_files(self.folder, self.manifest, verify=False)
    for name, stored in self.manifest.arrays.items():
      path = self.manifest.file(self.folder, name)
      self._files[name] = file = open(path, 'w+b' if is_new else 'r+b')
      file.truncate(stored.num_bytes)
      file.seek(stored.num_bytes)
    if is_new:
      start = self._append('offsets', np.zeros(1, '<i8').tobytes())
      arrays = dict(self.manifest.arrays) | {'offsets': start}
      self.manifest = dataclasses.replace(self.manifest, arrays=arrays)

  def _append(self, name: str, content: bytes | memoryview) -> Stored:
    try:
      self._files[name].write(content)
    except OSError as error:
      raise unwritable(self.folder, error) from error
    return self.manifest.arrays[name].extended(content)

  def _remove_unnamed(self):
    """Removes what is not of the index on disk: left by kills, or replaced."""
    kept = []
    if self._committed is not None:
      kept = [self._committed.file('', name) for name in ARRAYS]
    for name in os.listdir(self.folder):
      is_array = ARRAY_FILE.fullmatch(name) and name not in kept
      if is_array or _TEMPORARY.fullmatch(name):
        os.remove(os.path.join(self.folder, name))


def _locked(folder: str) -> BinaryIO:
  """Returns the open lock of a folder, which is freed when it is closed."""
  # Not on every platform, and searching does without.
  import fcntl

  lock = open(os.path.join(folder, LOCK), 'wb')
  try:
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError as error:
    lock.close()
    raise InputError(
      f'{folder} is being written by another process; allowed is one at a '
      'time: wait until it is done'
    ) from error
  return lock


def remove_images(index: Index, rows: np.ndarray) -> Manifest:
  """Takes images out of an index; the others keep their order.

  The rows that stay are copied, in blocks, beside the old ones; nothing is
  embedded again. `index` stays what it was: open it anew.

  Args:
    index: of which they are rows.
    rows: [n] int, which images.

  Returns:
    The manifest of what is left.

  Raises:
    InputError: the index was changed since it was opened, or cannot be written.
  """
  stays = np.ones(len(index), bool)
  stays[rows] = False
  old, new = index.manifest, index.manifest.emptied()
  with (
    IndexWriter(index.folder, new, replaces=old) as writer,
    # Read, not mapped: pages of a map would count as memory of the process.
    open(old.file(index.folder, 'embeddings'), 'rb') as file,
  ):
    for begin in range(0, len(index), _BLOCK_ROWS):
      kept = stays[begin : begin + _BLOCK_ROWS]
      block = np.fromfile(file, '<f4', len(kept) * old.embedding_dim)
      block = block.reshape(len(kept), old.embedding_dim)
      paths = index.paths.take(begin + np.flatnonzero(kept))
      writer.add(block[kept], paths)
    return writer.commit()


def current_manifest(folder: str) -> Manifest | None:
  """Returns the manifest of a folder; None where it has none that is whole."""
  try:
    return index_files.read_manifest(folder)
  except InputError:
    return None


def is_free(folder: str) -> bool:
  """Returns whether a folder holds nothing but what a killed writer left."""
  if not os.path.exists(folder):
    return True
  if not os.path.isdir(folder):
    return False
  return all(
    name in (LOCK, SKIPPED, DUPLICATES)
    or ARRAY_FILE.fullmatch(name)
    or _TEMPORARY.fullmatch(name)
    for name in os.listdir(folder)
  )


def _next_generation(folder: str) -> int:
  """Returns a number that no file of an index has."""
  taken = [
    int(re.search(r'-(\d+)\.', name)[1])
    for name in os.listdir(folder)
    if ARRAY_FILE.fullmatch(name)
  ]
  return 1 + max(taken, default=-1)


def unwritable(folder: str, error: OSError) -> InputError:
  """Returns the error for an index that cannot be written."""
  return InputError(
    f'{folder} cannot be written ({error.strerror or error}); what was '
    'committed is whole: free some space or correct the permissions, and run '
    'the same command again'
  )
