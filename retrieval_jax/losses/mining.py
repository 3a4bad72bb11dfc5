"""Which triplets a loss looks at: bounds, not lists of indices.

A triplet miner returns, for each positive pair, an interval of distances; a
triplet is used if its negative lies in it. That is O(B G) memory for any number
of triplets.
"""

import jax
import jax.numpy as jnp
from jax import lax

TYPES_OF_TRIPLETS = ('all', 'easy', 'hard', 'semihard')


def triplet_margin_miner(
  distances: jax.Array,
  positives: jax.Array,
  negatives: jax.Array,
  *,
  margin: float = 0.2,
  type_of_triplets: str = 'all',
) -> tuple[jax.Array, jax.Array]:
  """Triplets by where the negative lies, as PML's TripletMarginMiner.

  The triplet (a, p, n) is used if lower_ap < d_an <= upper_ap:

    all       d_an <= d_ap + margin            those that violate the margin
    hard      d_an <= d_ap                     of these, the negative is nearer
    semihard  d_ap < d_an <= d_ap + margin     of these, it is farther
    easy      d_an > d_ap + margin             the others

  The bounds carry no gradient.

  Args:
    distances: [B, G] of anchors and candidates.
    positives: [B, G] bool; the bounds of other pairs mean nothing.
    negatives: [B, G] bool, not looked at: these bounds depend on the positive
      pair alone.
    margin: in the unit of the distances, above 0; a number of its own, beside
      the margin of the loss.
    type_of_triplets: one of `TYPES_OF_TRIPLETS`.

  Returns:
    (lower, upper), each [B, G] float32, lower open and upper closed.

  Example:
    >>> d = jnp.array([[0.0, 0.5, 0.6]])
    >>> positives = jnp.array([[False, True, False]])
    >>> negatives = jnp.array([[False, False, True]])
    >>> lower, upper = triplet_margin_miner(
    ...   d, positives, negatives, type_of_triplets='semihard'
    ... )
    >>> round(lower[0, 1].item(), 4), round(upper[0, 1].item(), 4)
    (0.5, 0.7)

  References:
    Schroff et al., FaceNet, CVPR 2015, section 3.2.
  """
  del positives, negatives
  near = lax.stop_gradient(distances.astype(jnp.float32))
  far = near + margin
  nothing_below = jnp.full_like(near, -jnp.inf)
  if type_of_triplets == 'all':
    return nothing_below, far
  if type_of_triplets == 'hard':
    return nothing_below, near
  if type_of_triplets == 'semihard':
    return near, far
  return far, jnp.full_like(near, jnp.inf)
