"""Google Landmarks v2: 4.1 million training images, 0.76 million to search in.

The identifiers of images are 16 hexadecimal digits, kept as uint64 here.
"""

import logging
from typing import Any, NamedTuple

import numpy as np

from retrieval_jax.core.errors import InputError, unknown_name
from retrieval_jax.core.ground_truth import google_landmarks as ground_truth
from retrieval_jax.core.strings import Strings
from retrieval_jax.data.collection import TEST, TRAIN, Collection, Task
from retrieval_jax.data.formats import folders
from retrieval_jax.data.formats.table_files import open_table
from retrieval_jax.data.sources import ImageFiles

_log = logging.getLogger(__name__)

SUBSETS = ('clean', 'c2x', 'all', 'none')
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


def gldv2(
  *, dir: str, subset: str = 'clean', recognition: bool = False
) -> Collection:
  """Reads Google Landmarks v2 (version 2.1).

  The training classes are the landmarks of the training images. The queries are
  the test images that the official solution of the retrieval task knows an
  answer to (1,129), the gallery is the index.

  The solution is a list of images for each query, and the tasks 'retrieval',
  'retrieval_public' and 'retrieval_private' go by it. As labels, for people:
  queries and index images that lists connect, directly or over others, are one
  class; all other index images are the last class, which no query has. (The
  landmarks of the index and those of the training set have numbers of their
  own, which do not correspond.)

  Recognition names the landmark of each test image, most of which show none,
  by the training images: the tasks 'recognition', 'recognition_public' and
  'recognition_private'.

  Args:
    dir: the folder of the download "Google Landmarks Dataset v2" (repository
      cvdfoundation/google-landmark): train/, index/ and test/ with the images,
      and train.csv, train_clean.csv, index.csv, retrieval_solution_v2.1.csv,
      each in the folder of its set, in `dir` or in metadata/.
    subset: of the training images: 'clean' (1,580,470 images of 81,313
      landmarks, train_clean.csv), 'c2x' (all 3,223,078 images of these
      landmarks), 'all' (4,132,914 of 203,094, train.csv) or 'none', for
      retrieval by a run of other data.
    recognition: whether its tasks are there too, by
      recognition_solution_v2.1.csv; they search in all training images.

  Returns:
    A collection of the training images, the queries, the index, and the test
    images of recognition, in this order, each in that of its file.

  Raises:
    InputError: if files are missing or damaged.

  References:
    Weyand et al., Google Landmarks Dataset v2, CVPR 2020.
    Clean set: Yokoo et al., CVPR Workshops 2020.
  """
  root = folders.check_folder('data.dir', dir)
  if subset not in SUBSETS:
    raise unknown_name('data.subset', subset, SUBSETS)
  if recognition and subset == 'none':
    raise InputError(
      "data.recognition is True with data.subset 'none'; allowed are 'clean', "
      "'c2x' and 'all', whose landmarks are recognised: set --config.data.subset"
    )
  train_ids, landmarks = _read_train(root, subset)
  index_file = _find(root, 'index', 'index.csv')
  index_ids = np.concatenate(
    [ids for ids in _read_ids(index_file)] or [np.zeros(0, np.uint64)]
  )
  solution = read_retrieval_solution(
    _find(root, 'test', 'retrieval_solution_v2.1.csv'), index_ids
  )
  names, train_labels = np.unique(landmarks, return_inverse=True)
  del landmarks
  query_labels, index_labels, num_groups = _connect(solution, len(index_ids))
  groups = [f'queries {i}' for i in range(num_groups)]
  if (index_labels == num_groups).any():
    groups.append('no query')
  parts = [
    _Part('train', train_ids, train_labels),
    _Part('test', solution.query_ids, query_labels + len(names)),
    _Part('index', index_ids, index_labels + len(names)),
  ]
  class_names = [*map(str, names.tolist()), *groups]
  shown = None
  if recognition:
    shown = _read_recognition(
      _find(root, 'test', 'recognition_solution_v2.1.csv'), names, class_names
    )
    parts.append(_Part('test', shown.ids, shown.labels))
    class_names += shown.new_names
  counts = [len(part.ids) for part in parts]
  _log.info(
    'gldv2: %d training images of %d landmarks; %d queries, %d index images, '
    '%d relevant pairs%s',
    *(counts[0], len(names), counts[1], counts[2]),
    len(solution.gallery_rows),
    f'; {counts[3]} images to recognise' if recognition else '',
  )
  paths = _paths([(part.folder, part.ids) for part in parts])
  rows = np.split(np.arange(sum(counts)), np.cumsum(counts)[:-1])
  for own in rows:
    if len(own):
      folders.check_first_images(root, paths.take(own[:100]))
  is_query, is_gallery = np.zeros((2, len(paths)), bool)
  is_query[rows[1]] = is_gallery[rows[2]] = True
  tasks = _retrieval_tasks(solution, rows[1], rows[2])
  if shown is not None:
    for name, is_in in _by_usage(shown.is_public).items():
      tasks[f'recognition{name}'] = Task(
        rows[3][is_in],
        rows[0],
        'recognition',
        answers=shown.answers[is_in],
      )
  return Collection(
    name='gldv2',
    images=ImageFiles(root, paths),
    labels=np.concatenate([part.labels for part in parts]).astype(np.int32),
    class_names=tuple(class_names),
    split=np.where(np.arange(len(paths)) < counts[0], TRAIN, TEST).astype(
      np.int8
    ),
    is_query=is_query,
    is_gallery=is_gallery,
    tasks=tasks,
  )


