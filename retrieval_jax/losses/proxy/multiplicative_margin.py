"""Softmax losses that multiply the angle with the own class.

Their logits are not of fixed length: they grow with the embedding, and in one
of the two with the proxy.
"""

import math

import jax
import jax.numpy as jnp

from retrieval_jax.core.class_shards import Shard, own_cosines
from retrieval_jax.core.errors import InputError
from retrieval_jax.losses.proxy import softmax
from retrieval_jax.losses.terms import Reducer, Terms


def sphereface(
  cosines: jax.Array,
  labels: jax.Array,
  *,
  norms: jax.Array,
  margin: int = 4,
  scale: float = 1.0,
  weights: jax.Array | None = None,
  reducer: str | Reducer = 'mean',
  shard: Shard | None = None,
) -> Terms:
  """SphereFace: the angle with the own class times a whole number.

    L_i = -log(e^{a_i t_i} / (e^{a_i t_i} + sum_{j != y_i} e^{a_i c_ij}))
    t = (-1)^k cos(m theta) - 2 k   for theta in [k pi / m, (k + 1) pi / m]
    a_i = scale ||x_i||

  cos(m theta) is a polynomial in c = cos(theta), so that the gradient is exact
  on the centre of the class too. The number k carries none. At c = -1 PML takes
  k = m, where the sign of the gradient is the wrong one; here k is m - 1.

  Use it where the length of an embedding should say how sure the model is, or
  to compare with results on it; the ArcFace paper calls its training unstable.
  The scale is 1 because the length is learnt.

  Cost: O(B C) time and memory, beside the product that gives the cosines.

  Defaults: PML's.

  Args:
    cosines: [B, C] in [-1, 1] up to rounding, any float dtype.
    labels: [B] int, the own class; negative marks padding.
    norms: [B] float32, ||x_i||.
    margin: m, a whole number of at least 1; 1 is the softmax without a margin.
    scale: of the logits, above 0.
    weights: [B] float, of the rows; the loss is divided by their sum.
    reducer: over the rows.
    shard: how the classes are shared out over devices, or None.

  Returns:
    The term 'loss', one value a row.

  Example:
    >>> cosines = jnp.array([[0.8, 0.1], [0.3, 0.4]])
    >>> labels = jnp.array([0, 1])
    >>> terms = sphereface(cosines, labels, norms=jnp.array([2.0, 9.0]))
    >>> print(terms['loss'][0].round(3))
    [ 2.028 20.023]

  References:
    Liu et al., SphereFace, CVPR 2017, eq. 7.
  """
  lengths = scale * norms.astype(jnp.float32)
  return _scaled_softmax(
    cosines, labels, lengths, None, margin, weights, reducer, shard
  )


def large_margin_softmax(
  cosines: jax.Array,
  labels: jax.Array,
  *,
  norms: jax.Array,
  proxy_norms: jax.Array,
  margin: int = 4,
  scale: float = 1.0,
  weights: jax.Array | None = None,
  reducer: str | Reducer = 'mean',
  shard: Shard | None = None,
) -> Terms:
  """Large-margin softmax: SphereFace with proxies of any length.

    L_i = -log(e^{a_iy t_i} / (e^{a_iy t_i} + sum_{j != y_i} e^{a_ij c_ij}))
    t = (-1)^k cos(m theta) - 2 k   for theta in [k pi / m, (k + 1) pi / m]
    a_ij = scale ||x_i|| ||w_j||

  With m = 1 the logits are the inner products <x_i, w_j>: the plain softmax of
  a linear classifier. The number k carries no gradient; see SphereFace for what
  is done at c = 1 and c = -1.

  Use it to put a margin on an ordinary linear classifier without normalising
  it. For retrieval by cosines, ArcFace trains what is later compared.

  Cost: O(B C) time and memory, beside the product that gives the cosines.

  Defaults: PML's.

  Args:
    cosines: [B, C] in [-1, 1] up to rounding, any float dtype.
    labels: [B] int, the own class; negative marks padding.
    norms: [B] float32, ||x_i||.
    proxy_norms: [C] float32, ||w_j||, of the columns of `cosines`.
    margin: m, a whole number of at least 1.
    scale: of the logits, above 0.
    weights: [B] float, of the rows; the loss is divided by their sum.
    reducer: over the rows.
    shard: how the classes are shared out over devices, or None.

  Returns:
    The term 'loss', one value a row.

  Example:
    >>> cosines = jnp.array([[0.8, 0.1], [0.3, 0.4]])
    >>> values, counts = large_margin_softmax(
    ...   cosines,
    ...   jnp.array([0, 1]),
    ...   norms=jnp.array([2.0, 9.0]),
    ...   proxy_norms=jnp.array([1.0, 2.0]),
    ... )['loss']
    >>> print(values.round(3))
    [ 2.203 37.346]

  References:
    Liu et al., Large-Margin Softmax, ICML 2016, eq. 6 and 7.
  """
  if proxy_norms.shape[0] != cosines.shape[1]:
    raise InputError(
      f'loss.sub_centers is {proxy_norms.shape[0] // cosines.shape[1]}; '
      'allowed is 1 for large_margin_softmax, which multiplies by the length '
      'of the one proxy of a class'
    )
  lengths = scale * norms.astype(jnp.float32)
  proxy_norms = proxy_norms.astype(jnp.float32)
  return _scaled_softmax(
    cosines, labels, lengths, proxy_norms, margin, weights, reducer, shard
  )


def _scaled_softmax(
  cosines, labels, lengths, proxy_norms, margin, weights, reducer, shard
):
  cosines = cosines.astype(jnp.float32)
  logits = lengths[:, None] * cosines
  own = lengths * _multiply_angle(own_cosines(cosines, labels, shard), margin)
  if proxy_norms is not None:
    logits = logits * proxy_norms[None, :]
    columns = jnp.broadcast_to(proxy_norms[None, :], logits.shape)
    own = own * own_cosines(columns, labels, shard)
  return softmax.softmax_terms(
    logits, labels, own, weights=weights, reducer=reducer, shard=shard
  )


def _multiply_angle(cosines, margin):
  """Returns (-1)^k cos(m theta) - 2 k, falling from 1 to 1 - 2 m."""
  # k counts the angles j pi / m that theta has reached; the slope of the cosine
  # is 0 at each, so either side will do.
  k = sum(
    (cosines <= math.cos(j * math.pi / margin)).astype(jnp.float32)
    for j in range(1, margin)
  )
  before, multiple = jnp.ones_like(cosines), cosines
  for _ in range(1, margin):  # cos((n + 1) theta) from those of n and n - 1.
    before, multiple = multiple, 2.0 * cosines * multiple - before
  return (1.0 - 2.0 * jnp.mod(k, 2.0)) * multiple - 2.0 * k
