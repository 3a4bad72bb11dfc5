"""Forms the training, validation and test sets of a collection."""

import numpy as np

from retrieval_jax.core import relations
from retrieval_jax.core.errors import InputError, unknown_name
from retrieval_jax.data import splits
from retrieval_jax.data.collection import TEST, TRAIN, VALIDATION, Collection
from retrieval_jax.data.dataset import Dataset
from retrieval_jax.data.evaluation_set import EvaluationSet
from retrieval_jax.data.preprocessing import Preprocessing
from retrieval_jax.data.roles import row_labels
from retrieval_jax.data.sources import Source

VALIDATIONS = ('classes', 'images')


def make_dataset(
  collection: Collection,
  preprocessing: Preprocessing,
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
  if not len(train):
    raise InputError(
      f'{collection.name}: no image is in the training set; allowed are data '
      'with training rows: set data.split=class_disjoint to draw them'
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
  # The classes of the training set first, in their order.
  known = np.zeros(len(collection.class_names), bool)
  known[relations.incidences(labels[train])[1]] = True
  order = np.argsort(~known, kind='stable')
  # One entry more, so that the -1 of label sets remains.
  new_label = np.full(len(order) + 1, -1, np.int32)
  new_label[order] = np.arange(len(order), dtype=np.int32)

  def source(rows):
    return Source(
      collection.images,
      new_label[labels[rows]],
      preprocessing,
      rows=rows,
      boxes=None if collection.boxes is None else collection.boxes[rows],
      num_threads=num_threads,
    )

  train_source = source(train)

  def evaluation_set(name, asked, searched):
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
      return EvaluationSet(source(asked), **facts)
    if np.isin(asked, searched, assume_unique=True).any():
      raise InputError(
        f'{collection.name}: some queries of the {name} set are in its gallery '
        'and some images are in one of the two alone; allowed are equal sets '
        '(each query is then excluded from its own ranking) or sets that share '
        'nothing: correct is_query and is_gallery'
      )
    if np.array_equal(searched, train):
      return EvaluationSet(source(asked), train_source, **facts)
    return EvaluationSet(source(asked), source(searched), **facts)

  validations = {}
  if len(asked) or len(searched):
    validations['validation'] = evaluation_set('validation', asked, searched)
  is_test = codes == TEST
  gallery = collection.is_gallery & (is_test | (codes == TRAIN))
  tests = {
    'test': evaluation_set(
      'test',
      np.flatnonzero(collection.is_query & is_test),
      np.flatnonzero(gallery),
    )
  }
  return Dataset(
    name=collection.name,
    train=train_source,
    tests=tests,
    validations=validations,
    num_classes=int(known.sum()),
    class_names=tuple(collection.class_names[c] for c in order.tolist()),
    categories=_categories(collection, train),
    parts=np.array([0, len(train)]),
    class_categories=_class_categories(collection, order),
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
