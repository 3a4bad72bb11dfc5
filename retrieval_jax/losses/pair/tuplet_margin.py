"""Tuplet margin loss over the pairs of an anchor."""

import math

import jax
import jax.numpy as jnp

from retrieval_jax.core import arrays
from retrieval_jax.losses.terms import Reducer, Terms, row_term


def tuplet_margin(
  similarities: jax.Array,
  positives: jax.Array,
  negatives: jax.Array,
  *,
  margin_deg: float = 5.73,
  scale: float = 64.0,
  reducer: str | Reducer = 'mean',
) -> Terms:
  """Tuplet margin: a positive pair, eased by an angle, against the negatives.

    L_ap = log(1 + sum_n e^{scale (s_an - cos(theta_ap - margin))})

  with theta_ap the angle of the positive pair. The margin makes a positive look
  nearer, so that the hardest ones do not rule; below the margin it looks
  farther again, as in PML. Where s_ap is 1 or -1 the angle has no gradient; the
  one of its sine is taken as zero there.

  Use it against N-pairs or NT-Xent when outliers within a class spoil the
  training; `intra_pair_variance` is its companion in the paper.

  Cost: O(B G) time and memory.

  Defaults: PML's.

  Args:
    similarities: [B, G] cosines of anchors and candidates, any float dtype.
    positives: [B, G] bool, the pairs of one class, without the row itself.
    negatives: [B, G] bool, the pairs of two classes.
    margin_deg: beta of the paper in degrees, at least 0.
    scale: s of the paper, above 0.
    reducer: over the positive pairs.

  Returns:
    The term 'loss', the sum and the number of the positive pairs of a row.

  Example:
    >>> s = jnp.array([[1.0, 0.9, 0.7, 0.2]])
    >>> positives = jnp.array([[False, True, False, False]])
    >>> negatives = jnp.array([[False, False, True, True]])
    >>> terms = tuplet_margin(s, positives, negatives, scale=8.0)
    >>> f'{terms["loss"][0][0]:.4f}'
    '0.1402'

  References:
    Yu and Tao, Deep Metric Learning with Tuplet Margin Loss, ICCV 2019.
  """
  s = jnp.where(positives | negatives, similarities.astype(jnp.float32), 0.0)
  log_n = arrays.masked_logsumexp(scale * s, negatives)
  margin = math.radians(margin_deg)
  square = 1.0 - s * s
  inside = positives & ~(square <= 0)
  sine = jnp.where(inside, jnp.sqrt(jnp.where(inside, square, 1.0)), 0.0)
  eased = s * math.cos(margin) + sine * math.sin(margin)
  values = jax.nn.softplus(log_n[:, None] - scale * eased)
  found = jnp.any(negatives, axis=1, keepdims=True)
  return row_term(jnp.where(found, values, 0.0), positives, reducer)
