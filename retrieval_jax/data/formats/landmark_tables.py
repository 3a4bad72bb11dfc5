"""The CSV files and the paths of Google Landmarks v2.

The identifiers of images are 16 hexadecimal digits, kept as uint64 here.
"""

from typing import Any, NamedTuple

import numpy as np

from retrieval_jax.core.errors import InputError
from retrieval_jax.core.strings import Strings
from retrieval_jax.data.formats import folders
from retrieval_jax.data.formats.table_files import open_table

_LAYOUT = (
  'train/, index/ and test/, each with its CSV files and its images in folders '
  'such as train/0/1/2/'
)
_DIGITS = np.frombuffer(b'0123456789abcdef', np.uint8)
# Digit -> value; 255 for what is none.
_VALUES = np.full(256, 255, np.uint8)
_VALUES[_DIGITS] = np.arange(16)
_CHUNK = 1 << 16


class RetrievalSolution(NamedTuple):
  """The relevant images of each query.

  Attributes:
    query_ids: [Q] uint64, of the queries that have any, in the file's order.
    is_public: [Q] bool, whether a query counts for the public score; else for
      the private one.
    offsets: [Q + 1] int64, where the images of each query begin.
    gallery_rows: [M] int64, the images of query q are
      `gallery_rows[offsets[q] : offsets[q + 1]]`.
  """

  query_ids: np.ndarray
  is_public: np.ndarray
  offsets: np.ndarray
  gallery_rows: np.ndarray


def read_retrieval_solution(
  file: str, index_ids: np.ndarray
) -> RetrievalSolution:
  """Reads the official ground truth of the retrieval task.

  Args:
    file: retrieval_solution_v2.1.csv, with the columns id, images (identifiers
      between spaces, or None for an image that is no query) and Usage (Public,
      Private or Ignored).
    index_ids: [G] uint64, of the gallery, in its order.

  Returns:
    The lists as rows of the gallery.

  Raises:
    InputError: for a damaged file, and an image that is not in the gallery.
  """
  order = np.argsort(index_ids)
  ordered = index_ids[order]
  queries, public = [np.zeros(0, np.uint64)], [np.zeros(0, bool)]
  counts, rows = [np.zeros(1, np.int64)], [np.zeros(0, np.int64)]
  for batch, first in _batches(file, ('id', 'images', 'Usage')):
    from pyarrow import compute

    images = compute.utf8_trim_whitespace(batch['images'].fill_null('None'))
    is_query = compute.and_(
      compute.not_equal(images, 'None'), compute.not_equal(images, '')
    )
    queries.append(parse_ids(batch['id'].filter(is_query), file))
    usage = batch['Usage'].filter(is_query)
    public.append(
      compute.equal(usage.fill_null(''), 'Public').to_numpy(
        zero_copy_only=False
      )
    )
    ids, number = _parse_lists(images.filter(is_query), file)
    counts.append(number)
    place = np.minimum(np.searchsorted(ordered, ids), max(len(ordered) - 1, 0))
    unknown = ordered[place] != ids if len(ordered) else np.ones(len(ids), bool)
    if unknown.any():
      raise InputError(
        f'{file!r}, below row {first}: image {ids[unknown.argmax()]:016x} is '
        'not in index.csv; allowed are images of the index: download both '
        'files again, of one version'
      )
    rows.append(order[place])
  return RetrievalSolution(
    np.concatenate(queries),
    np.concatenate(public),
    np.cumsum(np.concatenate(counts)),
    np.concatenate(rows),
  )


def read_train(root: str, subset: str) -> tuple[np.ndarray, np.ndarray]:
  """Returns (ids, landmarks), [N] uint64 and [N] int64."""
  ids, landmarks = [np.zeros(0, np.uint64)], [np.zeros(0, np.int64)]
  if subset == 'none':
    return ids[0], landmarks[0]
  if subset != 'all':
    file = find_table(root, 'train', 'train_clean.csv')
    for batch, _ in _batches(file, ('landmark_id', 'images')):
      listed, number = _parse_lists(batch['images'].fill_null(''), file)
      ids.append(listed)
      landmarks.append(np.repeat(_landmarks(batch, file), number))
  clean = np.unique(np.concatenate(landmarks))
  if subset != 'clean':
    file = find_table(root, 'train', 'train.csv')
    ids, landmarks = ids[:1], landmarks[:1]
    for batch, _ in _batches(file, ('id', 'landmark_id')):
      found = _landmarks(batch, file)
      is_kept = (
        np.isin(found, clean) if subset == 'c2x' else np.full(len(found), True)
      )
      ids.append(parse_ids(batch['id'], file)[is_kept])
      landmarks.append(found[is_kept])
  return np.concatenate(ids), np.concatenate(landmarks)


