"""The embedder: a backbone, a pooling and a neck."""

import jax
from flax import linen as nn

from retrieval_jax.models.necks import Neck


class Embedder(nn.Module):
  """Embeds images: e = neck(pooling(backbone(x))).

  Embeddings keep their length, which some losses read (MagFace, AdaFace, the
  regularizers); what compares them scales them to unit length.

  The layers of the neck stand beside the backbone and the pooling in the tree
  of parameters: `backbone`, `pooling` (of one that has parameters),
  `projection`, `embedding_norm`, `prelu`.

  Attributes:
    backbone: module of (images, train) -> `Features`.
    pooling: module of (features, train) -> [B, F].
    neck: module of ([B, F], train) -> [B, D] float32.
    dropout: share of the pooled features that is dropped in training; needs
      the random stream 'dropout'.
  """

  backbone: nn.Module
  pooling: nn.Module
  neck: Neck
  dropout: float = 0.0

  def setup(self):
    """Makes what is not given; see flax."""
    nn.share_scope(self, self.neck)
    self.drop = nn.Dropout(self.dropout)

  def __call__(self, images: jax.Array, train: bool) -> jax.Array:
    """Embeds a batch.

    Args:
      images: [B, H, W, channels] float32.
      train: whether the network trains (BatchNorm, dropout).

    Returns:
      [B, D] float32.
    """
    return self.project(self.pool(images, train), train)

  def pool(self, images: jax.Array, train: bool) -> jax.Array:
    """Returns the pooled features [B, F] of a batch."""
    pooled = self.pooling(self.backbone(images, train), train)
    return self.drop(pooled, deterministic=not train)

  def project(self, pooled: jax.Array, train: bool) -> jax.Array:
    """Returns the embeddings [B, D] of pooled features."""
    return self.neck(pooled, train)
