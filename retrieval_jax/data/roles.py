"""Which rows of a collection are trained on, asked and searched in."""

import dataclasses
import logging

import numpy as np

from retrieval_jax.core import relations
from retrieval_jax.core.errors import InputError, unknown_name
from retrieval_jax.data import splits
from retrieval_jax.data.collection import TEST, TRAIN, VALIDATION, Collection

_log = logging.getLogger(__name__)

SPLITS = ('class_disjoint', 'stratified', 'leave_one_domain_out')


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
    The collection with `split`, `is_query` and `is_gallery` filled. Another
    split than the benchmark's own leaves its tasks out.

  Raises:
    InputError: for a split that these data cannot have.
  """
  if split is not None and split not in SPLITS:
    raise unknown_name('data.split', split, SPLITS)
  labels = row_labels(collection)
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
  is_own = split is None and query_fraction is None
  return dataclasses.replace(
    collection,
    tasks=collection.tasks if is_own else {},
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


def row_labels(collection: Collection) -> np.ndarray:
  """Returns [N] int labels, or [N, L] if an image has several."""
  if collection.label_sets is None:
    return collection.labels
  label_sets = relations.pack_label_sets(collection.label_sets)
  return label_sets if label_sets.shape[1] > 1 else label_sets[:, 0]
