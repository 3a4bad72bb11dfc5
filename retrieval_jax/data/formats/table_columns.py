"""What stands in the columns of a table, piece by piece, as arrays.

Each reader takes the pieces of one column in order (`add`) and returns what
they make together (`finish`). What a user wrote wrongly is an `InputError` with
the file, the row, the column and the value.
"""

import os
from typing import Any, NamedTuple

import numpy as np

from retrieval_jax.core.errors import InputError
from retrieval_jax.core.strings import Strings, StringsBuilder
from retrieval_jax.data.collection import TEST, TRAIN, VALIDATION
from retrieval_jax.data.columns import class_order

BOX_COLUMNS = ('x_1', 'y_1', 'x_2', 'y_2')
_SPLITS = {
  'train': TRAIN,
  'validation': VALIDATION,
  'val': VALIDATION,
  'test': TEST,
}
_FLAGS = {
  'true': True,
  '1': True,
  '1.0': True,
  'false': False,
  '0': False,
  '0.0': False,
}
# Of names that are looked up at once.
_LEAST_ROWS = 1 << 16
# Absolute, or with steps that lead nowhere or upwards.
_UNUSUAL_PATH = r'^(/|\\|[A-Za-z]:[\\/])|(^|[/\\])\.{1,2}([/\\]|$)|//'


class Place(NamedTuple):
  """A column of a file, for messages.

  Attributes:
    file: its path.
    column: its name.
    first_row: the number of the first row.
  """

  file: str
  column: str
  first_row: int

  def error(self, row: int, value: Any, allowed: str) -> InputError:
    """Returns the error for a value of row `row`, counted from 0."""
    shown = repr(value)
    if len(shown) > 120:
      shown = f'{shown[:120]}...'
    number = self.first_row + int(row)
    problem = 'is empty' if value in (None, '') else f'is {shown}'
    return InputError(
      f'{self.file!r}, row {number}: {self.column} {problem}; allowed '
      f'{allowed}: correct the row'
    )


class Paths:
  """Paths of images, relative to a root and inside of it."""

  def __init__(self, place: Place, root: str):
    """Takes where the paths stand, and the absolute path of the root."""
    self._place, self._root = place, root
    self._prefix = root.rstrip('/') + '/'
    self._builder = StringsBuilder()
    self._allowed = f'are paths of images in {root!r}, relative to it'

  def add(self, array: Any, first: int) -> None:
    """Takes the rows from `first` on."""
    import pyarrow as pa
    from pyarrow import compute

    text = as_text(array, self._place)
    _check_filled(text, first, self._place, self._allowed)
    is_below = compute.starts_with(text, self._prefix)
    if compute.any(is_below).as_py():
      below = compute.utf8_slice_codeunits(text, len(self._prefix))
      text = compute.if_else(is_below, below, text)
    unusual = compute.match_substring_regex(text, _UNUSUAL_PATH)
    rows = np.flatnonzero(unusual.to_numpy(zero_copy_only=False))
    if len(rows):
      plain = [
        self._normalize(text[row].as_py(), first + row) for row in rows.tolist()
      ]
      text = compute.replace_with_mask(text, unusual, pa.array(plain))
    strings = Strings.from_arrow(text)
    zeros = np.flatnonzero(strings.buffer == 0)
    if len(zeros):
      row = int(np.searchsorted(np.cumsum(strings.lengths), zeros[0], 'right'))
      raise self._place.error(
        first + row, strings[row], 'are paths without NUL characters'
      )
    self._builder.add(strings)

  def finish(self) -> Strings:
    """Returns the paths."""
    return self._builder.finish()

  def _normalize(self, path: str, row: int) -> str:
    """Returns a path without '.', '..' and '//'."""
    plain = os.path.normpath(path)
    is_absolute = plain.startswith(('/', '\\')) or plain[1:3] in (':\\', ':/')
    parts = plain.replace('\\', '/').split('/')
    if is_absolute or '..' in parts or plain == '.':
      raise self._place.error(
        row, path, f'{self._allowed}, and this is outside; or set data.dir'
      )
    return plain


