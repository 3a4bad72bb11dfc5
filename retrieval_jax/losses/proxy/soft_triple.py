"""SoftTriple loss: a class with several centres, softly assigned."""

import functools

import jax
import jax.numpy as jnp

from retrieval_jax.core.class_shards import Shard
from retrieval_jax.losses.proxy import softmax
from retrieval_jax.losses.terms import Reducer, Terms


def soft_triple(
  cosines: jax.Array,
  labels: jax.Array,
  *,
  la: float = 20.0,
  gamma: float = 0.1,
  margin: float = 0.01,
  weights: jax.Array | None = None,
  reducer: str | Reducer = 'mean',
  shard: Shard | None = None,
) -> Terms:
  """SoftTriple: a class is as near as a soft maximum of its centres.

    s_ij = sum_k q_ijk c_ijk,  q_ijk = softmax_k(c_ijk / gamma)
    L_i = -log(e^{la (s_iy - margin)}
               / (e^{la (s_iy - margin)} + sum_{j != y} e^{la s_ij}))

  The assignment q has a gradient too. How many centres a class has is the
  option `centers_per_class`, by default 10. The paper adds the regularizer
  `sparse_centers` to the proxies, with a weight of 0.2, which draws the centres
  of a class together until no more remain than are needed.

  Use it where a class holds several looks, as products from all sides do, and
  few images; against `subcenter_arcface` all centres of a class learn from each
  image, not the nearest alone.

  Cost: O(B C K) time and memory, with K centres a class.

  Defaults: PML's.

  Args:
    cosines: [B, C, K] in [-1, 1] up to rounding, any float dtype; the loss is
      float32.
    labels: [B] int, the own class; negative marks padding, which counts 0. A
      label of C or above gives NaN.
    la: lambda of the paper, the scale of the logits, above 0.
    gamma: temperature of the assignment to centres, above 0: the paper's
      gamma. PML divides by it too.
    margin: delta of the paper, on the similarity with the own class, in (0, 1].
    weights: [B] float, of the rows; the loss is divided by their sum. None is
      1 for each.
    reducer: over the rows.
    shard: how the classes are shared out over devices, or None.

  Returns:
    The term 'loss', one value a row.

  Example:
    >>> cosines = jnp.array([[[0.8, 0.2], [0.1, -0.3]]])
    >>> terms = soft_triple(cosines, jnp.array([0]), la=5.0)
    >>> print(terms['loss'][0].round(4))
    [0.0304]

  References:
    Qian et al., SoftTriple Loss: Deep Metric Learning Without Triplet Sampling,
    ICCV 2019.
  """
  similarities = _soft_maximum(gamma, cosines.astype(jnp.float32))
  return softmax.margin_softmax(
    similarities,
    labels,
    lambda s: s - margin,
    la,
    weights=weights,
    reducer=reducer,
    shard=shard,
  )


# The derivative is written by hand so that no [B, C, K] is kept besides the
# cosines.


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _soft_maximum(gamma, x):
  """Returns sum_k softmax_k(x / gamma) x_k, [B, C]."""
  return _assign(gamma, x)[1]


@_soft_maximum.defjvp
def _soft_maximum_jvp(gamma, primals, tangents):
  (x,) = primals
  shares, value = _assign(gamma, x)
  slopes = shares * (1.0 + (x - value[..., None]) / gamma)
  return value, jnp.sum(slopes * tangents[0], axis=-1)


def _assign(gamma, x):
  """Returns the shares [B, C, K] of the centres, and the soft maximum."""
  shares = jnp.exp((x - jnp.max(x, axis=-1, keepdims=True)) / gamma)
  shares /= jnp.sum(shares, axis=-1, keepdims=True)
  return shares, jnp.sum(shares * x, axis=-1)
