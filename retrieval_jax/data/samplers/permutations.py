"""Random orders that are functions of their place, and the rows of a class.

Whole orders are shuffled by numpy's Philox (Salmon et al., SC 2011), whose key
is the seed and whose counter holds the stream and the index. Where one place of
each of many orders is needed, they are never formed: see `shuffled_place`.
"""

import threading

import numpy as np

from retrieval_jax.core import relations

# Below this an order is drawn faster than a kept one is worth: a cache of all
# would hold a Python object for each of 200,000 classes.
_LEAST_KEPT = 64
_SHUFFLE_ROUNDS = 24


class Permutations:
  """Endless streams of random permutations, each a function of its place.

  The latest of each stream is kept, as most calls ask for it again; this
  changes what a call costs and nothing else. Streams of classes thus hold no
  more than an int32 for each image. Threads may share one.

  Example:
    >>> draw = Permutations(seed=0)
    >>> second = draw(stream=7, index=1, size=4)
    >>> sorted(second.tolist())
    [0, 1, 2, 3]
    >>> first = draw(stream=7, index=0, size=4)
    >>> draw(stream=7, index=1, size=4).tolist() == second.tolist()
    True
  """

  def __init__(self, seed: int, member: int = 0):
    """Takes what all streams depend on.

    Args:
      seed: in [0, 2 ** 64).
      member: of a mixture of data sets, whose streams shall differ.
    """
    self._latest = {}
    # A new Philox costs more than all else here, so one is set to each place.
    self._philox = np.random.Philox(key=int(seed) + (int(member) << 64))
    self._generator = np.random.Generator(self._philox)
    self._place = self._philox.state
    self.salt = int(self._philox.random_raw())
    self._lock = threading.Lock()

  def __call__(self, stream: int, index: int, size: int) -> np.ndarray:
    """Returns permutation `index` of a stream, [size] ints, read-only."""
    kept_index, order = self._latest.get(stream, (-1, None))
    if kept_index == index:
      return order
    with self._lock:
      # The low words of the counter count draws, so no two places overlap.
      self._place['state']['counter'][:] = 0, 0, index, stream
      self._philox.state = self._place
      if size < _LEAST_KEPT:
        return self._generator.permutation(size)
      dtype = np.int32 if size < 2**31 else np.int64
      order = self._generator.permutation(np.arange(size, dtype=dtype))
    order.setflags(write=False)
    self._latest[stream] = index, order
    return order


def shuffled_place(
  place: np.ndarray, size: np.ndarray, key: np.ndarray
) -> np.ndarray:
  """Returns where places go in random permutations that are not formed.

  In each round, x and (pivot - x) mod size change places or not, as a hash of
  the pair says: a permutation of [0, size) for any size, at a cost that does
  not depend on it.

  Args:
    place: [B] int, each in [0, size).
    size: [B] int, of each one's permutation.
    key: [B] uint64, which permutation of that size.

  Returns:
    [B] int64, in [0, size).

  Example:
    >>> size, key = np.full(5, 5), np.full(5, 3, np.uint64)
    >>> sorted(shuffled_place(np.arange(5), size, key).tolist())
    [0, 1, 2, 3, 4]

  References:
    Hoang, Morris and Rogaway, An Enciphering Scheme Based on a Card Shuffle,
    CRYPTO 2012 (swap-or-not).
  """
  x, size = place.astype(np.uint64), size.astype(np.uint64)
  rounds = np.arange(_SHUFFLE_ROUNDS, dtype=np.uint64)[:, None]
  keys = hashed(key[None, :] + rounds)
  pivots = keys % size
  for pivot, round_key in zip(pivots, keys, strict=True):
    partner = pivot + size - x
    partner -= size * (partner >= size)
    swaps = hashed(np.maximum(x, partner) ^ round_key) >> np.uint64(63)
    x = np.where(swaps.astype(bool), partner, x)
  return x.astype(np.int64)


def hashed(x: np.ndarray) -> np.ndarray:
  """Returns a well-mixed uint64 of each uint64 (the finaliser of SplitMix64).

  References:
    Steele, Lea and Flood, Fast Splittable Pseudorandom Number Generators,
    OOPSLA 2014.
  """
  x = np.atleast_1d(x) + np.uint64(0x9E3779B97F4A7C15)
  x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
  x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
  return x ^ (x >> np.uint64(31))


def group_rows(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Groups rows by their label, without an object for each class.

  Args:
    labels: [N] int, or [N, L] label sets; a row is in the group of each of its
      labels.

  Returns:
    (order, starts): the rows of the c-th label that occurs, in their order, are
    order[starts[c] : starts[c + 1]]; [M] int32 (int64 from 2 ** 31 rows on) and
    [C + 1] int64. Of ints, M is N.

  Example:
    >>> order, starts = group_rows(np.array([7, 5, 7]))
    >>> order.tolist(), starts.tolist()
    ([1, 0, 2], [0, 1, 3])
  """
  dtype = np.int32 if len(labels) < 2**31 else np.int64
  rows, labels = relations.incidences(labels)
  order = np.argsort(labels, kind='stable')
  grouped = labels[order]
  is_first = np.ones(len(labels), bool)
  is_first[1:] = grouped[1:] != grouped[:-1]
  starts = np.append(np.flatnonzero(is_first), len(labels))
  return rows[order].astype(dtype), starts
