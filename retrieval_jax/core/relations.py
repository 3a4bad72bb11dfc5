"""Which rows belong together: labels -> relevance, and the masks of a batch.

Everything that asks "are these two the same?" (sampler, miner, loss, metric)
asks here, so that another kind of label is taught to the project once. There
are three:

- ints `[N]`, one class a row: relevance is 1 within a class, else 0;
- label sets `[N, L]`, several labels a row, padded with -1: relevance is the
  share of labels in common (Jaccard), |A n B| / |A u B|;
- ints with `grades [C, C]`, the relevance of one class to another: 1 for the
  same class and 0.5 for the same category, say (`category_grades`).

A pair is positive if its relevance is above 0. A row with a negative label, or
of label sets without any, is padding and in no pair.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from retrieval_jax.core.errors import InputError


def relevance(
  labels: jax.Array, others: jax.Array, grades: jax.Array | None = None
) -> jax.Array:
  """Returns r_ij, the relevance of `others[j]` to `labels[i]`.

  Memory is O(B G), also for label sets.

  Args:
    labels: [B] int class labels, or [B, L] int label sets, in which no label
      occurs twice.
    others: [G] or [G, M] likewise.
    grades: [C, C] float, r of classes y_i and y_j, with int labels alone; None:
      1 for the same class and 0 otherwise.

  Returns:
    [B, G] float32. Rows of padding have no label, and 0 with all others; only
    ints without grades are merely compared: mask those by `is_padding`.

  Example:
    >>> relevance(jnp.array([0, 1]), jnp.array([1, 1, 0])).tolist()
    [[0.0, 0.0, 1.0], [1.0, 1.0, 0.0]]
    >>> relevance(jnp.array([[0, 1]]), jnp.array([[1, 2], [2, -1]])).round(
    ...   3).tolist()
    [[0.3330000042915344, 0.0]]
    >>> relevance(jnp.array([0]), jnp.array([0, 1]),
    ...           grades=jnp.array([[1.0, 0.5], [0.5, 1.0]])).tolist()
    [[1.0, 0.5]]
  """
  _check_kinds(labels, others, grades)
  if labels.ndim == 2:
    return _jaccard(labels, others)
  if grades is None:
    return (labels[:, None] == others[None, :]).astype(jnp.float32)
  grades = jnp.asarray(grades, jnp.float32)
  graded = grades[jnp.maximum(labels, 0)][:, jnp.maximum(others, 0)]
  return jnp.where(_both(labels, others), graded, 0.0)


def pair_masks(
  labels: jax.Array,
  candidate_labels: jax.Array,
  ids: jax.Array | None = None,
  candidate_ids: jax.Array | None = None,
  grades: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
  """Returns the positive and the negative pairs of anchors and candidates.

  Args:
    labels: [B] int, of the anchors, or [B, L] label sets; a row with a negative
      label, or a set of none, is padding, which is in no pair.
    candidate_labels: [G] or [G, M] likewise.
    ids: [B] int, the row of each anchor in the whole batch; with
      `candidate_ids`, a pair of equal ids is the row itself and is left out.
    candidate_ids: [G] int likewise.
    grades: [C, C], see `relevance`.

  Returns:
    (positives, negatives), each [B, G] bool.

  Example:
    >>> y, i = jnp.array([0, 0, 1]), jnp.arange(3)
    >>> positives, negatives = pair_masks(y, y, i, i)
    >>> positives.astype(int).tolist()
    [[0, 1, 0], [1, 0, 0], [0, 0, 0]]
    >>> negatives.astype(int).tolist()
    [[0, 0, 1], [0, 0, 1], [1, 1, 0]]
  """
  _check_kinds(labels, candidate_labels, grades)
  if labels.ndim == 2:
    related = _num_shared(labels, candidate_labels) > 0
  else:
    related = relevance(labels, candidate_labels, grades) > 0
  valid = _both(labels, candidate_labels)
  if ids is not None:
    valid &= ids[:, None] != candidate_ids[None, :]
  return related & valid, ~related & valid


def is_padding(labels: jax.Array) -> jax.Array:
  """Returns [B] bool, of [B] ints or [B, L] label sets.

  Example:
    >>> is_padding(jnp.array([3, -1])).tolist()
    [False, True]
    >>> is_padding(jnp.array([[3, -1], [-1, -1]])).tolist()
    [False, True]
  """
  is_absent = labels < 0
  return is_absent.all(axis=1) if labels.ndim == 2 else is_absent


def _both(labels, others):
  return ~is_padding(labels)[:, None] & ~is_padding(others)[None, :]


def _num_shared(labels, others):
  """Returns [B, G] int32, how many labels two sets have in common."""
  labels = jnp.where(labels < 0, -2, labels).T  # Padding equals nothing.
  others = others.T  # A label of all rows at a time, without a stride.

  # Two loops around one comparison [B, G]: a cube would be L M times as large,
  # and on a CPU this is also the fastest of the ways tried.
  def with_label(i, shared):
    def compare(j, shared):
      return shared + (labels[i][:, None] == others[j][None, :])

    return lax.fori_loop(0, others.shape[0], compare, shared)

  # Made of both, so that it varies over devices if one of them does.
  start = 0 * labels[0][:, None] + 0 * others[0][None, :]
  return lax.fori_loop(0, labels.shape[0], with_label, start.astype(jnp.int32))


def _jaccard(labels, others):
  shared = _num_shared(labels, others)
  sizes = [jnp.sum(x >= 0, axis=1, dtype=jnp.int32) for x in (labels, others)]
  union = sizes[0][:, None] + sizes[1][None, :] - shared
  return shared.astype(jnp.float32) / jnp.maximum(union, 1)


def _check_kinds(labels, others, grades) -> None:
  """Raises if labels are of two kinds."""
  if labels.ndim != others.ndim:
    raise InputError(
      f'labels have shape {labels.shape} and those that they are compared with '
      f'{others.shape}; allowed are ints (N,) of both, or label sets (N, L) of '
      'both: pass labels[:, None] to make a set of one label'
    )
  if grades is not None and labels.ndim == 2:
    raise InputError(
      f'grades are given with label sets of shape {labels.shape}; allowed are '
      'they with one int a row: leave grades out, label sets are graded by the '
      'labels in common'
    )


# -- on the host --------------------------------------------------------------


def category_grades(
  categories: np.ndarray, same_category: float = 0.5
) -> np.ndarray:
  """Returns grades by category: 1 for the same class, less for the category.

  Args:
    categories: [C] int, the category (super-class) of each class; negative:
      none, which is like no other.
    same_category: of two classes of one category, in [0, 1].

  Returns:
    [C, C] float32: 40 MB for 3,000 classes, 0.5 GB for 11,000.

  Example:
    >>> category_grades(np.array([0, 0, 1])).tolist()
    [[1.0, 0.5, 0.0], [0.5, 1.0, 0.0], [0.0, 0.0, 1.0]]
  """
  categories = check_labels(categories, 'categories')
  if not 0 <= same_category <= 1:
    raise InputError(
      f'same_category is {same_category!r}; allowed is a number from 0 (only '
      'the same class is relevant) to 1 (the category counts alone)'
    )
  same = categories[:, None] == categories[None, :]
  same &= (categories >= 0)[:, None]
  grades = same * np.float32(same_category)
  np.fill_diagonal(grades, 1)
  return grades


def first_labels(labels: np.ndarray) -> np.ndarray:
  """Returns [N] int, the label that a row is shown by: the first of a set.

  Example:
    >>> first_labels(np.array([[4, 2], [3, -1]])).tolist()
    [4, 3]
    >>> first_labels(np.array([4, 3])).tolist()
    [4, 3]
  """
  return labels[:, 0] if labels.ndim == 2 else labels


def are_related(
  labels: np.ndarray, neighbors: np.ndarray, grades: np.ndarray | None = None
) -> np.ndarray:
  """Returns whether each row's own neighbours are relevant to it.

  Args:
    labels: [Q] int, or [Q, L] label sets.
    neighbors: [Q, K] int, or [Q, K, M] label sets, such as
      `gallery_labels[neighbor_indices]`.
    grades: [C, C], see `relevance`.

  Returns:
    [Q, K] bool.

  Example:
    >>> are_related(np.array([[1, 2]]),
    ...             np.array([[[2, 3], [4, -1]]])).tolist()
    [[True, False]]
  """
  if labels.ndim == 1 and grades is None:
    return labels[:, None] == neighbors
  if labels.ndim == 1:
    graded = np.asarray(grades)[labels[:, None], neighbors]
    return (graded > 0) & (labels >= 0)[:, None] & (neighbors >= 0)
  related = np.zeros(neighbors.shape[:2], bool)
  for label in labels.T:
    is_shared = (neighbors == label[:, None, None]).any(axis=2)
    related |= is_shared & (label >= 0)[:, None]
  return related


def are_listed(rows: np.ndarray, lists: np.ndarray) -> np.ndarray:
  """Returns whether each entry of a row is in a list of the same row.

  Args:
    rows: [Q, K] int; negative is nothing, which is in no list.
    lists: [Q, L] int, padded with a negative number.

  Returns:
    [Q, K] bool.

  Example:
    >>> are_listed(np.array([[3, 1, -1], [3, 1, 0]]), np.array([[1, -1], [3, 0]]
    ...   )).tolist()
    [[False, True, False], [True, False, True]]
  """
  listed = np.zeros(rows.shape, bool)
  for own, entries, wanted in zip(listed, rows, lists, strict=True):
    own[:] = np.isin(entries, wanted)
  return listed & (rows >= 0)


def pair_relevance(
  labels: np.ndarray, others: np.ndarray, grades: np.ndarray | None = None
) -> np.ndarray:
  """Returns the relevance of each row to one other.

  Args:
    labels: [P] int, or [P, L] label sets, in which no label occurs twice; none
      is padding.
    others: [P] or [P, M] likewise.
    grades: [C, C], see `relevance`.

  Returns:
    [P] float64.

  Example:
    >>> pair_relevance(np.array([[1, 2], [3, -1]]), np.array([[2, 4], [3, 5]]))
    array([0.33333333, 0.5       ])
  """
  if labels.ndim == 1:
    if grades is None:
      return (labels == others).astype(float)
    return grades[labels, others].astype(float)
  shared = np.zeros(len(labels), np.int64)
  for label in labels.T:
    shared += ((others == label[:, None]) & (label >= 0)[:, None]).sum(axis=1)
  sizes = (labels >= 0).sum(axis=1) + (others >= 0).sum(axis=1)
  return shared / (sizes - shared)


def incidences(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Returns (rows, labels), a pair for each label that each row has.

  Args:
    labels: [N] int, or [N, L] label sets.

  Returns:
    Two arrays [M] int, by row: of ints, M is N.

  Example:
    >>> rows, labels = incidences(np.array([[4, 2], [3, -1]]))
    >>> rows.tolist(), labels.tolist()
    ([0, 0, 1], [4, 2, 3])
  """
  if labels.ndim == 1:
    return np.arange(len(labels)), labels
  rows, columns = np.nonzero(labels >= 0)
  return rows, labels[rows, columns]


