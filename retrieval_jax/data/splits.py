"""Which rows are trained on, asked and searched in: functions of the labels.

Of label sets whole classes cannot be held out, since an image may have labels
of both sides. Images can: each is dealt with those of its rarest label.

All are pure and seeded, and sort rather than loop, so that millions of rows of
hundreds of thousands of classes take a second or two.
"""

import logging

import numpy as np

from retrieval_jax.core import relations
from retrieval_jax.core.errors import InputError
from retrieval_jax.data.collection import TEST, TRAIN

_log = logging.getLogger(__name__)

# What is drawn; a key of its own for each, or the folds within a split would
# follow the split.
_DRAWS = (
  'class_disjoint',
  'stratified',
  'query_gallery',
  'class_folds',
  'image_folds',
)


def class_disjoint(
  labels: np.ndarray, *, test_fraction: float = 0.5, seed: int = 0
) -> np.ndarray:
  """Draws whole classes for the test set: no class is in both (zero-shot).

  The test set has round(test_fraction * C) of the C classes, at least one and
  at most C - 1. This is the protocol of open-set retrieval, in which the
  classes of the benchmark are unknown to the model.

  Args:
    labels: [N] int.
    test_fraction: of the classes, in (0, 1).
    seed: at least 0.

  Returns:
    [N] int8 of TRAIN and TEST.

  Raises:
    InputError: for another fraction, or fewer than two classes.

  Example:
    >>> class_disjoint([3, 3, 5, 5, 5, 8], test_fraction=0.34).tolist()
    [2, 2, 0, 0, 0, 0]

  References:
    Song et al., Deep Metric Learning via Lifted Structured Feature Embedding,
    CVPR 2016.
  """
  _check_fraction('data.test_fraction', test_fraction)
  _refuse_label_sets(
    labels,
    'data.split is class_disjoint',
    'data.split=stratified, or give the images a column `split`',
  )
  index, num_classes = _class_index(labels)
  if num_classes < 2:
    raise InputError(
      f'data.split is class_disjoint, but the data have {num_classes} class; '
      'allowed are at least 2, one to train on and one to test on: set '
      'data.split=stratified'
    )
  share = _rounded_share(num_classes, test_fraction)
  chosen = _generator(seed, 'class_disjoint').permutation(num_classes)[:share]
  is_test = np.zeros(num_classes, bool)
  is_test[chosen] = True
  return np.where(is_test[index], TEST, TRAIN).astype(np.int8)


def first_classes(labels: np.ndarray, *, num_train: int) -> np.ndarray:
  """Trains on the classes of the lowest numbers, and tests on the others.

  The convention of CUB-200-2011 (100 of 200 classes), Cars196 (98 of 196) and
  Stanford Online Products (11,318 of 22,634), by which results are compared.

  Args:
    labels: [N] int.
    num_train: of the classes that occur, those that are trained on; in [1, C).

  Returns:
    [N] int8 of TRAIN and TEST.

  Raises:
    InputError: if one of the two sets would be empty.

  Example:
    >>> first_classes([9, 4, 4, 7], num_train=2).tolist()
    [2, 0, 0, 0]
  """
  _refuse_label_sets(labels, 'first_classes', 'stratified')
  index, num_classes = _class_index(labels)
  if not 1 <= num_train < num_classes:
    raise InputError(
      f'num_train is {num_train}; allowed are 1 to {num_classes - 1}, of '
      f'{num_classes} classes, so that both sets have some'
    )
  return np.where(index < num_train, TRAIN, TEST).astype(np.int8)


def stratified(
  labels: np.ndarray, *, test_fraction: float, seed: int = 0
) -> np.ndarray:
  """Draws images of each class for the test set: all classes are known.

  Of a class of n images round(test_fraction * n) are tested on, at least one
  and at most n - 1. A class of one image is trained on alone, which is logged.

  Args:
    labels: [N] int, or [N, L] label sets.
    test_fraction: of the images of each class, in (0, 1).
    seed: at least 0.

  Returns:
    [N] int8 of TRAIN and TEST.

  Raises:
    InputError: for another fraction, or if no class has two images.

  Example:
    >>> codes = stratified([0, 0, 0, 0, 1, 1, 2], test_fraction=0.5)
    >>> np.bincount(np.array([0, 0, 0, 0, 1, 1, 2])[codes == TEST]).tolist()
    [2, 1]
  """
  _check_fraction('data.test_fraction', test_fraction)
  is_test = _some_of_each(
    labels,
    test_fraction,
    _generator(seed, 'stratified'),
    key='data.test_fraction',
    fate='are trained on and not tested',
  )
  return np.where(is_test, TEST, TRAIN).astype(np.int8)


