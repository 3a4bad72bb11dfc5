"""One softmax for each anchor: SupCon, its multi-label form, and NCA."""

import jax
import jax.numpy as jnp

from retrieval_jax.core import arrays
from retrieval_jax.losses.terms import Reducer, Terms, row_term


def supcon(
  matrix: jax.Array,
  positives: jax.Array,
  negatives: jax.Array,
  *,
  inverted: bool = True,
  temperature: float = 0.1,
  reducer: str | Reducer = 'nonzero_mean',
) -> Terms:
  """Supervised contrastive loss: the positives share a softmax.

    L_a = mean_p -log(exp(s_ap / t) / sum_j exp(s_aj / t))

  with j over the positives and the negatives. A distance d enters as s = -d.
  An anchor with positives and no negative has the loss of its positives among
  themselves, as in the paper and in PML; only if the whole batch has no
  negative does PML return 0.

  Use it with several images of a class in the batch, 64 and more rows. With two
  images a class it equals `ntxent` up to the temperature.

  Cost: O(B G) time and memory.

  Defaults: PML's and the paper's.

  Args:
    matrix: [B, G] similarities or distances of anchors and candidates, any
      float dtype.
    positives: [B, G] bool, the pairs of one class, without the row itself.
    negatives: [B, G] bool, the pairs of two classes.
    inverted: whether the matrix holds similarities.
    temperature: t, in the unit of the matrix, above 0.
    reducer: over the anchors that have a positive.

  Returns:
    The term 'loss', one value a row.

  Example:
    >>> s = jnp.array([[1.0, 0.75, 0.5, 0.5]])
    >>> positives = jnp.array([[False, True, True, False]])
    >>> negatives = jnp.array([[False, False, False, True]])
    >>> terms = supcon(s, positives, negatives, temperature=0.25)
    >>> print(terms['loss'][0].round(4))
    [1.0514]

  References:
    Khosla et al., Supervised Contrastive Learning, NeurIPS 2020, eq. 2.
  """
  weights = positives.astype(jnp.float32)
  return _shared_softmax(
    matrix, positives, negatives, weights, inverted, temperature, reducer
  )


def multi_label_supcon(
  matrix: jax.Array,
  positives: jax.Array,
  negatives: jax.Array,
  *,
  relevance: jax.Array,
  inverted: bool = True,
  temperature: float = 0.1,
  threshold: float = 0.5,
  reducer: str | Reducer = 'nonzero_mean',
) -> Terms:
  """SupCon over label sets, each positive weighted by the overlap of labels.

    L_a = mean over p in N_a of -r_ap log(exp(s_ap / t) / sum_j exp(s_aj / t))
    N_a = {p: r_ap > 0 and r_ap >= threshold}

  with j over all others. r is the relevance of the pair, for label sets the
  Jaccard index, the labels in both over the labels in either. A pair with less
  than the threshold is in the denominator only. A distance d enters as s = -d.
  With one label an image it is `supcon`. This is the MultiSupConLoss of PML 3;
  MulSupCon (Zhang and Wu, AAAI 2024) has one softmax for each label instead.

  Use it for images with several labels each, or with graded relevance, where a
  pair is neither positive nor negative. Lower the threshold if most sets
  overlap by less than half.

  Cost: O(B G) time and memory.

  Defaults: PML 3's.

  Args:
    matrix: [B, G] similarities or distances of anchors and candidates, any
      float dtype.
    positives: [B, G] bool, the pairs with some relevance, without the row.
    negatives: [B, G] bool, the pairs with none.
    relevance: [B, G] float32, r, at least 0.
    inverted: whether the matrix holds similarities.
    temperature: t, in the unit of the matrix, above 0.
    threshold: the least relevance of a positive, compared in float32, at least
      0.
    reducer: over the anchors that have a positive.

  Returns:
    The term 'loss', one value a row.

  Example:
    >>> s = jnp.array([[1.0, 0.75, 0.5, 0.5]])
    >>> positives = jnp.array([[False, True, True, False]])
    >>> negatives = jnp.array([[False, False, False, True]])
    >>> terms = multi_label_supcon(
    ...   s,
    ...   positives,
    ...   negatives,
    ...   relevance=jnp.array([[1.0, 0.5, 0.25, 0.0]]),
    ...   temperature=0.25,
    ... )
    >>> print(terms['loss'][0].round(4))
    [0.2757]

  References:
    Khosla et al., Supervised Contrastive Learning, NeurIPS 2020, eq. 2, for
    one label.
    Zhang and Wu, Multi-Label Supervised Contrastive Learning, AAAI 2024, for
    the choice of the weights.
  """
  relevance = jnp.where(positives, relevance.astype(jnp.float32), 0.0)
  chosen = positives & (relevance >= threshold)
  return _shared_softmax(
    matrix,
    chosen,
    (positives | negatives) & ~chosen,
    jnp.where(chosen, relevance, 0.0),
    inverted,
    temperature,
    reducer,
  )


