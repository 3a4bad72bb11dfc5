"""How far apart two embeddings are: the matrices that pair losses work on.

No [B, G, D] array of differences is made. Squared Euclidean distances come
from a matrix product,

  ||x - y||^2 = ||x||^2 + ||y||^2 - 2 <x, y>,

after a shift that brings the candidates' mean to the origin (no distance
depends on it, and what cancels is then of the size of the distances). Other p
add up |x_k - y_k|^p over a few dimensions at a time.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jax import lax

from retrieval_jax.core import arrays
from retrieval_jax.core.errors import InputError, unknown_name

NAMES = ('cosine', 'dot', 'lp', 'snr')

# Dimensions that are added up in one pass over the matrix.
_CHUNK = 8
# Of ||x||^2 + ||y||^2: below it a squared distance is rounding, and its
# gradient would be noise magnified by 1 / d.
_ROUNDING = 5e-7


@dataclasses.dataclass(frozen=True)
class Distance:
  """A similarity or a distance of embeddings, by name.

    cosine  <x, y> / (||x|| ||y||)
    dot     <x, y>
    lp      ||x - y||_p ^ power
    snr     var(x - y) / var(x), x being the anchor, var over the dimensions

  Where two embeddings coincide, the gradient of their distance is zero. The
  'snr' distance from a constant anchor, which has no variance, is 0 with a zero
  gradient (PML: infinite or NaN).

  Attributes:
    name: one of `NAMES`.
    p: of 'lp', at least 1.
    power: of 'lp', above 0.
    normalize: whether embeddings are scaled to unit length before ('lp': to a
      p-norm of 1, as PML does); 'cosine' always does.

  Example:
    >>> x = jnp.array([[1.0, 0.0], [0.0, 1.0]])
    >>> Distance('lp', power=2).matrix(x, x).tolist()
    [[0.0, 2.0], [2.0, 0.0]]
    >>> Distance('lp', p=1, normalize=False).matrix(3 * x, x).tolist()
    [[2.0, 4.0], [4.0, 2.0]]

  References:
    Yuan et al., Signal-to-Noise Ratio: A Robust Distance Metric for Deep
    Metric Learning, CVPR 2019 ('snr').
  """

  name: str = 'cosine'
  p: float = 2.0
  power: float = 1.0
  normalize: bool = True

  def __post_init__(self):
    if self.name not in NAMES:
      raise unknown_name('distance.name', self.name, NAMES)
    if not (math.isfinite(self.p) and self.p >= 1):
      raise InputError(
        f'distance.p is {self.p!r}; allowed is a number of at least 1: below '
        'it there is no triangle inequality'
      )
    if not (math.isfinite(self.power) and self.power > 0):
      raise InputError(
        f'distance.power is {self.power!r}; allowed is a number above 0'
      )

  @property
  def inverted(self) -> bool:
    """Whether larger means nearer, as of a similarity."""
    return self.name in ('cosine', 'dot')

  def matrix(self, x: jax.Array, y: jax.Array) -> jax.Array:
    """Returns [B, G] float32 of anchors x [B, D] and candidates y [G, D]."""
    is_same, x = x is y, self.prepare(x)
    y = x if is_same else self.prepare(y)
    if self.inverted:
      return arrays.pair_products(x, y)
    if self.name == 'snr':
      return _snr_matrix(x, y)
    scale = jnp.float32(1.0)
    if not self.normalize:
      x, y, scale = _shift_and_scale(x, y)
    if self.p == 2:
      total, least = _squares(x, y)
    else:
      total, least = _sums_of_powers(x, y, self.p), 0.0
    return self._root(total, least, scale)

  def paired(self, x: jax.Array, y: jax.Array) -> jax.Array:
    """Returns [...] float32 between the rows of x and y, each [..., D].

    Example:
      >>> x = jnp.array([[3.0, 0.0], [0.0, 2.0]])
      >>> Distance('lp', normalize=False).paired(x, x[::-1]) ** 2
      Array([13., 13.], dtype=float32)
    """
    x, y = self.prepare(x), self.prepare(y)
    if self.inverted:
      return jnp.sum(x * y, axis=-1)
    if self.name == 'snr':
      x, y, _ = _shift_and_scale(x, y, shift=False)
      noise = _centered(x - y)[0]
      signal, varies = _centered(x)
      ratio = jnp.sum(noise * noise, axis=-1) / _variance(signal, varies)
      return jnp.where(varies[..., 0], ratio, 0.0)
    scale = jnp.float32(1.0)
    if not self.normalize:
      x, y, scale = _shift_and_scale(x, y, shift=False)
    total = jnp.sum(_power(jnp.abs(x - y), self.p), axis=-1)
    return self._root(total, 0.0, scale)

  def prepare(self, x: jax.Array) -> jax.Array:
    """Returns embeddings [..., D] in float32, normalised if it normalises."""
    if not self.normalize and self.name != 'cosine':
      return x.astype(jnp.float32)
    if self.name == 'lp' and self.p != 2:
      return _normalize(x.astype(jnp.float32), self.p)
    return arrays.normalize(x)

  def _root(self, total, least, scale):
    exponent = self.power / self.p
    apart = ~(total <= least)  # A NaN stays a NaN.
    value = _power(jnp.where(apart, total, 1.0), exponent)
    return jnp.where(apart, scale**self.power * value, 0.0)


EUCLIDEAN = Distance('lp')
"""Between unit rows: the distance of PML's losses and miners by default."""


