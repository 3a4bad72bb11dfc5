"""Revisited Oxford and Paris: 70 queries each, and one to search in.

They are tests alone: a run of other data is measured on them.
"""

import logging
import os
import re

import numpy as np

from retrieval_jax.core.errors import InputError
from retrieval_jax.core.ground_truth import revisited as ground_truth
from retrieval_jax.core.strings import Strings
from retrieval_jax.data.collection import TEST, Collection, Task
from retrieval_jax.data.formats import folders
from retrieval_jax.data.formats.layout_files import read_words
from retrieval_jax.data.mixing import JoinedImages
from retrieval_jax.data.sources import ImageFiles

_log = logging.getLogger(__name__)

# (queries, images to search in) of the official sets.
_COUNTS = {'roxford5k': (70, 4993), 'rparis6k': (70, 6322)}
_DISTRACTORS = 'revisitop1m.txt'


def revisited(
  name: str, *, dir: str, distractors: str | None = None
) -> Collection:
  """Reads Revisited Oxford ('roxford5k') or Paris ('rparis6k').

  The queries are cut to their boxes, what is searched in is not. The tasks are
  'easy', 'medium' and 'hard', see `core.ground_truth.revisited`. The classes
  are the landmarks in the names of the files, for people: what is relevant is
  listed.

  Args:
    name: of the set.
    dir: the folder with gnd_<name>.pkl, as its authors give it out, and the
      images in jpg/.
    distractors: the folder revisitop1m, with revisitop1m.txt and the million
      images in jpg/, which are then searched in too; None: without.

  Returns:
    A collection of the queries, what is searched in, and the distractors, in
    the order of their files.

  Raises:
    InputError: if files are missing or damaged.

  References:
    Radenović et al., "Revisiting Oxford and Paris: large-scale image retrieval
    benchmarking", CVPR 2018.
  """
  root = folders.check_folder('data.dir', dir)
  file = folders.find_file(
    root, [f'gnd_{name}.pkl'], f'gnd_{name}.pkl and the images in jpg/'
  )
  truth = ground_truth.read_ground_truth(file)
  counts = len(truth.query_names), len(truth.gallery_names)
  if counts != _COUNTS[name]:
    _log.warning(
      '%s has %s queries and images to search in; the official numbers are %s.',
      *(name, counts, _COUNTS[name]),
    )
  names = [*truth.query_names, *truth.gallery_names]
  paths = Strings.of(f'jpg/{image}.jpg' for image in names)
  for rows in np.split(np.arange(len(names)), counts[:1]):
    # The queries apart: copies of the set may lack them.
    folders.check_first_images(
      root, paths.take(rows[:100]), 'unpack the images there'
    )
  images = ImageFiles(root, paths)
  landmarks = [re.sub(r'_?\d+$', '', image) for image in names]
  if distractors is not None:
    added = _distractors(distractors)
    images = JoinedImages([images, added])
    landmarks += ['distractor'] * len(added)
  class_names, labels = np.unique(landmarks, return_inverse=True)
  boxes = np.full((len(images), 4), np.nan, np.float32)
  boxes[: counts[0]] = truth.boxes
  queries, gallery = np.arange(counts[0]), np.arange(counts[0], len(images))
  tasks = {}
  for setup in ground_truth.SETUPS:
    relevant, ignored = truth.rows(setup)
    if any(map(len, relevant)):
      tasks[setup] = Task(
        queries, gallery, 'revisited', relevant=relevant, ignored=ignored
      )
  return Collection(
    name=name,
    images=images,
    labels=labels.astype(np.int32),
    class_names=tuple(class_names.tolist()),
    split=np.full(len(images), TEST, np.int8),
    is_query=np.arange(len(images)) < counts[0],
    is_gallery=np.arange(len(images)) >= counts[0],
    boxes=boxes,
    tasks=tasks,
  )


def _distractors(folder: str) -> ImageFiles:
  """Returns the million images that are relevant to no query."""
  root = folders.check_folder('data.distractors', folder)
  file = os.path.join(root, _DISTRACTORS)
  if not os.path.isfile(file):
    raise InputError(
      f'data.distractors is {folder!r}, where {_DISTRACTORS} is missing; '
      f'allowed is the folder revisitop1m with {_DISTRACTORS} and the images '
      'in jpg/: complete the download, or leave data.distractors out'
    )
  names = read_words(file, 1)[:, 0]
  paths = Strings.of(f'jpg/{name}' for name in names)
  folders.check_first_images(root, paths, 'unpack the images there')
  return ImageFiles(root, paths)