def pack_label_sets(sets: np.ndarray) -> np.ndarray:
  """Returns label sets with each label once, in its order, and no idle column.

  Args:
    sets: [N, L] int, negative is no label.

  Returns:
    [N, L'] of the dtype of `sets`, padded with -1 on the right.

  Example:
    >>> pack_label_sets(np.array([[5, 5, 2], [-1, 3, -1]])).tolist()
    [[5, 2], [3, -1]]
  """
  is_label = sets >= 0
  for column in range(1, sets.shape[1]):
    earlier = sets[:, :column] == sets[:, column : column + 1]
    is_label[:, column] &= ~earlier.any(axis=1)
  order = np.argsort(~is_label, axis=1, kind='stable')
  packed = np.take_along_axis(np.where(is_label, sets, -1), order, axis=1)
  return packed[:, : max(1, int(is_label.sum(axis=1).max(initial=0)))]


def number_labels(
  labels: np.ndarray, others: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Returns labels as numbers from 0, equal where they are; int32 holds them.

  Args:
    labels: [N] int, or [N, L] label sets.
    others: [M] or [M, L'] likewise, numbered alike.

  Returns:
    Two int64 arrays of their shapes, with -1 for what is no label of a set. A
    negative int is as good a class as any other, and has a number.

  Example:
    >>> [x.tolist() for x in number_labels(
    ...   np.array([[7, 2**40], [3, -1]]), np.array([[2**40, 3]]))]
    [[[1, 2], [0, -1]], [[2, 0]]]
  """
  known = np.unique(np.concatenate([labels, others], axis=None))
  if labels.ndim == 2:
    known = known[known >= 0]

  def number(given):
    numbers = np.searchsorted(known, given)
    return np.where(given >= 0, numbers, -1) if given.ndim == 2 else numbers

  return number(labels), number(others)


def check_labels(
  labels, name: str = 'labels', *, label_sets: bool = False
) -> np.ndarray:
  """Returns labels as an int64 array of the host, or says what is wrong.

  Labels of shape (N, 1) are what made a well-known calculator print an mAP of
  4949.99: they broadcast against [N] to [N, N]. They are refused, not squeezed.

  Args:
    labels: array of rank 1 and an integer dtype.
    name: how the message calls them.
    label_sets: whether label sets [N, L], L at least 2, may come instead.

  Returns:
    [N] int64; or [N, L], each label of a row once.

  Raises:
    InputError: for another rank, or another dtype (float32 merges labels above
      2 ** 24).

  Example:
    >>> check_labels([3, 1])
    array([3, 1])
    >>> check_labels([[3, 1], [2, -1]], label_sets=True).shape
    (2, 2)
  """
  labels = np.asarray(labels)
  is_set = label_sets and labels.ndim == 2 and labels.shape[1] > 1
  if labels.ndim != 1 and not is_set:
    several = ', or (N, L) with several, padded with -1' if label_sets else ''
    raise InputError(
      f'{name} has shape {labels.shape}; allowed is (N,), one int a '
      f'row{several}: pass labels.reshape(-1) if there is one label a row'
    )
  if not np.issubdtype(labels.dtype, np.integer):
    raise InputError(
      f'{name} has dtype {labels.dtype}; allowed are integers: '
      'pass labels.astype(int), or np.unique(labels, return_inverse=True)[1]'
    )
  labels = labels.astype(np.int64)
  return pack_label_sets(labels) if is_set else labels


def check_grades(grades, labels: np.ndarray, name: str = 'labels'):
  """Returns grades as a [C, C] float32 array of the host, or says why not.

  Args:
    grades: the relevance of each class to each, at least 0; or None.
    labels: [N] int that index it.
    name: how the message calls the labels.

  Raises:
    InputError: for a table that is not square, not finite or negative; label
      sets; or a label outside of it.
  """
  if grades is None:
    return None
  grades = np.asarray(grades, np.float32)
  if grades.ndim != 2 or grades.shape[0] != grades.shape[1]:
    raise InputError(
      f'grades have shape {grades.shape}; allowed is (C, C), the relevance of '
      'each class to each: make them by relations.category_grades'
    )
  if not (np.isfinite(grades) & (grades >= 0)).all():
    raise InputError(
      'grades have a negative or non-finite number; allowed are finite numbers '
      'of at least 0: correct the table'
    )
  _check_kinds(labels, labels, grades)
  if labels.size and labels.max() >= len(grades):
    raise InputError(
      f'{name} has {labels.max()}; allowed is at most {len(grades) - 1}, for '
      f'grades of {len(grades)} classes: number the classes from 0'
    )
  return grades
