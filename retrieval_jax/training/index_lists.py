"""What an index tells people in CSV files beside its arrays."""

import csv
import io
import os
from collections.abc import Sequence

import numpy as np

from retrieval_jax import neighbors
from retrieval_jax.core import files
from retrieval_jax.core.strings import Strings
from retrieval_jax.data import equal_files
from retrieval_jax.neighbors import index_files, index_writer


def read_skipped(folder: str) -> list[tuple[str, str]]:
  """Returns (path, why) of the images that an index does without."""
  return _read(folder, index_files.SKIPPED)


def update_skipped(
  folder: str, listed: Strings, skipped: list[tuple[str, str]]
) -> None:
  """Writes `skipped.csv`; what it said of images not listed now stays.

  Args:
    folder: of the index.
    listed: the images that were tried now.
    skipped: (path, why) of those of them that could not be read.

  Raises:
    InputError: it cannot be written.
  """
  earlier = read_skipped(folder)
  if earlier:
    again = np.isin(
      Strings.of(row[0] for row in earlier).fingerprints(),
      np.concatenate(
        [
          listed.fingerprints(),
          Strings.of(r[0] for r in skipped).fingerprints(),
        ]
      ),
    )
    earlier = [
      r for r, is_again in zip(earlier, again, strict=True) if not is_again
    ]
  _write(folder, index_files.SKIPPED, ('path', 'reason'), earlier + skipped)


def read_duplicates(folder: str) -> list[tuple[str, str]]:
  """Returns (path, path of the first file that is the same)."""
  return _read(folder, index_files.DUPLICATES)


def write_duplicates(index: neighbors.Index) -> list[tuple[str, str]]:
  """Writes `duplicates.csv`: images whose files have the same content.

  Args:
    index: of which all files are compared, as far as they are there.

  Returns:
    (path, path of the first file that is the same), in the order of the index.

  Raises:
    InputError: it cannot be written.
  """
  first = equal_files.first_equals(index.paths)
  rows = np.flatnonzero(first != np.arange(len(first)))
  found = [(index.paths[row], index.paths[first[row]]) for row in rows.tolist()]
  _write(index.folder, index_files.DUPLICATES, ('path', 'same_as'), found)
  return found


def _read(folder: str, name: str) -> list[tuple[str, str]]:
  """Returns the rows of a list below its header; none if there is no list."""
  try:
    with open(
      os.path.join(folder, name),
      encoding='utf-8',
      errors='surrogateescape',
      newline='',
    ) as file:
      return [(row[0], row[1]) for row in csv.reader(file) if len(row) == 2][1:]
  except FileNotFoundError:
    return []


def _write(
  folder: str,
  name: str,
  header: tuple[str, str],
  rows: Sequence[tuple[str, str]],
) -> None:
  """Writes a list whole or not at all; without rows, there is none."""
  path = os.path.join(folder, name)
  try:
    if not rows:
      if os.path.exists(path):
        os.remove(path)
      return
    text = io.StringIO(newline='')
    csv.writer(text).writerows([header, *rows])
    content = text.getvalue().encode('utf-8', 'surrogateescape')
    files.write_bytes(path, content)
  except OSError as error:
    raise index_writer.unwritable(folder, error) from error
