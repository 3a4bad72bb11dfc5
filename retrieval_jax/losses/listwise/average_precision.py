"""Average precision with smooth ranks: Smooth-AP and ROADMAP."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from retrieval_jax.losses.listwise import ranks
from retrieval_jax.losses.terms import Reducer, Terms, reduce_row, row_term


def smooth_ap(
  similarities: jax.Array,
  positives: jax.Array,
  negatives: jax.Array,
  *,
  temperature: float = 0.01,
  ids: jax.Array | None = None,
  candidate_ids: jax.Array | None = None,
  reducer: str | Reducer = 'mean',
) -> Terms:
  """Smooth-AP: 1 - average precision, its ranks made smooth by a sigmoid.

    L_a = 1 - mean over p in P of  (1 + sum_{q in P, q != p} H(s_q - s_p))
                               / (1 + sum_{j != p} H(s_j - s_p))
    H(d) = 1 / (1 + exp(-d / temperature))

  P holds the positives and, as in the authors' code and PML, the anchor itself
  where it is among the candidates; j runs over P and the negatives. Classes may
  be of any sizes, in any order. (PML 2.9 is right only for a batch ordered by
  class, with as many classes as images of each: it exchanges the two numbers.
  Of other batches it gives another value silently, and it refuses classes of
  different sizes.)

  Use it when the metric is mAP and batches hold several images of a class; with
  large batches (hundreds), since it ranks the batch. Against `fast_ap` it has
  no bins, against `roadmap` its gradient vanishes for a positive that is far
  below the negatives.

  Cost: O(B G P) time, O(B G) memory, P being the positives of a row.

  Defaults: PML's and the authors'.

  Args:
    similarities: [B, G] cosines of anchors and candidates, any float dtype.
    positives: [B, G] bool, the pairs of one class, without the row itself.
    negatives: [B, G] bool, the pairs of two classes.
    temperature: of the sigmoid, in units of the cosine; above 0.
    ids: [B] int of the anchors, and
    candidate_ids: [G] int of the candidates, equal for a row and itself; None:
      the anchors are not among the candidates.
    reducer: over the anchors that have a positive.

  Returns:
    The term 'loss', one value a row.

  Example:
    >>> s = jnp.array([[0.9, 0.5, 0.7, 0.1]])
    >>> positives = jnp.array([[True, True, False, False]])
    >>> values, counts = smooth_ap(s, positives, ~positives)['loss']
    >>> print([f'{value:.4f}' for value in values], counts)
    ['0.1667'] [1.]

  References:
    Brown et al., Smooth-AP: Smoothing the Path Towards Large-Scale Image
    Retrieval, ECCV 2020.
  """
  relevant = ranks.with_itself(positives, ids, candidate_ids)
  s = similarities.astype(jnp.float32)
  s = jnp.where(relevant | negatives, s, 0.0)
  slots = ranks.slots_of(s, relevant)
  step = ranks.Sigmoid(temperature)
  # The positive itself, H(0) = 1 / 2, becomes the 1 of the formula.
  rank_p = ranks.sums_within(step, slots) + 0.5
  rank_n = ranks.sums_over(step, slots, s, negatives)
  values, valid = _one_minus_ap(slots, rank_p, rank_n)
  return row_term(values, valid, reducer)


def roadmap(
  similarities: jax.Array,
  positives: jax.Array,
  negatives: jax.Array,
  *,
  temperature: float = 0.01,
  rho: float = 100.0,
  delta: float = 0.05,
  offset: float | None = 1.44,
  pos_margin: float = 0.9,
  neg_margin: float = 0.6,
  calibration_weight: float = 1.0,
  ids: jax.Array | None = None,
  candidate_ids: jax.Array | None = None,
  reducer: str | Reducer = 'mean',
) -> Terms:
  """ROADMAP: an upper bound of 1 - average precision, and a calibration.

    L_a = 1 - mean over p in P of R+_p / (R+_p + R-_p)
          + calibration_weight (mean_p max(0, pos_margin - s_p)
                                + mean_n max(0, s_n - neg_margin))
    R+_p = 1 + #{q in P, q != p: s_q >= s_p},  R-_p = sum_n H(s_n - s_p)
    H(d) = sigmoid(d / temperature)          d <= 0
           sigmoid(d / temperature) + 1 / 2  0 < d <= delta
           rho d + offset                    d > delta

  H is at least the step function it stands for (save at d = 0, where it is
  1 / 2), and does not saturate: a positive far below a negative is still
  pulled. R+ carries no gradient. P holds the positives and, as in the authors'
  code, the anchor itself where it is among the candidates. The means of the
  calibration are each over the pairs that cost something, as in that code.

  Use it when the metric is mAP and `smooth_ap` stalls: ranking by batches says
  nothing of similarities in different batches, which the calibration holds
  together.

  Cost: O(B G P) time, O(B G) memory, P being the positives of a row.

  Defaults: those of the authors' code.

  Args:
    similarities: [B, G] cosines of anchors and candidates, any float dtype.
    positives: [B, G] bool, the pairs of one class, without the row itself.
    negatives: [B, G] bool, the pairs of two classes.
    temperature: of the sigmoid, in units of the cosine; above 0.
    rho: slope of H where it is linear, above 0.
    delta: where it begins to be linear, in units of the cosine; at least 0.
    offset: H there, less rho d; None makes H continuous, as it is in the paper:
      H(d) = rho (d - delta) + sigmoid(delta / temperature) + 1 / 2.
    pos_margin: alpha of the paper, the cosine that positives are pulled above.
    neg_margin: beta, the cosine that negatives are pushed below.
    calibration_weight: of the calibration; at least 0. The paper's lambda is
      this over 1 + this.
    ids: [B] int of the anchors, and
    candidate_ids: [G] int of the candidates, equal for a row and itself; None:
      the anchors are not among the candidates.
    reducer: over the anchors that have a positive.

  Returns:
    The terms 'ap', one value a row, and 'positive' and 'negative', sums and
    numbers of the pairs that cost something.

  Example:
    >>> s = jnp.array([[0.9, 0.5, 0.7, 0.1]])
    >>> positives = jnp.array([[True, True, False, False]])
    >>> terms = roadmap(s, positives, ~positives, offset=None)
    >>> {name: f'{values[0]:.3f}' for name, (values, _) in terms.items()}
    {'ap': '0.446', 'positive': '0.400', 'negative': '0.100'}

  References:
    Ramzi et al., Robust and Decomposable Average Precision for Image Retrieval,
    NeurIPS 2021.
  """
  relevant = ranks.with_itself(positives, ids, candidate_ids)
  s = similarities.astype(jnp.float32)
  s = jnp.where(relevant | negatives, s, 0.0)
  slots = ranks.slots_of(s, relevant)
  fixed = slots._replace(similarities=lax.stop_gradient(slots.similarities))
  rank_p = ranks.sums_within(_NotAbove(), fixed)
  if offset is None:
    end = 1.0 / (1.0 + math.exp(-delta / temperature))
    offset = end + 0.5 - rho * delta
  step = _UpperStep(temperature, rho, delta, offset)
  rank_n = ranks.sums_over(step, slots, s, negatives)
  values, valid = _one_minus_ap(slots, rank_p, rank_n)

  pairs = positives | negatives
  s = jnp.where(pairs, s, 0.0)
  pull = reduce_row(jax.nn.relu(pos_margin - s), positives, 'nonzero_mean')
  push = reduce_row(jax.nn.relu(s - neg_margin), negatives, 'nonzero_mean')
  return {
    'ap': reduce_row(values, valid, reducer),
    'positive': (calibration_weight * pull[0], pull[1]),
    'negative': (calibration_weight * push[0], push[1]),
  }


class _NotAbove(NamedTuple):
  """The step function, 1 from 0 on."""

  def value(self, d):
    return (d >= 0).astype(d.dtype)

  def slope(self, d):
    return jnp.zeros_like(d)


class _UpperStep(NamedTuple):
  """H of `roadmap`."""

  temperature: float
  rho: float
  delta: float
  offset: float

  def value(self, d):
    smooth = ranks.Sigmoid(self.temperature).value(d)
    smooth += jnp.where(d > 0, 0.5, 0.0)
    return jnp.where(d > self.delta, self.rho * d + self.offset, smooth)

  def slope(self, d):
    smooth = ranks.Sigmoid(self.temperature).slope(d)
    return jnp.where(d > self.delta, self.rho, smooth)


def _one_minus_ap(slots, rank_p, rank_n):
  """Returns (values [B], valid [B]) of the ranks [S, B]."""
  numbers = slots.numbers()
  valid = numbers > 0
  # An unused slot has ranks of 0 or 1 / 2; what it divides by must not be 0.
  ranks_of_all = jnp.where(slots.valid, rank_p + rank_n, 1.0)
  precisions = slots.sum(rank_p / ranks_of_all)
  return 1.0 - precisions / jnp.where(valid, numbers, 1.0), valid
