"""Multi-similarity loss over the pairs of an anchor."""

import jax
import jax.numpy as jnp

from retrieval_jax.losses.pair import sums
from retrieval_jax.losses.terms import Reducer, Terms, row_term


def multi_similarity(
  matrix: jax.Array,
  positives: jax.Array,
  negatives: jax.Array,
  *,
  alpha: float = 2.0,
  beta: float = 50.0,
  base: float = 0.5,
  inverted: bool = True,
  labels: jax.Array | None = None,
  reducer: str | Reducer = 'mean',
) -> Terms:
  """Multi-similarity loss: pairs weighted by themselves and by their rivals.

    L_a = 1/alpha log(1 + sum_p e^{-alpha (s_p - base)})
        + 1/beta  log(1 + sum_n e^{beta (s_n - base)})

  and of a distance the same with both signs turned.

  Use it as a strong default for fine-grained retrieval with several images of a
  class in a batch, best with the miner `multi_similarity`, as in the paper.

  Cost: O(B G) time and memory.

  Defaults: PML's. The authors' code has this `base` too; the paper has 1, as
  PML's documentation says.

  Args:
    matrix: [B, G] similarities (or distances) of anchors and candidates, any
      float dtype.
    positives: [B, G] bool, the pairs of one class, without the row itself.
    negatives: [B, G] bool, the pairs of two classes.
    alpha: sharpness of the weights of positives, above 0.
    beta: sharpness of the weights of negatives, above 0.
    base: lambda of the paper, the threshold, in the unit of the matrix.
    inverted: whether the matrix holds similarities.
    labels: of the anchors, see `counted_anchors`.
    reducer: over all anchors, also those without a positive or a negative.

  Returns:
    The term 'loss', one value a row.

  Example:
    >>> s = jnp.array([[1.0, 0.9, 0.3], [0.9, 1.0, 0.2], [0.3, 0.2, 1.0]])
    >>> positives = jnp.array([[0, 1, 0], [1, 0, 0], [0, 0, 0]], bool)
    >>> negatives = jnp.array([[0, 0, 1], [0, 0, 1], [1, 1, 0]], bool)
    >>> values, _ = multi_similarity(s, positives, negatives)['loss']
    >>> [f'{value:.4f}' for value in values]
    ['0.1856', '0.1856', '0.0000']

  References:
    Wang et al., Multi-Similarity Loss with General Pair Weighting, CVPR 2019.
  """
  x = matrix.astype(jnp.float32)
  nearer = (x - base) if inverted else (base - x)
  logits = jnp.where(positives, -alpha * nearer, beta * nearer)
  log_p, log_n = sums.pair_logsumexps(logits, positives, negatives)

  def one_more(log_sum, mask):
    found = jnp.any(mask, axis=1)
    return jnp.where(found, jax.nn.softplus(log_sum), 0.0)

  values = one_more(log_p, positives) / alpha
  values += one_more(log_n, negatives) / beta
  valid = sums.counted_anchors(positives, negatives, labels)
  return row_term(values, valid, reducer)
