"""Triplets by how far the negative is from the positive."""

import jax
import jax.numpy as jnp

from retrieval_jax.core.distances import EUCLIDEAN, Distance
from retrieval_jax.losses.mining.ranks import nearness_order
from retrieval_jax.losses.mining.triplets import Bounds

TYPES_OF_TRIPLETS = ('all', 'easy', 'hard', 'semihard')


def triplet_margin_miner(
  distances: jax.Array,
  positives: jax.Array,
  negatives: jax.Array,
  *,
  margin: float = 0.2,
  type_of_triplets: str = 'all',
  distance: Distance = EUCLIDEAN,
) -> Bounds:
  """Triplets by where the negative lies, as PML's TripletMarginMiner.

    all       d_an <= d_ap + margin            those that violate the margin
    hard      d_an <= d_ap                     of these, the negative is nearer
    semihard  d_ap < d_an <= d_ap + margin     of these, it is farther
    easy      d_an > d_ap + margin             the others

  Of a similarity s, d is -s. The bounds carry no gradient.

  Use it with type_of_triplets='semihard' in front of the triplet loss at the
  start of a training, where the hardest negatives collapse the embeddings; with
  'hard' later.

  Cost: O(B G) time and memory.

  Defaults: PML's.

  Args:
    distances: [B, G] of anchors and candidates.
    positives: [B, G] bool, not looked at: the bounds of other pairs mean
      nothing.
    negatives: [B, G] bool, not looked at: these bounds depend on the positive
      pair alone.
    margin: in the unit of the distances, above 0; a number of its own, beside
      the margin of the loss.
    type_of_triplets: one of `TYPES_OF_TRIPLETS`.
    distance: what the matrix is of.

  Returns:
    The bounds on the negative of each positive pair.

  Example:
    >>> d = jnp.array([[0.0, 0.5, 0.6]])
    >>> positives = jnp.array([[False, True, False]])
    >>> negatives = jnp.array([[False, False, True]])
    >>> bounds = triplet_margin_miner(
    ...   d, positives, negatives, type_of_triplets='semihard'
    ... )
    >>> round(bounds.lower[0, 1].item(), 4), round(bounds.upper[0, 1].item(), 4)
    (0.5, 0.7)

  References:
    Schroff et al., FaceNet, CVPR 2015, section 3.2.
  """
  del positives, negatives
  near = nearness_order(distances, distance.inverted)
  far = near + margin
  nothing_below = jnp.full_like(near, -jnp.inf)
  lower, upper = {
    'all': (nothing_below, far),
    'hard': (nothing_below, near),
    'semihard': (near, far),
    'easy': (far, jnp.full_like(near, jnp.inf)),
  }[type_of_triplets]
  return Bounds(near, lower, upper, distance)