def nca(
  matrix: jax.Array,
  positives: jax.Array,
  negatives: jax.Array,
  *,
  inverted: bool = False,
  softmax_scale: float = 1.0,
  reducer: str | Reducer = 'mean',
) -> Terms:
  """Neighbourhood components analysis: a soft vote of the neighbours.

    L_a = -log(sum_p exp(-c d_ap) / sum_j exp(-c d_aj))

  with j over the positives and the negatives. A similarity s enters as d = -s.
  One near positive is enough, the others are left alone. PML leaves out the
  anchors whose share of positives underflows, the worst ones; here they count.

  Use it where a class has several modes, or for kNN classification. With
  normalised embeddings c = 1 is nearly flat, as the squared distances end at 4:
  raise it.

  Cost: O(B G) time and memory.

  Defaults: PML's.

  Args:
    matrix: [B, G] similarities or distances of anchors and candidates, any
      float dtype; PML's default are squared Euclidean distances.
    positives: [B, G] bool, the pairs of one class, without the row itself.
    negatives: [B, G] bool, the pairs of two classes.
    inverted: whether the matrix holds similarities.
    softmax_scale: c, above 0.
    reducer: over the anchors that have a positive.

  Returns:
    The term 'loss', one value a row.

  Example:
    >>> d = jnp.array([[0.0, 0.25, 0.5, 0.5]])
    >>> positives = jnp.array([[False, True, True, False]])
    >>> negatives = jnp.array([[False, False, False, True]])
    >>> terms = nca(d, positives, negatives, softmax_scale=4.0)
    >>> print(terms['loss'][0].round(4))
    [0.2382]

  References:
    Goldberger et al., Neighbourhood Components Analysis, NeurIPS 2004; the
    logarithm of their vote is that of PML.
  """
  matrix = matrix.astype(jnp.float32)
  logits = softmax_scale * (matrix if inverted else -matrix)
  found = jnp.any(positives, axis=1)
  gaps = arrays.masked_logsumexp(logits, negatives)
  gaps -= arrays.masked_logsumexp(logits, positives)
  used = found & jnp.any(negatives, axis=1)
  values = jax.nn.softplus(jnp.where(used, gaps, 0.0))
  return row_term(jnp.where(used, values, 0.0), found, reducer)


def _shared_softmax(
  matrix, positives, others, weights, inverted, temperature, reducer
):
  matrix = matrix.astype(jnp.float32)
  logits = (matrix if inverted else -matrix) / temperature
  total = arrays.masked_logsumexp(logits, positives | others)
  # Differences from the total, and not a sum of logits less a multiple of it:
  # near 0 the two would cancel.
  gaps = jnp.where(positives, total[:, None] - logits, 0.0)
  count = jnp.sum(positives, axis=1).astype(jnp.float32)
  values = jnp.sum(weights * gaps, axis=1) / jnp.maximum(count, 1.0)
  return row_term(values, count > 0, reducer)
