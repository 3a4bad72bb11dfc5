"""What is wrong with a collection: faults of its labels, splits and pictures.

`inspect_collection` reads every picture once and returns `Findings`; what it
looks for, and how bad each fault is, stands in one table, `findings.KINDS`.
"""

from collections.abc import Callable, Iterator

import numpy as np

from retrieval_jax.data.checks import duplicates, fingerprints, label_checks
from retrieval_jax.data.checks.findings import (
  KINDS,
  SEVERITIES,
  Finding,
  Findings,
  first_details,
)
from retrieval_jax.data.checks.fingerprints import Fingerprints
from retrieval_jax.data.checks.pair_checks import check_pairs
from retrieval_jax.data.collection import Collection

DEFAULT_BITS = 6
"""Distance of the hashes of pictures that may be nearly equal."""

_TINY_SIDE = 16
_TINY_SHARE = 0.1
_MAX_ASPECT = 5.0


def inspect_collection(
  collection: Collection,
  *,
  near_duplicate_bits: int | None = DEFAULT_BITS,
  max_images: int | None = None,
  num_threads: int = 0,
  progress: Callable[[int], None] | None = None,
) -> Findings:
  """Looks for what is wrong with a collection.

  Every picture is read once, in threads, and a few of them once more. Beside
  the collection this takes about 100 bytes an image.

  Args:
    collection: with its roles resolved. With `split=None` nothing is looked for
      that needs to know what is trained and tested on.
    near_duplicate_bits: up to `duplicates.MAX_BITS`; None: nearly equal
      pictures are not looked for.
    max_images: how many pictures are read, drawn at random (seed 0); None: all.
      Labels and splits are checked in full.
    num_threads: that read and decode; 0: as many as there are cores.
    progress: is told the number of pictures that were read since it was told
      last.

  Example:
    >>> from retrieval_jax.data.sources import ImageArray
    >>> noise = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 1))
    >>> images = noise.astype(np.uint8)
    >>> images[3] = images[0]
    >>> found = inspect_collection(Collection(
    ...   'toy', ImageArray(images), np.array([0, 0, 1, 1]), ('cat', 'dog')))
    >>> [(f.name, f.items.tolist()) for f in found.of("error")]
    [('two_labels', [[0, 3]])]
  """
  rows = np.arange(len(collection))
  if max_images is not None and max_images < len(rows):
    rows = np.sort(
      np.random.default_rng(0).choice(len(rows), max_images, replace=False)
    )
  found = fingerprints.take_fingerprints(
    collection, rows, num_threads=num_threads, progress=progress
  )
  listed = [
    *label_checks.check_labels_and_roles(collection),
    *_check_files(found),
    *_check_boxes(collection, found),
    *_check_shapes(found),
    *check_pairs(collection, found, near_duplicate_bits, num_threads),
  ]
  names = list(KINDS)
  present = sorted(
    (f for f in listed if f.count),
    key=lambda f: (SEVERITIES.index(f.severity), names.index(f.name)),
  )
  return Findings(
    name=collection.name,
    listed=tuple(present),
    facts=tuple(_facts(collection, found)),
    images_per_class=label_checks.count_labels(
      collection, np.arange(len(collection))
    ),
    num_rows=len(collection),
    num_read=len(rows),
    near_duplicate_bits=near_duplicate_bits,
  )


def _check_files(found: Fingerprints) -> list[Finding]:
  """Files that cannot be read, rows that repeat, blank pictures."""
  broken = sorted(found.errors)
  repeated = duplicates.first_of_each(*_grouped(found.places))
  return [
    Finding(
      'unreadable_image',
      'rows',
      found.rows[np.array(broken, np.int64)],
      tuple(found.errors[i] for i in broken[: Finding.max_details]),
    ),
    Finding('repeated_row', 'pairs', found.rows[repeated]),
    Finding('blank_image', 'rows', found.rows[found.is_blank]),
  ]


