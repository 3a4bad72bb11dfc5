"""An index in the formats of others: faiss, Parquet, NumPy."""

import os
from collections.abc import Callable

import numpy as np

from retrieval_jax.core import files
from retrieval_jax.core.errors import InputError
from retrieval_jax.neighbors.index import Index

_BLOCK_ROWS = 1 << 14


def to_faiss(index: Index, path: str) -> None:
  """Writes a faiss `IndexFlatIP` of the embeddings; row i is `index.paths[i]`.

  Its inner products are the cosines, since the rows have unit length. Takes the
  memory of all embeddings, as faiss does.

  Args:
    index: that is written.
    path: of the file.

  Raises:
    InputError: faiss is not installed.
  """
  try:
    import faiss
  except ImportError as error:
    raise InputError(
      f'{path} is for faiss, which is not installed; allowed are .parquet and '
      ".npz without it: pip install 'retrieval_jax[faiss]'"
    ) from error
  flat = faiss.IndexFlatIP(index.manifest.embedding_dim)
  for begin in range(0, len(index), _BLOCK_ROWS):
    flat.add(
      np.ascontiguousarray(index.embeddings[begin : begin + _BLOCK_ROWS])
    )
  with files.replacing(path) as temporary:
    faiss.write_index(flat, temporary)


def to_parquet(index: Index, path: str) -> None:
  """Writes a table of `path` and `embedding`, in pieces.

  `path` is a string, or binary if a path is not UTF-8; `embedding` a list of D
  float32.

  Args:
    index: that is written.
    path: of the file.
  """
  import pyarrow as pa
  from pyarrow import parquet

  dim = index.manifest.embedding_dim
  text = pa.string() if _is_utf_8(index) else pa.binary()
  schema = pa.schema(
    [('path', text), ('embedding', pa.list_(pa.float32(), dim))]
  )
  with (
    files.replacing(path) as temporary,
    parquet.ParquetWriter(temporary, schema) as writer,
  ):
    for begin in range(0, len(index), _BLOCK_ROWS):
      end = min(begin + _BLOCK_ROWS, len(index))
      paths = [os.fsencode(index.paths[row]) for row in range(begin, end)]
      values = pa.array(np.ravel(index.embeddings[begin:end]))
      columns = [
        pa.array(paths, pa.binary()).cast(text),
        pa.FixedSizeListArray.from_arrays(values, dim),
      ]
      writer.write_batch(pa.record_batch(columns, schema=schema))


def to_npz(index: Index, path: str) -> None:
  """Writes `embeddings` [N, D] float32 and `paths` [N] bytes (`os.fsdecode`).

  Args:
    index: that is written.
    path: of the file.
  """
  longest = int(index.paths.lengths.max(initial=1))
  paths = np.fromiter(
    map(os.fsencode, index.paths), f'S{longest}', count=len(index)
  )
  with files.replacing(path) as temporary, open(temporary, 'wb') as file:
    np.savez(file, embeddings=index.embeddings, paths=paths)


# The ending of a file -> what writes it.
EXPORTS: dict[str, Callable[[Index, str], None]] = {
  '.faiss': to_faiss,
  '.npz': to_npz,
  '.parquet': to_parquet,
}


def find_export(path: str) -> Callable[[Index, str], None]:
  """Returns what writes an index to a file of such an ending.

  Raises:
    InputError: for another ending.

  Example:
    >>> find_export('photos.npz').__name__
    'to_npz'
  """
  ending = os.path.splitext(path)[1].lower()
  if ending not in EXPORTS:
    raise InputError(
      f'--output is {path!r}; allowed are files that end in '
      f'{", ".join(EXPORTS)}: choose by the ending what is written'
    )
  return EXPORTS[ending]


def _is_utf_8(index: Index) -> bool:
  """Returns whether all paths are."""
  try:
    for path in index.paths:
      path.encode('utf-8')
  except UnicodeEncodeError:
    return False
  return True
