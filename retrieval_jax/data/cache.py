"""Arrays that take seconds to make, kept in a file for the next run.

The cache only ever saves time: a folder that cannot be written, a full disk and
a damaged file are log lines, and the arrays are then made again. Of processes
that want the same arrays at once, one makes them and the others wait for it.
"""

import contextlib
import glob
import logging
import os
import pathlib
import time
import uuid
from collections.abc import Callable, Iterator

import numpy as np

_log = logging.getLogger(__name__)

_FINGERPRINT = 'fingerprint'

# A process that hangs while it makes arrays must not hang all others.
_LONGEST_WAIT_SECONDS = 900.0


def cache_folder() -> pathlib.Path:
  """Returns the folder that cached arrays are kept in.

  It is $RETRIEVAL_JAX_CACHE, else `retrieval_jax` in $XDG_CACHE_HOME, else in
  `~/.cache`. It need not exist.
  """
  folder = os.environ.get('RETRIEVAL_JAX_CACHE')
  if folder:
    return pathlib.Path(folder).expanduser()
  parent = os.environ.get('XDG_CACHE_HOME') or '~/.cache'
  return pathlib.Path(parent).expanduser() / 'retrieval_jax'


def cached_arrays(
  name: str,
  fingerprint: str,
  make: Callable[[], dict[str, np.ndarray]],
) -> dict[str, np.ndarray]:
  """Returns `make()`, from a file if it was kept there before.

  Processes on one machine, and on several where the file system locks across
  them, make the arrays once; without locks each makes its own, and all are
  right.

  Args:
    name: of the file in the cache folder, without the suffix.
    fingerprint: of what the arrays are made from; a file with another one is
      out of date and is replaced.
    make: returns the arrays, by name; no objects.

  Returns:
    {name: array}, each array read-only.
  """
  try:
    path = cache_folder() / f'{name}.npz'
  except RuntimeError as error:
    _log.warning('No folder to cache %s in: %s; works without.', name, error)
    return _read_only(make())
  arrays, _ = _read(path, fingerprint)
  if arrays is None:
    with _lock(path):
      # Another process may have made them in the meantime.
      arrays, problem = _read(path, fingerprint)
      if problem:
        _log.warning('Cache file %s is not used: %s; made anew.', path, problem)
      if arrays is None:
        arrays = make()
        _write(path, {**arrays, _FINGERPRINT: np.array(fingerprint)})
  return _read_only(arrays)


def _read_only(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  for array in arrays.values():
    array.setflags(write=False)
  return arrays


def _read(
  path: pathlib.Path, fingerprint: str
) -> tuple[dict[str, np.ndarray] | None, str | None]:
  """Returns the arrays of a file, or None and, if it is damaged, how."""
  try:
    # Opened here: numpy leaves a file open that it cannot make sense of.
    with open(path, 'rb') as raw, np.load(raw, allow_pickle=False) as file:
      if file[_FINGERPRINT].item() != fingerprint:
        return None, None
      # Reading verifies the checksum of each array.
      return {key: file[key] for key in file.files if key != _FINGERPRINT}, None
  except (FileNotFoundError, NotADirectoryError):
    return None, None
  # Whatever a damaged file makes numpy raise (zlib.error, BadZipFile, EOFError,
  # KeyError, ...), the cure is the same.
  except Exception as error:
    return None, repr(error)


def _write(path: pathlib.Path, arrays: dict[str, np.ndarray]) -> None:
  """Writes a temporary file and renames it: readers see all or nothing."""
  temporary = path.with_name(f'{path.stem}.{uuid.uuid4().hex}.tmp')
  try:
    try:
      path.parent.mkdir(parents=True, exist_ok=True)
      with open(temporary, 'wb') as file:
        np.savez(file, **arrays)
      os.replace(temporary, path)
    finally:
      # Of a full disk or an interrupted run, the part that was written.
      with contextlib.suppress(OSError):
        temporary.unlink()
  except OSError as error:
    _log.warning('Cannot cache in %s: %s; works without.', path, error)


@contextlib.contextmanager
def _lock(path: pathlib.Path) -> Iterator[None]:
  """Holds the lock of a cache file, or nothing where there are no locks.

  The system frees the lock of a process that ends, however it ends. The empty
  file that is locked stays: taking it away would race with who waits for it.
  """
  try:
    import fcntl

    path.parent.mkdir(parents=True, exist_ok=True)
    file = open(path.with_suffix('.lock'), 'ab')
  # No such locks on this system, or a folder that takes no file.
  except (ImportError, OSError):
    yield
    return
  with file:
    deadline = time.monotonic() + _LONGEST_WAIT_SECONDS
    is_held = is_waiting = False
    while not is_held:
      try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        is_held = True
      except BlockingIOError:
        if time.monotonic() > deadline:
          _log.warning('Waited too long for %s; works without.', path)
          break
        if not is_waiting:
          _log.info('Waiting for another process to make %s.', path)
        is_waiting = True
        time.sleep(0.05)
      # A file system without locks.
      except OSError:
        break
    if is_held:
      _remove_leftovers(path)
    try:
      yield
    finally:
      if is_held:
        # A child that was forked meanwhile would keep the lock of a file that
        # is only closed.
        fcntl.flock(file, fcntl.LOCK_UN)


def _remove_leftovers(path: pathlib.Path) -> None:
  """Removes what processes left behind that were killed while they wrote."""
  pattern = f'{glob.escape(path.stem)}.{"[0-9a-f]" * 32}.tmp'
  for leftover in path.parent.glob(pattern):
    with contextlib.suppress(OSError):
      leftover.unlink()
