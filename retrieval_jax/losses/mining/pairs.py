"""Pairs by what they are compared with in their row."""

import jax
import jax.numpy as jnp

from retrieval_jax.losses.mining.ranks import nearness_order
from retrieval_jax.losses.mining.triplets import Listed, list_triplets


def multi_similarity_miner(
  matrix: jax.Array,
  positives: jax.Array,
  negatives: jax.Array,
  *,
  inverted: bool = True,
  epsilon: float = 0.1,
) -> tuple[jax.Array, jax.Array]:
  """Pairs that are harder than the hardest of the other kind, less epsilon.

    positive (a, p)  s_ap - epsilon < max_n s_an
    negative (a, n)  s_an + epsilon > min_p s_ap

  An anchor without a positive or without a negative has no pair. Of a distance
  d, s is -d. Nothing carries a gradient.

  Use it in front of the multi-similarity loss, as in the paper; it leaves out
  what the loss has already solved.

  Cost: O(B G) time and memory.

  Defaults: PML's.

  Args:
    matrix: [B, G] of anchors and candidates.
    positives: [B, G] bool.
    negatives: [B, G] bool.
    inverted: whether the matrix holds similarities.
    epsilon: in the unit of the matrix.

  Returns:
    (positives, negatives), [B, G] bool, the selected pairs.

  Example:
    >>> s = jnp.array([[0.9, 0.5, 0.6, 0.1]])
    >>> positives = jnp.array([[True, True, False, False]])
    >>> p, n = multi_similarity_miner(s, positives, ~positives)
    >>> p.astype(int).tolist(), n.astype(int).tolist()
    ([[0, 1, 0, 0]], [[0, 0, 1, 0]])

  References:
    Wang et al., Multi-Similarity Loss, CVPR 2019, section 4.1.
  """
  d = nearness_order(matrix, inverted)
  nearest = jnp.min(
    jnp.where(negatives, d, jnp.inf), axis=1, keepdims=True, initial=jnp.inf
  )
  farthest = jnp.max(
    jnp.where(positives, d, -jnp.inf), axis=1, keepdims=True, initial=-jnp.inf
  )
  # Written with "not", so that the loss sees a NaN.
  return (
    positives & ~(d + epsilon <= nearest),
    negatives & ~(d - epsilon >= farthest),
  )


def pair_margin_miner(
  matrix: jax.Array,
  positives: jax.Array,
  negatives: jax.Array,
  *,
  inverted: bool = False,
  pos_margin: float = 0.2,
  neg_margin: float = 0.8,
) -> tuple[jax.Array, jax.Array]:
  """Positives farther than a margin, negatives nearer than another.

    positive (a, p)  d_ap > pos_margin     (of similarities, s_ap < pos_margin)
    negative (a, n)  d_an < neg_margin     (s_an > neg_margin)

  Nothing carries a gradient.

  Use it to leave out pairs that are good enough, where the loss has no margin
  of its own.

  Cost: O(B G) time and memory.

  Defaults: PML's.

  Args:
    matrix: [B, G] of anchors and candidates.
    positives: [B, G] bool.
    negatives: [B, G] bool.
    inverted: whether the matrix holds similarities.
    pos_margin: in the unit of the matrix.
    neg_margin: likewise.

  Returns:
    (positives, negatives), [B, G] bool, the selected pairs.

  Example:
    >>> d = jnp.array([[0.1, 0.5, 0.6, 0.9]])
    >>> positives = jnp.array([[True, True, False, False]])
    >>> p, n = pair_margin_miner(d, positives, ~positives)
    >>> p.astype(int).tolist(), n.astype(int).tolist()
    ([[0, 1, 0, 0]], [[0, 0, 1, 0]])

  References:
    PairMarginMiner of PML.
  """
  d = nearness_order(matrix, inverted)
  sign = -1.0 if inverted else 1.0
  # Written with "not", so that the loss sees a NaN.
  return (
    positives & ~(d <= sign * pos_margin),
    negatives & ~(d >= sign * neg_margin),
  )


def packaged_triplets_miner(
  matrix: jax.Array,
  positives: jax.Array,
  negatives: jax.Array,
  *,
  ids: jax.Array,
  candidate_ids: jax.Array,
) -> Listed:
  """Triplets that come as such: rows 3i, 3i + 1 and 3i + 2 of the batch.

    anchor 3i,  positive 3i + 1,  negative 3i + 2

  whatever the labels say; padding is in no pair. It looks at the place in the
  whole batch, so that devices and the order of the candidates change nothing.

  Use it for data that is labelled as triplets, with the loader's order kept.

  Cost: O(B G) time and memory.

  Defaults: there is no hyperparameter.

  Args:
    matrix: [B, G], not looked at.
    positives: [B, G] bool; with the negatives, the pairs there are.
    negatives: [B, G] bool.
    ids: [B] int, the row of the anchor in the whole batch.
    candidate_ids: [G] int likewise.

  Returns:
    [B, 1] triplets.

  Example:
    >>> i = jnp.arange(3)
    >>> pairs = ~jnp.eye(3, dtype=bool)
    >>> p, n, used = packaged_triplets_miner(
    ...   jnp.zeros((3, 3)), pairs, ~pairs, ids=i, candidate_ids=i
    ... )
    >>> p[0].tolist(), n[0].tolist(), used[:, 0].tolist()
    ([1], [2], [True, False, False])

  References:
    EmbeddingsAlreadyPackagedAsTriplets of PML.
  """
  del matrix
  pairs = (positives | negatives) & (ids % 3 == 0)[:, None]
  step = candidate_ids[None, :] - ids[:, None]
  return list_triplets(pairs & (step == 1), pairs & (step == 2))