def _power(x, exponent):
  """Returns x ** exponent of x >= 0, with a finite gradient at 0."""
  if exponent == 1:
    return x
  if exponent == 0.5:
    return jnp.sqrt(x)
  if exponent == int(exponent):
    return lax.integer_pow(x, int(exponent))
  positive = ~(x <= 0)
  return jnp.where(positive, jnp.where(positive, x, 1.0) ** exponent, 0.0)


def _normalize(x, p):
  largest = jnp.max(jnp.abs(x), axis=-1, keepdims=True, initial=0.0)
  largest = lax.stop_gradient(largest)
  nonzero = largest > 0
  x = x / jnp.where(nonzero, largest, 1.0)
  total = jnp.sum(_power(jnp.abs(x), p), axis=-1, keepdims=True)
  norm = _power(jnp.where(nonzero, total, 1.0), 1.0 / p)
  return jnp.where(nonzero, x / norm, x)


def _shift_and_scale(x, y, shift=True):
  """Brings squares into the range of float32; exact but for the shift."""
  if shift and y.shape[0]:
    # The mean of entries of 1e38 must not overflow on its way.
    origin = jnp.sum(y / y.shape[0], axis=0, keepdims=True)
    origin = lax.stop_gradient(origin)
    x, y = x - origin, y - origin
  largest = jnp.maximum(
    jnp.max(jnp.abs(x), initial=0.0), jnp.max(jnp.abs(y), initial=0.0)
  )
  # A power of two changes no digit.
  _, exponent = jnp.frexp(lax.stop_gradient(largest))
  scale = jnp.ldexp(jnp.float32(1.0), exponent - 1)
  scale = jnp.where(largest > 0, scale, 1.0)
  return x / scale, y / scale, scale


def _squares(x, y):
  """Returns ||x_i - y_j||^2, and what of it is rounding."""
  size = jnp.sum(x * x, axis=1)[:, None] + jnp.sum(y * y, axis=1)[None, :]
  return (
    size - 2.0 * arrays.pair_products(x, y),
    _ROUNDING * lax.stop_gradient(size),
  )


def _sums_of_powers(x, y, p):
  """Returns sum_k |x_ik - y_jk|^p, [B, G]."""
  num_chunks = -(-x.shape[1] // _CHUNK)

  def chunks(z):
    z = jnp.pad(z, ((0, 0), (0, num_chunks * _CHUNK - z.shape[1])))
    return z.T.reshape(num_chunks, _CHUNK, z.shape[0])

  @jax.checkpoint
  def sum_of(x_chunk, y_chunk):
    return sum(
      _power(jnp.abs(x_chunk[k][:, None] - y_chunk[k][None, :]), p)
      for k in range(_CHUNK)
    )

  total = jnp.zeros((x.shape[0], y.shape[0]), jnp.float32)
  total, _ = lax.scan(
    lambda total, chunk: (total + sum_of(*chunk), None),
    total,
    (chunks(x), chunks(y)),
  )
  return total


def _centered(x):
  """Returns rows minus their mean, and whether more than rounding is left."""
  size = jnp.sum(x * x, axis=-1, keepdims=True)
  x = x - jnp.mean(x, axis=-1, keepdims=True)
  square = jnp.sum(x * x, axis=-1, keepdims=True)
  return x, ~(square <= 1e-12 * size)


def _variance(centered, varies):
  # Masked before the square, so that no gradient divides by zero.
  centered = jnp.where(varies, centered, 1.0)
  return jnp.sum(centered * centered, axis=-1)


def _snr_matrix(x, y):
  x, y, _ = _shift_and_scale(x, y, shift=False)
  x, varies = _centered(x)
  y, _ = _centered(y)
  noise = jax.nn.relu(_squares(x, y)[0])
  return jnp.where(varies, noise / _variance(x, varies)[:, None], 0.0)
