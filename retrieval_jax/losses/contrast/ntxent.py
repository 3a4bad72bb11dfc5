"""One softmax for each positive pair: NT-Xent and decoupled contrastive."""

import jax
import jax.numpy as jnp

from retrieval_jax.core import arrays
from retrieval_jax.losses.terms import Reducer, Terms, row_term


def ntxent(
  matrix: jax.Array,
  positives: jax.Array,
  negatives: jax.Array,
  *,
  inverted: bool = True,
  temperature: float = 0.07,
  reducer: str | Reducer = 'mean',
) -> Terms:
  """NT-Xent (InfoNCE): each positive pair against the anchor's negatives.

    L_ap = -log(exp(s_ap / t) / (exp(s_ap / t) + sum_n exp(s_an / t)))

  A distance d enters as s = -d. The other positives of the anchor are not in
  the denominator, as in PML. PML adds the smallest float32 number inside the
  logarithm, so that a pair loses its gradient where L_ap is above 87; here it
  does not.

  Use it for self-supervised views and for labels alike. With many images of a
  class it pulls each positive pair by itself, where `supcon` averages them
  over the anchor and lets them compete.

  Cost: O(B G) time and memory; PML compares each positive with each negative
  pair of the batch, O(B^4 / C) of both.

  Defaults: PML's.

  Args:
    matrix: [B, G] similarities or distances of anchors and candidates, any
      float dtype.
    positives: [B, G] bool, the pairs of one class, without the row itself.
    negatives: [B, G] bool, the pairs of two classes.
    inverted: whether the matrix holds similarities.
    temperature: t, in the unit of the matrix, above 0.
    reducer: over the positive pairs. A pair of an anchor without negatives
      counts, with a loss of 0.

  Returns:
    The term 'loss', the sum and the number of the positive pairs of a row.

  Example:
    >>> s = jnp.array([[1.0, 0.75, 0.5, 0.5]])
    >>> positives = jnp.array([[False, True, False, False]])
    >>> negatives = jnp.array([[False, False, True, True]])
    >>> values, counts = ntxent(s, positives, negatives, temperature=0.25)[
    ...   'loss'
    ... ]
    >>> print(values.round(4), counts)
    [0.5514] [1.]

  References:
    Chen et al., A Simple Framework for Contrastive Learning of Visual
    Representations, ICML 2020, eq. 1.
    van den Oord et al., Representation Learning with Contrastive Predictive
    Coding, 2018, eq. 4.
  """
  logits = _logits(matrix, inverted, temperature)
  others = arrays.masked_logsumexp(logits, negatives)[:, None]
  used = positives & jnp.any(negatives, axis=1, keepdims=True)
  gaps = jnp.where(used, others - logits, 0.0)
  values = jnp.where(used, jax.nn.softplus(gaps), 0.0)
  return row_term(values, positives, reducer)


def decoupled_contrastive(
  matrix: jax.Array,
  positives: jax.Array,
  negatives: jax.Array,
  *,
  inverted: bool = True,
  temperature: float = 0.1,
  reducer: str | Reducer = 'mean',
) -> Terms:
  """Decoupled contrastive loss: NT-Xent with no positive in the denominator.

    L_ap = -s_ap / t + log(sum_n exp(s_an / t))

  A distance d enters as s = -d. The paper has one positive, the other view;
  with labels there is a term for each positive pair. The loss has no lower
  bound of 0, so that reducers that look for values above 0 do not suit it.

  Use it instead of `ntxent` with small batches: there the gradient of NT-Xent
  fades as soon as the positive is nearer than the few negatives; here it does
  not depend on how near the positive is.

  Cost: O(B G) time and memory.

  Defaults: that of a public implementation, raminnakhli's
  Decoupled-Contrastive-Learning.

  Args:
    matrix: [B, G] similarities or distances of anchors and candidates, any
      float dtype.
    positives: [B, G] bool, the pairs of one class, without the row itself.
    negatives: [B, G] bool, the pairs of two classes.
    inverted: whether the matrix holds similarities.
    temperature: t, in the unit of the matrix, above 0.
    reducer: over the positive pairs of anchors that have a negative.

  Returns:
    The term 'loss', the sum and the number of the positive pairs of a row.

  Example:
    >>> s = jnp.array([[1.0, 0.75, 0.5, 0.5]])
    >>> positives = jnp.array([[False, True, False, False]])
    >>> negatives = jnp.array([[False, False, True, True]])
    >>> terms = decoupled_contrastive(s, positives, negatives, temperature=0.25)
    >>> print(terms['loss'][0].round(4))
    [-0.3069]

  References:
    Yeh et al., Decoupled Contrastive Learning, ECCV 2022.
  """
  logits = _logits(matrix, inverted, temperature)
  others = arrays.masked_logsumexp(logits, negatives)[:, None]
  used = positives & jnp.any(negatives, axis=1, keepdims=True)
  return row_term(jnp.where(used, others - logits, 0.0), used, reducer)


def _logits(matrix, inverted, temperature):
  matrix = matrix.astype(jnp.float32)
  return (matrix if inverted else -matrix) / temperature
