"""Verification: is it the same class, asked of every pair.

One threshold serves all queries here, where a ranking forgives each query a
scale of its own. A pair is positive if the gallery row is relevant to the
query. Without a gallery each unordered pair of two rows counts once, and a row
is no pair with itself. A row without a label (an empty label set) is a negative
to all.

The similarity of a pair is an integer at the resolution of the rankings, so
two histograms over all of its 2 ** 23 values are exact, whatever the number of
pairs: 64 MiB, and O(Q N) time.
"""

import dataclasses
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from retrieval_jax.core import relations, tiles
from retrieval_jax.metrics import pairs, roc
from retrieval_jax.metrics.ranks import RESOLUTION

# A cosine leaves [-1, 1] by rounding alone; what is further out joins the ends.
_MARGIN = 64
_TOP = 2**22 + _MARGIN
_NUM_LEVELS = 2 * _TOP + 1
_PAIR_BYTES = 40  # Similarity, level, masks; two tiles of bins, and as ints.
_CHUNK = 2**18  # Levels looked at together.
_NUM_BARS = 200


@dataclasses.dataclass(frozen=True)
class Verification:
  """What all pairs together say.

  Attributes:
    num_positives: P, of all pairs.
    num_negatives: N.
    operating_points: what `roc` returns; None if P or N is 0.
    bar_edges: [201] float64 in [-1, 1], of a histogram of similarities.
    positive_bars: [200] int64, the positive pairs between two edges.
    negative_bars: [200] int64, the negative pairs.
    uniformity: log of the mean over all pairs of exp(-2 d^2), d^2 = 2 - 2 s.
    positive_distance: what `alignment` returns; None if P is 0.
  """

  num_positives: int
  num_negatives: int
  operating_points: roc.Roc | None
  bar_edges: np.ndarray
  positive_bars: np.ndarray
  negative_bars: np.ndarray
  uniformity: float
  positive_distance: float | None

  @property
  def roc(self) -> roc.Roc:
    """The operating points of a threshold on the similarity.

    A similarity is accepted if it rounds to the threshold or more.

    Raises:
      UndefinedError: if there is no positive or no negative pair.
    """
    if self.operating_points is None:
      kind = 'not relevant' if self.num_positives else 'relevant'
      raise _no_pair(f' that are {kind} to each other')
    return self.operating_points

  @property
  def alignment(self) -> float:
    """The mean of d^2 over positive pairs.

    Raises:
      UndefinedError: if there is none.
    """
    if self.positive_distance is None:
      raise _no_pair(' that are relevant to each other')
    return self.positive_distance


def _no_pair(kind=''):
  return pairs.UndefinedError(
    f'there is no pair of a query and a gallery row{kind}'
  )


class PairCounts:
  """How many positive and negative pairs there are of each similarity."""

  def __init__(self):
    """Starts at zero."""
    # Of positives, of negatives, and of what is no pair.
    self._counts = np.zeros(2 * _NUM_LEVELS + 1, np.uint32)
    self._since_carry = 0
    self._carried = {}

  @property
  def num_bytes(self) -> int:
    """Memory that the counts take."""
    return self._counts.nbytes

  def add(self, bins: np.ndarray) -> None:
    """Counts pairs, given as the places of their counts."""
    self._since_carry += bins.size
    if self._since_carry >= 2**31:
      self._carry()
      self._since_carry = bins.size
    np.add.at(self._counts, bins, np.uint32(1))

  def add_processes(self, task: pairs.Task) -> None:
    """Adds what the other processes counted; all of them call this."""
    for chunk in tiles.blocks(len(self._counts), _CHUNK):
      carries = np.zeros(chunk.stop - chunk.start, np.uint32)
      for full, number in self._carried.items():
        if chunk.start <= full < chunk.stop:
          carries[full - chunk.start] = number // 2**31
      counts, carries = (
        task.of_processes(own).sum(axis=0, dtype=np.int64)
        for own in (self._counts[chunk], carries)
      )
      carries += counts // 2**31
      self._counts[chunk] = counts % 2**31
      for i in np.flatnonzero(carries).tolist():
        self._carried[chunk.start + i] = int(carries[i]) * 2**31

  def _carry(self):
    """Makes room in the counts that are half full."""
    for full in np.flatnonzero(self._counts >= 2**31).tolist():
      self._counts[full] -= np.uint32(2**31)
      self._carried[full] = self._carried.get(full, 0) + 2**31

  def totals(self) -> tuple[int, int]:
    """Returns the number of positive and of negative pairs."""
    sums = [0, 0]
    for part in self.parts():
      sums[0] += int(part.positives.sum())
      sums[1] += int(part.negatives.sum())
    return sums[0], sums[1]

  def parts(self) -> Iterator[roc.Scores]:
    """Yields the similarities that occur, the largest first."""
    for chunk in tiles.blocks(_NUM_LEVELS, _CHUNK):
      counts = [
        self._counts[start + chunk.start : start + chunk.stop].astype(np.int64)
        for start in (0, _NUM_LEVELS)
      ]
      for full, number in self._carried.items():
        kind, place = divmod(full, _NUM_LEVELS)
        if kind < 2 and chunk.start <= place < chunk.stop:
          counts[kind][place - chunk.start] += number
      found = np.flatnonzero(counts[0] + counts[1])
      similarities = (_TOP - chunk.start - found) * RESOLUTION
      yield roc.Scores(similarities, *(count[found] for count in counts))


