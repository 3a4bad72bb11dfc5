"""Finds pictures that occur more than once: equal, or nearly so.

Equal ones are found by sorting digests. For nearly equal ones the hashes within
t bits of each other are found without comparing all pairs, and of those the
pairs are kept whose small pictures correlate.
"""

import itertools
import math
from typing import NamedTuple

import numpy as np

from retrieval_jax.data import decoding
from retrieval_jax.data.checks import fingerprints
from retrieval_jax.data.checks.fingerprints import Fingerprints
from retrieval_jax.data.collection import Collection

MAX_BITS = 8
"""The largest distance of hashes that is searched for."""

# Comparisons of hashes, a minute's worth; only pictures that are all alike,
# such as scans of forms, need more.
_MAX_COMPARISONS = 3_000_000_000
_MAX_CANDIDATES = 300_000
_THUMBNAIL_SIZE = 16
_MIN_CORRELATION = 0.98


class NearPairs(NamedTuple):
  """Pairs of pictures that are nearly equal.

  Attributes:
    pairs: [P, 2] int64, i < j, sorted.
    distances: [P] int, in bits.
    is_complete: whether all pairs were looked for; False if there were too
      many.
  """

  pairs: np.ndarray
  distances: np.ndarray
  is_complete: bool


def equal_groups(found: Fingerprints, collection: Collection) -> np.ndarray:
  """Returns which pictures are the same, pixel by pixel.

  Two files of the same bytes are; others whose digests agree are decoded at
  full size to be certain, so a picture saved again as PNG is found as well.

  Args:
    found: of the pictures.
    collection: that they are of.

  Returns:
    [n] int64, equal for equal pictures, else different; a picture that cannot
    be read, or is of one colour, is equal to none.
  """
  groups = np.arange(len(found.rows))
  usable = np.flatnonzero(found.is_readable & ~found.is_blank)
  _, first, by_content = np.unique(
    found.contents[usable], return_index=True, return_inverse=True
  )
  groups[usable] = usable[first][by_content]
  # One of each content, where the pixels of several agree.
  firsts = usable[np.sort(first)]
  _, inverse, counts = np.unique(
    found.pixels[firsts], return_inverse=True, return_counts=True
  )
  doubtful = firsts[counts[inverse] > 1]
  merged = np.arange(len(found.rows))
  known: dict[bytes, int] = {}
  for i in doubtful.tolist():
    try:
      digest = fingerprints.pixel_digest(collection, int(found.rows[i]))
    except decoding.UnreadableImageError:
      continue  # The file has gone since; it is equal to none.
    merged[i] = known.setdefault(digest, i)
  return merged[groups]


def near_pairs(
  hashes: np.ndarray,
  max_bits: int,
  *,
  max_pairs: int = _MAX_CANDIDATES,
  max_comparisons: int = _MAX_COMPARISONS,
) -> NearPairs:
  """Finds all pairs of hashes that differ in a few bits.

  The 64 bits are cut into t + 3 blocks. Of a pair within t bits at least 3
  blocks are equal, so it meets in one of C(t + 3, 3) sorted tables, each keyed
  by 3 of the blocks (32 bits for t = 3): a few hundred comparisons an image
  where all pairs would be N^2 / 2. Memory is linear in N.

  Args:
    hashes: [N] uint64.
    max_bits: t, from 0 to `MAX_BITS`.
    max_pairs: after which the search ends.
    max_comparisons: likewise.

  References:
    Manku, Jain and Das Sarma, "Detecting Near-Duplicates for Web Crawling",
    WWW 2007, section 3.

  Example:
    >>> hashes = np.array([0b1011, 0xFF00, 0b1000, 0b1011], np.uint64)
    >>> near_pairs(hashes, 2).pairs.tolist()
    [[0, 2], [0, 3], [2, 3]]
  """
  if not 0 <= max_bits <= MAX_BITS:
    raise ValueError(f'max_bits is {max_bits}; allowed are 0 to {MAX_BITS}')
  num_blocks = max_bits + 3
  edges = np.linspace(0, 64, num_blocks + 1).round().astype(int).tolist()
  blocks = [
    np.uint64(((1 << stop) - 1) ^ ((1 << start) - 1))
    for start, stop in itertools.pairwise(edges)
  ]
  codes = np.zeros(0, np.int64)
  left, is_complete = max_comparisons, True
  for chosen in itertools.combinations(blocks, 3):
    keys = hashes & np.bitwise_or.reduce(chosen)
    found, compared = _pairs_of_equal_keys(
      keys, hashes, max_bits, left, max_pairs
    )
    left -= compared
    codes = np.union1d(codes, found)
    if left <= 0 or len(codes) >= max_pairs:
      is_complete = False
      break
  pairs = np.stack(np.divmod(codes, max(1, len(hashes))), axis=1)
  distances = np.bitwise_count(hashes[pairs[:, 0]] ^ hashes[pairs[:, 1]])
  return NearPairs(pairs, distances.astype(np.int64), is_complete)