class Categories:
  """Names or integers, numbered in the order of `columns.class_order`."""

  def __init__(self, place: Place, *, allow_empty: bool = False):
    """Takes where they stand, and whether -1 may stand for an empty field."""
    self._place, self._allow_empty = place, allow_empty
    self._names: Any = None
    self._codes = [np.zeros(0, np.int32)]
    self._waiting: list[Any] = []

  def add(self, array: Any, first: int) -> None:
    """Takes the rows from `first` on."""
    text = _trimmed(array, self._place)
    if not self._allow_empty:
      _check_filled(text, first, self._place, 'is a name or an integer')
    self.add_text(text)

  def add_text(self, text: Any) -> None:
    """Takes strings as they are."""
    self._waiting.append(text)
    # A look-up costs as much as there are names: it has to be worth it.
    num_names = 0 if self._names is None else len(self._names)
    if sum(map(len, self._waiting)) >= max(_LEAST_ROWS, num_names):
      self._encode()

  def _encode(self) -> None:
    """Turns what waits into numbers, in the order of first occurrence."""
    import pyarrow as pa
    from pyarrow import compute

    known = pa.array([], pa.string()) if self._names is None else self._names
    text = pa.concat_arrays([known.slice(0, 0), *self._waiting])
    self._waiting = []
    encoded = text.dictionary_encode()
    found = compute.index_in(encoded.dictionary, value_set=known)
    new = encoded.dictionary.filter(found.is_null())
    # One more for -1, which stands for an empty field.
    codes = np.append(found.fill_null(-1).to_numpy(), np.int32(-1))
    codes[:-1][codes[:-1] < 0] = len(known) + np.arange(len(new))
    self._names = pa.concat_arrays([known, new])
    self._codes.append(codes[encoded.indices.fill_null(-1).to_numpy()])

  def finish(self) -> tuple[np.ndarray, tuple[str, ...]]:
    """Returns [N] int32 numbers from 0, -1 where empty, and the names."""
    self._encode()
    names = self._names.to_pylist()
    order = class_order(names)
    number = np.full(len(names) + 1, -1, np.int32)
    number[order] = np.arange(len(names), dtype=np.int32)
    codes = np.concatenate([number[codes] for codes in self._codes])
    self._codes = []
    return codes, tuple(names[i] for i in order.tolist())


class LabelSets:
  """Fields that hold several labels each."""

  def __init__(self, place: Place, separator: str):
    """Takes where they stand and what separates them."""
    self._place, self._separator = place, separator
    self._labels = Categories(place)
    self._counts = [np.zeros(0, np.int32)]

  def add(self, array: Any, first: int) -> None:
    """Takes the rows from `first` on."""
    from pyarrow import compute

    text = _trimmed(array, self._place)
    allowed = f'are labels separated by {self._separator!r}, none of them empty'
    _check_filled(text, first, self._place, allowed)
    lists = compute.split_pattern(text, self._separator)
    counts = compute.list_value_length(lists).to_numpy()
    labels = compute.utf8_trim_whitespace(lists.flatten())
    is_empty = compute.equal(labels, '').to_numpy(zero_copy_only=False)
    if is_empty.any():
      row = int(np.searchsorted(np.cumsum(counts), is_empty.argmax(), 'right'))
      raise self._place.error(first + row, text[row].as_py(), allowed)
    self._labels.add_text(labels)
    self._counts.append(counts)

  def finish(self) -> tuple[np.ndarray, tuple[str, ...]]:
    """Returns [N, L] int32 labels, padded with -1, and the names."""
    labels, names = self._labels.finish()
    counts = np.concatenate(self._counts)
    is_label = np.arange(counts.max(initial=1)) < counts[:, None]
    sets = np.full(is_label.shape, -1, np.int32)
    sets[is_label] = labels
    return sets, names


class Splits:
  """Names of splits."""

  def __init__(self, place: Place):
    """Takes where they stand."""
    self._place, self._codes = place, [np.zeros(0, np.int8)]

  def add(self, array: Any, first: int) -> None:
    """Takes the rows from `first` on."""
    codes = _look_up(array, first, self._place, _SPLITS)
    if (codes < 0).any():
      raise self._place.error(
        first + int((codes < 0).argmax()), None, f'are {", ".join(_SPLITS)}'
      )
    self._codes.append(codes)

  def finish(self) -> np.ndarray:
    """Returns [N] int8, as `Collection.split`."""
    return np.concatenate(self._codes)


class Flags:
  """True or false, or empty, which is false."""

  def __init__(self, place: Place):
    """Takes where they stand."""
    self._place, self._codes = place, [np.zeros(0, np.int8)]

  def add(self, array: Any, first: int) -> None:
    """Takes the rows from `first` on."""
    self._codes.append(_look_up(array, first, self._place, _FLAGS))

  def finish(self) -> np.ndarray | None:
    """Returns [N] bool, or None if all fields are empty."""
    codes = np.concatenate(self._codes)
    return codes > 0 if (codes >= 0).any() else None


