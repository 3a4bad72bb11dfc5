"""Arrays that take seconds to make, kept in a file for the next run.

The cache only ever saves time: a folder that cannot be written, a full disk and
a damaged file are log lines, and the arrays are then made again.
"""

import contextlib
import logging
import os
import pathlib
import uuid
from collections.abc import Callable

import numpy as np

_log = logging.getLogger(__name__)


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
  name: str, fingerprint: str, make: Callable[[], dict[str, np.ndarray]]
) -> dict[str, np.ndarray]:
  """Returns `make()`, from a file if it was kept there before.

  Args:
    name: of the file in the cache folder, without the suffix.
    fingerprint: of what the arrays are made from; a file with another one is
      out of date and is replaced.
    make: returns the arrays, by name.

  Returns:
    {name: array}, each array read-only.
  """
  path = None
  try:
    path = cache_folder() / f'{name}.npz'
    arrays = _read(path, fingerprint)
  except FileNotFoundError:
    arrays = None
  # Whatever a damaged file makes numpy raise (zlib.error, BadZipFile, EOFError,
  # KeyError, ...), the cure is the same.
  except Exception as error:
    _log.warning('Cache file %s is not used: %r; made anew.', path, error)
    arrays = None
  if arrays is None:
    arrays = make()
    if path is not None:
      _write(path, {**arrays, _FINGERPRINT: np.array(fingerprint)})
  for array in arrays.values():
    array.setflags(write=False)
  return arrays


_FINGERPRINT = 'fingerprint'


def _read(path: pathlib.Path, fingerprint: str) -> dict[str, np.ndarray] | None:
  """Returns the arrays of a file, checksums verified, or None if outdated."""
  # Opened here: numpy leaves a file open that it cannot make sense of.
  with open(path, 'rb') as raw, np.load(raw, allow_pickle=False) as file:
    if file[_FINGERPRINT].item() != fingerprint:
      return None
    return {key: file[key] for key in file.files if key != _FINGERPRINT}


def _write(path: pathlib.Path, arrays: dict[str, np.ndarray]) -> None:
  """Writes a temporary file and renames it: readers see all or nothing."""
  temporary = path.with_name(f'{path.stem}.{uuid.uuid4().hex}.tmp')
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(temporary, 'wb') as file:
      np.savez(file, **arrays)
    os.replace(temporary, path)
  except OSError as error:
    _log.warning('Cannot cache in %s: %s; works without.', path, error)
    # Of a full disk, the part that was written.
    with contextlib.suppress(OSError):
      temporary.unlink()