def find_table(root: str, folder: str, name: str) -> str:
  """Returns the path of a file of metadata."""
  places = [f'{folder}/{name}', name, f'metadata/{name}']
  return folders.find_file(root, places, _LAYOUT)


def _batches(file: str, columns: tuple[str, ...]):
  """Yields ({column: strings}, number of the first row) of a CSV file."""
  content = open_table(file, key='data.dir')
  missing = [name for name in columns if name not in content.columns]
  if missing:
    raise InputError(
      f'{file!r} has no column {missing[0]!r}, only '
      f'{", ".join(content.columns)}; allowed are {", ".join(columns)}: '
      'download it again'
    )
  row = content.first_row
  for batch in content.batches(columns):
    yield batch, row
    row += len(batch[columns[0]])
  if row == content.first_row:
    raise InputError(
      f'{file!r} has no rows; allowed is at least one: download it again'
    )


def read_ids(file: str):
  """Yields the identifiers of a file with a column id."""
  for batch, _ in _batches(file, ('id',)):
    yield parse_ids(batch['id'], file)


def _landmarks(batch: dict[str, Any], file: str) -> np.ndarray:
  """Returns [n] int64, the column landmark_id."""
  import pyarrow as pa

  try:
    return batch['landmark_id'].fill_null('').cast(pa.int64()).to_numpy()
  except pa.ArrowInvalid as error:
    raise InputError(
      f'{file!r}: landmark_id: {" ".join(str(error).split())}; allowed are '
      'integers: download it again'
    ) from error


def _parse_lists(array: Any, file: str) -> tuple[np.ndarray, np.ndarray]:
  """Returns all ids of [n] lists, and [n] int64, how many each has."""
  from pyarrow import compute

  lists = compute.utf8_split_whitespace(compute.utf8_trim_whitespace(array))
  counts = compute.list_value_length(lists).to_numpy().astype(np.int64)
  return parse_ids(lists.flatten(), file), counts


def parse_ids(array: Any, file: str) -> np.ndarray:
  """Returns identifiers as [n] uint64."""
  strings = Strings.from_arrow(array.fill_null(''))
  wrong = strings.lengths != 16
  if not wrong.any():
    values = _VALUES[strings.buffer.reshape(-1, 16)]
    wrong = (values > 15).any(1)
  if wrong.any():
    raise InputError(
      f'{file!r}: {strings[int(wrong.argmax())]!r} is no identifier of an '
      'image; allowed are 16 digits of 0-9 and a-f: download it again'
    )
  pairs = values[:, ::2] << 4 | values[:, 1::2]
  return np.ascontiguousarray(pairs).view('>u8')[:, 0].astype(np.uint64)


def image_paths(parts: list[tuple[str, np.ndarray]]) -> Strings:
  """Returns train/0/1/2/0123456789abcdef.jpg for the ids of each folder."""
  ends = [len(ids) * (len(folder) + 27) for folder, ids in parts]
  buffer = np.empty(sum(ends), np.uint8)
  offsets = np.zeros(1 + sum(len(ids) for _, ids in parts), np.int64)
  begin, row = 0, 1
  for (folder, ids), size in zip(parts, ends, strict=True):
    length = len(folder) + 27
    prefix = np.frombuffer(f'{folder}/0/0/0/'.encode(), np.uint8)
    lines = buffer[begin : begin + size].reshape(-1, length)
    lines[:, : len(prefix)] = prefix
    lines[:, -4:] = np.frombuffer(b'.jpg', np.uint8)
    for i in range(0, len(ids), _CHUNK):
      content = ids[i : i + _CHUNK].astype('>u8')[:, None].view(np.uint8)
      digits = np.stack([content >> 4, content & 15], axis=2).reshape(-1, 16)
      digits = _DIGITS[digits]
      lines[i : i + _CHUNK, -20:-4] = digits
      for k in range(3):
        lines[i : i + _CHUNK, len(folder) + 1 + 2 * k] = digits[:, k]
    offsets[row : row + len(ids)] = length
    begin, row = begin + size, row + len(ids)
  return Strings(buffer, np.cumsum(offsets, out=offsets))
