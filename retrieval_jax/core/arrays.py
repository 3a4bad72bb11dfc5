"""Similarities, distances and cosines, with gradients that stay finite.

The shape letters of the whole project:

  B  rows on this device (anchors)      Q  queries
  G  rows gathered from all devices     N  gallery
  D  embedding dimension                K  neighbours
  C  classes

Every product of embeddings is taken in float32 at the highest precision: a
rounded similarity of 0.998 for 1.0 changes a ranking and, at scale 64, a loss.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

_PRECISION = lax.Precision.HIGHEST
# Up to so many rows a transposed matrix of pairs is read from a near cache;
# beyond, rows are kept that much apart.
_FEW_ROWS = 256
_APART = 16


def normalize(x: jax.Array, axis: int = -1) -> jax.Array:
  """Scales rows to unit length, x / ||x||; a zero row stays zero.

  Args:
    x: [..., D] any float dtype.
    axis: the axis of the vectors.

  Returns:
    float32, the shape of x. The gradient of a zero row is zero, where
    `x / jnp.linalg.norm(x)` has NaN.

  Example:
    >>> normalize(jnp.array([[3.0, 4.0], [0.0, 0.0]])).tolist()
    [[0.6000000238418579, 0.800000011920929], [0.0, 0.0]]
  """
  x = x.astype(jnp.float32)
  # Scaling by the largest entry first keeps the square from overflowing or
  # underflowing; the direction does not depend on it, so neither does the
  # gradient.
  largest = lax.stop_gradient(jnp.max(jnp.abs(x), axis=axis, keepdims=True))
  nonzero = largest > 0
  x = x / jnp.where(nonzero, largest, 1.0)
  square = jnp.sum(x * x, axis=axis, keepdims=True)
  return x * jnp.where(nonzero, lax.rsqrt(jnp.where(nonzero, square, 1.0)), 0.0)


def norms(x: jax.Array) -> jax.Array:
  """Returns ||x_i|| of x [B, D], [B] float32; at zero the gradient is zero."""
  x = x.astype(jnp.float32)
  largest = lax.stop_gradient(jnp.max(jnp.abs(x), axis=-1, keepdims=True))
  nonzero = ~(largest <= 0)  # A NaN stays a NaN.
  scale = jnp.where(nonzero, largest, 1.0)
  square = jnp.sum((x / scale) ** 2, axis=-1, keepdims=True)
  root = jnp.sqrt(jnp.where(nonzero, square, 1.0))
  return jnp.where(nonzero, scale * root, 0.0)[..., 0]


def dot_products(x: jax.Array, y: jax.Array) -> jax.Array:
  """Returns s_ij = <x_i, y_j>, [B, G] float32, of x [B, D] and y [G, D]."""
  return lax.dot_general(
    x,
    y,
    (((1,), (1,)), ((), ())),
    precision=_PRECISION,
    preferred_element_type=jnp.float32,
  )


def pair_products(x: jax.Array, y: jax.Array) -> jax.Array:
  """Returns `dot_products(x, y)`, with a faster gradient where y is x.

  Of rows with themselves the gradient is one product, (G + G^T) x, instead of
  two.

  Args:
    x: [B, D] any float dtype.
    y: [G, D] likewise.

  Returns:
    [B, G] float32.

  Example:
    >>> x = jnp.array([[1.0, 2.0]])
    >>> pair_products(x, x).tolist()
    [[5.0]]
  """
  return _products_with_itself(x) if x is y else dot_products(x, y)


@jax.custom_jvp
def _products_with_itself(x):
  return dot_products(x, x)


@_products_with_itself.defjvp
def _products_with_itself_jvp(primals, tangents):
  (x,), (dx,) = primals, tangents
  half = dot_products(dx, x)
  return dot_products(x, x), _widened(half + half.T)


def _widened(x):
  """Returns x [B, B]; its gradient has its rows a little farther apart.

  Rows that lie a power of two apart share a few lines of a CPU's cache, so that
  going down a column takes several times as long. The barrier also keeps what
  makes the gradient from being computed a second time, down the columns.
  """
  size = len(x)
  if size <= _FEW_ROWS:
    return x
  wide = jnp.pad(x, ((0, 0), (0, _APART)))
  return lax.optimization_barrier(wide)[:, :size]


def cosine_similarities(x: jax.Array, y: jax.Array) -> jax.Array:
  """Returns s_ij = <x_i, y_j> / (||x_i|| ||y_j||).

  Args:
    x: [B, D] any float dtype, normalised inside.
    y: [G, D] likewise.

  Returns:
    [B, G] float32 in [-1, 1] up to rounding.

  Example:
    >>> x = jnp.array([[1.0, 0.0], [1.0, 1.0]])
    >>> (cosine_similarities(x, x) ** 2).round(4).tolist()
    [[1.0, 0.5], [0.5, 1.0]]
  """
  return dot_products(normalize(x), normalize(y))


def proxy_cosines(
  embeddings: jax.Array, proxies: jax.Array, sub_centers: int = 1
) -> jax.Array:
  """Returns the cosine of each row with each class.

  Args:
    embeddings: [B, D] any float dtype, normalised inside.
    proxies: [C * sub_centers, D], the sub-centres of a class adjacent.
    sub_centers: K of sub-centre ArcFace (Deng et al., ECCV 2020, eq. 2): a
      class is as near as the nearest of its centres.

  Returns:
    [B, C] float32 in [-1, 1] up to rounding.

  Example:
    >>> proxies = jnp.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
    >>> proxy_cosines(jnp.array([[0.0, 2.0]]), proxies, sub_centers=2).tolist()
    [[1.0, 0.0]]
  """
  if sub_centers == 1:
    return cosine_similarities(embeddings, proxies)
  # A product for each centre: a maximum along so short an axis is slower than
  # the products.
  centers = proxies.reshape(-1, sub_centers, proxies.shape[-1])
  cosines = (
    cosine_similarities(embeddings, centers[:, k]) for k in range(sub_centers)
  )
  return functools.reduce(jnp.maximum, cosines)


def masked_logsumexp(
  logits: jax.Array, mask: jax.Array, axis: int = 1
) -> jax.Array:
  """Returns log(sum_j mask_ij exp(x_ij)) along an axis; 0 where there is none.

  Args:
    logits: float32 array.
    mask: bool, of the same shape.
    axis: summed over.

  Returns:
    float32, without the axis. Where the mask is False, and where nothing is
    left to sum, the gradient is zero.

  Example:
    >>> mask = jnp.array([[True, True, False], [False, False, False]])
    >>> masked_logsumexp(jnp.zeros((2, 3)), mask).round(4).tolist()
    [0.6930999755859375, 0.0]
  """
  logits = jnp.where(mask, logits, -jnp.inf)
  found = jnp.any(mask, axis=axis, keepdims=True)
  largest = jnp.max(logits, axis=axis, keepdims=True, initial=-jnp.inf)
  largest = lax.stop_gradient(jnp.where(found, largest, 0.0))
  total = jnp.sum(jnp.exp(logits - largest), axis=axis, keepdims=True)
  return jnp.squeeze(largest + jnp.log(jnp.where(found, total, 1.0)), axis)
