"""What can be checked without opening a picture: labels, splits, roles."""

import dataclasses

import numpy as np

from retrieval_jax.data.checks import duplicates
from retrieval_jax.data.checks.findings import Finding
from retrieval_jax.data.collection import TEST, TRAIN, VALIDATION, Collection


@dataclasses.dataclass(frozen=True, eq=False)
class Parts:
  """How each of n rows is used, as flags [n] bool; all False if unknown.

  Attributes:
    is_known: rows with a split.
    is_train: trained on.
    is_validation: of the validation set.
    is_test: of the test set.
    is_query: asked, and not trained on.
    is_gallery: searched in.
    codes: [n] int64, equal for rows that are used alike.
  """

  is_known: np.ndarray
  is_train: np.ndarray
  is_validation: np.ndarray
  is_test: np.ndarray
  is_query: np.ndarray
  is_gallery: np.ndarray
  codes: np.ndarray

  @classmethod
  def of(cls, collection: Collection, rows: np.ndarray) -> 'Parts':
    """Returns how some rows are used."""
    if collection.split is None:
      no = np.zeros(len(rows), bool)
      return cls(no, no, no, no, no, no, np.zeros(len(rows), np.int64))
    split = collection.split[rows].astype(np.int64)
    is_held = (split == VALIDATION) | (split == TEST)

    def flags(given):
      return is_held if given is None else given[rows] & (split >= 0)

    is_query = flags(collection.is_query) & is_held
    is_gallery = flags(collection.is_gallery)
    return cls(
      is_known=split >= 0,
      is_train=split == TRAIN,
      is_validation=split == VALIDATION,
      is_test=split == TEST,
      is_query=is_query,
      is_gallery=is_gallery,
      codes=4 * (split + 1) + 2 * is_query + is_gallery,
    )

  @property
  def is_before_test(self) -> np.ndarray:
    """Rows that the model or its epoch is chosen by."""
    return self.is_train | self.is_validation

  @property
  def is_query_only(self) -> np.ndarray:
    """Rows that are asked in a gallery that is separate."""
    return self.is_query & ~self.is_gallery

  @property
  def is_gallery_only(self) -> np.ndarray:
    """Rows of such a gallery, if they are not trained on."""
    return self.is_gallery & ~self.is_query & ~self.is_train


class SharedLabels:
  """Says of pairs of rows whether they have a label in common."""

  def __init__(self, collection: Collection, rows: np.ndarray):
    """Takes the rows that the pairs are of."""
    self.first = collection.labels[rows].astype(np.int64)
    sets = collection.label_sets
    self._sets = None if sets is None else sets[rows]

  def __call__(self, pairs: np.ndarray) -> np.ndarray:
    """Returns [P] bool of [P, 2] int64 pairs."""
    left, right = pairs[:, 0], pairs[:, 1]
    if self._sets is None:
      return self.first[left] == self.first[right]
    shared = np.zeros(len(pairs), bool)
    for column in self._sets.T:
      label = column[left][:, None]
      shared |= ((label >= 0) & (label == self._sets[right])).any(axis=1)
    return shared


def check_labels_and_roles(collection: Collection) -> list[Finding]:
  """Returns what is wrong with labels, splits and roles."""
  parts = Parts.of(collection, np.arange(len(collection)))
  is_idle = ~(parts.is_train | parts.is_query | parts.is_gallery)
  unused = np.flatnonzero(is_idle & (collection.split is not None))
  return [
    *_check_classes(collection, parts),
    *_check_queries(collection, parts),
    _check_sequences(collection, parts),
    Finding('unused_row', 'rows', unused),
    Finding(
      'skipped_row',
      'whole',
      np.zeros(0, np.int64),
      tuple(f'{n:,}: {why}' for why, n in collection.num_skipped.items() if n),
      total=sum(collection.num_skipped.values()),
    ),
  ]