def keep_alike(
  near: NearPairs,
  collection: Collection,
  rows: np.ndarray,
  num_threads: int = 0,
) -> NearPairs:
  """Keeps the pairs whose pictures correlate, colours included.

  A hash sees only the coarse structure in grey: the same shirt in red and in
  blue, or two pages of text, share one. So each picture of a pair is read once
  more, and small versions a, b are compared: centred by channel,
  <a, b> / (|a| |b|) must reach 0.98.

  Args:
    near: pairs of indices into rows.
    collection: the pictures.
    rows: [n] int64, of the collection.
    num_threads: that read and decode; 0: as many as there are cores.
  """
  members, places = np.unique(near.pairs, return_inverse=True)
  small = fingerprints.thumbnails(
    collection, rows[members], _THUMBNAIL_SIZE, num_threads
  )
  places = places.reshape(near.pairs.shape)
  alike = np.zeros(len(near.pairs), bool)
  for start in range(0, len(alike), 4096):
    chosen = slice(start, start + 4096)
    alike[chosen] = (
      correlation(small[places[chosen, 0]], small[places[chosen, 1]])
      >= _MIN_CORRELATION
    )
  return NearPairs(near.pairs[alike], near.distances[alike], near.is_complete)


def correlation(a: np.ndarray, b: np.ndarray) -> np.ndarray:
  """Returns how much pictures are alike, up to brightness and contrast.

  Args:
    a: [P, h, w, C] uint8.
    b: likewise.

  Returns:
    [P] float32 in [-1, 1]; 0 if either is of one colour.

  Example:
    >>> a = np.arange(4, dtype=np.uint8).reshape(1, 2, 2, 1)
    >>> correlation(a, 2 * a + 1).round(3), correlation(a, a[:, ::-1]).round(3)
    (array([1.], dtype=float32), array([-0.6], dtype=float32))
  """
  a, b = (
    (x - x.mean((1, 2), keepdims=True)).reshape(len(x), math.prod(x.shape[1:]))
    for x in (a.astype(np.float32), b.astype(np.float32))
  )
  norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
  return (a * b).sum(axis=1) / np.maximum(norms, 1e-6)


def first_of_each(
  groups: np.ndarray, is_left: np.ndarray, is_right: np.ndarray
) -> np.ndarray:
  """Pairs each right member of a group with the first left one of its group.

  Args:
    groups: [n] int64 in [0, n), what belongs together.
    is_left: [n] bool.
    is_right: [n] bool.

  Returns:
    [P, 2] int64, (left, right), different ones, ordered by the right.

  Example:
    >>> groups = np.array([0, 0, 2, 0])
    >>> train = np.array([True, False, True, False])
    >>> first_of_each(groups, train, ~train).tolist()
    [[0, 1], [0, 3]]
  """
  first = np.full(len(groups), -1, np.int64)
  left = np.flatnonzero(is_left)[::-1]
  first[groups[left]] = left  # Of several the last counts: the lowest.
  right = np.flatnonzero(is_right)
  pairs = np.stack([first[groups[right]], right], axis=1)
  return pairs[(pairs[:, 0] >= 0) & (pairs[:, 0] != pairs[:, 1])]


def _pairs_of_equal_keys(
  keys: np.ndarray,
  hashes: np.ndarray,
  max_bits: int,
  max_comparisons: int,
  max_pairs: int,
) -> tuple[np.ndarray, int]:
  """Compares rows of equal keys; returns pairs as i N + j, and their number."""
  order = np.argsort(keys, kind='stable')
  keys, hashes = keys[order], hashes[order]
  # Neighbours at distance 1, 2, ... in the sorted table, as long as any pair of
  # them has one key: no lists of buckets.
  active = np.flatnonzero(keys[1:] == keys[:-1])
  offset, compared, num_found, found = 1, 0, 0, [np.zeros(0, np.int64)]
  while len(active) and compared < max_comparisons and num_found < max_pairs:
    bits = np.bitwise_count(hashes[active] ^ hashes[active + offset])
    near = active[bits <= max_bits]
    i, j = order[near], order[near + offset]
    found.append(np.minimum(i, j) * len(keys) + np.maximum(i, j))
    compared += len(active)
    num_found += len(near)
    offset += 1
    active = active[active + offset < len(keys)]
    active = active[keys[active] == keys[active + offset]]
  return np.concatenate(found), compared
