"""Open set: queries whose class is not in the gallery, and should find nothing.

A query is known if a gallery row is relevant to it, else unknown. Its nearest
gallery row is what a search would answer, and the similarity to it decides
whether it does: at least the threshold, or "no match".
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from retrieval_jax.core import relations
from retrieval_jax.metrics import pairs, roc
from retrieval_jax.metrics.ranks import RESOLUTION

_PAIR_BYTES = 24  # Similarity, level, masks.


class OpenSet(NamedTuple):
  """How known and unknown queries differ in their nearest row.

  Attributes:
    similarities: [Q] float64, of the nearest row, a multiple of 2 ** -22.
    right: [Q] float64, the probability that it is relevant: 0 or 1, or between
      if relevant and other rows tie for the first rank.
    is_known: [Q] bool.
    roc: of a threshold on the similarity, where known queries are the
      positives.
    identified: for each false alarm rate that was asked for, the share of known
      queries that are accepted at its threshold, with a nearest row that is
      relevant.
  """

  similarities: np.ndarray
  right: np.ndarray
  is_known: np.ndarray
  roc: roc.Roc
  identified: dict[float, float]


def evaluate(task: pairs.Task, *, at_far: Sequence[float] = ()) -> OpenSet:
  """Returns how well the nearest similarity tells known from unknown queries.

    FAR(t) = share of unknown queries with s >= t
    DIR(t) = share of known queries with s >= t and a relevant nearest row

  Args:
    task: what is measured.
    at_far: false alarm rates, in [0, 1]; the threshold of each is the lowest of
      at most this rate.

  Raises:
    UndefinedError: if no query is unknown, or none is known.
    InputError: if the memory budget is too small.

  Example:
    >>> gallery, labels = np.eye(2), np.array([0, 1])
    >>> queries = np.array([[1.0, 0.1], [0.5, 1.0], [1.0, 0.8]])
    >>> found = evaluate(pairs.Task(queries, np.array([0, 1, 7]), gallery,
    ...                             labels, self_excluded=False), at_far=(0.0,))
    >>> found.is_known.tolist(), found.roc.auroc, found.identified
    ([True, True, False], 1.0, {0.0: 1.0})

  References:
    P. J. Phillips, P. Grother and R. Micheals, "Evaluation methods in face
    recognition", Handbook of Face Recognition, 2011, section 21.2 (watch list).
  """
  best, relevant, others, is_known = _nearest(task)
  if is_known.all() or not is_known.any():
    kind, need = ('known', 'not') if is_known.all() else ('unknown', 'also')
    raise pairs.UndefinedError(
      f'all {len(is_known)} queries are {kind}: open-set metrics need queries '
      f'whose class is {need} in the gallery'
    )
  right = relevant / (relevant + others)
  similarities = best * RESOLUTION
  num_known = int(is_known.sum())
  points = roc.summarize(
    [roc.Scores.of(similarities, is_known)],
    num_known,
    len(is_known) - num_known,
    at_fpr=at_far,
  )
  identified = {
    rate: float(right[is_known & (similarities >= point.threshold)].sum())
    / num_known
    for rate, point in points.at_fpr.items()
  }
  return OpenSet(similarities, right, is_known, points, identified)


def _nearest(task):
  """Returns of each query its highest level, who has it, and if it is known."""
  which = 'others' if task.self_excluded else 'all'
  found = []
  for block in pairs.blocks(task, pair_bytes=_PAIR_BYTES):
    best = _start(block.queries[1][1])
    for index in range(len(block.gallery)):
      tile = block.gallery[index]
      levels = pairs.levels(block.queries, tile, pairs=which)
      best = _merge(best, levels, block.queries[1][0], tile[1][0], block.grades)
    size = block.rows.stop - block.rows.start
    found.append([np.asarray(column)[:size] for column in best])
  levels, relevant, others, known = (
    task.of_processes(np.concatenate(column))
    for column in zip(*found, strict=True)
  )
  best = levels.max(axis=0)
  relevant, others = (
    np.where(levels == best, count, 0).sum(axis=0)
    for count in (relevant, others)
  )
  return best.astype(np.float64), relevant, others, known.any(axis=0)


@jax.jit
def _start(rows):
  zeros = jnp.zeros_like(rows)
  level = jnp.full_like(rows, pairs.NO_LEVEL, jnp.float32)
  return level, zeros, zeros, zeros > 0


@jax.jit
def _merge(best, levels, labels, gallery_labels, grades):
  """Adds a tile: the highest level, how many relevant and others have it."""
  level, *counts, known = best
  positives, _ = relations.pair_masks(labels, gallery_labels, grades=grades)
  positives &= levels > pairs.NO_LEVEL
  highest = jnp.maximum(level, levels.max(axis=1))
  is_highest = levels == highest[:, None]
  here = [
    jnp.sum(is_highest & mask, axis=1, dtype=jnp.int32)
    for mask in (positives, ~positives)
  ]
  counts = [
    jnp.where(level == highest, old, 0) + new
    for old, new in zip(counts, here, strict=True)
  ]
  return highest, *counts, known | positives.any(axis=1)
