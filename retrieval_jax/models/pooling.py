"""Pooling: from the feature maps of an image to one vector.

A pooling is a module of (features, train) -> [B, F]. It reads the last map of
`Features`, or its token; F is the number of channels of the map unless the
pooling says otherwise. What pools by a power computes in float32.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from retrieval_jax.core import arrays
from retrieval_jax.core.errors import InputError
from retrieval_jax.models.features import Features

# What the power of a generalised mean is kept within: 1 is the mean, and from
# 10 on it is the maximum to a few per cent.
MIN_POWER, MAX_POWER = 1.0, 10.0

# Share of the region's width that neighbours of R-MAC overlap by, at best.
_RMAC_OVERLAP = 0.4
_RMAC_MAX_REGIONS = 7


class Average(nn.Module):
  """The mean over the places: f_c = mean_x X_xc (SPoC, global average).

  References:
    Lin et al., Network In Network, ICLR 2014, section 3.2.
  """

  def __call__(self, features: Features, train: bool) -> jax.Array:
    """Returns [B, F] of the maps' dtype."""
    del train
    return jnp.mean(features.maps[-1], axis=(1, 2))


class Max(nn.Module):
  """The largest over the places: f_c = max_x X_xc (MAC).

  References:
    Tolias et al., Particular object retrieval with integral max-pooling of CNN
    activations, ICLR 2016, eq. 1.
  """

  def __call__(self, features: Features, train: bool) -> jax.Array:
    """Returns [B, F] of the maps' dtype."""
    del train
    return jnp.max(features.maps[-1], axis=(1, 2))


class AverageMax(nn.Module):
  """The mean and the largest over the places, added.

  f_c = mean_x X_xc + max_x X_xc

  References:
    Kim et al., Proxy Anchor Loss, CVPR 2020: the pooling of the authors' code,
    which the paper does not mention.
  """

  def __call__(self, features: Features, train: bool) -> jax.Array:
    """Returns [B, F] of the maps' dtype."""
    del train
    x = features.maps[-1]
    return jnp.mean(x, axis=(1, 2)) + jnp.max(x, axis=(1, 2))


class Flatten(nn.Module):
  """Every place of the last map on its own, for images of one size."""

  def __call__(self, features: Features, train: bool) -> jax.Array:
    """Returns [B, h * w * F], row by row of the map."""
    del train
    x = features.maps[-1]
    return x.reshape(x.shape[0], -1)


class ClassToken(nn.Module):
  """The class token of a transformer."""

  def __call__(self, features: Features, train: bool) -> jax.Array:
    """Returns [B, F].

    Raises:
      InputError: the backbone has no class token.
    """
    del train
    if features.token is None:
      raise InputError(
        "model.pooling is 'class_token', which this backbone does not have; "
        'allowed are poolings of its maps, such as average'
      )
    return features.token


def generalized_mean(
  x: jax.Array, p: jax.Array | float, eps: float = 1e-6
) -> jax.Array:
  """Returns the generalised mean over the places of maps.

  f_c = (mean_x max(X_xc, eps)^p)^(1 / p)

  Computed by logarithms, so that neither eps^p vanishes nor a large X^p
  overflows, and gradients are finite: that of an entry below eps is 0.

  Args:
    x: [B, h, w, F] any float dtype and sign.
    p: the power, above 0.
    eps: what smaller entries count as.

  Returns:
    [B, F] float32, at least eps.

  Example:
    >>> x = jnp.array([3.0, 4.0, -1.0, 0.0]).reshape(1, 2, 2, 1)
    >>> print(generalized_mean(x, 2.0))
    [[2.5]]

  References:
    Radenovic et al., Fine-tuning CNN Image Retrieval with No Human Annotation,
    TPAMI 2019, eq. 3.
  """
  batch, height, width, channels = x.shape
  logs = jnp.log(jnp.maximum(x.astype(jnp.float32), eps))
  logs = p * logs.reshape(batch, height * width, channels)
  total = jax.nn.logsumexp(logs, axis=1)
  return jnp.exp((total - math.log(height * width)) / p)


