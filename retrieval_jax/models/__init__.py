"""Networks: embedders (backbone, projection) and the heads of training."""

from retrieval_jax.models.backbones import ConvNet
from retrieval_jax.models.embedder import Embedder
from retrieval_jax.models.heads import ProxyHead
from retrieval_jax.models.layers import Conv, conv2d, max_pool
from retrieval_jax.models.registry import (
  BACKBONES,
  Backbone,
  Option,
  build_embedder,
  check_model,
)

__all__ = [
  'BACKBONES',
  'Backbone',
  'Conv',
  'ConvNet',
  'Embedder',
  'Option',
  'ProxyHead',
  'build_embedder',
  'check_model',
  'conv2d',
  'max_pool',
]
