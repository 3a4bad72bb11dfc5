"""Losses whose value for an anchor is a function of its pairs."""

import jax
import jax.numpy as jnp
from jax import lax

from retrieval_jax.losses.terms import Terms, row_term


def circle(
  similarities: jax.Array,
  positives: jax.Array,
  negatives: jax.Array,
  *,
  margin: float = 0.4,
  scale: float = 80.0,
  reducer: str = 'nonzero_mean',
) -> Terms:
  """Circle loss, each pair weighted by how far it is from its optimum.

    L_a = softplus(logsumexp_p(-scale alpha_p (s_p - (1 - margin)))
                   + logsumexp_n(scale alpha_n (s_n - margin)))
    alpha_p = max(0, 1 + margin - s_p),  alpha_n = max(0, s_n + margin)

  The weights alpha carry no gradient.

  Args:
    similarities: [B, G] cosines of anchors and candidates, any float dtype.
    positives: [B, G] bool, the pairs of one class, without the row itself.
    negatives: [B, G] bool, the pairs of two classes.
    margin: m of the paper, the relaxation of the boundary, in (0, 1].
    scale: gamma of the paper, above 0.
    reducer: 'nonzero_mean' or 'mean', over the anchors that have a positive
      and a negative.

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
  values = jax.nn.softplus(
    _masked_logsumexp(logits_p, positives)
    + _masked_logsumexp(logits_n, negatives)
  )
  valid = jnp.any(positives, axis=1) & jnp.any(negatives, axis=1)
  return row_term(values, valid, reducer)


def _masked_logsumexp(logits: jax.Array, mask: jax.Array) -> jax.Array:
  """Returns log(sum_j mask_ij exp(x_ij)) [B]; 0 for a row without any."""
  logits = jnp.where(mask, logits, -jnp.inf)
  largest = lax.stop_gradient(jnp.max(logits, axis=1, initial=-jnp.inf))
  found = jnp.any(mask, axis=1)
  largest = jnp.where(found, largest, 0.0)
  total = jnp.sum(jnp.exp(logits - largest[:, None]), axis=1)
  return largest + jnp.log(jnp.where(found, total, 1.0))
