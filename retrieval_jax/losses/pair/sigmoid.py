"""Sigmoid loss over the pairs of an anchor, with a learnt temperature."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from retrieval_jax.losses.pair import sums
from retrieval_jax.losses.terms import Reducer, Terms, row_term


def sigmoid(
  similarities: jax.Array,
  positives: jax.Array,
  negatives: jax.Array,
  *,
  temperature: float = 10.0,
  bias: float = -10.0,
  params: Mapping[str, jax.Array] | None = None,
  labels: jax.Array | None = None,
  reducer: str | Reducer = 'mean',
) -> Terms:
  """Sigmoid pairs: each pair a yes or no question, "the same class?".

    L_a = sum_j softplus(-l_aj (t s_aj + b)),  l = 1 positive, -1 negative

  with the temperature t and the bias b learnt. As in the paper the sum over the
  pairs of an anchor is not divided by their number; the mean is over anchors.
  The bias begins low because most pairs are negative.

  Use it for large batches, where it needs no normalisation over the row, and
  for embeddings whose similarity should be a probability: sigmoid(t s + b).

  Cost: O(B G) time and memory.

  Defaults: the paper's, where the training starts.

  Args:
    similarities: [B, G] cosines of anchors and candidates, any float dtype.
    positives: [B, G] bool, the pairs of one class, without the row itself.
    negatives: [B, G] bool, the pairs of two classes.
    temperature: t at the start of training, above 0.
    bias: b at the start of training.
    params: {'log_temperature', 'bias'}, float32 scalars, what is learnt. None
      keeps both at their start.
    labels: of the anchors, see `counted_anchors`.
    reducer: over all anchors.

  Returns:
    The term 'loss', one value a row.

  Example:
    >>> s = jnp.array([[1.0, 0.75, 0.25]])
    >>> positives = jnp.array([[False, True, False]])
    >>> negatives = jnp.array([[False, False, True]])
    >>> terms = sigmoid(s, positives, negatives, temperature=8.0, bias=-4.0)
    >>> print(terms['loss'][0].round(4))
    [0.2539]

  References:
    Zhai et al., Sigmoid Loss for Language Image Pre-Training, ICCV 2023.
  """
  if params is not None:
    temperature = jnp.exp(params['log_temperature'].astype(jnp.float32))
    bias = params['bias'].astype(jnp.float32)
  used = positives | negatives
  s = jnp.where(used, similarities.astype(jnp.float32), 0.0)
  logits = temperature * s + bias
  costs = jax.nn.softplus(jnp.where(positives, -logits, logits))
  values = jnp.sum(jnp.where(used, costs, 0.0), axis=1)
  valid = sums.counted_anchors(positives, negatives, labels)
  return row_term(values, valid, reducer)


def init_sigmoid(
  hyperparameters: Mapping[str, Any],
  num_classes: int,
  embedding_dim: int,
  key: jax.Array,
) -> dict[str, jax.Array]:
  """Returns what `sigmoid` learns, at its start.

  The logarithm of the temperature is learnt, so that it stays above 0.

  Example:
    >>> sorted(init_sigmoid({}, 10, 64, None))
    ['bias', 'log_temperature']
  """
  del num_classes, embedding_dim, key
  temperature = hyperparameters.get('temperature', 10.0)
  return {
    'log_temperature': jnp.float32(math.log(temperature)),
    'bias': jnp.float32(hyperparameters.get('bias', -10.0)),
  }
