"""Necks: from the pooled features of an image to its embedding."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from retrieval_jax.core.errors import InputError


class NeckLayers(NamedTuple):
  """What a neck does, in this order.

  Attributes:
    normalizes_features: whether it begins with LayerNorm without scale and
      bias.
    projects: whether a dense layer W, b follows; else D is F.
    batch_norm: whether BatchNorm follows, and b is left out, which BatchNorm
      takes off again.
    batch_norm_bias: whether BatchNorm has a bias.
    activates: whether PReLU follows.
  """

  normalizes_features: bool = False
  projects: bool = True
  batch_norm: bool = False
  batch_norm_bias: bool = True
  activates: bool = False


NECKS = {
  # e = f.
  'identity': NeckLayers(projects=False),
  # e = W f + b.
  'dense': NeckLayers(),
  # e = BN(W f): DELG's whitening layer with BatchNorm.
  'dense_batch_norm': NeckLayers(batch_norm=True),
  # e = PReLU(BN(W f)): the neck of the winners of the Google Landmark
  # Recognition 2020 and Retrieval 2021 ("option D").
  'dense_batch_norm_prelu': NeckLayers(batch_norm=True, activates=True),
  # e = W LN(f) + b: Teh et al., ProxyNCA++, ECCV 2020, section 3.
  'layer_norm_dense': NeckLayers(normalizes_features=True),
  # e = BN(f), its bias kept at 0: Luo et al., Bag of Tricks and a Strong
  # Baseline for Deep Person Re-identification, CVPRW 2019, section 3.6.
  'bnneck': NeckLayers(projects=False, batch_norm=True, batch_norm_bias=False),
  # e = BN(W f), its bias kept at 0.
  'dense_bnneck': NeckLayers(batch_norm=True, batch_norm_bias=False),
}
"""The necks by name; docs/models.md says when to take which."""


class Neck(nn.Module):
  """A neck of `NECKS`.

  The embedding that losses see is the one that is searched with, also behind
  BatchNorm (Luo et al. give another one to the triplet loss).

  Attributes:
    layers: what it does.
    embedding_dim: D.
    axis_name: the axis of the devices, for BatchNorm.
    dtype: of the dense layer; what normalises is float32.

  Example:
    >>> neck = Neck(NECKS['bnneck'], embedding_dim=3)
    >>> e, _ = neck.init_with_output(jax.random.key(0), jnp.ones((2, 3)), False)
    >>> e.shape
    (2, 3)
  """

  layers: NeckLayers
  embedding_dim: int
  axis_name: str | None = None
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, features: jax.Array, train: bool) -> jax.Array:
    """Maps [B, F] features to [B, D] float32 embeddings.

    Args:
      features: any float dtype.
      train: whether BatchNorm uses and updates the batch's statistics.

    Raises:
      InputError: D is not F, and nothing projects.
    """
    layers, x = self.layers, features
    if layers.normalizes_features:
      norm = nn.LayerNorm(use_scale=False, use_bias=False, name='features_norm')
      x = norm(x.astype(jnp.float32))
    if layers.projects:
      x = nn.Dense(
        self.embedding_dim,
        use_bias=not layers.batch_norm,
        dtype=self.dtype,
        name='projection',
      )(x)
    elif x.shape[-1] != self.embedding_dim:
      names = [name for name, row in NECKS.items() if row.projects]
      raise InputError(
        f'model.embedding_dim is {self.embedding_dim}; allowed is '
        f'{x.shape[-1]}, the pooled features, with a model.neck that does not '
        f'project: set --config.model.embedding_dim={x.shape[-1]}, or one of '
        f'the necks {", ".join(names)}'
      )
    x = x.astype(jnp.float32)
    if layers.batch_norm:
      x = nn.BatchNorm(
        use_running_average=not train,
        momentum=0.9,
        use_bias=layers.batch_norm_bias,
        axis_name=self.axis_name,
        name='embedding_norm',
      )(x)
    return nn.PReLU(name='prelu')(x) if layers.activates else x
