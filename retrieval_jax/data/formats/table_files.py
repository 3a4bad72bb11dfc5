"""CSV and Parquet files, read in pieces as columns of Arrow."""

import codecs
import csv
import dataclasses
import gzip
import io
import os
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from retrieval_jax.core.errors import InputError

_CSV = ('.csv', '.tsv', '.csv.gz', '.tsv.gz')
_PARQUET = ('.parquet', '.pq')
TABLE_ENDINGS = _CSV + _PARQUET
# The longest row, and what is held at once. Larger pieces are not faster, and
# memory that was once had for one stays with the process.
_BLOCK_BYTES = 1 << 20
_BLOCK_ROWS = 1 << 15
_DELIMITERS = (',', ';', '\t', '|')
_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


@dataclasses.dataclass(frozen=True)
class TableFile:
  """A table on disk.

  Attributes:
    file: its path.
    columns: their names, without white space around them.
    first_row: the number of its first row, for messages. The header of a CSV
      file is row 1, as in a spreadsheet; a Parquet file has none.
    batches: columns -> iterator of {column: `pyarrow.Array`}, some rows each,
      in order. The columns of a CSV file are strings, null where empty.
  """

  file: str
  columns: tuple[str, ...]
  first_row: int
  batches: Callable[[Sequence[str]], Iterator[dict[str, Any]]]


def open_table(
  file: str | os.PathLike,
  *,
  encoding: str | None = None,
  key: str = 'data.file',
) -> TableFile:
  """Opens a table and reads the names of its columns.

  Args:
    file: that ends in .csv, .tsv (either with .gz), .parquet or .pq. The fields
      of a CSV file are separated by what separates the names in its header, by
      comma, semicolon, tab or bar, and may be quoted.
    encoding: of a CSV file; None: UTF-8, or UTF-16 if it begins with the mark
      of that.
    key: that the file was given for.

  Raises:
    InputError: for a file that is not there, or is of another kind. The
      batches raise it for what is wrong further down.
  """
  file = os.path.abspath(os.path.expanduser(os.fspath(file)))
  if not os.path.isfile(file):
    state = 'is a folder' if os.path.isdir(file) else 'does not exist'
    if os.path.exists(file) and not os.path.isdir(file):
      state = 'is a pipe or a device'
    raise InputError(
      f'{key} is {file!r}, which {state}; allowed is a file that ends in '
      f'{", ".join(_CSV + _PARQUET)}: correct {key}'
    )
  if file.lower().endswith(_CSV):
    return _open_csv(file, encoding)
  if file.lower().endswith(_PARQUET):
    return _open_parquet(file)
  raise InputError(
    f'{key} is {file!r}; allowed are files that end in '
    f'{", ".join(_CSV + _PARQUET)}: rename or convert it'
  )


def _open_csv(file: str, encoding: str | None) -> TableFile:
  """Reads the header of a CSV file."""
  if encoding is None:
    encoding = _detect_encoding(file)
  try:
    # A decoder by its one name: 'UTF8' becomes 'utf-8'.
    encoding = codecs.lookup(encoding).name
    encoding = 'utf-8-sig' if encoding == 'utf-8' else encoding
  except LookupError as error:
    raise InputError(
      f"data.encoding is {encoding!r}, which is unknown; allowed are 'utf-8', "
      "'utf-16', 'latin-1', 'cp1252' and the other encodings of Python"
    ) from error
  try:
    delimiter, columns, num_lines = _read_header(file, encoding)
  except (UnicodeError, csv.Error) as error:
    raise _undecodable(file, encoding, 'row 1') from error
  except (OSError, EOFError, zlib.error) as error:
    raise _damaged(file, error) from error
  if not columns:
    raise InputError(
      f'{file!r} is empty; allowed is a header with the names of the columns '
      'and at least one row below it'
    )
  _check_columns(file, columns)

  def batches(names):
    return _csv_batches(file, encoding, delimiter, columns, num_lines, names)

  return TableFile(file, columns, 2, batches)


def _detect_encoding(file: str) -> str:
  """Returns the encoding that the first bytes of a file tell."""
  try:
    with _open_bytes(file) as content:
      start = content.read(4)
  except (OSError, EOFError, zlib.error) as error:
    raise _damaged(file, error) from error
  # UTF-8 may begin with a mark too, which is no part of the first name.
  return 'utf-16' if start.startswith(_UTF_16) else 'utf-8-sig'


def _open_bytes(file: str) -> io.BufferedIOBase:
  """Opens a file, unpacked."""
  return gzip.open(file) if file.lower().endswith('.gz') else open(file, 'rb')


def _read_header(file: str, encoding: str) -> tuple[str, tuple[str, ...], int]:
  """Returns (delimiter, columns, number of lines that they take)."""
  with (
    _open_bytes(file) as content,
    # More is decoded than the header, of which nothing is to be said yet.
    io.TextIOWrapper(content, encoding, newline='', errors='replace') as lines,
  ):
    line = lines.readline(_BLOCK_BYTES)
    blank = 0
    while line and not line.strip():
      line = lines.readline(_BLOCK_BYTES)
      blank += 1
  if '\N{REPLACEMENT CHARACTER}' in line:
    raise _undecodable(file, encoding, 'row 1')
  counts = {mark: line.count(mark) for mark in _DELIMITERS}
  delimiter = max(_DELIMITERS, key=counts.__getitem__)
  names = next(csv.reader([line], delimiter=delimiter), [])
  return delimiter, tuple(name.strip() for name in names), blank + 1


