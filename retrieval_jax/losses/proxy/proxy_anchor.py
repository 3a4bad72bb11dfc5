"""Proxy-Anchor loss: each proxy is an anchor, compared with all rows."""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from retrieval_jax.core import collectives
from retrieval_jax.core.class_shards import Shard, is_own, own_cosines
from retrieval_jax.losses import terms
from retrieval_jax.losses.terms import Reducer, Terms


def proxy_anchor(
  cosines: jax.Array,
  labels: jax.Array,
  *,
  margin: float = 0.1,
  alpha: float = 32.0,
  weights: jax.Array | None = None,
  reducer: str | Reducer = 'mean',
  axis_name: str | None = None,
  shard: Shard | None = None,
) -> Terms:
  """Proxy-Anchor: each proxy pulls the rows of its class, pushes the others.

    L+ = 1 / |P+| sum_j log(1 + sum_{i: y_i = j} e^{-alpha (c_ij - margin)})
    L- = 1 / C    sum_j log(1 + sum_{i: y_i != j} e^{alpha (c_ij + margin)})

  with P+ the classes that have a row in the batch. The sums over rows are over
  the whole batch, on any number of devices: a hard row takes the gradient of
  its class from the easier ones.

  Use it for fine-grained sets of up to some ten thousand classes; in the paper
  it converges fastest. The authors train the proxies with 100 times the
  learning rate of the network, and clip gradients.

  Cost: O(B C) time and memory, beside the product that gives the cosines;
  devices that share the rows exchange O(C).

  Defaults: PML's and the authors'.

  Args:
    cosines: [B, C] in [-1, 1] up to rounding, any float dtype; the loss is
      float32.
    labels: [B] int, the own class; negative marks padding, which counts 0. A
      label of C or above gives NaN.
    margin: delta of the paper, in (0, 1].
    alpha: scale of the exponents, above 0.
    weights: [B] float, of the rows, or None: how often each is in the sums. 0
      equals leaving the row out.
    reducer: over the classes of each term.
    axis_name: of the devices that hold other rows, or None.
    shard: how the classes are shared out over devices, or None.

  Returns:
    The terms 'positive' and 'negative'. A value is of the whole batch, and is
    dealt out to the rows evenly, as is its count.

  Example:
    >>> cosines = jnp.array([[0.8, 0.1], [0.3, 0.4]])
    >>> terms = proxy_anchor(cosines, jnp.array([0, 1]), alpha=4.0)
    >>> print(*(v.round(4) for v in terms['positive']))
    [0.1612 0.1612] [1. 1.]

  References:
    Kim et al., Proxy Anchor Loss for Deep Metric Learning, CVPR 2020, eq. 4.
  """
  class_axis, present = shard or (None, None)
  cosines = cosines.astype(jnp.float32)
  num_columns = cosines.shape[1]
  used = labels >= 0
  offsets = jnp.zeros(labels.shape, jnp.float32)
  if weights is not None:
    weights = lax.stop_gradient(weights.astype(jnp.float32))
    used &= weights > 0
    offsets = jnp.log(jnp.where(used, weights, 1.0))
  # The columns of rows that are in no sum, or of a class that is elsewhere.
  column = jnp.where(used & (labels < num_columns), labels, num_columns)

  own = own_cosines(cosines, labels, shard)
  pull = _pull(own, column, offsets, num_columns, margin, alpha, axis_name)
  push = _push(
    axis_name,
    margin,
    alpha,
    cosines,
    labels,
    jnp.where(used, offsets, -jnp.inf),
  )
  has_rows = jnp.zeros((num_columns,), jnp.int32)
  has_rows = has_rows.at[column].add(1, mode='drop')
  has_rows = collectives.psum(has_rows, axis_name) > 0
  if present is None:
    present = jnp.ones((num_columns,), bool)

  here = collectives.psum((column < num_columns).astype(jnp.int32), class_axis)
  lost = jnp.any(used & (here == 0))
  num_rows = jnp.sum(used.astype(jnp.float32))
  lost, num_rows = collectives.psum(
    (lost.astype(jnp.float32), num_rows), axis_name
  )

  def deal_out(values, valid):
    totals = terms.reduce_row(values, valid, reducer)
    totals = collectives.psum(tuple(map(jnp.sum, totals)), class_axis)
    share = used.astype(jnp.float32) / jnp.maximum(num_rows, 1.0)
    poison = jnp.where(lost > 0, jnp.nan, 1.0)
    return share * totals[0] * poison, share * totals[1]

  return {
    'positive': deal_out(pull, has_rows & present),
    'negative': deal_out(push, present),
  }


def _pull(own, column, offsets, num_columns, margin, alpha, axis_name):
  """Returns log(1 + sum_{i: y_i = j} w_i e^{-alpha (c_ij - margin)}), [C]."""
  inside = column < num_columns
  logits = jnp.where(inside, -alpha * (own - margin) + offsets, 0.0)
  largest = jnp.zeros((num_columns,), jnp.float32)
  largest = largest.at[column].max(lax.stop_gradient(logits), mode='drop')
  if axis_name is not None:
    largest = lax.pmax(largest, axis_name)
  at_most = jnp.take(largest, column, mode='clip')
  sums = jnp.zeros((num_columns,), jnp.float32)
  sums = sums.at[column].add(jnp.exp(logits - at_most), mode='drop')
  sums = collectives.psum(sums, axis_name)
  return largest + jnp.log(jnp.exp(-largest) + sums)


# The derivative is written by hand so that all of the gradient is one
# elementwise pass over the cosines: that of a softmax keeps a matrix of
# exponentials.


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1, 2))
def _push(axis_name, margin, alpha, cosines, labels, offsets):
  """Returns log(1 + sum_{i: y_i != j} w_i e^{alpha (c_ij + margin)}), [C]."""
  logits = _push_logits(margin, alpha, cosines, labels, offsets)
  largest = jnp.max(logits, axis=0, initial=0.0)
  if axis_name is not None:
    largest = lax.pmax(largest, axis_name)
  sums = jnp.sum(jnp.exp(logits - largest[None, :]), axis=0)
  sums = collectives.psum(sums, axis_name)
  return largest + jnp.log(jnp.exp(-largest) + sums)


@_push.defjvp
def _push_jvp(axis_name, margin, alpha, primals, tangents):
  value = _push(axis_name, margin, alpha, *primals)
  logits = _push_logits(margin, alpha, *primals)
  shares = jnp.exp(logits - value[None, :])
  tangent = alpha * jnp.sum(shares * tangents[0], axis=0)
  return value, collectives.psum(tangent, axis_name)


def _push_logits(margin, alpha, cosines, labels, offsets):
  left_out = is_own(cosines, labels) | (offsets == -jnp.inf)[:, None]
  logits = alpha * (cosines + margin) + offsets[:, None]
  return jnp.where(left_out, -jnp.inf, logits)
