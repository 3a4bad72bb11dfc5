"""UniFace: one threshold for all classes."""

import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from retrieval_jax.core import collectives
from retrieval_jax.core.class_shards import Shard, is_own, own_cosines
from retrieval_jax.losses import terms
from retrieval_jax.losses.terms import Reducer, Terms


def uniface(
  cosines: jax.Array,
  labels: jax.Array,
  *,
  params: Mapping[str, jax.Array],
  margin: float = 0.4,
  scale: float = 64.0,
  negative_weight: float = 1.0,
  weights: jax.Array | None = None,
  reducer: str | Reducer = 'mean',
  shard: Shard | None = None,
) -> Terms:
  """UniFace: unified cross-entropy, with a learnt threshold for all classes.

    L_i = softplus(b - scale (c_iy - margin))
          + negative_weight sum_{j != y} softplus(scale c_ij - b)

  The bias b is learnt and starts at log(10 C): b / scale is the cosine that
  separates own and other classes, the same for each. The authors' code limits
  the exponents to [-scale, scale], where the gradient ends; here they are not.

  Use it where one threshold has to serve all classes, as in verification;
  softmax losses only order the classes of one image. With very many classes
  lower `negative_weight`, or sample the classes.

  Cost: O(B C) time and memory, beside the product that gives the cosines.

  Defaults: those of the authors' code.

  Args:
    cosines: [B, C] in [-1, 1] up to rounding, any float dtype; the loss is
      float32.
    labels: [B] int, the own class; negative marks padding, which counts 0. A
      label of C or above gives NaN.
    params: {'bias': float32 scalar}, of `init_params`.
    margin: m of the paper, in (0, 1].
    scale: s of the paper, above 0.
    negative_weight: lambda of the paper, above 0.
    weights: [B] float, of the rows; the loss is divided by their sum. None is
      1 for each.
    reducer: over the rows.
    shard: how the classes are shared out over devices, or None.

  Returns:
    The term 'loss', one value a row.

  Example:
    >>> cosines = jnp.array([[0.8, 0.1], [0.3, 0.4]])
    >>> params = {'bias': jnp.array(2.0)}
    >>> terms = uniface(cosines, jnp.array([0, -1]), params=params, scale=8.0)
    >>> print(terms['loss'][0].round(4), terms['loss'][1])
    [0.5266 0.    ] [1. 0.]

  References:
    Zhou et al., UniFace: Unified Cross-Entropy Loss for Deep Face Recognition,
    ICCV 2023.
  """
  axis_name, present = shard or (None, None)
  bias = jnp.asarray(params['bias'], jnp.float32)
  cosines = cosines.astype(jnp.float32)
  own = own_cosines(cosines, labels, shard)
  others = _sum_softplus(axis_name, scale, cosines, bias, labels, present)
  values = jax.nn.softplus(bias - scale * (own - margin))
  values += negative_weight * others
  here = (labels >= 0) & (labels < cosines.shape[1])
  found = collectives.psum(here.astype(jnp.int32), axis_name) > 0
  values = jnp.where(found, values, jnp.nan)
  return terms.row_term(values, labels >= 0, reducer, weights)


def init_params(
  hyper: Mapping[str, Any],
  num_classes: int,
  embedding_dim: int,
  key: jax.Array,
) -> dict[str, jax.Array]:
  """Returns what `uniface` learns: the bias, log(10 C) at first.

  Args:
    hyper: of the loss, not looked at.
    num_classes: C.
    embedding_dim: not looked at.
    key: not looked at.

  Example:
    >>> f'{init_params({}, 100, 8, None)["bias"]:.3f}'
    '6.908'
  """
  del hyper, embedding_dim, key
  return {'bias': jnp.array(math.log(10.0 * num_classes), jnp.float32)}


# The derivative is written by hand so that all of the gradient is one
# elementwise pass over the cosines.


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _sum_softplus(axis_name, scale, cosines, bias, labels, present):
  """Returns sum_{j != y} softplus(scale c_ij - bias), [B]."""
  logits = scale * cosines - bias
  # max(x, 0) + log1p(e^-|x|)
  each = jnp.maximum(logits, 0.0) + jnp.log1p(jnp.exp(-jnp.abs(logits)))
  each = jnp.where(_left_out(cosines, labels, present), 0.0, each)
  return collectives.psum(jnp.sum(each, axis=1), axis_name)


@_sum_softplus.defjvp
def _sum_softplus_jvp(axis_name, scale, primals, tangents):
  cosines, bias, labels, present = primals
  slopes = jax.nn.sigmoid(scale * cosines - bias)
  slopes = jnp.where(_left_out(cosines, labels, present), 0.0, slopes)
  tangent = scale * jnp.sum(slopes * tangents[0], axis=1)
  tangent -= jnp.sum(slopes, axis=1) * tangents[1]
  tangent = collectives.psum(tangent, axis_name)
  return _sum_softplus(axis_name, scale, *primals), tangent


def _left_out(cosines, labels, present):
  own = is_own(cosines, labels)
  return own if present is None else own | ~present[None, :]
