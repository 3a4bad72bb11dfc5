"""The embedder: a backbone and a projection."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn


class Embedder(nn.Module):
  """Embeds images: e = W f(x) + b, with f the backbone.

  Embeddings keep their length, which some losses read (MagFace, AdaFace, the
  regularizers); what compares them scales them to unit length.

  Attributes:
    backbone: module of (images, train) -> features [B, F].
    embedding_dim: D.
    dtype: of the computation; parameters and embeddings are float32.
  """

  backbone: nn.Module
  embedding_dim: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, images: jax.Array, train: bool) -> jax.Array:
    """Embeds a batch.

    Args:
      images: [B, H, W, channels] float32.
      train: whether the backbone trains (BatchNorm, dropout).

    Returns:
      [B, D] float32.
    """
    features = self.backbone(images, train)
    x = nn.Dense(self.embedding_dim, dtype=self.dtype, name='projection')(
      features
    )
    return x.astype(jnp.float32)
