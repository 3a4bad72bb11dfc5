"""DOLG: the local features that the global one does not have yet."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from retrieval_jax.core import arrays
from retrieval_jax.core.errors import InputError
from retrieval_jax.models import pooling
from retrieval_jax.models.features import Features


def orthogonal_component(
  x: jax.Array, direction: jax.Array, true_projection: bool = True
) -> jax.Array:
  """Returns what is left of vectors without a direction.

  x - <x, g> / ||g||^2 g, which is orthogonal to g; or, with ||g|| in place of
  its square, what the winner of the Google Landmark Retrieval 2021 has, which
  is orthogonal only where ||g|| = 1.

  Args:
    x: [B, F] float32.
    direction: g [B, F] float32, no row of which is 0.
    true_projection: whether the square of the norm is divided by.

  Returns:
    [B, F] float32.

  Example:
    >>> x, g = jnp.array([[1.0, 2.0]]), jnp.array([[0.0, 4.0]])
    >>> print(orthogonal_component(x, g))
    [[1. 0.]]
    >>> print(orthogonal_component(x, g, true_projection=False))
    [[ 1. -6.]]
  """
  square = jnp.sum(direction**2, axis=1, keepdims=True)
  inner = jnp.sum(x * direction, axis=1, keepdims=True)
  return x - inner / (square if true_projection else jnp.sqrt(square)) * (
    direction
  )


class DOLG(nn.Module):
  """Deep orthogonal fusion of local and global features.

  With C4 and C5 the last two maps, and E the number of `features`,

    a = ReLU(conv1x1(concat_d conv3x3_d(C4))), d the dilations,
    b = BatchNorm(conv1x1(a)),
    l = b / ||b|| softplus(conv1x1(ReLU(b)))    at each place, [B, h, w, E],
    g = GeM(SiLU(BatchNorm(conv1x1(C5)))),      [B, E],
    f = concat(mean_x (l_x - proj_g l_x), g),   [B, 2 E].

  A projection is linear, so that of the mean is the mean of the projections: it
  is taken once and not at each place.

  Attributes:
    features: E.
    branch_features: channels of each dilated convolution.
    dilations: of the 3x3 convolutions; (3, 6, 9) for small images.
    true_projection: see `orthogonal_component`.
    p: the power of GeM; the initial one if it is learnt.
    learn_p: whether it is learnt.
    axis_name: the axis of the devices, for BatchNorm.
    dtype: of the computation, up to l and GeM, which are float32.

  References:
    Yang et al., DOLG: Single-Stage Image Retrieval with Deep Orthogonal Fusion
    of Local and Global Features, ICCV 2021, section 3; without its image-level
    branch, and with SiLU, as Henkel, Efficient large-scale image retrieval with
    deep feature orthogonality and Hybrid-Swin-Transformers, 2021.
  """

  features: int = 1024
  branch_features: int = 512
  dilations: tuple[int, ...] = (6, 12, 18)
  true_projection: bool = True
  p: float = 3.0
  learn_p: bool = True
  axis_name: str | None = None
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, features: Features, train: bool) -> jax.Array:
    """Returns [B, 2 E] float32.

    Raises:
      InputError: the backbone gives one map only.
    """
    if len(features.maps) < 2:
      raise InputError(
        "model.pooling is 'dolg', which takes the last two maps, and this "
        'backbone gives one; allowed are poolings of one map, such as gem'
      )
    c4, c5 = features.maps[-2:]
    local = jnp.mean(self._local(c4, train), axis=(1, 2))
    x = self._norm('global_norm', train)(self._conv('global_conv')(c5))
    gem = pooling.GeM(self.p, self.learn_p, name='gem')
    direction = gem(Features((nn.silu(x),)), train)
    orthogonal = orthogonal_component(local, direction, self.true_projection)
    return jnp.concatenate([orthogonal, direction], axis=1)

  def _local(self, x, train):
    branches = [
      nn.Conv(
        self.branch_features,
        (3, 3),
        kernel_dilation=dilation,
        dtype=self.dtype,
        name=f'atrous_{index}',
      )(x)
      for index, dilation in enumerate(self.dilations)
    ]
    x = jnp.concatenate(branches, axis=-1)
    x = nn.relu(self._conv('local_conv', use_bias=True)(x))
    x = self._norm('local_norm', train)(self._conv('attention_conv')(x))
    scores = nn.Conv(1, (1, 1), dtype=self.dtype, name='attention')(nn.relu(x))
    weights = nn.softplus(scores.astype(jnp.float32))
    return arrays.normalize(x.astype(jnp.float32)) * weights

  def _conv(self, name, use_bias=False):
    return nn.Conv(
      self.features, (1, 1), use_bias=use_bias, dtype=self.dtype, name=name
    )

  def _norm(self, name, train):
    return nn.BatchNorm(
      use_running_average=not train,
      momentum=0.9,
      axis_name=self.axis_name,
      dtype=self.dtype,
      name=name,
    )
