"""Cross-entropy over classes, on one device or with the classes shared out.

A margin touches the logit of the own class alone, so the log-sum-exp is taken
with that one replaced: the cosines and their gradient are the only [B, C]
arrays that are kept. With a `Shard` each device has the columns of its classes,
and what is exchanged is [B]: the largest logit and the sum of exponentials.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from retrieval_jax.core import collectives
from retrieval_jax.core.class_shards import Shard, is_own, own_cosines
from retrieval_jax.core.hyperparameters import Number
from retrieval_jax.losses import terms
from retrieval_jax.losses.terms import Reducer, Terms

__all__ = [
  'LABEL_SMOOTHING',
  'Shard',
  'margin_softmax',
  'own_cosines',
  'softmax_terms',
]

LABEL_SMOOTHING = Number(most=0.999999, closed=True)
"""What `label_smoothing` may be: in [0, 1)."""


def margin_softmax(
  cosines: jax.Array,
  labels: jax.Array,
  target: Callable[[jax.Array], jax.Array],
  scale: float | jax.Array,
  *,
  label_smoothing: float = 0.0,
  weights: jax.Array | None = None,
  reducer: str | Reducer = 'mean',
  shard: Shard | None = None,
) -> Terms:
  """Cross-entropy of scaled cosines, the own one replaced by a target.

    L_i = -log(e^{s t(c_iy)} / (e^{s t(c_iy)} + sum_{j != y} e^{s c_ij}))

  Label smoothing e aims at 1 - e for the own class and at e / C for each of the
  C classes: L_i + e (z_iy - mean_j z_ij), z being the logits s t(c_iy) and
  s c_ij.

  Args:
    cosines: [B, C] in [-1, 1], any float dtype; the loss is float32.
    labels: [B] int, the own class; negative marks padding, which counts 0. A
      label without a column gives NaN. See `Shard`.
    target: t, [B] -> [B] float32.
    scale: s, a number or a scalar; no gradient flows to it.
    label_smoothing: e, in [0, 1); where a step looks at a sample of the
      classes, C are those of the sample.
    weights: [B] float, of the rows, or None.
    reducer: which rows count.
    shard: how the columns are shared out over devices, or None.

  Returns:
    The term 'loss', one value a row; with a shard equal on all devices.

  Example:
    >>> cosines = jnp.array([[0.8, 0.1], [0.3, 0.4]])
    >>> labels = jnp.array([0, -1])
    >>> found = margin_softmax(cosines, labels, lambda c: c - 0.5, 8.0)
    >>> print(*(x.round(4) for x in found['loss']))
    [0.1839 0.    ] [1. 0.]

  References:
    Szegedy et al., Rethinking the Inception Architecture for Computer Vision,
    CVPR 2016, section 7 (label smoothing).
  """
  cosines = cosines.astype(jnp.float32)
  own = scale * target(own_cosines(cosines, labels, shard))
  return _cross_entropy(
    scale, cosines, labels, own, label_smoothing, weights, reducer, shard
  )


def softmax_terms(
  logits: jax.Array,
  labels: jax.Array,
  own_logits: jax.Array,
  *,
  label_smoothing: float = 0.0,
  weights: jax.Array | None = None,
  reducer: str | Reducer = 'mean',
  shard: Shard | None = None,
) -> Terms:
  """Cross-entropy of logits, the own one replaced.

    L_i = -log(e^{o_i} / (e^{o_i} + sum_{j != y} e^{l_ij}))

  It is `margin_softmax` for a loss that changes the logits of other classes
  too. A logit of -inf leaves the class out; it does not go with smoothing.

  Args:
    logits: l, [B, C], any float dtype; in the own column they are not used.
    labels: [B] int, see `margin_softmax`.
    own_logits: o, [B], equal on all devices.
    label_smoothing: see `margin_softmax`.
    weights: [B] float, of the rows, or None.
    reducer: which rows count.
    shard: how the columns are shared out over devices, or None.

  Returns:
    The term 'loss', one value a row; with a shard equal on all devices.

  Example:
    >>> logits = jnp.array([[9.0, 1.0, 0.0]])
    >>> found = softmax_terms(logits, jnp.array([0]), jnp.array([2.0]))
    >>> print(*(x.round(4) for x in found['loss']))
    [0.4076] [1.]
  """
  logits = logits.astype(jnp.float32)
  own = own_logits.astype(jnp.float32)
  return _cross_entropy(
    1.0, logits, labels, own, label_smoothing, weights, reducer, shard
  )


def _cross_entropy(
  scale, columns, labels, own, label_smoothing, weights, reducer, shard
):
  axis_name, present = shard or (None, None)
  scale = lax.stop_gradient(jnp.asarray(scale, jnp.float32))
  total = _logsumexp_with(axis_name, scale, columns, labels, own, present)
  here = (labels >= 0) & (labels < columns.shape[1])
  found = collectives.psum(here.astype(jnp.int32), axis_name) > 0
  values = jnp.where(found, total - own, jnp.nan)
  if label_smoothing:
    mean = _mean_logit(axis_name, scale, columns, labels, own, present)
    values += label_smoothing * (own - mean)
  if weights is not None:
    weights = weights.astype(jnp.float32)
  return terms.row_term(values, labels >= 0, reducer, weights)


def _mean_logit(axis_name, scale, columns, labels, own, present):
  """Returns the mean of own_i and scale columns_ij, j != y_i, [B]."""
  others = jnp.where(_left_out(columns, labels, present), 0.0, columns)
  number = columns.shape[1] if present is None else jnp.sum(present)
  sums, number = collectives.psum(
    (jnp.sum(others, axis=1), jnp.asarray(number, jnp.float32)), axis_name
  )
  return (scale * sums + own) / number


# The derivative is written by hand so that all of the gradient is one
# elementwise pass over the columns: that of a softmax keeps a matrix of
# exponentials.


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _logsumexp_with(axis_name, scale, columns, labels, own, present):
  """Returns log(e^{own_i} + sum_{j != y_i} e^{scale columns_ij}), [B]."""
  left_out = _left_out(columns, labels, present)
  others = jnp.where(left_out, -jnp.inf, scale * columns)
  largest = jnp.maximum(jnp.max(others, axis=1), own)
  if axis_name is not None:
    largest = lax.pmax(largest, axis_name)
  sums = jnp.sum(jnp.exp(others - largest[:, None]), axis=1)
  sums = collectives.psum(sums, axis_name)
  return largest + jnp.log(sums + jnp.exp(own - largest))


@_logsumexp_with.defjvp
def _logsumexp_with_jvp(axis_name, primals, tangents):
  scale, columns, labels, own, present = primals
  value = _logsumexp_with(axis_name, *primals)
  # At most 1; contracted to one instruction, rounding could overflow it.
  softmax = jnp.exp(jnp.minimum(scale * columns - value[:, None], 0.0))
  softmax = jnp.where(_left_out(columns, labels, present), 0.0, softmax)
  tangent = jnp.sum(scale * softmax * tangents[1], axis=1)
  tangent = collectives.psum(tangent, axis_name)
  own_share = jnp.exp(jnp.minimum(own - value, 0.0))
  return value, tangent + own_share * tangents[3]


def _left_out(columns, labels, present):
  own = is_own(columns, labels)
  return own if present is None else own | ~present[None, :]
