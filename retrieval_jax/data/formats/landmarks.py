"""Google Landmarks v2: 4.1 million images to train on, 0.76 to search in."""

import logging
from typing import NamedTuple

import numpy as np

from retrieval_jax.core.errors import InputError, unknown_name
from retrieval_jax.core.ground_truth import google_landmarks as ground_truth
from retrieval_jax.data.collection import TEST, TRAIN, Collection, Task
from retrieval_jax.data.formats import folders
from retrieval_jax.data.formats import landmark_tables as tables
from retrieval_jax.data.sources import ImageFiles

_log = logging.getLogger(__name__)

SUBSETS = ('clean', 'c2x', 'all', 'none')


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
      "'c2x' and 'all', whose landmarks are recognised: set data.subset"
    )
  train_ids, landmarks = tables.read_train(root, subset)
  index_file = tables.find_table(root, 'index', 'index.csv')
  index_ids = np.concatenate(
    [ids for ids in tables.read_ids(index_file)] or [np.zeros(0, np.uint64)]
  )
  solution = tables.read_retrieval_solution(
    tables.find_table(root, 'test', 'retrieval_solution_v2.1.csv'), index_ids
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
      tables.find_table(root, 'test', 'recognition_solution_v2.1.csv'),
      names,
      class_names,
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
  paths = tables.image_paths([(part.folder, part.ids) for part in parts])
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
    ids=tables.parse_ids(pa.array(both, pa.string()), file),
    is_public=np.arange(len(both)) < len(truth.public),
    labels=np.where(answers[:, 0] < 0, len(class_names), answers[:, 0]),
    answers=answers,
    new_names=new_names,
  )


def _retrieval_tasks(
  solution: tables.RetrievalSolution, queries: np.ndarray, index: np.ndarray
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


def _connect(
  solution: tables.RetrievalSolution, num_index: int
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
