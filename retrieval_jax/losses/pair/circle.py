"""Circle loss over the pairs of an anchor."""

import jax
import jax.numpy as jnp
from jax import lax

from retrieval_jax.losses.pair import sums
from retrieval_jax.losses.terms import Reducer, Terms, row_term


def circle(
  similarities: jax.Array,
  positives: jax.Array,
  negatives: jax.Array,
  *,
  margin: float = 0.4,
  scale: float = 80.0,
  reducer: str | Reducer = 'nonzero_mean',
) -> Terms:
  """Circle loss, each pair weighted by how far it is from its optimum.

    L_a = softplus(logsumexp_p(-scale alpha_p (s_p - (1 - margin)))
                   + logsumexp_n(scale alpha_n (s_n - margin)))
    alpha_p = max(0, 1 + margin - s_p),  alpha_n = max(0, s_n + margin)

  The weights alpha carry no gradient. Anchors without a positive or without a
  negative have no loss, and do not count.

  Use it as the first choice among losses of pairs, with at least a few images
  of a class in a batch: it has one margin and no threshold to find. The papers
  of other fields take `margin` 0.25 with a `scale` of 128 (persons) or 256
  (faces).

  Cost: O(B G) time and memory.

  Defaults: PML's, which the paper has for fine-grained retrieval.

  Args:
    similarities: [B, G] cosines of anchors and candidates, any float dtype.
    positives: [B, G] bool, the pairs of one class, without the row itself.
    negatives: [B, G] bool, the pairs of two classes.
    margin: m of the paper, the relaxation of the boundary, in (0, 1].
    scale: gamma of the paper, above 0.
    reducer: over the anchors that have a positive and a negative.

  Returns:
    The term 'loss', one value a row.

  Example:
    >>> s = jnp.array([[1.0, 0.9, 0.3], [0.9, 1.0, 0.2], [0.3, 0.2, 1.0]])
    >>> positives = jnp.array([[0, 1, 0], [1, 0, 0], [0, 0, 0]], bool)
    >>> negatives = jnp.array([[0, 0, 1], [0, 0, 1], [1, 1, 0]], bool)
    >>> values, counts = circle(s, positives, negatives, scale=8.0)['loss']
    >>> [f'{value:.4f}' for value in values], counts.tolist()
    (['0.1587', '0.1091', '0.0000'], [1.0, 1.0, 0.0])

  References:
    Sun et al., Circle Loss, CVPR 2020, eq. 6 and 8.
  """
  s = similarities.astype(jnp.float32)
  fixed = lax.stop_gradient(s)
  alpha_p = jax.nn.relu(1.0 + margin - fixed)
  alpha_n = jax.nn.relu(fixed + margin)
  logits_p = -scale * alpha_p * (s - (1.0 - margin))
  logits_n = scale * alpha_n * (s - margin)
  log_p, log_n = sums.pair_logsumexps(
    jnp.where(positives, logits_p, logits_n), positives, negatives
  )
  values = jax.nn.softplus(log_p + log_n)
  valid = jnp.any(positives, axis=1) & jnp.any(negatives, axis=1)
  return row_term(values, valid, reducer)
