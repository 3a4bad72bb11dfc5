"""Recall@k with smooth ranks, summed over several k."""

import jax
import jax.numpy as jnp

from retrieval_jax.losses.listwise import ranks
from retrieval_jax.losses.terms import Reducer, Terms, row_term


def recall_at_k(
  similarities: jax.Array,
  positives: jax.Array,
  negatives: jax.Array,
  *,
  ks: tuple[int, ...] = (1, 2, 4, 8, 16),
  temperature: float = 0.01,
  rank_temperature: float = 1.0,
  reducer: str | Reducer = 'mean',
) -> Terms:
  """RS@k: 1 - recall at k, ranks and the cut at k made smooth by sigmoids.

    L_a = 1 - mean over k of min(k, sum_p sigmoid((k - R_p) / rank_temperature))
                             / min(k, |P|)
    R_p = 1 + sum_{j != p} sigmoid((s_j - s_p) / temperature)

  P holds the positives, j runs over positives and negatives. The anchor itself
  is in neither, as in the paper; the authors' code ranks it before all others.
  No more than k can be found among k, hence both minima: without the one above,
  a sum of sigmoids is rewarded for going beyond.

  Use it when the metric is recall@k, with the largest batch there is (the paper
  takes 4,000, four images of a class): a rank of 16 means little among 32.

  Cost: O(B G P) time, O(B G) memory, P being the positives of a row.

  Defaults: those of the authors' code.

  Args:
    similarities: [B, G] cosines of anchors and candidates, any float dtype.
    positives: [B, G] bool, the pairs of one class, without the row itself.
    negatives: [B, G] bool, the pairs of two classes.
    ks: the cuts, whole numbers of at least 1.
    temperature: tau_2 of the paper, of the similarities, in units of the
      cosine; above 0.
    rank_temperature: tau_1 of the paper, of the ranks; above 0.
    reducer: over the anchors that have a positive.

  Returns:
    The term 'loss', one value a row.

  Example:
    >>> s = jnp.array([[0.9, 0.5, 0.7, 0.1]])
    >>> positives = jnp.array([[True, True, False, False]])
    >>> terms = recall_at_k(s, positives, ~positives, ks=(1, 2))
    >>> f'{terms["loss"][0].item():.4f}'
    '0.4404'

  References:
    Patel et al., Recall@k Surrogate Loss with Large Batches and Similarity
    Mixup, CVPR 2022.
  """
  s = similarities.astype(jnp.float32)
  s = jnp.where(positives | negatives, s, 0.0)
  slots = ranks.slots_of(s, positives)
  # The positive itself, 1 / 2, becomes the 1 of the formula.
  rank = 0.5 + ranks.sums_over(
    ranks.Sigmoid(temperature), slots, s, positives | negatives
  )
  numbers = slots.numbers()
  valid = numbers > 0
  recall = jnp.zeros_like(numbers)
  for k in ks:
    found = slots.sum(jax.nn.sigmoid((k - rank) / rank_temperature))
    possible = jnp.where(valid, jnp.minimum(float(k), numbers), 1.0)
    recall += jnp.minimum(float(k), found) / possible
  return row_term(1.0 - recall / len(ks), valid, reducer)
