"""Many strings in one buffer, without an object for each; names that print."""

from collections.abc import Iterable
from typing import Any

import numpy as np

# Rows that are worked on at once where an array is larger than its strings.
_CHUNK = 1 << 14


class Strings:
  """N strings as one buffer of UTF-8 bytes and N + 1 offsets.

  Five million paths of 40 characters take 240 MB so; as a list of `str` they
  would take half a gigabyte.

  Example:
    >>> paths = Strings.of(['a/1.jpg', 'b/é.png'])
    >>> len(paths), paths[1], list(paths.take(np.array([1, 0])))
    (2, 'b/é.png', ['b/é.png', 'a/1.jpg'])
  """

  def __init__(self, buffer: np.ndarray, offsets: np.ndarray):
    """Wraps arrays without a copy.

    Args:
      buffer: [bytes] uint8, the strings one after the other.
      offsets: [N + 1] int64, where string i begins and string i - 1 ends.
    """
    self._buffer = buffer
    self._offsets = offsets

  @classmethod
  def of(cls, strings: Iterable[str]) -> 'Strings':
    """Packs strings."""
    encoded = [string.encode('utf-8', 'surrogateescape') for string in strings]
    offsets = np.zeros(len(encoded) + 1, np.int64)
    np.cumsum([len(item) for item in encoded], out=offsets[1:])
    return cls(np.frombuffer(b''.join(encoded), np.uint8), offsets)

  @classmethod
  def from_arrow(cls, array: Any) -> 'Strings':
    """Wraps a `pyarrow.StringArray` or `LargeStringArray` without nulls.

    The bytes are shared with the array, which stays alive as long as they do.
    """
    dtype = np.int64 if str(array.type).startswith('large') else np.int32
    _, offsets, content = array.buffers()
    if not len(array):
      return cls(np.zeros(0, np.uint8), np.zeros(1, np.int64))
    offsets = np.frombuffer(offsets, dtype)
    offsets = offsets[array.offset : array.offset + len(array) + 1]
    first, last = int(offsets[0]), int(offsets[-1])
    # A column of empty strings may come without a buffer.
    content = np.frombuffer(content or b'', np.uint8)[first:last]
    return cls(content, offsets.astype(np.int64) - first)

  def __len__(self) -> int:
    """Returns N."""
    return len(self._offsets) - 1

  def __getitem__(self, row: int) -> str:
    """Returns string `row`, from 0."""
    if not 0 <= row < len(self):
      raise IndexError(f'row {row} of {len(self)}')
    start, end = self._offsets[row : row + 2]
    return self._buffer[start:end].tobytes().decode('utf-8', 'surrogateescape')

  @property
  def buffer(self) -> np.ndarray:
    """[bytes] uint8, the strings one after the other."""
    return self._buffer

  @property
  def lengths(self) -> np.ndarray:
    """[N] int64, the bytes of each string."""
    return np.diff(self._offsets)

  def take(self, rows: np.ndarray) -> 'Strings':
    """Returns the strings of some rows."""
    rows = np.asarray(rows, np.int64)
    if len(rows) and not 0 <= rows.min() <= rows.max() < len(self):
      raise IndexError(f'rows {rows.min()} to {rows.max()} of {len(self)}')
    offsets = np.zeros(len(rows) + 1, np.int64)
    np.cumsum(self.lengths[rows], out=offsets[1:])
    buffer = np.empty(offsets[-1], np.uint8)
    for begin in range(0, len(rows), _CHUNK):
      part = offsets[begin : begin + _CHUNK + 1]
      starts = self._offsets[rows[begin : begin + _CHUNK]]
      shift = np.repeat(starts - part[:-1], np.diff(part))
      buffer[part[0] : part[-1]] = self._buffer[
        shift + np.arange(part[0], part[-1])
      ]
    return Strings(buffer, offsets)

  def fingerprints(self) -> np.ndarray:
    """Returns [N] uint64, equal for equal strings.

    Those of two strings that differ are equal with a probability of 2^-57: h =
    sum_j (b_j + 1) r_j mod 2^64 over the bytes b_j, with random odd r_j.
    """
    longest = int(self.lengths.max(initial=0))
    rng = np.random.default_rng(0)
    factors = rng.integers(0, 2**64, longest, np.uint64) | np.uint64(1)
    hashes = np.empty(len(self), np.uint64)
    for begin in range(0, len(self), _CHUNK):
      part = self._offsets[begin : begin + _CHUNK + 1]
      place = np.arange(part[0], part[-1])
      place -= np.repeat(part[:-1], np.diff(part))
      sums = np.zeros(len(place) + 1, np.uint64)
      content = self._buffer[part[0] : part[-1]].astype(np.uint64)
      content += np.uint64(1)
      np.cumsum(content * factors[place], out=sums[1:])
      part = part - part[0]
      hashes[begin : begin + _CHUNK] = sums[part[1:]] - sums[part[:-1]]
    return hashes


class StringsBuilder:
  """Strings that are added in pieces, in one buffer that grows.

  Example:
    >>> builder = StringsBuilder()
    >>> builder.add(Strings.of(['a', 'bc']))
    >>> builder.add(Strings.of(['d']))
    >>> list(builder.finish())
    ['a', 'bc', 'd']
  """

  def __init__(self):
    """Begins without strings."""
    # Its memory is extended in place: no moment holds all strings twice.
    self._content = bytearray()
    self._lengths = []

  def add(self, strings: Strings) -> None:
    """Appends copies of some strings."""
    self._content += memoryview(np.ascontiguousarray(strings.buffer))
    self._lengths.append(strings.lengths.astype(np.int32))

  def finish(self) -> Strings:
    """Returns all strings; the builder is not to be used again."""
    offsets = np.zeros(1 + sum(map(len, self._lengths)), np.int64)
    begin = 1
    for lengths in self._lengths:
      offsets[begin : begin + len(lengths)] = lengths
      begin += len(lengths)
    self._lengths = []
    np.cumsum(offsets, out=offsets)
    return Strings(np.frombuffer(self._content, np.uint8), offsets)


def printable(text: str) -> str:
  """Returns text without what would move a terminal's cursor.

  Example:
    >>> print(printable('a\\x1b[2Jb\\n'))
    a\\x1b[2Jb\\n
  """
  return ''.join(
    c if c.isprintable() else c.encode('unicode_escape', 'replace').decode()
    for c in text
  )
