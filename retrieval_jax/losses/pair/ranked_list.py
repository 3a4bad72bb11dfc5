"""Ranked list loss over the pairs of an anchor."""

import jax
import jax.numpy as jnp
from jax import lax

from retrieval_jax.losses.pair import sums
from retrieval_jax.losses.terms import Reducer, Terms, row_term

# PML adds it to the weight of every pair of a row, also of those not mined.
_EPS = 1e-5


def ranked_list(
  distances: jax.Array,
  positives: jax.Array,
  negatives: jax.Array,
  *,
  margin: float = 0.4,
  negative_temperature: float = 10.0,
  imbalance: float = 0.5,
  alpha: float | None = None,
  positive_temperature: float = 0.0,
  labels: jax.Array | None = None,
  reducer: str | Reducer = 'mean',
) -> Terms:
  """Ranked list: positives within a ball, negatives beyond it by a margin.

    L_a = (1 - imbalance) sum_p w_p (d_p - (alpha - margin)) / sum_p w_p
        + imbalance       sum_n w_n (alpha - d_n)            / sum_n w_n
    w_p = e^{positive_temperature (d_p - (alpha - margin))}
    w_n = e^{negative_temperature (alpha - d_n)}

  over the positives with d_p > alpha - margin and the negatives with
  d_n < alpha; a part without such pairs is 0. The weights carry a gradient, as
  in PML (in the paper they are constants), and the divisors 1e-5 for each
  candidate besides. A negative at a distance of exactly 0, which PML leaves
  out, counts.

  Use it when a class should keep its spread: the positives are only pulled into
  a ball of radius alpha - margin, not onto each other.

  Cost: O(B G) time and memory.

  Defaults: PML's, which has none for `margin` and `negative_temperature`: 0.4
  is in the authors' configuration for In-Shop (with a T_n of 12), 10 in the one
  for CUB.

  Args:
    distances: [B, G] of anchors and candidates, any float dtype.
    positives: [B, G] bool, the pairs of one class, without the row itself.
    negatives: [B, G] bool, the pairs of two classes.
    margin: m of the paper, between the ball and the negatives, above 0. With
      the default, alpha is the 1.2 of the paper.
    negative_temperature: T_n of the paper, at least 0: how much the nearest
      negatives outweigh the others.
    imbalance: share of the negative part, in [0, 1].
    alpha: distance that negatives are pushed beyond; None is 1 + margin / 2, as
      in PML.
    positive_temperature: T_p, at least 0; 0 weighs the positives alike.
    labels: of the anchors, see `counted_anchors`.
    reducer: over all anchors.

  Returns:
    The term 'loss', one value a row.

  Example:
    >>> d = jnp.array([[0.0, 1.0, 0.7, 1.5]])
    >>> positives = jnp.array([[False, True, False, False]])
    >>> negatives = jnp.array([[False, False, True, True]])
    >>> terms = ranked_list(d, positives, negatives)
    >>> print(terms['loss'][0].round(4))
    [0.35]

  References:
    Wang et al., Ranked List Loss for Deep Metric Learning, CVPR 2019.
  """
  alpha = 1.0 + margin / 2 if alpha is None else alpha
  d = jnp.where(positives | negatives, distances.astype(jnp.float32), 0.0)
  beyond = d - (alpha - margin)
  within = alpha - d
  # The row itself is a candidate too.
  num_candidates = 1.0 + jnp.sum(positives | negatives, axis=1)

  def weighted_mean(gap, mask, temperature):
    mask &= ~(gap <= 0)  # A NaN stays.
    logits = temperature * gap
    largest = jnp.max(
      jnp.where(mask, logits, 0.0), axis=1, keepdims=True, initial=0.0
    )
    largest = lax.stop_gradient(largest)
    weights = jnp.exp(jnp.where(mask, logits - largest, -jnp.inf))
    total = jnp.sum(weights, axis=1)
    total += _EPS * num_candidates * jnp.exp(-largest[:, 0])
    total = jnp.where(jnp.any(mask, axis=1), total, 1.0)
    return jnp.sum(weights * jnp.where(mask, gap, 0.0), axis=1) / total

  pull = weighted_mean(beyond, positives, positive_temperature)
  push = weighted_mean(within, negatives, negative_temperature)
  values = (1.0 - imbalance) * pull + imbalance * push
  valid = sums.counted_anchors(positives, negatives, labels)
  return row_term(values, valid, reducer)