def count_pairs(task: pairs.Task) -> PairCounts:
  """Counts all pairs by their similarity.

  Args:
    task: what is measured.

  Raises:
    InputError: if the memory budget does not hold the counts and a block.

  Example:
    >>> x, y = np.eye(2)[[0, 0, 1]], np.array([0, 0, 1])
    >>> counts = count_pairs(pairs.Task(x, y, x, y, self_excluded=True))
    >>> [[c.tolist() for c in p] for p in counts.parts() if len(p.scores)]
    [[[1.0], [1], [0]], [[0.0], [0], [2]]]
  """
  counts = PairCounts()
  which = 'later' if task.self_excluded else 'all'
  waiting = None
  for block in pairs.blocks(
    task, pair_bytes=_PAIR_BYTES, fixed=counts.num_bytes
  ):
    for index in range(len(block.gallery)):
      last = block.gallery.start(index) + block.gallery.tile_rows - 1
      if task.self_excluded and last <= block.rows.start:
        continue  # These pairs came from the other side.
      tile = block.gallery[index]
      levels = pairs.levels(block.queries, tile, pairs=which)
      bins = _bins(levels, block.queries[1][0], tile[1][0], block.grades)
      # The host counts a tile while the devices compute the next.
      if waiting is not None:
        _count(counts, *waiting)
      waiting = bins, block.rows
  if waiting is not None:
    _count(counts, *waiting)
  if task.process[1] > 1:
    counts.add_processes(task)
  return counts


def _count(counts, bins, rows):
  picked = np.asarray(bins)[: rows.stop - rows.start]
  counts.add(picked.reshape(-1).astype(np.intp))


@jax.jit
def _bins(levels, labels, gallery_labels, grades):
  """Returns where each pair counts, [B, T] int32."""
  positives, _ = relations.pair_masks(labels, gallery_labels, grades=grades)
  place = jnp.clip(_TOP - levels, 0, _NUM_LEVELS - 1).astype(jnp.int32)
  place += jnp.where(positives, 0, _NUM_LEVELS)
  return jnp.where(levels == pairs.NO_LEVEL, 2 * _NUM_LEVELS, place)


def verify(
  task: pairs.Task,
  *,
  at_fpr: Sequence[float] = (),
  at_precision: Sequence[float] = (),
) -> Verification:
  """Returns the operating points and the histogram of all pairs.

  Args:
    task: what is measured.
    at_fpr: false positive rates to find a threshold for, in [0, 1].
    at_precision: precisions likewise.

  Raises:
    UndefinedError: if there is no pair.
    InputError: if the memory budget is too small.

  Example:
    >>> x, y = np.eye(2)[[0, 0, 1]], np.array([0, 0, 1])
    >>> verify(pairs.Task(x, y, x, y, self_excluded=True)).roc.auroc
    1.0
  """
  counts = count_pairs(task)
  num_positives, num_negatives = counts.totals()
  if not num_positives + num_negatives:
    raise _no_pair()
  points = None
  if num_positives and num_negatives:
    points = roc.summarize(
      counts.parts(),
      num_positives,
      num_negatives,
      at_fpr=at_fpr,
      at_precision=at_precision,
    )
  edges = np.linspace(-1, 1, _NUM_BARS + 1)
  bars = np.zeros((2, _NUM_BARS), np.int64)
  near = distance = 0.0
  for part in counts.parts():
    similarities = np.clip(part.scores, -1, 1)
    bar = np.floor((similarities + 1) / 2 * _NUM_BARS).astype(np.int64)
    bar = np.minimum(bar, _NUM_BARS - 1)
    for row, number in zip(bars, part[1:], strict=True):
      np.add.at(row, bar, number)
    squares = 2 - 2 * similarities
    both = (part.positives + part.negatives) / (num_positives + num_negatives)
    near += float(np.sum(both * np.exp(-2 * squares)))
    distance += float(np.sum(part.positives / max(num_positives, 1) * squares))
  return Verification(
    num_positives,
    num_negatives,
    points,
    edges,
    *bars,
    float(np.log(near)),
    distance if num_positives else None,
  )
