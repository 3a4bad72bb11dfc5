"""PNP loss: penalises the negatives before each positive."""

import jax
import jax.numpy as jnp

from retrieval_jax.losses.listwise import ranks
from retrieval_jax.losses.terms import Reducer, Terms, row_term

VARIANTS = ('Ds', 'Dq', 'Iu', 'Ib', 'O')


def pnp(
  similarities: jax.Array,
  positives: jax.Array,
  negatives: jax.Array,
  *,
  b: float = 2.0,
  alpha: float = 1.0,
  anneal: float = 0.01,
  variant: str = 'O',
  ids: jax.Array | None = None,
  candidate_ids: jax.Array | None = None,
  reducer: str | Reducer = 'mean',
) -> Terms:
  """PNP: penalises the negatives that come before each positive.

    L_a = mean over p in P of f(R_p),  R_p = sum_n 1 / (1 + e^{(s_p - s_n)/T})
    O   f = R
    Iu  f = (1 + R) log(1 + R)
    Ib  f = (b R - log(1 + b R)) / b^2
    Ds  f = log(1 + R)
    Dq  f = 1 - (1 + R)^-alpha

  with T the `anneal`. P holds the positives and, as in PML, the anchor itself
  where it is among the candidates.

  Use it when the metric is mAP: the derivative of f says which positives are
  pulled most. It falls with the rank for Ds and Dq, which leave those far down
  (wrong labels, hard cases) alone and are the better ones in the paper; it
  grows for Iu and Ib, and is 1 for O.

  Cost: O(B G P) time, O(B G) memory, P being the positives of a row.

  Defaults: PML's.

  Args:
    similarities: [B, G] cosines of anchors and candidates, any float dtype.
    positives: [B, G] bool, the pairs of one class, without the row itself.
    negatives: [B, G] bool, the pairs of two classes.
    b: of Ib, above 0.
    alpha: of Dq, above 0.
    anneal: temperature of the sigmoid, in units of the cosine; above 0.
    variant: one of `VARIANTS`.
    ids: [B] int of the anchors, and
    candidate_ids: [G] int of the candidates, equal for a row and itself; None:
      the anchors are not among the candidates.
    reducer: over the anchors that have a positive. PML's is without effect,
      its value is the mean.

  Returns:
    The term 'loss', one value a row.

  Example:
    >>> s = jnp.array([[0.9, 0.5, 0.7, 0.1]])
    >>> positives = jnp.array([[True, True, False, False]])
    >>> values, counts = pnp(s, positives, ~positives)['loss']
    >>> print(values.round(4), counts)
    [0.5] [1.]

  References:
    Li et al., Rethinking the Optimization of Average Precision: Only Penalizing
    Negative Instances before Positive Ones is Enough, AAAI 2022.
  """
  relevant = ranks.with_itself(positives, ids, candidate_ids)
  s = similarities.astype(jnp.float32)
  s = jnp.where(relevant | negatives, s, 0.0)
  slots = ranks.slots_of(s, relevant)
  rank = ranks.sums_over(ranks.Sigmoid(anneal), slots, s, negatives)
  values = {
    'O': lambda: rank,
    'Iu': lambda: (1.0 + rank) * jnp.log1p(rank),
    'Ib': lambda: (b * rank - jnp.log1p(b * rank)) / b**2,
    'Ds': lambda: jnp.log1p(rank),
    'Dq': lambda: -jnp.expm1(-alpha * jnp.log1p(rank)),
  }[variant]()
  numbers = slots.numbers()
  valid = numbers > 0
  values = slots.sum(values) / jnp.where(valid, numbers, 1.0)
  return row_term(values, valid, reducer)