def _grouped(digests: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Returns groups of equal digests, any member of which may be a pair."""
  _, groups = np.unique(digests, return_inverse=True)
  every = np.ones(len(digests), bool)
  return groups, every, every


def _check_boxes(collection: Collection, found: Fingerprints) -> list[Finding]:
  """Boxes without area, and those that leave their picture."""
  if collection.boxes is None:
    return []
  boxes = collection.boxes
  is_whole = np.isnan(boxes).all(axis=1)
  has_area = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
  empty = np.flatnonzero(~is_whole & ~has_area)
  looked = np.flatnonzero(found.is_readable & has_area[found.rows])
  inside = boxes[found.rows[looked]]
  limits = found.sizes[looked][:, ::-1]
  is_out = (inside[:, :2] < -1).any(1) | (inside[:, 2:] > limits + 1).any(1)
  out = looked[is_out]
  return [
    Finding(
      'empty_box',
      'rows',
      empty,
      first_details(empty, lambda row: f'box {_box_text(boxes[row])}'),
    ),
    Finding(
      'box_outside',
      'rows',
      found.rows[out],
      first_details(
        out,
        lambda i: (
          f'box {_box_text(boxes[found.rows[i]])} of '
          f'{found.sizes[i, 1]} x {found.sizes[i, 0]} pixels'
        ),
      ),
    ),
  ]


def _check_shapes(found: Fingerprints) -> list[Finding]:
  """Pictures that are tiny, or much longer than wide."""
  sizes = found.sizes
  if not found.is_readable.any():
    return []
  shorter, longer = sizes.min(axis=1), sizes.max(axis=1)
  least = max(_TINY_SIDE, _TINY_SHARE * np.median(shorter[found.is_readable]))
  tiny = np.flatnonzero(found.is_readable & (shorter < least))
  extreme = np.flatnonzero(found.is_readable & (longer > _MAX_ASPECT * shorter))

  def finding(name, chosen):
    details = first_details(
      chosen, lambda i: f'{sizes[i, 1]} x {sizes[i, 0]} pixels'
    )
    return Finding(name, 'rows', found.rows[chosen], details)

  return [finding('tiny_image', tiny), finding('extreme_shape', extreme)]


def _box_text(box: np.ndarray) -> str:
  return f'({", ".join(f"{value:g}" for value in box.tolist())})'


def _facts(
  collection: Collection, found: Fingerprints
) -> Iterator[tuple[str, str]]:
  """Yields what is known of a collection, as pairs for people."""
  every = np.arange(len(collection))
  parts = label_checks.Parts.of(collection, every)
  counts = label_checks.count_labels(collection, every)
  yield 'images', f'{len(every):,} of {(counts > 0).sum():,} classes'
  yield from _part_facts(collection, parts)
  if (counts > 0).any():
    yield 'images per class', _spread(counts[counts > 0])
  sizes = found.sizes[found.is_readable]
  if len(sizes):
    yield 'width, pixels', _spread(sizes[:, 1])
    yield 'height, pixels', _spread(sizes[:, 0])
    yield 'width / height', _spread(sizes[:, 1] / sizes[:, 0])
  for name, column in (
    ('domains', collection.domain),
    ('categories', collection.category),
    ('sequences', collection.sequence),
  ):
    if column is not None:
      yield name, f'{len(np.unique(column[column >= 0])):,}'
  if collection.boxes is not None:
    given = ~np.isnan(collection.boxes).all(axis=1)
    yield 'boxes', f'{given.sum():,}'


def _part_facts(
  collection: Collection, parts: label_checks.Parts
) -> Iterator[tuple[str, str]]:
  """Yields how many images and classes are trained on, asked, searched in."""

  def text(flags):
    rows = np.flatnonzero(flags)
    classes = (label_checks.count_labels(collection, rows) > 0).sum()
    return f'{len(rows):,} of {classes:,} classes'

  if parts.is_train.any():
    yield 'training set', text(parts.is_train)
  for name, is_held, others in (
    ('validation', parts.is_validation, parts.is_validation),
    ('test', parts.is_test, parts.is_test | parts.is_train),
  ):
    asked, searched = parts.is_query & is_held, parts.is_gallery & others
    if np.array_equal(asked, searched):
      if asked.any():
        yield f'{name} set', f'{text(asked)}, each against the others'
      continue
    yield f'{name} queries', text(asked)
    yield f'{name} gallery', text(searched)


def _spread(values: np.ndarray) -> str:
  """Returns the smallest, the median and the largest."""
  least, median, most = np.quantile(values, [0, 0.5, 1])
  return f'{least:,.4g} to {most:,.4g}, median {median:,.4g}'
