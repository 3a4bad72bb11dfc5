"""ResNet, with the stride of a block in its 3x3 convolution (v1.5)."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from retrieval_jax.models.backbones.common import (
  batch_norm,
  check_images,
  skip_images,
)
from retrieval_jax.models.backbones.convolution import Convolution
from retrieval_jax.models.features import Features

# By timm's names; torchvision's networks of these names are the same.
VARIANTS: dict[str, dict[str, Any]] = {
  'resnet18': {'depths': (2, 2, 2, 2), 'bottleneck': False},
  'resnet34': {'depths': (3, 4, 6, 3), 'bottleneck': False},
  'resnet50': {'depths': (3, 4, 6, 3), 'bottleneck': True},
  'resnet101': {'depths': (3, 4, 23, 3), 'bottleneck': True},
  'resnet152': {'depths': (3, 8, 36, 3), 'bottleneck': True},
}

_STEM_FEATURES = 64
_EXPANSION = 4


class ResNet(nn.Module):
  """ResNet: four stages of residual blocks, y = relu(x + f(x)).

  The last BatchNorm of each block starts with scale 0, so that a block is the
  identity at the start. Padding is PyTorch's.

  Attributes:
    depths: blocks in each stage.
    bottleneck: whether a block is 1x1, 3x3, 1x1 with 4 times the channels, or
      3x3, 3x3.
    last_stage_stride: 2, or 1 for a C5 of stride 16, twice as high and wide, of
      the same weights.
    stochastic_depth: probability that the last block is skipped for an image in
      training; it grows linearly from 0 at the first. Needs the random stream
      'dropout'.
    frozen_batch_norm: whether BatchNorm uses its running statistics in training
      too, and leaves them as they are. Scale and bias learn still.
    remat: whether a block's activations are computed again for the gradient
      instead of kept: a network's memory is then one map for each block, and
      a step costs another pass forwards.
    axis_name: the axis of the devices. BatchNorm then takes the statistics of
      the global batch; None on one device.
    dtype: of the computation; parameters and statistics are float32.

  Example:
    >>> backbone = ResNet(**VARIANTS['resnet18'])
    >>> images = jax.ShapeDtypeStruct((2, 64, 64, 3), jnp.float32)
    >>> init = functools.partial(backbone.init_with_output, train=False)
    >>> features, _ = jax.eval_shape(init, jax.random.key(0), images)
    >>> [x.shape for x in features.maps]
    [(2, 4, 4, 256), (2, 2, 2, 512)]

  References:
    He et al., Deep residual learning, CVPR 2016, table 1;
    Goyal et al., Accurate, large minibatch SGD, 2017, section 5.1 (scale 0);
    Luo et al., Bag of tricks for person re-identification, 2019, section 3.4
    (last stride 1);
    Huang et al., Deep networks with stochastic depth, ECCV 2016, section 3.
  """

  depths: tuple[int, ...]
  bottleneck: bool
  last_stage_stride: int = 2
  stochastic_depth: float = 0.0
  frozen_batch_norm: bool = False
  remat: bool = False
  axis_name: str | None = None
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, images: jax.Array, train: bool) -> Features:
    """Maps images to feature maps.

    Args:
      images: [B, H, W, channels] float, normalised, of at least the stride of
        C5 in height and width.
      train: whether BatchNorm uses and updates the batch's statistics, and
        blocks are skipped.

    Returns:
      Features of `dtype` with maps (C4, C5): [B, ceil(H / 16), ceil(W / 16), F
      / 2] and [B, ceil(H / 32), ceil(W / 32), F], F = 512, or 2048 with
      bottlenecks.

    Raises:
      InputError: for images of another rank, or smaller.
    """
    check_images(images, 16 * self.last_stage_stride)
    conv = functools.partial(Convolution, dtype=self.dtype)
    norm = batch_norm(
      self.frozen_batch_norm or not train, self.axis_name, self.dtype
    )
    block_class = nn.remat(_Block) if self.remat else _Block
    x = conv(_STEM_FEATURES, 7, stride=2, name='stem_conv')(images)
    x = nn.relu(norm(name='stem_norm')(x))
    x = nn.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))
    strides = (1, 2, 2, self.last_stage_stride)
    last_block = sum(self.depths) - 1
    maps, position = [], 0
    for stage, (depth, stride) in enumerate(
      zip(self.depths, strides, strict=True)
    ):
      for block in range(depth):
        x = block_class(
          features=_STEM_FEATURES * 2**stage,
          stride=stride if block == 0 else 1,
          bottleneck=self.bottleneck,
          skip_rate=self.stochastic_depth * position / last_block,
          train=train,
          conv=conv,
          norm=norm,
          name=f'stage_{stage}_block_{block}',
        )(x)
        position += 1
      maps.append(x)
    return Features(maps=tuple(maps[-2:]))


class _Block(nn.Module):
  """relu(x + f(x)), with x projected where f changes its shape."""

  features: int
  stride: int
  bottleneck: bool
  skip_rate: float
  train: bool
  conv: Callable[..., nn.Module]
  norm: Callable[..., nn.Module]

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    if self.bottleneck:
      shapes = ((1, 1, 1), (3, self.stride, 1), (1, 1, _EXPANSION))
    else:
      shapes = ((3, self.stride, 1), (3, 1, 1))
    y = x
    for i, (size, stride, expansion) in enumerate(shapes):
      last = i == len(shapes) - 1
      features = self.features * expansion
      y = self.conv(features, size, stride=stride, name=f'conv_{i}')(y)
      scale_init = nn.initializers.zeros if last else nn.initializers.ones
      y = self.norm(scale_init=scale_init, name=f'norm_{i}')(y)
      y = y if last else nn.relu(y)
    if x.shape != y.shape:
      x = self.conv(y.shape[-1], stride=self.stride, name='shortcut_conv')(x)
      x = self.norm(name='shortcut_norm')(x)
    return nn.relu(x + skip_images(y, self.skip_rate, self.train))