def query_gallery(
  labels: np.ndarray, *, query_fraction: float, seed: int = 0
) -> np.ndarray:
  """Draws images of each class that ask; the others are searched in.

  Of a class of n images round(query_fraction * n) ask, at least one and at most
  n - 1, so that each query has something to find. A class of one image is in
  the gallery as a distractor, which is logged. The division by instance of
  In-Shop and of the landmark sets.

  Args:
    labels: [N] int, or [N, L] label sets.
    query_fraction: of the images of each class, in (0, 1).
    seed: at least 0.

  Returns:
    [N] bool, whether a row is a query; if not, it is in the gallery.

  Raises:
    InputError: for another fraction, or if no class has two images.

  Example:
    >>> is_query = query_gallery([0, 0, 0, 1], query_fraction=0.1)
    >>> int(is_query[:3].sum()), bool(is_query[3])
    (1, False)
  """
  _check_fraction('data.query_fraction', query_fraction)
  return _some_of_each(
    labels,
    query_fraction,
    _generator(seed, 'query_gallery'),
    key='data.query_fraction',
    fate='are in the gallery and not asked',
  )


def leave_one_domain_out(domain: np.ndarray, test_domain: int) -> np.ndarray:
  """Tests on the rows of one domain (font, vendor, camera), trains on others.

  The protocol of domain generalisation: what the model meets is a domain that
  it has never seen, of classes that it may know.

  Args:
    domain: [N] int.
    test_domain: the one that is left out.

  Returns:
    [N] int8 of TRAIN and TEST.

  Raises:
    InputError: if no row is of that domain, or all are.

  Example:
    >>> leave_one_domain_out([0, 1, 1, 2], 1).tolist()
    [0, 2, 2, 0]

  References:
    Gulrajani and Lopez-Paz, In Search of Lost Domain Generalization, ICLR 2021.
  """
  domain = relations.check_labels(domain, 'domain')
  is_test = domain == test_domain
  if not is_test.any() or is_test.all():
    which = 'no image is' if not is_test.any() else 'all images are'
    raise InputError(
      f'data.test_domain is number {test_domain}, but {which} of that domain; '
      'allowed is a domain with some of the images: choose another'
    )
  return np.where(is_test, TEST, TRAIN).astype(np.int8)


