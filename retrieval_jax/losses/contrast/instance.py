"""Instance loss, in the form that PML gave it."""

import jax
import jax.numpy as jnp

from retrieval_jax.core import arrays
from retrieval_jax.core.errors import InputError
from retrieval_jax.losses.terms import Reducer, Terms, row_term


def instance(
  similarities: jax.Array,
  positives: jax.Array,
  negatives: jax.Array,
  *,
  labels: jax.Array,
  candidate_labels: jax.Array,
  scale: float = 64.0,
  reducer: str | Reducer = 'mean',
) -> Terms:
  """Instance loss: each row is classified among the rows of the batch.

    L_i = -log(exp(scale s_ik) / sum_j exp(scale s_ij)),  k = rank of label i

  with j over all rows of the batch, i itself included, and the rank of a label
  among the sorted labels of the batch, from 0. That column k stands for class
  k is PML's convention (and that of the authors' code it follows), whatever
  the label of row k: it is meant for batches whose row k is of the k-th class,
  such as one image of each class in the order of the labels. Other batches pull
  a class towards an image of another one.

  Use it for batches in that order only, to repeat results of PML. The loss of
  the paper, a softmax with a learned vector for each instance or class, is
  `normalized_softmax`; among the images of a batch, `ntxent`.

  Cost: O(B G + G log G) time, O(B G) memory.

  Defaults: PML's.

  Args:
    similarities: [B, G] cosines of all rows, the row itself included, any
      float dtype.
    positives: [B, G] bool, not used.
    negatives: [B, G] bool, not used.
    labels: [B] int; negative marks padding.
    candidate_labels: [G] int likewise.
    scale: gamma of PML, above 0.
    reducer: over the rows.

  Returns:
    The term 'loss', one value a row.

  Raises:
    InputError: for label sets, where there is no one class a row.

  Example:
    >>> s = jnp.array([[1.0, 0.5], [0.5, 1.0]])
    >>> labels, masks = jnp.array([3, 7]), jnp.eye(2, dtype=bool)
    >>> terms = instance(
    ...   s, masks, masks, labels=labels, candidate_labels=labels, scale=4.0
    ... )
    >>> print(terms['loss'][0].round(4))
    [0.1269 0.1269]

  References:
    Zheng et al., Dual-Path Convolutional Image-Text Embeddings with Instance
    Loss, ACM TOMM 2020.
  """
  if labels.ndim != 1:
    raise InputError(
      f'labels has shape {labels.shape}; instance takes (B,), one class a row: '
      'for label sets use multi_label_supcon'
    )
  logits = scale * similarities.astype(jnp.float32)
  valid = candidate_labels >= 0
  # Padding sorts first and is no new label; its rows take no place.
  ordered = jnp.sort(candidate_labels)
  new = (ordered >= 0) & (ordered != jnp.roll(ordered, 1))
  new = new.at[:1].set(ordered[:1] >= 0)
  smaller = jnp.concatenate([jnp.zeros(1, jnp.int32), jnp.cumsum(new)])
  rank = smaller[jnp.searchsorted(ordered, labels)]
  # The column of that rank; one beyond the last, if there are not so many.
  column = jnp.searchsorted(jnp.cumsum(valid), rank + 1)
  own = jnp.arange(len(valid))[None, :] == column[:, None]
  others = arrays.masked_logsumexp(logits, valid[None, :] & ~own)
  target = jnp.sum(jnp.where(own, logits, 0.0), axis=1)
  counted = (labels >= 0) & jnp.any(own, axis=1)
  used = counted & (jnp.sum(valid) > 1)
  gaps = jnp.where(used, others - target, 0.0)
  values = jnp.where(used, jax.nn.softplus(gaps), 0.0)
  return row_term(values, counted, reducer)
