"""N-pairs: one pair of each class, each against the pairs of the others."""

import jax
import jax.numpy as jnp
from jax import lax

from retrieval_jax.core import arrays
from retrieval_jax.core.distances import Distance
from retrieval_jax.core.errors import InputError
from retrieval_jax.losses.terms import Reducer, Terms, row_term

_DISTANCE = Distance('dot')
# Anchors compared at a time; what has no anchor is skipped.
_BLOCK = 64


def n_pairs(
  embeddings: jax.Array,
  candidates: jax.Array,
  positives: jax.Array,
  negatives: jax.Array,
  *,
  labels: jax.Array,
  ids: jax.Array,
  candidate_ids: jax.Array,
  distance: Distance = _DISTANCE,
  reducer: str | Reducer = 'mean',
) -> Terms:
  """N-pairs loss: the anchor of each class against the positives of all.

    L_c = -log(exp(s(a_c, p_c)) / sum_k exp(s(a_c, p_k)))

  with k over the classes that have a pair. A distance d enters as s = -d. The
  anchor of a class is its first row that has a positive, and p_c its first
  positive: in a batch compared with itself, the first and the second image of
  the class. All other rows have no part.

  Use it with two images a class and many classes; with more images a class
  `ntxent` or `supcon` use them all. PML's default normalises the embeddings,
  which keeps the logits within [-1, 1] and the loss nearly flat: take the dot
  product without `normalize`, as in the paper, and a regularizer of the norms.

  Cost: O(B^2 + B C D) time, O(B D + 64 B) memory beside the masks.

  Defaults: PML's distance; there is no hyperparameter.

  Args:
    embeddings: [B, D] of the anchors, any float dtype.
    candidates: [G, D], the same rows, or references, of which the first of each
      class is used.
    positives: [B, G] bool, the pairs of one class, without the row itself.
    negatives: [B, G] bool, not used.
    labels: [B] int, looked at for their rank alone: label sets are refused.
    ids: [B] int, the rows of the anchors; their order is "first".
    candidate_ids: [G] int; those that are no anchors are negative, and come
      after the others.
    distance: what compares a_c with p_k.
    reducer: over the classes with a pair.

  Returns:
    The term 'loss', a value at the anchor of each class.

  Raises:
    InputError: for label sets.

  Example:
    >>> x = jnp.array([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0], [-1.0, 0.0]])
    >>> labels, ids = jnp.array([0, 0, 1, 1]), jnp.arange(4)
    >>> same = labels[:, None] == labels[None, :]
    >>> positives = same & ~jnp.eye(4, dtype=bool)
    >>> terms = n_pairs(
    ...   x, x, positives, ~same, labels=labels, ids=ids, candidate_ids=ids
    ... )
    >>> [f'{value:.3f}' for value in terms['loss'][0]]
    ['0.184', '0.000', '1.171', '0.000']

  References:
    Sohn, Improved Deep Metric Learning with Multi-class N-pair Loss Objective,
    NIPS 2016.
  """
  if labels.ndim != 1:
    raise InputError(
      f'labels has shape {labels.shape}; n_pairs takes (B,), one class a row: '
      'for label sets use multi_label_supcon'
    )
  num_rows = embeddings.shape[0]
  if not num_rows or not candidates.shape[0]:
    return row_term(jnp.zeros(num_rows), jnp.zeros(num_rows, bool), reducer)
  found, partner = _first_positives(positives, candidate_ids)
  # The anchor of a class: no earlier row of the class is among its positives,
  # nor, where these are no anchors, has another row the same first positive.
  earlier = candidate_ids[None, :] < ids[:, None]
  earlier = positives & earlier & (candidate_ids >= 0)[None, :]
  chosen = found & ~jnp.any(earlier, axis=1)
  earlier = chosen[None, :] & (ids[None, :] < ids[:, None])
  earlier &= partner[None, :] == partner[:, None]
  chosen &= ~jnp.any(earlier, axis=1)

  # Anchors first, so that the blocks after them can be skipped.
  order = jnp.argsort(~chosen, stable=True)
  partners = candidates[partner[order]]
  width = -(-num_rows // _BLOCK) * _BLOCK
  anchors = jnp.pad(embeddings[order], ((0, width - num_rows), (0, 0)))
  places = jnp.arange(num_rows)
  count = jnp.sum(chosen)

  def block_values(start):
    rows = start + jnp.arange(_BLOCK)
    block = lax.dynamic_slice_in_dim(anchors, start, _BLOCK)
    logits = distance.matrix(block, partners)
    logits = logits if distance.inverted else -logits
    own = rows[:, None] == places[None, :]
    used = (rows < count)[:, None] & (places < count)[None, :]
    others = arrays.masked_logsumexp(logits, used & ~own)
    own = jnp.sum(jnp.where(own & used, logits, 0.0), axis=1)
    valid = (rows < count) & (count > 1)
    gaps = jnp.where(valid, others - own, 0.0)
    return jnp.where(valid, jax.nn.softplus(gaps), 0.0)

  def block_or_nothing(start):
    return lax.cond(
      start < count, block_values, lambda _: jnp.zeros(_BLOCK), start
    )

  starts = jnp.arange(0, width, _BLOCK)
  values = lax.map(jax.checkpoint(block_or_nothing), starts).reshape(-1)
  return row_term(values[jnp.argsort(order)], chosen, reducer)


def _first_positives(positives, candidate_ids):
  """Returns whether a row has a positive [B], and the column of its first."""
  columns = jnp.arange(candidate_ids.shape[0], dtype=jnp.int32)
  order = jnp.where(candidate_ids >= 0, candidate_ids, 2**30 + columns)
  first = jnp.where(positives, order[None, :], jnp.iinfo(jnp.int32).max)
  return jnp.any(positives, axis=1), jnp.argmin(first, axis=1)