def class_folds(
  labels: np.ndarray, *, num_folds: int, seed: int | None = 0
) -> np.ndarray:
  """Cuts the classes into folds, for cross-validation over classes.

  Each fold has floor(C / F) or ceil(C / F) of the C classes, whole. The Reality
  Check cuts the first half of the classes into four runs of classes with
  consecutive numbers, without a shuffle (each an eighth of all classes, the
  second half being the test set); seed=None is this protocol.

  Args:
    labels: [N] int, of the training set.
    num_folds: F, at least 2.
    seed: at least 0; None keeps the order of the classes.

  Returns:
    [N] int64, the fold of each row, in [0, F).

  Raises:
    InputError: for more folds than classes.

  Example:
    >>> class_folds([5, 5, 6, 7, 8, 8], num_folds=2, seed=None).tolist()
    [0, 0, 0, 1, 1, 1]

  References:
    Musgrave et al., A Metric Learning Reality Check, ECCV 2020.
  """
  _refuse_label_sets(
    labels, 'data.validation is classes', 'data.validation=images'
  )
  index, num_classes = _class_index(labels)
  _check_folds(num_folds, num_classes, 'classes of the training set')
  rank = np.arange(num_classes)
  if seed is not None:
    rank = _generator(seed, 'class_folds').permutation(num_classes)
  return (rank * num_folds // num_classes)[index]


def image_folds(
  labels: np.ndarray, *, num_folds: int, seed: int = 0
) -> np.ndarray:
  """Deals the images of each class into folds, for cross-validation.

  The numbers of images of a class in two folds differ by at most one, and so do
  those of all images. No fold has all images of a class: a class of one image
  is in none.

  Args:
    labels: [N] int, or [N, L] label sets, of the training set.
    num_folds: F, at least 2.
    seed: at least 0.

  Returns:
    [N] int64, the fold of each row in [0, F); -1 for the image of a class of
    one, which is never held out (this is logged).

  Raises:
    InputError: for more folds than images of classes of two or more.

  Example:
    >>> folds = image_folds([0, 0, 0, 0, 1, 1, 2], num_folds=2)
    >>> np.sort(folds[:4]).tolist(), np.sort(folds[4:]).tolist()
    ([0, 0, 1, 1], [-1, 0, 1])
  """
  index, num_classes = _class_index(labels)
  counts = np.bincount(index, minlength=num_classes)
  generator = _generator(seed, 'image_folds')
  # Dealt class by class without a pause, so that all folds are of one size.
  place = generator.permutation(num_classes)
  shuffled = generator.permutation(len(index))
  order = shuffled[np.argsort(place[index[shuffled]], kind='stable')]
  order = order[counts[index[order]] > 1]
  _check_folds(num_folds, len(order), 'images of classes of two or more')
  folds = np.full(len(index), -1, np.int64)
  folds[order] = np.arange(len(order)) % num_folds
  _log_singles(counts, 'are in no fold, and never held out')
  return folds


def _some_of_each(labels, fraction, generator, key, fate) -> np.ndarray:
  """Returns [N] bool, a share of the rows of each class of two or more."""
  index, num_classes = _class_index(labels)
  counts = np.bincount(index, minlength=num_classes)
  if not (counts > 1).any():
    raise InputError(
      f'{key} is {fraction:g}, but none of the {num_classes} classes has two '
      'images to divide; allowed are data with such classes: set '
      'data.split=class_disjoint, or no fraction'
    )
  _log_singles(counts, fate)
  shuffled = generator.permutation(len(index))
  order = shuffled[np.argsort(index[shuffled], kind='stable')]
  first = np.cumsum(counts) - counts
  rank = np.arange(len(index)) - first[index[order]]
  chosen = np.zeros(len(index), bool)
  chosen[order] = rank < _rounded_share(counts, fraction)[index[order]]
  return chosen


def _rounded_share(count, fraction):
  """Returns round(fraction * count), at least 1 and at most count - 1."""
  rounded = np.floor(fraction * np.asarray(count) + 0.5).astype(np.int64)
  return np.minimum(np.maximum(rounded, 1), np.asarray(count) - 1)


def rarest_labels(label_sets: np.ndarray) -> np.ndarray:
  """Returns [N] int, the label of each row that the fewest rows have.

  Dealt out by these, rare labels are divided as exactly as classes are, and
  common ones by chance. The lowest of labels that are as rare; -1 for a row
  without any.

  Example:
    >>> rarest_labels(np.array([[0, 1], [0, -1], [0, 2], [2, 1]])).tolist()
    [1, 0, 2, 1]

  References:
    Sechidis et al., On the Stratification of Multi-label Data, ECML PKDD 2011,
    deal out the images of the rarest label first.
  """
  _, labels = relations.incidences(label_sets)
  classes, counts = np.unique(labels, return_counts=True)
  # A row's labels in order of their numbers, so that the lowest wins.
  ordered = np.sort(label_sets, axis=1)
  sizes = np.full(ordered.shape, len(label_sets) + 1)
  is_label = ordered >= 0
  sizes[is_label] = counts[np.searchsorted(classes, ordered[is_label])]
  best = sizes.argmin(axis=1)[:, None]
  return np.take_along_axis(ordered, best, axis=1)[:, 0]


def _class_index(labels) -> tuple[np.ndarray, int]:
  """Returns the classes of the rows as 0 .. C - 1 in their order, and C."""
  labels = relations.check_labels(labels, label_sets=True)
  if labels.ndim == 2:
    labels = rarest_labels(labels)
  classes, index = np.unique(labels, return_inverse=True)
  return index, len(classes)


def _refuse_label_sets(labels, setting: str, cure: str) -> None:
  if np.ndim(labels) == 2 and np.shape(labels)[1] > 1:
    raise InputError(
      f'{setting}, but the images have several labels each, so that no class '
      f'can be held out whole; allowed is to divide the images: set {cure}'
    )


def _generator(seed: int, draw: str) -> np.random.Generator:
  """Returns the random numbers of one of `_DRAWS`."""
  is_int = isinstance(seed, int | np.integer) and not isinstance(seed, bool)
  if not is_int or not 0 <= seed < 2**64:
    raise InputError(
      f'data.split_seed is {seed!r}; allowed are integers from 0 to 2 ** 64 - 1'
    )
  key = int(seed) + ((1 + _DRAWS.index(draw)) << 64)
  return np.random.Generator(np.random.Philox(key=key))


def _check_fraction(key: str, fraction: float) -> None:
  if not 0 < fraction < 1:
    raise InputError(
      f'{key} is {fraction!r}; allowed is a number between 0 and 1, both '
      'excluded'
    )


def _check_folds(num_folds: int, most: int, what: str) -> None:
  is_int = isinstance(num_folds, int | np.integer)
  if not is_int or not 2 <= num_folds <= most:
    raise InputError(
      f'data.validation_folds is {num_folds!r}; allowed are 2 to {most}, the '
      f'number of {what}'
    )


def _log_singles(counts: np.ndarray, fate: str) -> None:
  if (singles := int((counts == 1).sum())) > 0:
    _log.warning(
      '%d of %d classes have one image; these images %s.',
      singles,
      len(counts),
      fate,
    )
