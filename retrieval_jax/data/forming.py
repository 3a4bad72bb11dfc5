"""Forms the training, validation and test sets of a collection."""

import numpy as np

from retrieval_jax.core import relations
from retrieval_jax.core.errors import InputError, unknown_name
from retrieval_jax.data import splits
from retrieval_jax.data.collection import (
  TEST,
  TRAIN,
  VALIDATION,
  Collection,
  Task,
)
from retrieval_jax.data.dataset import Dataset
from retrieval_jax.data.evaluation_set import EvaluationSet
from retrieval_jax.data.preprocessing import Preprocessing
from retrieval_jax.data.roles import row_labels
from retrieval_jax.data.sources import Source

VALIDATIONS = ('classes', 'images')


def make_dataset(
  collection: Collection,
  preprocessing: Preprocessing,
  for_training: bool = True,
  *,
  validation: str | None = None,
  validation_folds: int = 5,
  validation_fold: int = 0,
  split_seed: int = 0,
  num_threads: int = 0,
) -> Dataset:
  """Forms the training, validation and test sets of a collection.

  Args:
    collection: with its roles resolved.
    preprocessing: how pictures become arrays.
    for_training: False: the tests alone, and no training set.
    validation: what the epoch is selected on.
      'classes': one fold of the training classes, which ask each other and are
        not trained on, as in the Reality Check (Musgrave et al., ECCV 2020);
      'images': one fold of the images of each class, which ask the others;
      None: the rows that the data call validation, if any.
    validation_folds: that the training set is cut into.
    validation_fold: the one that is left out, from 0.
    split_seed: of the folds.
    num_threads: that read and decode; 0: as many as there are cores.

  Raises:
    InputError: for sets that would be empty or overlap.
  """
  if validation is not None and validation not in VALIDATIONS:
    raise unknown_name('data.validation', validation, VALIDATIONS)
  if validation is not None and not 0 <= validation_fold < validation_folds:
    raise InputError(
      f'data.validation_fold is {validation_fold}; allowed are 0 to '
      f'{validation_folds - 1}, of {validation_folds} data.validation_folds'
    )
  codes, labels = collection.split, row_labels(collection)
  train = np.flatnonzero(codes == TRAIN)
  if for_training and not len(train):
    raise InputError(
      f'{collection.name}: no image is in the training set; allowed are data '
      'with training rows: set data.split=class_disjoint to draw them, or '
      'measure a run of other data by python -m retrieval_jax.evaluate'
    )
  held_out = np.flatnonzero(codes == VALIDATION)
  asked, searched = (
    held_out[flag[held_out]]
    for flag in (collection.is_query, collection.is_gallery)
  )
  if validation is not None:
    folds = {'classes': splits.class_folds, 'images': splits.image_folds}
    is_out = (
      folds[validation](
        labels[train], num_folds=validation_folds, seed=split_seed
      )
      == validation_fold
    )
    asked, train = train[is_out], train[~is_out]
    searched = asked if validation == 'classes' else train
  former = _Former(
    collection,
    preprocessing,
    train if for_training else np.zeros(0, np.int64),
    num_threads,
  )
  validations = {}
  if for_training and (len(asked) or len(searched)):
    validations['validation'] = former.by_roles('validation', asked, searched)
  is_test = codes == TEST
  gallery = collection.is_gallery & (is_test | (codes == TRAIN))
  tests = {name: former.of_task(t) for name, t in collection.tasks.items()}
  if not tests:
    tests['test'] = former.by_roles(
      'test',
      np.flatnonzero(collection.is_query & is_test),
      np.flatnonzero(gallery),
    )
  order = former.class_order
  return Dataset(
    name=collection.name,
    train=former.source(train) if for_training else None,
    tests=tests,
    validations=validations,
    num_classes=former.num_known,
    class_names=tuple(collection.class_names[c] for c in order.tolist()),
    categories=_categories(collection, train) if for_training else None,
    parts=np.array([0, len(train)]) if for_training else None,
    class_categories=_class_categories(collection, order),
  )


