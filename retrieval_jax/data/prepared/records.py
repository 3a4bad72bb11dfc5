"""Records of TensorFlow Datasets (TFDS) by row number, without TensorFlow.

TFDS keeps each example as a `tf.train.Example` in files of many records.
`array_record` files have an index of their own; for `tfrecord` files it is made
here, from the lengths that stand before the records.
"""

import bisect
import itertools
import os
import struct
from collections.abc import Callable, Sequence
from concurrent import futures
from typing import Any, Protocol

import numpy as np

from retrieval_jax.data import decoding

# Records in memory at a time: this many of a few hundred kilobytes a thread.
_CHUNK = 256
_NUM_THREADS = 8
# What the readers raise for a damaged file: they have no exception of their
# own, and that of array_record is a RuntimeError.
DAMAGE = (OSError, RuntimeError, ValueError)


class FileRange(Protocol):
  """Some records of a file, as the splits of TFDS name them.

  Attributes:
    filename: path of the file.
    skip: how many records of the file come before.
    take: how many records there are, at least 1.
  """

  filename: str
  skip: int
  take: int


class Records(Protocol):
  """Serialized examples by row number. Threads may share one."""

  def __len__(self) -> int:
    """Returns how many there are."""

  def __getitem__(self, row: int) -> bytes:
    """Returns one; raises one of `DAMAGE` if the file is damaged."""

  def __getitems__(self, rows: Sequence[int]) -> Sequence[bytes]:
    """Returns some at once."""


def array_records(ranges: Sequence[FileRange]) -> Records:
  """Returns the records of `array_record` files; opens a file when it is read.

  Args:
    ranges: what is read, in this order, at least one.
  """
  from array_record.python import array_record_data_source

  return array_record_data_source.ArrayRecordDataSource(ranges)


class TFRecords:
  """Records of `tfrecord` files.

  A record is its length in 8 bytes, a checksum of that in 4, the content, and a
  checksum in 4. The checksums are not verified: a damaged picture is found when
  it is decoded.

  Attributes:
    offsets: [N] int64, where each record begins in its file.

  References:
    https://www.tensorflow.org/tutorials/load_data/tfrecord
  """

  def __init__(
    self, ranges: Sequence[FileRange], offsets: np.ndarray | None = None
  ):
    """Opens nothing that is not read.

    Args:
      ranges: what is read, in this order, at least one.
      offsets: of another object of the same ranges; None: the files are read
        once, from record to record.

    Raises:
      ValueError: for a file that ends too early.
    """
    self._paths = [os.fspath(files.filename) for files in ranges]
    self._ends = list(itertools.accumulate(files.take for files in ranges))
    if offsets is None:
      offsets = np.concatenate([_offsets(files) for files in ranges])
    self.offsets = offsets

  def __len__(self) -> int:
    """Returns N."""
    return self._ends[-1]

  def __getitem__(self, row: int) -> bytes:
    """Returns one record."""
    path = self._paths[bisect.bisect_right(self._ends, row)]
    # Opened anew each time, which takes microseconds: no limit on the number
    # of files, and no position that threads would share.
    with open(path, 'rb', buffering=0) as file:
      file.seek(int(self.offsets[row]))
      header = file.read(12)
      length = struct.unpack('<Q4x', header)[0] if len(header) == 12 else -1
      content = file.read(max(length, 0))
    if len(content) != length:
      raise ValueError(f'{path} ends within a record')
    return content

  def __getitems__(self, rows: Sequence[int]) -> list[bytes]:
    """Returns some records."""
    return [self[row] for row in rows]


def _offsets(files: FileRange) -> np.ndarray:
  """Returns where the records of a range begin, [take] int64."""
  path, stop = os.fspath(files.filename), files.skip + files.take
  size = os.path.getsize(path)
  offsets = np.empty(stop, np.int64)
  position = 0
  with open(path, 'rb') as file:
    for i in range(stop):
      offsets[i] = position
      file.seek(position)
      header = file.read(12)
      if len(header) == 12:
        position += 16 + struct.unpack('<Q4x', header)[0]
      if len(header) < 12 or position > size:
        raise ValueError(f'{path} ends at record {i} of {stop}')
  return offsets[files.skip :]


def scan(records: Records, visit: Callable[[int, Any], None]) -> None:
  """Calls `visit(row, features)` for every record, in threads.

  Args:
    records: what is read.
    visit: is given the row and its features, {key: feature}, where a feature
      has `int64_list`, `float_list` and `bytes_list` with a `value` each. It is
      called from several threads, in no order.

  Raises:
    Exception: one of `DAMAGE`, or whatever `visit` raises.
  """

  def read(start: int) -> None:
    rows = range(start, min(start + _CHUNK, len(records)))
    contents = records.__getitems__(rows)
    for row, content in zip(rows, contents, strict=True):
      visit(row, parse(content))

  with futures.ThreadPoolExecutor(_NUM_THREADS) as pool:
    for _ in pool.map(read, range(0, len(records), _CHUNK)):
      pass


def parse(record: bytes) -> Any:
  """Returns the features of a `tf.train.Example`, by key.

  Raises:
    ValueError: if the record is none.
  """
  from google.protobuf import message
  from tensorflow_datasets.proto import tf_example_pb2

  try:
    return tf_example_pb2.Example.FromString(record).features.feature
  except message.DecodeError as error:
    raise ValueError(str(error)) from error


class ImageRecords:
  """Pictures in records, as they are stored: PNG, JPEG, ... (`Images`)."""

  def __init__(
    self, records: Records, key: str, parts: Sequence[tuple[str, int]]
  ):
    """Wraps records.

    Args:
      records: one for each picture.
      key: of the feature that is the picture.
      parts: (name, number of records) of consecutive parts, for messages.
    """
    self._records = records
    self._key = key
    self._names = [name for name, _ in parts]
    self._ends = list(itertools.accumulate(n for _, n in parts))

  def __len__(self) -> int:
    """Returns the number of pictures."""
    return len(self._records)

  def read(self, row: int) -> bytes:
    """Returns the bytes of an image file."""
    if not 0 <= row < len(self):
      raise IndexError(f'row {row} of {len(self)}')
    try:
      images = parse(self._records[row])[self._key].bytes_list.value
    except DAMAGE as error:
      raise decoding.UnreadableImageError(reason(error)) from error
    if not images or not images[0]:
      raise decoding.UnreadableImageError('the record holds no image')
    return images[0]

  def describe(self, row: int) -> str:
    """Returns 'cars196 train record 17'."""
    part = bisect.bisect_right(self._ends, row)
    start = self._ends[part - 1] if part else 0
    return f'{self._names[part]} record {row - start}'

  def identify(self, row: int) -> str:
    """Returns the same: a name that has no folder in it."""
    return self.describe(row)


def reason(error: Exception) -> str:
  """Returns the kind and the first line of an error, shortened."""
  lines = str(error).splitlines() or ['']
  return f'{type(error).__name__}: {lines[0][:200]}'.rstrip(': ')
