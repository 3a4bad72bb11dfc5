"""Finds files of the same content, reading as little of them as that takes."""

import hashlib
import os
import stat

import numpy as np

from retrieval_jax.core import files
from retrieval_jax.core.strings import Strings

# Where photographs of one size differ; the start is headers, often the same.
_END_BYTES = 4096


def first_equals(paths: Strings) -> np.ndarray:
  """Returns which is the first file of the same content as each.

  Files of a size that no other has are not opened, of the others the last 4 KiB
  are read, and whole those that still agree: some 40 us a file beside what
  copies take. Memory is that of the digests of what may be copies.

  Args:
    paths: [N] absolute.

  Returns:
    [N] int64; a file that is equal to none before it, or cannot be read, has
    its own row.

  Example:
    >>> import pathlib, tempfile
    >>> root = pathlib.Path(tempfile.mkdtemp())
    >>> for name, text in (('a', 'same'), ('b', 'else'), ('c', 'same')):
    ...   _ = (root / name).write_text(text)
    >>> first_equals(Strings.of([str(root / name) for name in 'abc'])).tolist()
    [0, 1, 0]
  """
  first = np.arange(len(paths))
  sizes = np.array([_size(path) for path in paths], np.int64)
  maybe = _shared(np.flatnonzero(sizes >= 0), sizes)
  ends = np.zeros(len(paths), np.uint64)
  readable = np.zeros(len(paths), bool)
  for row in maybe.tolist():
    try:
      ends[row] = _end_digest(paths[row], int(sizes[row]))
      readable[row] = True
    except OSError:
      continue  # It has gone since: equal to none.
  known: dict[bytes, int] = {}
  for row in _shared(maybe[readable[maybe]], ends).tolist():
    try:
      content = files.read_bytes(paths[row])
    except OSError:
      continue
    digest = hashlib.blake2b(content, digest_size=16).digest()
    first[row] = known.setdefault(digest, row)
  return first


def _size(path: str) -> int:
  """Returns the size of a file in bytes, -1 if there is none."""
  try:
    status = os.stat(path)
  except OSError:
    return -1
  return status.st_size if stat.S_ISREG(status.st_mode) else -1


def _end_digest(path: str, size: int) -> np.uint64:
  """Returns a digest of the last bytes of a file and of its size."""
  files.check_regular(path)
  with open(path, 'rb', buffering=0) as file:
    file.seek(max(0, size - _END_BYTES))
    digest = hashlib.blake2b(file.read(_END_BYTES), digest_size=8)
  digest.update(size.to_bytes(8, 'little'))
  return np.frombuffer(digest.digest(), np.uint64)[0]


def _shared(rows: np.ndarray, values: np.ndarray) -> np.ndarray:
  """Returns those of some rows whose value another of them has too."""
  _, inverse, counts = np.unique(
    values[rows], return_inverse=True, return_counts=True
  )
  return rows[counts[inverse] > 1]