class _Former:
  """Makes sources and sets of the rows of a collection.

  Attributes:
    class_order: [C] the classes of the training set first, in their order.
    num_known: classes of the training set.
  """

  def __init__(self, collection, preprocessing, train, num_threads):
    self._collection, self._train = collection, train
    self._labels = row_labels(collection)
    self._preprocessing, self._num_threads = preprocessing, num_threads
    self._sources = {}
    known = np.zeros(len(collection.class_names), bool)
    if len(train):
      known[relations.incidences(self._labels[train])[1]] = True
    self.num_known = int(known.sum())
    self.class_order = order = np.argsort(~known, kind='stable')
    # One entry more, so that the -1 of label sets remains.
    self._new_label = np.full(len(order) + 1, -1, np.int32)
    self._new_label[order] = np.arange(len(order), dtype=np.int32)

  def source(self, rows: np.ndarray) -> Source:
    """Returns some rows as a source, one for each array of rows."""
    if id(rows) not in self._sources:
      boxes = self._collection.boxes
      # With the rows, whose place in memory could else become another array's.
      self._sources[id(rows)] = (
        rows,
        Source(
          self._collection.images,
          self._new_label[self._labels[rows]],
          self._preprocessing,
          rows=rows,
          boxes=None if boxes is None else boxes[rows],
          num_threads=self._num_threads,
        ),
      )
    return self._sources[id(rows)][1]

  def by_roles(self, name, asked, searched) -> EvaluationSet:
    """Returns the set of the rows that ask and those that are searched in."""
    collection = self._collection
    if not len(asked) or not len(searched):
      empty = 'queries' if not len(asked) else 'images to search in'
      raise InputError(
        f'{collection.name}: the {name} set has no {empty}; allowed is at '
        'least one: set data.split, or correct is_query and is_gallery'
      )

    def both(column):
      return None if column is None else (column[asked], column[searched])

    category = collection.category
    facts = {
      'categories': None if category is None else category[asked],
      'sequences': both(collection.sequence),
      'domains': both(collection.domain),
    }
    if np.array_equal(asked, searched):
      return EvaluationSet(self.source(asked), **facts)
    if np.isin(asked, searched, assume_unique=True).any():
      raise InputError(
        f'{collection.name}: some queries of the {name} set are in its gallery '
        'and some images are in one of the two alone; allowed are equal sets '
        '(each query is then excluded from its own ranking) or sets that share '
        'nothing: correct is_query and is_gallery'
      )
    if np.array_equal(searched, self._train):
      searched = self._train
    return EvaluationSet(self.source(asked), self.source(searched), **facts)

  def of_task(self, task: Task) -> EvaluationSet:
    """Returns the set that a benchmark defines."""
    answers = task.answers
    facts = {
      'benchmark': task.benchmark,
      'relevant': task.relevant,
      'ignored': task.ignored,
      'answers': None if answers is None else self._new_label[answers],
    }
    if np.array_equal(task.queries, task.gallery):
      return EvaluationSet(self.source(task.queries), **facts)
    order = np.argsort(task.gallery)
    place = np.searchsorted(task.gallery, task.queries, sorter=order)
    place = order[np.minimum(place, len(order) - 1)]
    is_own = task.gallery[place] == task.queries
    return EvaluationSet(
      self.source(task.queries),
      self.source(task.gallery),
      own_rows=np.where(is_own, place, -1) if is_own.any() else None,
      **facts,
    )


def _class_categories(
  collection: Collection, order: np.ndarray
) -> np.ndarray | None:
  """Returns the category of each class, the classes in some order."""
  if collection.category is None or collection.label_sets is not None:
    return None
  by_class = np.full(len(order), -1, np.int32)
  by_class[collection.labels] = collection.category
  if (by_class[collection.labels] != collection.category).any():
    return None  # A class of two categories.
  return by_class[order]


def _categories(collection: Collection, rows: np.ndarray) -> np.ndarray | None:
  """Returns the categories of some rows; those without one share the last."""
  if collection.category is None:
    return None
  category = collection.category[rows]
  return np.where(category < 0, len(collection.category_names), category)