class Boxes:
  """Boxes in pixels, from four columns of numbers; empty: the whole image."""

  def __init__(self, file: str, first_row: int):
    """Takes the file and the number of its first row."""
    self._places = [Place(file, name, first_row) for name in BOX_COLUMNS]
    self._boxes = [np.zeros((0, 4), np.float32)]

  def add(self, arrays: list[Any], first: int) -> None:
    """Takes the rows from `first` on, of x_1, y_1, x_2 and y_2."""
    boxes = np.stack(
      [
        _numbers(array, first, place)
        for array, place in zip(arrays, self._places, strict=True)
      ],
      axis=1,
    )
    is_empty = np.isnan(boxes)
    some = is_empty.any(1) & ~is_empty.all(1)
    if some.any():
      row = int(some.argmax())
      place = self._places[int(is_empty[row].argmax())]
      raise place.error(
        first + row, None, f'are all of {", ".join(BOX_COLUMNS)} or none'
      )
    for low, high in ((0, 2), (1, 3)):
      place, other = self._places[low], BOX_COLUMNS[high]
      bad = (boxes[:, low] < 0) | (boxes[:, low] >= boxes[:, high])
      if bad.any():
        row = int(bad.argmax())
        raise place.error(
          first + row,
          float(boxes[row, low]),
          f'is at least 0 and less than {other}, here {boxes[row, high]:g}',
        )
    self._boxes.append(boxes.astype(np.float32))

  def finish(self) -> np.ndarray | None:
    """Returns [N, 4] float32, or None if all are empty."""
    boxes = np.concatenate(self._boxes)
    return None if np.isnan(boxes).all() else boxes


def as_text(array: Any, place: Place) -> Any:
  """Returns a column as `pyarrow.StringArray`; NaN is null.

  Raises:
    InputError: for a column of lists, bytes, dates and the like.
  """
  import pyarrow as pa
  from pyarrow import compute

  if pa.types.is_string(array.type):
    return array
  if pa.types.is_dictionary(array.type):
    return as_text(array.dictionary_decode(), place)
  if pa.types.is_floating(array.type):
    array = compute.if_else(
      compute.is_nan(array), pa.scalar(None, array.type), array
    )
  kind = pa.types
  simple = (
    *(kind.is_large_string, kind.is_integer, kind.is_floating),
    *(kind.is_boolean, kind.is_null),
  )
  if any(is_kind(array.type) for is_kind in simple):
    return array.cast(pa.string())
  raise InputError(
    f'{place.file!r}: column {place.column} holds {array.type}; allowed are '
    'strings, numbers and booleans: convert the column'
  )


def _trimmed(array, place):
  """Returns a column as text without white space around, null if empty."""
  import pyarrow as pa
  from pyarrow import compute

  text = compute.utf8_trim_whitespace(as_text(array, place))
  is_empty = compute.equal(text, '')
  if compute.any(is_empty).as_py():
    text = compute.if_else(is_empty, pa.scalar(None, pa.string()), text)
  return text


def _check_filled(text, first, place, allowed):
  """Raises at the first row that is empty."""
  from pyarrow import compute

  is_empty = compute.equal(compute.fill_null(text, ''), '')
  if compute.any(is_empty).as_py():
    row = is_empty.to_numpy(zero_copy_only=False).argmax()
    raise place.error(first + row, None, allowed)


def _look_up(array, first, place, meanings):
  """Returns [n] int8 meanings of words, whatever their case; -1 for none."""
  import pyarrow as pa
  from pyarrow import compute

  text = _trimmed(array, place)
  words = pa.array(list(meanings))
  found = compute.index_in(compute.utf8_lower(text), value_set=words)
  found = found.fill_null(-1).to_numpy()
  filled = text.is_valid().to_numpy(zero_copy_only=False)
  wrong = (found < 0) & filled
  if wrong.any():
    row = int(wrong.argmax())
    allowed = f'are {", ".join(meanings)}'
    raise place.error(first + row, text[row].as_py(), allowed)
  return np.array([*meanings.values(), -1], np.int8)[found]


def _numbers(array, first, place):
  """Returns [n] float64, NaN where empty."""
  import pyarrow as pa
  from pyarrow import compute

  text = _trimmed(array, place)
  try:
    numbers = text.cast(pa.float64())
    wrong = compute.invert(compute.is_finite(numbers)).fill_null(False)
  except pa.ArrowInvalid:
    numbers = None
    pattern = r'^[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?$'
    wrong = compute.invert(compute.match_substring_regex(text, pattern))
    wrong = wrong.fill_null(False)
  wrong = wrong.to_numpy(zero_copy_only=False)
  if wrong.any():
    row = int(wrong.argmax())
    allowed = 'are finite numbers, with a decimal point, or nothing'
    raise place.error(first + row, text[row].as_py(), allowed)
  return numbers.to_numpy(zero_copy_only=False)
