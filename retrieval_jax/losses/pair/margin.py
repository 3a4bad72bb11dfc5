"""Margin loss over the triplets of an anchor, with a learnt boundary."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from retrieval_jax.core.errors import InputError
from retrieval_jax.losses.mining.sampled import random_triplets
from retrieval_jax.losses.mining.triplets import Triplets, pair_counts
from retrieval_jax.losses.terms import Reducer, Terms, reduce_row


def margin(
  matrix: jax.Array,
  positives: jax.Array,
  negatives: jax.Array,
  *,
  margin: float = 0.2,
  nu: float = 0.0,
  beta: float = 1.2,
  learn_beta: bool = False,
  beta_per_class: bool = False,
  triplets_per_anchor: int | str = 'all',
  triplets: Triplets | None = None,
  row_keys: jax.Array | None = None,
  params: Mapping[str, jax.Array] | None = None,
  inverted: bool = False,
  labels: jax.Array | None = None,
  reducer: str | Reducer = 'nonzero_mean',
) -> Terms:
  """Margin loss: positives within a boundary, negatives beyond it.

    L = sum over (a, p, n) of (l_ap + l_an) / number of l_ap, l_an above 0
    l_ap = max(0, d_ap - beta + margin),  l_an = max(0, beta - d_an + margin)

  (of a similarity with both signs turned). A pair counts as often as it is in a
  triplet: of all triplets, l_ap once for each negative of the anchor, l_an once
  for each of its positives; they are counted, not listed. With `learn_beta` the
  boundary is learnt, and nu beta is added to the loss: of one boundary as it
  is, of a boundary for each class over the same triplets and divisor. (Anchors
  with no l above 0 leave their nu beta out there, which PML keeps.)

  Use it with distances on the sphere, where one boundary is to hold for all
  pairs, and not relative to each anchor as in a triplet; the paper draws
  negatives with the miner `distance_weighted`.

  Cost: O(B G) time and memory, besides what the miner takes.

  Defaults: PML's; `beta_per_class` stands for its `num_classes`.

  Args:
    matrix: [B, G] distances (or similarities) of anchors and candidates, any
      float dtype.
    positives: [B, G] bool, the pairs of one class, without the row itself.
    negatives: [B, G] bool, the pairs of two classes.
    margin: alpha of the paper, half the width of the gap, in the unit of the
      matrix.
    nu: weight of the boundary itself, at least 0; only with `learn_beta`.
    beta: the boundary, at the start of training if it is learnt.
    learn_beta: whether it is learnt.
    beta_per_class: whether each class learns its own (PML's `num_classes`).
    triplets_per_anchor: 'all', or how many are drawn of each anchor, uniformly
      with replacement.
    triplets: of a triplet miner; None takes those above.
    row_keys: [B] random keys, with a number of `triplets_per_anchor`.
    params: {'beta'}, float32 of shape () or [C], what is learnt. None keeps the
      boundary at its start.
    inverted: whether the matrix holds similarities.
    labels: [B] int, of the anchors, for boundaries of classes.
    reducer: over l_ap and l_an of all triplets; PML's divisor is
      'nonzero_mean'.

  Returns:
    The term 'loss', the sum and the number of a row's values; with `learn_beta`
    also 'beta'.

  Example:
    >>> d = jnp.array([[0.0, 1.25, 1.0, 1.5]])
    >>> positives = jnp.array([[False, True, False, False]])
    >>> negatives = jnp.array([[False, False, True, True]])
    >>> terms = margin(d, positives, negatives, beta=1.0, margin=0.25)
    >>> print(*terms['loss'])
    [1.25] [3.]

  References:
    Wu et al., Sampling Matters in Deep Embedding Learning, ICCV 2017.
  """
  used = positives | negatives
  x = jnp.where(used, matrix.astype(jnp.float32), 0.0)
  boundary = jnp.float32(beta)
  if learn_beta and params is not None:
    boundary = params['beta'].astype(jnp.float32)
  if boundary.ndim:
    if labels is None or labels.ndim != 1:
      raise InputError(
        'loss.beta_per_class is True for rows that are not of one class each; '
        'allowed is False there: one boundary for all'
      )
    boundary = boundary[jnp.maximum(labels, 0)][:, None]
  sign = -1.0 if inverted else 1.0
  cost_p = jax.nn.relu(sign * (x - boundary) + margin)
  cost_n = jax.nn.relu(sign * (boundary - x) + margin)

  if triplets is None and triplets_per_anchor != 'all':
    triplets = random_triplets(
      positives, negatives, row_keys, triplets_per_anchor
    )
  if triplets is None:
    num_p = jnp.sum(positives, axis=1, keepdims=True, dtype=jnp.float32)
    num_n = jnp.sum(negatives, axis=1, keepdims=True, dtype=jnp.float32)
    times_p, times_n = num_n * positives, num_p * negatives
  else:
    times_p, times_n = pair_counts(triplets, positives, negatives)
  values_p, counts_p = reduce_row(cost_p, times_p > 0, reducer, times_p)
  values_n, counts_n = reduce_row(cost_n, times_n > 0, reducer, times_n)
  values, counts = values_p + values_n, counts_p + counts_n
  terms = {'loss': (values, counts)}
  if learn_beta:
    num_triplets = jnp.sum(times_p, axis=1)
    valid = num_triplets > 0
    if boundary.ndim:
      terms['beta'] = (nu * num_triplets * boundary[:, 0], counts)
    else:
      each = jnp.where(valid, nu * boundary, 0.0)
      terms['beta'] = (each, valid.astype(jnp.float32))
  return terms


def init_margin(
  hyperparameters: Mapping[str, Any],
  num_classes: int,
  embedding_dim: int,
  key: jax.Array,
) -> dict[str, jax.Array]:
  """Returns what `margin` learns, at its start; nothing without `learn_beta`.

  Example:
    >>> init_margin({'learn_beta': True, 'beta': 0.5}, 10, 64, None)
    {'beta': Array(0.5, dtype=float32)}
  """
  del embedding_dim, key
  if not hyperparameters.get('learn_beta', False):
    return {}
  shape = (num_classes,) if hyperparameters.get('beta_per_class') else ()
  return {
    'beta': jnp.full(shape, hyperparameters.get('beta', 1.2), jnp.float32)
  }
