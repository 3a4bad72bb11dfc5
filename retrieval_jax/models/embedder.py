"""The embedder: a backbone, a projection, and the unit sphere."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from retrieval_jax.core import arrays


class Embedder(nn.Module):
  """Embeds images: e = normalize(W f(x) + b), with f the backbone.

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
      [B, D] float32 rows of unit length.
    """
    features = self.backbone(images, train)
    x = nn.Dense(self.embedding_dim, dtype=self.dtype, name='projection')(
      features
    ).astype(jnp.float32)
    # Before it is divided out: a norm that runs away is an early sign of
    # divergence. Costs nothing unless 'intermediates' is mutable.
    if self.is_mutable_collection('intermediates'):
      norms = jnp.sqrt(jnp.sum(jax.lax.stop_gradient(x) ** 2, axis=-1))
      self.sow('intermediates', 'embedding_norm', norms)
    return arrays.normalize(x)
