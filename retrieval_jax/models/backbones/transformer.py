"""The layers of a vision transformer.

Fused as the published weights are: queries, keys and values are one product,
and so are the keys and values of the pooling.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from retrieval_jax.models.backbones.common import skip_images

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
  'gelu': lambda x: nn.gelu(x, approximate=False),
  'gelu_tanh': lambda x: nn.gelu(x, approximate=True),
  'quick_gelu': lambda x: x * nn.sigmoid(1.702 * x),
}


def layer_norm(epsilon: float, dtype: Any, name: str) -> nn.LayerNorm:
  """Returns LN over the features: statistics and scaling in float32."""
  # The variance as a mean of squares loses digits to a large mean.
  return nn.LayerNorm(
    epsilon=epsilon, dtype=dtype, use_fast_variance=False, name=name
  )


def dense(features: int, dtype: Any, name: str) -> nn.Dense:
  """Returns a layer x W + b that begins as those of a ViT do."""
  return nn.Dense(
    features,
    dtype=dtype,
    kernel_init=nn.initializers.truncated_normal(0.02),
    name=name,
  )


class Block(nn.Module):
  """Attention and MLP, each a branch beside the tokens.

  Attributes:
    num_heads: of the attention.
    mlp_dim: hidden features of the MLP.
    activation: a key of `ACTIVATIONS`.
    layer_scale: what the scales of the branches begin with; None: none.
    epsilon: of LN.
    dropout: share of what a layer gives that is dropped.
    skip: share of the images that skip a branch.
    train: whether anything is dropped or skipped.
    dtype: of the computation.
  """

  num_heads: int
  mlp_dim: int
  activation: str = 'gelu'
  layer_scale: float | None = None
  epsilon: float = 1e-6
  dropout: float = 0.0
  skip: float = 0.0
  train: bool = False
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps tokens [B, N, F] to tokens [B, N, F]."""
    y = layer_norm(self.epsilon, self.dtype, 'norm_1')(x)
    y = SelfAttention(self.num_heads, self.dtype, name='attention')(y)
    y = self._drop(y)
    x += skip_images(self._scale('scale_1', y), self.skip, self.train)
    y = layer_norm(self.epsilon, self.dtype, 'norm_2')(x)
    y = MLP(
      self.mlp_dim,
      self.activation,
      self.dropout,
      self.train,
      self.dtype,
      name='mlp',
    )(y)
    y = skip_images(self._scale('scale_2', y), self.skip, self.train)
    return x + y

  def _scale(self, name: str, y: jax.Array) -> jax.Array:
    if self.layer_scale is None:
      return y
    start = nn.initializers.constant(self.layer_scale)
    scale = self.param(name, start, (y.shape[-1],))
    return y * scale[None, None].astype(y.dtype)

  def _drop(self, y: jax.Array) -> jax.Array:
    return nn.Dropout(self.dropout, deterministic=not self.train)(y)


class SelfAttention(nn.Module):
  """Multi-head attention of tokens to each other.

    softmax(q k^T / sqrt(F / num_heads)) v W + b, per head

  Attributes:
    num_heads: divides the features.
    dtype: of the products; scores and softmax are float32.
  """

  num_heads: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps tokens [B, N, F] to tokens [B, N, F]."""
    width = x.shape[-1]
    qkv = dense(3 * width, self.dtype, 'qkv')(x)
    qkv = qkv.reshape(*x.shape[:2], 3, self.num_heads, width // self.num_heads)
    y = jax.nn.dot_product_attention(*(qkv[:, :, i] for i in range(3)))
    return dense(width, self.dtype, 'out')(y.reshape(x.shape))


class MLP(nn.Module):
  """activation(x W_1 + b_1) W_2 + b_2, for each token.

  Attributes:
    hidden: features between the layers.
    activation: a key of `ACTIVATIONS`.
    dropout: share dropped behind each layer.
    train: whether it is.
    dtype: of the computation.
  """

  hidden: int
  activation: str = 'gelu'
  dropout: float = 0.0
  train: bool = False
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps [..., F] to [..., F]."""
    y = ACTIVATIONS[self.activation](dense(self.hidden, self.dtype, 'fc_1')(x))
    y = nn.Dropout(self.dropout, deterministic=not self.train)(y)
    y = dense(x.shape[-1], self.dtype, 'fc_2')(y)
    return nn.Dropout(self.dropout, deterministic=not self.train)(y)


class AttentionPool(nn.Module):
  """What one learnt query draws from the tokens, and an MLP beside it.

    y = attention(query, x);  y + MLP(LN(y))

  Attributes:
    num_heads: divides the features.
    mlp_dim: hidden features of the MLP.
    activation: a key of `ACTIVATIONS`.
    epsilon: of LN.
    dtype: of the computation; scores and softmax are float32.

  References:
    Zhai et al., Scaling vision transformers, 2022, section 3.2 (MAP head).
  """

  num_heads: int
  mlp_dim: int
  activation: str = 'gelu'
  epsilon: float = 1e-6
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps tokens [B, N, F] to one vector [B, F]."""
    batch, count, width = x.shape
    head = (self.num_heads, width // self.num_heads)
    query = self.param(
      'query', nn.initializers.truncated_normal(width**-0.5), (1, 1, width)
    )
    q = dense(width, self.dtype, 'q')(query)
    q = jnp.broadcast_to(q.reshape(1, 1, *head), (batch, 1, *head))
    kv = dense(2 * width, self.dtype, 'kv')(x)
    kv = kv.reshape(batch, count, 2, *head)
    y = jax.nn.dot_product_attention(q, kv[:, :, 0], kv[:, :, 1])
    y = dense(width, self.dtype, 'out')(y.reshape(batch, width))
    hidden = layer_norm(self.epsilon, self.dtype, 'norm')(y)
    mlp = MLP(self.mlp_dim, self.activation, dtype=self.dtype, name='mlp')
    return y + mlp(hidden)