class GeM(nn.Module):
  """The generalised mean over the places, see `generalized_mean`.

  Its parameter is the power `p`, one number for all channels, clipped to
  [1, 10]: there its gradient is 0.

  Attributes:
    p: the power; the initial one if it is learnt.
    learn_p: whether it is learnt.
    eps: what smaller entries of the maps count as.
  """

  p: float = 3.0
  learn_p: bool = True
  eps: float = 1e-6

  @nn.compact
  def __call__(self, features: Features, train: bool) -> jax.Array:
    """Returns [B, F] float32."""
    del train
    p = _power(self) if self.learn_p else self.p
    return generalized_mean(features.maps[-1], p, self.eps)


def _power(module: nn.Module) -> jax.Array:
  """Returns the learnt power of a module, in bounds."""
  init = nn.initializers.constant(module.p)
  p = module.param('p', init, (), jnp.float32)
  return jnp.clip(p, MIN_POWER, MAX_POWER)


class RegionalGeM(nn.Module):
  """GeM of maps that were mixed with the generalised mean around each place.

  X'_xc = X_xc / 2 + (mean_{y in N(x)} max(X_yc, eps)^q)^(1 / q) / 2,
  f_c = (mean_x max(X'_xc, eps)^p)^(1 / p)

  with N(x) the square around x of the map reflected at its border. It has the
  parameter of `GeM`, so it can take the place of it in evaluation alone
  (`eval.pooling`), where its source has it.

  Attributes:
    p: the power over the places; the initial one if it is learnt.
    learn_p: whether it is learnt.
    region_p: q, the power over a region.
    region_size: its side, odd.
    eps: what smaller entries count as.

  References:
    Shao et al., Global Features are All You Need for Image Retrieval and
    Reranking, ICCV 2023, section 3.2 and their code.
  """

  p: float = 3.0
  learn_p: bool = True
  region_p: float = 2.5
  region_size: int = 5
  eps: float = 1e-6

  @nn.compact
  def __call__(self, features: Features, train: bool) -> jax.Array:
    """Returns [B, F] float32."""
    del train
    p = _power(self) if self.learn_p else self.p
    x = features.maps[-1].astype(jnp.float32)
    regional = regional_mean(x, self.region_p, self.region_size, self.eps)
    return generalized_mean((x + regional) / 2, p, self.eps)


def regional_mean(
  x: jax.Array, p: float, size: int, eps: float = 1e-6
) -> jax.Array:
  """Returns the generalised mean around each place of maps.

  Args:
    x: [B, h, w, F] float32.
    p: the power, from 1 to 5.
    size: the side of the square around a place, odd.
    eps: what smaller entries count as.

  Returns:
    [B, h, w, F] float32; the maps are reflected at their border.

  Example:
    >>> x = jnp.arange(9.0).reshape(1, 3, 3, 1)
    >>> print(regional_mean(x, 1.0, 3)[0, 1, 1].round(3))
    [4.]
  """
  x = jnp.maximum(x, eps)
  # In units of the largest, so that no power overflows.
  largest = lax.stop_gradient(jnp.max(x, axis=(1, 2), keepdims=True))
  border = (size - 1) // 2
  powers = jnp.pad(
    (x / largest) ** p,
    ((0, 0), (border, border), (border, border), (0, 0)),
    mode='reflect',
  )
  mean = nn.avg_pool(powers, (size, size))
  # A power that vanished has no gradient, and must not divide by itself.
  return largest * jnp.maximum(mean, 1e-30) ** (1 / p)


