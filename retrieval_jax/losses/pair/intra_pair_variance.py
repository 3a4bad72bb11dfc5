"""Intra-pair variance loss over the pairs of a whole batch."""

import jax
import jax.numpy as jnp

from retrieval_jax.core.distances import Distance
from retrieval_jax.losses.pair import sums
from retrieval_jax.losses.terms import Reducer, Terms, reduce_row

_DISTANCE = Distance('cosine')


def intra_pair_variance(
  embeddings: jax.Array,
  candidates: jax.Array,
  positives: jax.Array,
  negatives: jax.Array,
  *,
  pos_eps: float = 0.01,
  neg_eps: float = 0.01,
  distance: Distance = _DISTANCE,
  reducer: str | Reducer = 'mean',
) -> Terms:
  """Intra-pair variance: the pairs of a kind all about as similar.

    L = mean_p max(0, (1 - pos_eps) mu_p - s_p)^2
      + mean_n max(0, s_n - (1 + neg_eps) mu_n)^2

  with mu_p and mu_n the mean similarity of the positive and of the negative
  pairs of the batch. The means carry a gradient. (Of a distance the two signs
  change places.)

  Use it beside another loss, as a second one with a weight, to narrow the
  spread of similarities; by itself it is 0 for a batch of equal embeddings.

  Cost: O(B G D) time and O(B G) memory, and twice the products of the
  embeddings from 1,025 anchors on, where they are taken in blocks.

  Defaults: PML's.

  Args:
    embeddings: [B, D] of all anchors, any float dtype.
    candidates: [G, D] likewise.
    positives: [B, G] bool, the pairs of one class, without the row itself.
    negatives: [B, G] bool, the pairs of two classes.
    pos_eps: slack below the mean of the positives, relative to it.
    neg_eps: slack above the mean of the negatives, relative to it.
    distance: of the embeddings.
    reducer: over the positive pairs, and over the negative ones.

  Returns:
    The terms 'positive' and 'negative', sums and numbers of the pairs of a row.

  Example:
    >>> x = jnp.array([[1.0, 0.0], [0.8, 0.6], [0.6, 0.8]])
    >>> positives = ~jnp.eye(3, dtype=bool)
    >>> terms = intra_pair_variance(x, x, positives, positives & False)
    >>> print((1e4 * terms['positive'][0]).round(1))
    [319.7   0.  319.7]

  References:
    Yu and Tao, Deep Metric Learning with Tuplet Margin Loss, ICCV 2019.
  """
  # A matrix of one block is made once, and differentiated once.
  is_small = len(embeddings) <= sums.BLOCK
  whole = distance.matrix(embeddings, candidates) if is_small else None

  def matrix_of(x):
    if is_small and x is embeddings:
      return whole
    return distance.matrix(x, candidates)

  def sum_block(x, positives, negatives):
    matrix = matrix_of(x)
    return (
      reduce_row(matrix, positives, 'mean'),
      reduce_row(matrix, negatives, 'mean'),
    )

  def mean_of(values, counts):
    return jnp.sum(values) / jnp.maximum(jnp.sum(counts), 1.0)

  rows = (embeddings, positives, negatives)
  total_p, total_n = sums.by_blocks(sum_block, *rows)
  mean_p, mean_n = mean_of(*total_p), mean_of(*total_n)
  farther, nearer = (1 - pos_eps) * mean_p, (1 + neg_eps) * mean_n
  if not distance.inverted:
    farther, nearer = (1 + pos_eps) * mean_p, (1 - neg_eps) * mean_n
  sign = 1.0 if distance.inverted else -1.0

  def value_block(x, positives, negatives):
    matrix = matrix_of(x)
    below = jax.nn.relu(sign * (farther - matrix))
    above = jax.nn.relu(sign * (matrix - nearer))
    return (
      reduce_row(below * below, positives, reducer),
      reduce_row(above * above, negatives, reducer),
    )

  values_p, values_n = sums.by_blocks(value_block, *rows)
  return {'positive': values_p, 'negative': values_n}
