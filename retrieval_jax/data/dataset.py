"""What a run trains and measures on, formed from the rows of a collection."""

import dataclasses
import logging
import math

import numpy as np

from retrieval_jax.core import relations
from retrieval_jax.core.errors import InputError, unknown_name
from retrieval_jax.data import splits
from retrieval_jax.data.collection import (
  TEST,
  TRAIN,
  VALIDATION,
  Collection,
)
from retrieval_jax.data.preprocessing import Preprocessing
from retrieval_jax.data.sources import Source

_log = logging.getLogger(__name__)

SPLITS = ('class_disjoint', 'stratified', 'leave_one_domain_out')
VALIDATIONS = ('classes', 'images')


@dataclasses.dataclass(frozen=True, eq=False)
class EvaluationSet:
  """One task of retrieval: ask `query`, search in `gallery`.

  Attributes:
    query: what is asked.
    gallery: what is searched in; None: the queries, each excluded from its own
      ranking.
    categories: [Q] int32, the super-class of each query, -1 for none; None:
      unknown.
    sequences: ([Q], [N]) int32, of which sequence the queries and the gallery
      are pictures, -1 for none; None: unknown.
    domains: ([Q], [N]) int32, the camera (or font, or vendor) of each; None:
      unknown.
  """

  query: Source
  gallery: Source | None = None
  categories: np.ndarray | None = None
  sequences: tuple[np.ndarray, np.ndarray] | None = None
  domains: tuple[np.ndarray, np.ndarray] | None = None

  @property
  def searched(self) -> Source:
    """What is searched in, be it the queries themselves."""
    return self.query if self.gallery is None else self.gallery

  def subset(
    self, query_rows: np.ndarray, gallery_rows: np.ndarray
  ) -> 'EvaluationSet':
    """Returns some of the queries, and some of what is searched in.

    Args:
      query_rows: of `query`.
      gallery_rows: of `searched`; the same, if there is no gallery.
    """

    def both(pair):
      return pair and (pair[0][query_rows], pair[1][gallery_rows])

    return EvaluationSet(
      self.query.subset(query_rows),
      self.gallery and self.gallery.subset(gallery_rows),
      None if self.categories is None else self.categories[query_rows],
      both(self.sequences),
      both(self.domains),
    )


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
  """What a run trains, selects an epoch and is measured on.

  Attributes:
    name: of the data, for people.
    train: the training set.
    tests: what the results are measured on, by name; never looked at to choose
      anything.
    validations: what the epoch is selected on, by name, none of it trained on
      or tested on; empty: the last epoch counts.
    num_classes: the labels of the training set are 0 .. num_classes - 1.
    class_names: a name for each class, those of the training set first.
    categories: [N] int32, the category of each training image; None: unknown.
    parts: [M + 1] int64, where each of the M data sets that the training set is
      a mixture of begins; [0, N] for one.
    class_categories: [C'] int32, the category of each class of `class_names`,
      -1 for none, as `relations.category_grades` takes them; None: unknown, or
      not one for each class.
  """

  name: str
  train: Source
  tests: dict[str, EvaluationSet]
  validations: dict[str, EvaluationSet]
  num_classes: int
  class_names: tuple[str, ...]
  categories: np.ndarray | None = None
  parts: np.ndarray | None = None
  class_categories: np.ndarray | None = None

  @property
  def is_multi_label(self) -> bool:
    """Whether images have label sets [N, L], of which proxies know nothing."""
    return self.train.labels.ndim == 2

  def display_classes(
    self, *labels: np.ndarray
  ) -> tuple[list[np.ndarray], tuple[str, ...]]:
    """Returns labels as pages show them: one int an image, with its name.

    Args:
      *labels: of sources, [N] ints or [N, L] label sets.

    Returns:
      ([N] ints of each, a name for each int). Ints come back as they are, with
      `class_names`. Of label sets, each set that occurs is a class, called
      'dog | beach': whether two are relevant to each other is not for these
      ints to say.
    """
    if not self.is_multi_label:
      return list(labels), self.class_names
    sets, found = np.unique(
      np.sort(np.concatenate(labels), axis=1), axis=0, return_inverse=True
    )
    names = (
      ' | '.join(self.class_names[label] for label in row if label >= 0)
      for row in sets.tolist()
    )
    ends = np.cumsum([len(array) for array in labels])[:-1]
    return np.split(found.reshape(-1), ends), tuple(names)

  @property
  def image_shape(self) -> tuple[int, int, int]:
    """(H, W, C) of the images that the model sees."""
    return self.train.image_shape