class RMAC(nn.Module):
  """The sum of the directions of the maxima of regions.

  f = m / ||m|| + sum_R m_R / ||m_R||,   m_Rc = max_{x in R} X_xc,

  with m over the whole map and R squares at several scales, see
  `rmac_regions`. The regions are not whitened before they are added.

  Attributes:
    levels: number of scales.

  References:
    Tolias et al., Particular object retrieval with integral max-pooling of CNN
    activations, ICLR 2016, section 3.2; the whole map is added as in their
    code.
  """

  levels: int = 3

  def __call__(self, features: Features, train: bool) -> jax.Array:
    """Returns [B, F] float32."""
    del train
    x = features.maps[-1].astype(jnp.float32)
    _, height, width, _ = x.shape
    regions = [(0, 0, height, width)]
    regions += rmac_regions(height, width, self.levels)
    return sum(
      arrays.normalize(jnp.max(x[:, i : i + h, j : j + w], axis=(1, 2)))
      for i, j, h, w in regions
    )


def rmac_regions(
  height: int, width: int, levels: int
) -> list[tuple[int, int, int, int]]:
  """Returns the regions of R-MAC, (row, column, height, width) of each.

  At level l they are squares of side 2 s / (l + 1), s the shorter side of the
  map: l of them along that side, and along the longer one as many more as let
  those of level 1 overlap by 40 % most nearly.

  Args:
    height: of the map.
    width: of the map.
    levels: number of scales; squares without a place are left out.

  Example:
    >>> rmac_regions(4, 4, 2)
    [(0, 0, 4, 4), (0, 0, 2, 2), (0, 2, 2, 2), (2, 0, 2, 2), (2, 2, 2, 2)]
    >>> [column for _, column, _, _ in rmac_regions(4, 6, 1)]
    [0, 2]
  """
  short, long = min(height, width), max(height, width)

  def distance_from_wanted(count):
    step = (long - short) / (count - 1)
    return abs((short - step) / short - _RMAC_OVERLAP)

  more = 0
  if long > short:
    counts = range(2, _RMAC_MAX_REGIONS + 1)
    more = min(counts, key=distance_from_wanted) - 1

  def starts(length, side, count):
    step = (length - side) / (count - 1) if count > 1 else 0.0
    # Of centres that are whole numbers, as the source has it.
    half = side // 2 - 1
    return [math.floor(half + i * step) - half for i in range(count)]

  regions = []
  for level in range(1, levels + 1):
    side = 2 * short // (level + 1)
    if not side:
      break
    rows = starts(height, side, level + more * (height > width))
    columns = starts(width, side, level + more * (width > height))
    regions += [(i, j, side, side) for i in rows for j in columns]
  return regions


class Attention(nn.Module):
  """A learnt query that looks at the places of the last map.

  y = sum_h O_h sum_x softmax_x(<q_h, K_h X_x> / sqrt(F / H)) V_h X_x,
  f = y + MLP(LayerNorm(y)),

  with h of H heads, and an MLP of one hidden layer with GELU.

  Attributes:
    num_heads: H, a divisor of F.
    mlp_ratio: hidden size of the MLP, in units of F.
    dtype: of the computation.

  References:
    Zhai et al., Scaling Vision Transformers, CVPR 2022, section 3.4 (MAP head).
  """

  num_heads: int = 8
  mlp_ratio: int = 4
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, features: Features, train: bool) -> jax.Array:
    """Returns [B, F] of `dtype`.

    Raises:
      InputError: F is not a multiple of the heads.
    """
    del train
    x = features.maps[-1]
    batch, height, width, channels = x.shape
    if channels % self.num_heads:
      raise InputError(
        f'model.attention.num_heads is {self.num_heads}; allowed is a divisor '
        f'of the {channels} channels of the last map'
      )
    x = x.reshape(batch, height * width, channels)
    query = self.param(
      'query', nn.initializers.xavier_uniform(), (1, channels), jnp.float32
    )
    query = jnp.broadcast_to(query[None], (batch, 1, channels))
    attend = nn.MultiHeadDotProductAttention(
      self.num_heads,
      dtype=self.dtype,
      kernel_init=nn.initializers.xavier_uniform(),
      name='attention',
    )
    y = attend(query, x)[:, 0]
    z = nn.LayerNorm(dtype=self.dtype, name='norm')(y)
    z = nn.Dense(self.mlp_ratio * channels, dtype=self.dtype, name='hidden')(z)
    return y + nn.Dense(channels, dtype=self.dtype, name='out')(nn.gelu(z))