def _csv_batches(file, encoding, delimiter, columns, num_lines, names):
  """Yields some columns as strings; turns every failure into one line."""
  import pyarrow as pa
  from pyarrow import csv as arrow_csv

  bad_rows = []

  def note(row):
    bad_rows.append(row)
    return 'error'

  options = {
    # One thread: rows come in order, and few pieces are held at once.
    'read_options': arrow_csv.ReadOptions(
      use_threads=False,
      block_size=_BLOCK_BYTES,
      column_names=columns,
      skip_rows=num_lines,
      # Arrow reads UTF-8 itself, with a mark or without.
      encoding='utf8' if encoding.startswith('utf-8') else encoding,
    ),
    'parse_options': arrow_csv.ParseOptions(
      delimiter=delimiter,
      newlines_in_values=True,
      invalid_row_handler=note,
    ),
    'convert_options': arrow_csv.ConvertOptions(
      include_columns=list(names),
      column_types={name: pa.string() for name in names},
      null_values=[''],
      strings_can_be_null=True,
    ),
  }
  row = 2
  try:
    if not _has_rows(file, encoding, num_lines):
      return
    with (
      _open_bytes(file) as content,
      arrow_csv.open_csv(content, **options) as reader,
    ):
      for batch in reader:
        yield dict(zip(names, batch.columns, strict=True))
        row += len(batch)
  except UnicodeError as error:
    raise _undecodable(file, encoding, f'row {row} or below') from error
  except pa.ArrowInvalid as error:
    raise _csv_error(file, encoding, columns, row, bad_rows, error) from error
  except (OSError, EOFError, zlib.error) as error:
    raise _damaged(file, error) from error


def _has_rows(file: str, encoding: str, num_lines: int) -> bool:
  """Returns whether anything stands below the header."""
  with (
    _open_bytes(file) as content,
    io.TextIOWrapper(content, encoding, newline='', errors='replace') as lines,
  ):
    for _ in range(num_lines):
      lines.readline()
    while line := lines.readline(_BLOCK_BYTES):
      if line.strip():
        return True
  return False


def _csv_error(file, encoding, columns, row, bad_rows, error) -> InputError:
  """Says what is wrong with a CSV file in the user's words."""
  reason = str(error)
  if bad_rows:
    bad = bad_rows[0]
    number = 'below' if bad.number is None else bad.number
    return InputError(
      f'{file!r}, row {number}: has {bad.actual_columns} fields '
      f'({_shorten(bad.text)}); allowed are {bad.expected_columns}, as many as '
      'the header has: correct the row, and quote fields that hold the '
      'separator'
    )
  if 'UTF8' in reason:
    number = re.search(r'Row #(\d+)', reason)
    place = f'row {number[1]}' if number else f'row {row} or below'
    return _undecodable(file, encoding, place)
  if 'straddl' in reason:
    return InputError(
      f'{file!r}, row {row} or below: a row is longer than '
      f'{_BLOCK_BYTES >> 20} MiB; allowed are quotes in pairs: close the quote '
      'that is open there'
    )
  return InputError(
    f'{file!r}, row {row} or below: cannot be read ({_shorten(reason)}); '
    f'allowed is a CSV file of the columns {", ".join(columns)}: correct it'
  )


def _undecodable(file: str, encoding: str, where: str) -> InputError:
  """Returns the error for bytes that are not of an encoding."""
  encoding = encoding.removesuffix('-sig')
  return InputError(
    f'{file!r}, {where}: holds bytes that are not {encoding}; allowed is text '
    'in one encoding: name it by data.encoding (often latin-1 or cp1252), or '
    'save the file as UTF-8'
  )


def _damaged(file: str, error: Exception) -> InputError:
  """Returns the error for a file that is cut off or cannot be opened."""
  reason = getattr(error, 'strerror', None) or str(error) or repr(error)
  return InputError(
    f'{file!r} cannot be read ({_shorten(reason)}); allowed is a whole file '
    'that may be read: copy or download it again'
  )


def _open_parquet(file: str) -> TableFile:
  """Reads the footer of a Parquet file."""
  import pyarrow as pa
  from pyarrow import parquet

  try:
    with parquet.ParquetFile(file) as content:
      columns = tuple(content.schema_arrow.names)
  except (pa.ArrowException, OSError) as error:
    raise _damaged(file, error) from error
  _check_columns(file, columns)

  def batches(names):
    try:
      with parquet.ParquetFile(file, pre_buffer=False) as content:
        for batch in content.iter_batches(
          _BLOCK_ROWS, columns=list(names), use_threads=False
        ):
          yield {name: batch.column(name) for name in names}
    except (pa.ArrowException, OSError) as error:
      raise _damaged(file, error) from error

  return TableFile(file, columns, 1, batches)


def _check_columns(file: str, columns: Sequence[str]) -> None:
  """Raises if two columns have one name."""
  twice = sorted({name for name in columns if columns.count(name) > 1})
  if twice:
    raise InputError(
      f'{file!r} has {columns.count(twice[0])} columns {twice[0]!r}; allowed '
      'is a name for each: rename or remove one'
    )


def _shorten(text: str, length: int = 80) -> str:
  """Returns a text on one line, cut."""
  text = ' '.join(text.split())
  return text if len(text) <= length else text[: length - 3] + '...'