def resolve_roles(
  collection: Collection,
  *,
  split: str | None = None,
  test_fraction: float = 0.5,
  test_domain: str | None = None,
  query_fraction: float | None = None,
  split_seed: int = 0,
) -> Collection:
  """Says of each row whether it is trained on, asked, or searched in.

  Args:
    collection: rows with or without splits of their own.
    split: None keeps the splits that the data come with, and takes
      'class_disjoint' for data without.
      'class_disjoint': some classes are trained on, the others are queries and
        gallery at once, each query excluded from its own ranking (zero-shot).
      'stratified': some images of each class are the queries, the others are
        trained on and searched in.
      'leave_one_domain_out': one domain asks, the others are trained on and
        searched in.
    test_fraction: of the classes, or of the images of each class.
    test_domain: the domain that is left out, by its name.
    query_fraction: of the test images of each class that ask, the others being
      the gallery; None: as the data or the split say.
    split_seed: of what is drawn.

  Returns:
    The collection with `split`, `is_query` and `is_gallery` filled.

  Raises:
    InputError: for a split that these data cannot have.
  """
  if split is not None and split not in SPLITS:
    raise unknown_name('data.split', split, SPLITS)
  labels = _labels(collection)
  is_query, is_gallery = collection.is_query, collection.is_gallery
  codes = collection.split
  if split is None and codes is None:
    if labels.ndim == 2:
      raise InputError(
        f'data.split is None, but {collection.name} comes without splits and '
        'has several labels an image, so that no class can be held out whole; '
        "allowed are 'stratified' and 'leave_one_domain_out': set "
        'data.split=stratified, or give it a column `split`'
      )
    split = 'class_disjoint'
    _log.info(
      '%s comes without splits: a share of %g of its classes is the test set '
      '(data.split=class_disjoint, data.test_fraction)',
      collection.name,
      test_fraction,
    )
  if split == 'class_disjoint':
    codes = splits.class_disjoint(
      labels, test_fraction=test_fraction, seed=split_seed
    )
    is_query = is_gallery = None
  elif split == 'stratified':
    codes = splits.stratified(
      labels, test_fraction=test_fraction, seed=split_seed
    )
    is_query, is_gallery = codes == TEST, codes == TRAIN
  elif split == 'leave_one_domain_out':
    codes = splits.leave_one_domain_out(*_domain_index(collection, test_domain))
    is_query, is_gallery = codes == TEST, codes == TRAIN
  is_held_out = (codes == TEST) | (codes == VALIDATION)
  is_query = is_held_out if is_query is None else is_query & is_held_out
  # A training row may be searched in, as the gallery of MNIST's test images.
  is_gallery = is_held_out if is_gallery is None else is_gallery & (codes >= 0)
  if query_fraction is not None:
    rows = np.flatnonzero(codes == TEST)
    is_asked = splits.query_gallery(
      labels[rows], query_fraction=query_fraction, seed=split_seed
    )
    is_query, is_gallery = is_query.copy(), is_gallery.copy()
    is_query[rows], is_gallery[rows] = is_asked, ~is_asked
  return dataclasses.replace(
    collection,
    split=np.asarray(codes, np.int8),
    is_query=is_query,
    is_gallery=is_gallery,
  )


def _domain_index(
  collection: Collection, test_domain: str | None
) -> tuple[np.ndarray, int]:
  """Returns the domains of the rows, and the number of the one left out."""
  if collection.domain is None:
    raise InputError(
      f"data.split is 'leave_one_domain_out', but {collection.name} knows no "
      'domains; allowed are data with a column of fonts, vendors, cameras: '
      'name it by data.domain_column'
    )
  if test_domain not in collection.domain_names:
    raise unknown_name('data.test_domain', test_domain, collection.domain_names)
  return collection.domain, collection.domain_names.index(test_domain)


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
  codes, labels = collection.split, _labels(collection)
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


def _labels(collection: Collection) -> np.ndarray:
  """Returns [N] int labels, or [N, L] if an image has several."""
  if collection.label_sets is None:
    return collection.labels
  label_sets = relations.pack_label_sets(collection.label_sets)
  return label_sets if label_sets.shape[1] > 1 else label_sets[:, 0]


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


def describe(dataset: Dataset) -> str:
  """Returns what is trained and measured on, as one line for the log."""
  labels, count = dataset.train.labels, f'{len(dataset.train):,}'
  if dataset.is_multi_label:
    mean = (labels >= 0).sum() / len(labels)
    what = (
      f'multi-label: {count} training images, {dataset.num_classes:,} labels, '
      f'mean {mean:.2f} labels an image'
    )
  else:
    what = f'{count} training images of {dataset.num_classes:,} classes'
  parts = [f'{dataset.name}: {what}']
  for name, group in (dataset.validations | dataset.tests).items():
    against = (
      'each against the others'
      if group.gallery is None
      else f'against {len(group.gallery):,} images'
    )
    parts.append(f'{name}: {len(group.query):,} queries, {against}')
  return '; '.join(parts)


def choose_preprocessing(
  collection: Collection,
  *,
  image_size: int | None = None,
  resize_size: int | None = None,
  channels: int | None = None,
  canvas_size: int | None = None,
) -> Preprocessing:
  """Returns how the pictures of a collection become arrays of one size.

  Args:
    collection: whose pictures they are.
    image_size: height and width that the model sees; None: those of the
      pictures, if they are alike.
    resize_size: what the shorter side is resized to before the centre crop;
      None: image_size, which crops nothing of the shorter side.
    channels: 1 (grey) or 3 (RGB); None: those of the pictures, else 3.
    canvas_size: side of the square that holds the whole picture when crops are
      drawn on the device; None: the pictures' own side if they are square and
      alike, else half as much again as image_size.

  Raises:
    InputError: pictures of any size without an image_size, or a size that does
      not fit.
  """
  own = collection.image_shape
  if image_size is None and own is None:
    raise InputError(
      f'data.image_size is None, but the pictures of {collection.name} have '
      'any size; allowed is the side of the square that the model sees: set '
      '--config.data.image_size=224'
    )
  height, width = own[:2] if image_size is None else (image_size, image_size)
  if channels is None:
    channels = 3 if own is None else own[2]
  if resize_size is None:
    resize_size = min(height, width)
  if resize_size < max(height, width) and (height, width) != (own or ())[:2]:
    raise InputError(
      f'data.resize_size is {resize_size}; allowed is at least '
      f'{max(height, width)}, data.image_size, which is cut out of it'
    )
  if canvas_size is None:
    is_square = own is not None and own[0] == own[1]
    canvas_size = own[0] if is_square else math.ceil(1.5 * max(height, width))
  return Preprocessing((height, width, channels), resize_size, canvas_size)