def _all_labels(collection: Collection, rows: np.ndarray) -> np.ndarray:
  """Returns [n, L] int64, all labels of some rows, padded with -1."""
  if collection.label_sets is None:
    return collection.labels[rows].astype(np.int64)[:, None]
  return collection.label_sets[rows].astype(np.int64)


def count_labels(collection: Collection, rows: np.ndarray) -> np.ndarray:
  """Returns [C] int64, how many of some rows have each label."""
  labels = _all_labels(collection, rows)
  return np.bincount(labels[labels >= 0], minlength=len(collection.class_names))


def _check_classes(collection: Collection, parts: Parts) -> list[Finding]:
  """Classes with few images, class numbers left out, classes shared."""
  every = np.arange(len(collection))
  counts = count_labels(collection, every)
  known = collection.split is not None
  train = count_labels(collection, np.flatnonzero(parts.is_train))
  test = count_labels(collection, np.flatnonzero(parts.is_test))
  lone = np.flatnonzero((train if known else counts) == 1)
  return [
    Finding('lone_class', 'classes', lone),
    Finding('empty_class', 'classes', np.flatnonzero(counts == 0)),
    Finding(
      'shared_class', 'classes', np.flatnonzero((train > 0) & (test > 0))
    ),
    _check_gaps(collection.class_names),
  ]


def _check_gaps(class_names: tuple[str, ...]) -> Finding:
  """Returns the numbers left out, if classes are numbered."""
  empty = np.zeros(0, np.int64)
  if not class_names or not all(
    name.isascii() and name.isdigit() and len(name) < 19 for name in class_names
  ):
    return Finding('label_gap', 'whole', empty)
  numbers = np.unique(np.array(class_names, np.int64))
  gaps = np.flatnonzero(np.diff(numbers) > 1)
  first, last = numbers[0], numbers[-1]
  missing = int(last - first + 1) - len(numbers)
  detail = f'of {first} to {last}'
  if len(gaps):
    detail += f', the first of them {numbers[gaps[0]] + 1}'
  return Finding('label_gap', 'whole', empty, (detail,), total=missing)


def _check_queries(collection: Collection, parts: Parts) -> list[Finding]:
  """Queries that nothing matches, and classes that nobody asks for."""
  empty = np.zeros(0, np.int64)
  unmatched, lone, unasked = [empty], [empty], [empty]
  for is_held, searched in (
    (parts.is_validation, parts.is_gallery & parts.is_validation),
    (parts.is_test, parts.is_gallery & (parts.is_test | parts.is_train)),
  ):
    queries = np.flatnonzero(parts.is_query & is_held)
    if not len(queries):
      continue
    in_gallery = count_labels(collection, np.flatnonzero(searched))
    labels = _all_labels(collection, queries)
    others = in_gallery[labels] - searched[queries][:, None]
    has_match = ((others > 0) & (labels >= 0)).any(axis=1)
    is_separate = not searched[queries].any()
    is_hopeless = is_separate or not has_match.any()
    (unmatched if is_hopeless else lone).append(queries[~has_match])
    in_queries = count_labels(collection, queries)
    unasked.append(np.flatnonzero((in_gallery > 0) & (in_queries == 0)))
  return [
    Finding('query_without_match', 'rows', np.concatenate(unmatched)),
    Finding('lone_query', 'rows', np.concatenate(lone)),
    Finding('unasked_class', 'classes', np.unique(np.concatenate(unasked))),
  ]


def _check_sequences(collection: Collection, parts: Parts) -> Finding:
  """Sequences that are trained and tested on."""
  pairs = np.zeros((0, 2), np.int64)
  if collection.sequence is not None:
    known = collection.sequence >= 0
    _, groups = np.unique(collection.sequence, return_inverse=True)
    pairs = duplicates.first_of_each(
      groups, parts.is_before_test & known, parts.is_test & known
    )
  return Finding('sequence_leak', 'pairs', pairs)