class _Part(NamedTuple):
  """Images of one folder, [n] uint64 ids and [n] int labels."""

  folder: str
  ids: np.ndarray
  labels: np.ndarray


class _Recognition(NamedTuple):
  """The test images of the recognition task.

  Attributes:
    ids: [T] uint64.
    is_public: [T] bool; else private.
    labels: [T] int32, the first landmark, or the class of those without.
    answers: [T, L] int32, all of them, padded with -1.
    new_names: of the classes that no training image has.
  """

  ids: np.ndarray
  is_public: np.ndarray
  labels: np.ndarray
  answers: np.ndarray
  new_names: list[str]


def _read_recognition(
  file: str, names: np.ndarray, class_names: list[str]
) -> _Recognition:
  """Reads what the test images show.

  Args:
    file: recognition_solution_v2.1.csv.
    names: [C] int64, the landmarks of the training images, in the order of the
      first C classes.
    class_names: of all classes so far.
  """
  truth = ground_truth.read_recognition_solution(file)
  both = truth.both
  import pyarrow as pa

  number = {name: row for row, name in enumerate(names.tolist())}
  new_names = ['no landmark']
  answers = np.full((len(both), max([1, *map(len, both.values())])), -1)
  for row, shown in zip(answers, both.values(), strict=True):
    for place, landmark in enumerate(shown):
      if landmark not in number:
        number[landmark] = len(class_names) + len(new_names)
        new_names.append(str(landmark))
      row[place] = number[landmark]
  answers = answers.astype(np.int32)
  return _Recognition(
    ids=_parse(pa.array(both, pa.string()), file),
    is_public=np.arange(len(both)) < len(truth.public),
    labels=np.where(answers[:, 0] < 0, len(class_names), answers[:, 0]),
    answers=answers,
    new_names=new_names,
  )


def _retrieval_tasks(
  solution: RetrievalSolution, queries: np.ndarray, index: np.ndarray
) -> dict[str, Task]:
  """Returns the tasks of all queries, and of each leaderboard."""
  lists = np.split(solution.gallery_rows, solution.offsets[1:-1])
  return {
    f'retrieval{name}': Task(
      queries[is_in],
      index,
      'google_landmarks',
      relevant=[lists[row] for row in np.flatnonzero(is_in).tolist()],
    )
    for name, is_in in _by_usage(solution.is_public).items()
  }


def _by_usage(is_public: np.ndarray) -> dict[str, np.ndarray]:
  """Returns which images count for a score, by the end of its name."""
  masks = {
    '': np.ones(len(is_public), bool),
    '_public': is_public,
    '_private': ~is_public,
  }
  return {name: mask for name, mask in masks.items() if mask.any()}


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
    queries.append(_parse(batch['id'].filter(is_query), file))
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


def _read_train(root: str, subset: str) -> tuple[np.ndarray, np.ndarray]:
  """Returns (ids, landmarks), [N] uint64 and [N] int64."""
  ids, landmarks = [np.zeros(0, np.uint64)], [np.zeros(0, np.int64)]
  if subset == 'none':
    return ids[0], landmarks[0]
  if subset != 'all':
    file = _find(root, 'train', 'train_clean.csv')
    for batch, _ in _batches(file, ('landmark_id', 'images')):
      listed, number = _parse_lists(batch['images'].fill_null(''), file)
      ids.append(listed)
      landmarks.append(np.repeat(_landmarks(batch, file), number))
  clean = np.unique(np.concatenate(landmarks))
  if subset != 'clean':
    file = _find(root, 'train', 'train.csv')
    ids, landmarks = ids[:1], landmarks[:1]
    for batch, _ in _batches(file, ('id', 'landmark_id')):
      found = _landmarks(batch, file)
      is_kept = (
        np.isin(found, clean) if subset == 'c2x' else np.full(len(found), True)
      )
      ids.append(_parse(batch['id'], file)[is_kept])
      landmarks.append(found[is_kept])
  return np.concatenate(ids), np.concatenate(landmarks)


def _find(root: str, folder: str, name: str) -> str:
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


def _read_ids(file: str):
  """Yields the identifiers of a file with a column id."""
  for batch, _ in _batches(file, ('id',)):
    yield _parse(batch['id'], file)


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
  return _parse(lists.flatten(), file), counts


def _parse(array: Any, file: str) -> np.ndarray:
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


def _paths(parts: list[tuple[str, np.ndarray]]) -> Strings:
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


def _connect(
  solution: RetrievalSolution, num_index: int
) -> tuple[np.ndarray, np.ndarray, int]:
  """Turns the lists of the queries into labels.

  Returns:
    [Q] int32 of the queries, [G] int32 of the index, where the number of
    classes that have a query stands for no query, and this number.
  """
  from scipy.sparse import csgraph, csr_array

  num_queries = len(solution.query_ids)
  rows, inverse = np.unique(solution.gallery_rows, return_inverse=True)
  graph = csr_array(
    (
      np.ones(len(inverse), np.int8),
      inverse + num_queries,
      np.append(solution.offsets, np.full(len(rows), solution.offsets[-1])),
    ),
    shape=(num_queries + len(rows),) * 2,
  )
  num_groups, group = csgraph.connected_components(graph, directed=False)
  index_labels = np.full(num_index, num_groups, np.int32)
  index_labels[rows] = group[num_queries:]
  return group[:num_queries].astype(np.int32), index_labels, num_groups
