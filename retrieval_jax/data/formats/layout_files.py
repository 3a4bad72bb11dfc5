"""The text files and MATLAB files that data sets of the field come with."""

from collections.abc import Sequence

import numpy as np

from retrieval_jax.core.errors import InputError


def read_words(
  file: str,
  num_fields: int,
  header: Sequence[str] = (),
  *,
  has_count: bool = False,
) -> np.ndarray:
  """Reads a text file of words between spaces.

  Args:
    file: its path.
    num_fields: words in each line.
    header: the first words of the first line, if that names the columns.
    has_count: whether a line with the number of rows stands above the header.

  Returns:
    [N, num_fields] array of str, without the header.

  Raises:
    InputError: for a file that is damaged or of another kind.
  """
  try:
    with open(file, encoding='utf-8') as content:
      lines = [line.split() for line in content]
  except (OSError, UnicodeDecodeError) as error:
    raise InputError(
      f'{file!r} cannot be read ({error}); allowed is the text file of the '
      'download: copy or download it again'
    ) from error
  skipped = bool(header) + has_count
  if header and tuple(
    lines[skipped - 1][: len(header)] if len(lines) >= skipped else ()
  ) != tuple(header):
    raise InputError(
      f'{file!r}, line {skipped}: does not begin with {" ".join(header)}; '
      'allowed is the text file of the download: download it again'
    )
  rows = [row for row in lines[skipped:] if row]
  for number, row in enumerate(lines[skipped:], skipped + 1):
    if row and len(row) != num_fields:
      raise InputError(
        f'{file!r}, line {number}: has {len(row)} words; allowed are '
        f'{num_fields}: download it again'
      )
  if not rows:
    raise InputError(
      f'{file!r} has no rows; allowed is at least one: download it again'
    )
  if has_count and lines[0] != [str(len(rows))]:
    raise InputError(
      f'{file!r} has {len(rows)} rows, but its first line says '
      f'{" ".join(lines[0])!r}; allowed is a whole file: download it again'
    )
  return np.array(rows, object)


def read_mat(file: str, key: str) -> np.ndarray:
  """Returns one array of a file of MATLAB, at least of rank 1.

  Raises:
    InputError: for a file that is damaged or of another kind.
  """
  # Only Cars196 comes in this format.
  from scipy import io

  try:
    content = io.loadmat(file, squeeze_me=True)
    return np.atleast_1d(content[key])
  except KeyError as error:
    raise InputError(
      f'{file!r} has no {key!r}; allowed is the file of the download "Stanford '
      'Cars": download it again'
    ) from error
  except Exception as error:  # Whatever a damaged file makes of the parser.
    raise InputError(
      f'{file!r} cannot be read ({" ".join(str(error).split())}); allowed is a '
      'whole file of MATLAB: copy or download it again'
    ) from error


def join(keys: np.ndarray, table: np.ndarray, root: str) -> np.ndarray:
  """Finds a row for each key.

  Args:
    keys: [N] str.
    table: [M, 1 + K] str, in each row a key and its values.
    root: of the data set, for messages.

  Returns:
    [N, K] str, the values in the order of `keys`.

  Raises:
    InputError: for a key without a row.
  """
  row_of = {key: row for row, key in enumerate(table[:, 0])}
  missing = [key for key in keys.tolist() if key not in row_of]
  if missing:
    raise InputError(
      f'{root!r}: image {missing[0]!r} stands in one text file and not in '
      'another; allowed is a whole download: download the text files again'
    )
  return table[[row_of[key] for key in keys.tolist()], 1:]


def as_numbers(words: np.ndarray, dtype: type, file: str) -> np.ndarray:
  """Returns words as numbers of a dtype.

  Raises:
    InputError: if they are not; names the file.
  """
  try:
    return words.astype(dtype)
  except ValueError as error:
    raise InputError(
      f'{file!r}: {error}; allowed are numbers in that place: download it again'
    ) from error
