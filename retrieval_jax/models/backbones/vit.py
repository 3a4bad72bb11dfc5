"""Vision transformers: ViT, DINOv2 and the image towers of CLIP and SigLIP."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from retrieval_jax.core.errors import InputError
from retrieval_jax.models.backbones import transformer
from retrieval_jax.models.backbones.positions import resize_positions
from retrieval_jax.models.features import Features

_MLP_RATIO = 4


class ViT(nn.Module):
  """A vision transformer (pre-LN), from images to tokens.

    x_0 = [class + position; registers; patches W + b + positions]
    y   = x_l + s_1 * attention(LN(x_l))
    x'  = y + s_2 * MLP(LN(y))

  and LN once more. Scores, softmax and LN are float32, the rest is `dtype`. The
  published ones differ in few things, which `VIT_VARIANTS` sets.

  Attributes:
    width: F, the features of a token.
    depth: number of blocks.
    num_heads: of the attention; divides the width.
    patch_size: height and width of a patch, in pixels.
    native_size: height and width of the images that the position embeddings are
      for, in pixels. Those of other images are interpolated.
    mlp_dim: hidden features of an MLP; None: four times the width.
    activation: of the MLP, a key of `transformer.ACTIVATIONS`. OpenAI's CLIP
      was trained with 'quick_gelu', most other towers of its kind with 'gelu'.
    class_token: whether there is a class token. Without one, the token handed
      on is what a learnt query draws from the patches (SigLIP).
    registers: number of tokens that only serve the attention.
    layer_scale: what the scales s_1, s_2 [F] begin with; None: there are none.
    pre_norm: whether LN comes before the first block too, and the patches then
      without bias b (CLIP).
    epsilon: of LN, added to the variance.
    antialias: of the interpolated positions; see `resize_positions`.
    position_offset: likewise.
    layer_dropout: share dropped, in training, of the first tokens, of what an
      attention gives, and behind both layers of an MLP. Attention weights are
      never dropped.
    stochastic_depth: the share of images that skip the last block's branches,
      in training; less before it, in equal steps from 0.
    remat: whether the gradient computes each block again, instead of keeping
      what is in it: less memory for one more forward pass. On a CPU nothing is
      saved: XLA drops the barriers there that keep the passes apart.
    axis_name: the axis of the devices, which every backbone is told. LN looks
      at one token alone.
    dtype: of the computation; parameters are float32.

  Dropping needs the random stream 'dropout'.

  Example:
    >>> vit = ViT(width=8, depth=1, num_heads=2, patch_size=4, native_size=8)
    >>> images = jnp.ones((1, 8, 12, 3))
    >>> features, _ = jax.eval_shape(
    ...   lambda: vit.init_with_output(jax.random.key(0), images, False)
    ... )
    >>> features.maps[0].shape, features.token.shape
    ((1, 2, 3, 8), (1, 8))

  References:
    Dosovitskiy et al., An image is worth 16x16 words, 2021, equations 1 to 4.
    Oquab et al., DINOv2, 2023.
    Darcet et al., Vision transformers need registers, 2024.
    Radford et al., Learning transferable visual models, 2021 (CLIP).
    Zhai et al., Sigmoid loss for language image pre-training, 2023 (SigLIP).
    Huang et al., Deep networks with stochastic depth, 2016.
  """

  width: int
  depth: int
  num_heads: int
  patch_size: int
  native_size: int = 224
  mlp_dim: int | None = None
  activation: str = 'gelu'
  class_token: bool = True
  registers: int = 0
  layer_scale: float | None = None
  pre_norm: bool = False
  epsilon: float = 1e-6
  antialias: bool = True
  position_offset: float = 0.0
  layer_dropout: float = 0.0
  stochastic_depth: float = 0.0
  remat: bool = False
  axis_name: str | None = None
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, images: jax.Array, train: bool) -> Features:
    """Maps images to tokens.

    Args:
      images: [B, H, W, channels] float, normalised as the weights want it; H
        and W are multiples of the patch size.
      train: whether tokens and branches are dropped.

    Returns:
      One map [B, H / patch_size, W / patch_size, F], the patches' tokens, and
      the class token [B, F], or the attention-pooled one; all of `dtype` and
      behind the last LN. (CLIP itself normalises its class token alone.)

    Raises:
      InputError: for images of another rank, or whose height or width is no
        multiple of the patch size (they are neither cropped nor padded), or a
        native size below the patch size.
    """
    self._check(images)
    patches = nn.Conv(
      self.width,
      (self.patch_size, self.patch_size),
      strides=self.patch_size,
      padding='VALID',
      use_bias=not self.pre_norm,
      dtype=self.dtype,
      name='patch_embed',
    )(images)
    batch, *grid, _ = patches.shape
    x = patches.reshape(batch, grid[0] * grid[1], self.width)
    x = self._add_tokens(x, tuple(grid))
    x = nn.Dropout(self.layer_dropout, deterministic=not train)(x)
    if self.pre_norm:
      x = self._norm('pre_norm')(x)
    mlp_dim = self.mlp_dim or _MLP_RATIO * self.width
    block = nn.remat(transformer.Block) if self.remat else transformer.Block
    for i in range(self.depth):
      x = block(
        num_heads=self.num_heads,
        mlp_dim=mlp_dim,
        activation=self.activation,
        layer_scale=self.layer_scale,
        epsilon=self.epsilon,
        dropout=self.layer_dropout,
        skip=self.stochastic_depth * i / max(self.depth - 1, 1),
        train=train,
        dtype=self.dtype,
        name=f'block_{i}',
      )(x)
    x = self._norm('norm')(x)
    num_others = self.class_token + self.registers
    patches = x[:, num_others:].reshape(batch, *grid, self.width)
    if self.class_token:
      return Features((patches,), x[:, 0])
    token = transformer.AttentionPool(
      num_heads=self.num_heads,
      mlp_dim=mlp_dim,
      activation=self.activation,
      epsilon=self.epsilon,
      dtype=self.dtype,
      name='pool',
    )(x)
    return Features((patches,), token)

  def _check(self, images: jax.Array) -> None:
    size = self.patch_size
    if images.ndim != 4:
      raise InputError(
        f'images have shape {images.shape}; allowed is (batch, height, width, '
        'channels): add the missing axis'
      )
    if self.native_size < size:
      raise InputError(
        f'native_size is {self.native_size}; allowed is at least the patch '
        f'size, {size}: set it to what the position embeddings are for'
      )
    height, width = images.shape[1:3]
    if min(height, width) < size or height % size or width % size:
      near = [max(round(n / size), 1) * size for n in (height, width)]
      raise InputError(
        f'images are {height} x {width} pixels; allowed are multiples of the '
        f'patch size, {size}: resize them, such as to {near[0]} x {near[1]}'
      )

  def _norm(self, name: str) -> nn.LayerNorm:
    return transformer.layer_norm(self.epsilon, self.dtype, name)

  def _add_tokens(self, x: jax.Array, grid: tuple[int, int]) -> jax.Array:
    """Returns the patches [B, h * w, F] with positions and all other tokens."""
    native = self.native_size // self.patch_size
    positions = self.param(
      'positions',
      nn.initializers.truncated_normal(0.02),
      (1, self.class_token + native * native, self.width),
    )
    x += resize_positions(
      positions[0, int(self.class_token) :],
      grid,
      antialias=self.antialias,
      offset=self.position_offset,
    )[None].astype(x.dtype)
    tokens = []
    if self.class_token:
      tokens.append(self._token('class_token', 1) + positions[:, :1])
    if self.registers:
      tokens.append(self._token('registers', self.registers))
    tokens = [
      jnp.broadcast_to(token, (x.shape[0], *token.shape[1:])).astype(x.dtype)
      for token in tokens
    ]
    return jnp.concatenate([*tokens, x], axis=1)

  def _token(self, name: str, count: int) -> jax.Array:
    return self.param(
      name, nn.initializers.normal(1e-6), (1, count, self.width)
    )
