"""Lifted structure losses: each positive against all negatives around it."""

import jax
import jax.numpy as jnp

from retrieval_jax.core import arrays
from retrieval_jax.core.distances import Distance
from retrieval_jax.losses.pair import sums
from retrieval_jax.losses.terms import Reducer, Terms, reduce_row, row_term

_DISTANCE = Distance('lp')
# Stands for the logarithm of an empty sum: e to it is 0, and so is its slope.
_EMPTY = -1e30


def lifted_structure(
  embeddings: jax.Array,
  candidates: jax.Array,
  positives: jax.Array,
  negatives: jax.Array,
  *,
  neg_margin: float = 1.0,
  pos_margin: float = 0.0,
  distance: Distance = _DISTANCE,
  reducer: str | Reducer = 'mean',
) -> Terms:
  """Lifted structure: a positive pair against the negatives of both its ends.

    L = mean over (a, p) of max(0, J_ap)^2 / 2
    J_ap = log(sum_n e^{neg_margin - d_an} + sum_m e^{neg_margin - d_mp})
           + d_ap - pos_margin

  with n the negatives of the anchor a, and m the anchors that p is a negative
  of (the negatives of p, if candidates are the anchors themselves). Where
  neither end has a negative, the logarithm is taken as 0, as PML does; without
  any negative in the batch the loss is 0.

  Not as in PML: with references, PML compares the places of anchors and
  references as if they were in one list, where here p keeps its own negatives;
  and miners, which PML takes here, are not.

  Use it for batches with few images of many classes (it was made for pairs
  from tens of thousands of product classes); with more images of a class
  `generalized_lifted_structure` takes all positives at once.

  Cost: O(B G D) time, O(B G) memory; PML lists positive pairs x negative pairs.

  Defaults: PML's.

  Args:
    embeddings: [B, D] of all anchors, any float dtype.
    candidates: [G, D] likewise.
    positives: [B, G] bool, the pairs of one class, without the row itself.
    negatives: [B, G] bool, the pairs of two classes.
    neg_margin: alpha of the paper, in the unit of the distance.
    pos_margin: taken from the distance of the positives.
    distance: of the embeddings; a symmetric one.
    reducer: over the positive pairs.

  Returns:
    The term 'loss', the sum and the number of the positive pairs of a row.

  Example:
    >>> x = jnp.array([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]])
    >>> positives = jnp.array([[0, 1, 0], [1, 0, 0], [0, 0, 0]], bool)
    >>> negatives = jnp.array([[0, 0, 1], [0, 0, 1], [1, 1, 0]], bool)
    >>> values, counts = lifted_structure(x, x, positives, negatives)['loss']
    >>> print(values.round(4), counts)
    [0.7256 0.7256 0.    ] [1. 1. 0.]

  References:
    Song et al., Deep Metric Learning via Lifted Structured Feature Embedding,
    CVPR 2016, eq. 4.
  """
  sign = -1.0 if distance.inverted else 1.0

  def around(x, negatives, others):
    logits = sign * (neg_margin - distance.matrix(x, others))
    found = jnp.any(negatives, axis=1)
    log_sum = arrays.masked_logsumexp(logits, negatives)
    return jnp.where(found, log_sum, _EMPTY)

  of_anchors = sums.by_blocks(
    lambda x, negatives: around(x, negatives, candidates),
    embeddings,
    negatives,
  )
  of_candidates = sums.by_blocks(
    lambda x, negatives: around(x, negatives, embeddings),
    candidates,
    negatives.T,
  )
  some_negative = jnp.any(negatives)

  def value_block(x, of_anchors, positives):
    both = jnp.logaddexp(of_anchors[:, None], of_candidates[None, :])
    # Compared so that a NaN stays.
    both = jnp.where(both < 0.5 * _EMPTY, 0.0, both)
    farther = sign * (distance.matrix(x, candidates) - pos_margin)
    lifted = jnp.where(positives, both + farther, 0.0)
    values = 0.5 * jax.nn.relu(lifted) ** 2
    return reduce_row(values, positives & some_negative, reducer)

  return {
    'loss': sums.by_blocks(value_block, embeddings, of_anchors, positives)
  }


def generalized_lifted_structure(
  matrix: jax.Array,
  positives: jax.Array,
  negatives: jax.Array,
  *,
  neg_margin: float = 1.0,
  pos_margin: float = 0.0,
  inverted: bool = False,
  labels: jax.Array | None = None,
  reducer: str | Reducer = 'mean',
) -> Terms:
  """Generalised lifted structure: all positives of an anchor at once.

    L_a = max(0, log sum_p e^{d_p - pos_margin}
                 + log sum_n e^{neg_margin - d_n})

  and of a similarity the same with both signs turned. As in PML the logarithm
  of an empty sum is 0, so that an anchor without a positive is pushed from its
  negatives all the same, and counts.

  Use it in place of `lifted_structure` with several images of a class in a
  batch; it is a soft form of the batch-hard triplet loss.

  Cost: O(B G) time and memory.

  Defaults: PML's.

  Args:
    matrix: [B, G] distances (or similarities) of anchors and candidates, any
      float dtype.
    positives: [B, G] bool, the pairs of one class, without the row itself.
    negatives: [B, G] bool, the pairs of two classes.
    neg_margin: m of the paper, in the unit of the matrix.
    pos_margin: taken from the distance of the positives.
    inverted: whether the matrix holds similarities.
    labels: of the anchors, see `counted_anchors`.
    reducer: over all anchors.

  Returns:
    The term 'loss', one value a row.

  Example:
    >>> d = jnp.array([[0.0, 0.5, 0.75, 1.5]])
    >>> positives = jnp.array([[False, True, False, False]])
    >>> negatives = jnp.array([[False, False, True, True]])
    >>> terms = generalized_lifted_structure(d, positives, negatives)
    >>> print(terms['loss'][0].round(4))
    [1.1369]

  References:
    Hermans et al., In Defense of the Triplet Loss, arXiv 1703.07737, 2017.
  """
  x = matrix.astype(jnp.float32)
  sign = -1.0 if inverted else 1.0
  logits = jnp.where(
    positives, sign * (x - pos_margin), sign * (neg_margin - x)
  )
  log_p, log_n = sums.pair_logsumexps(logits, positives, negatives)
  valid = sums.counted_anchors(positives, negatives, labels)
  return row_term(jax.nn.relu(log_p + log_n), valid, reducer)
