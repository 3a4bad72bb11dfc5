"""Networks: embedders (backbone, pooling, neck) and the heads of training."""

from retrieval_jax.models.backbones import ConvNet
from retrieval_jax.models.backbones.registry import BACKBONES, Backbone
from retrieval_jax.models.embedder import Embedder
from retrieval_jax.models.features import Features
from retrieval_jax.models.heads import ProxyHead
from retrieval_jax.models.layers import Conv, conv2d, max_pool
from retrieval_jax.models.necks import NECKS, Neck
from retrieval_jax.models.registry import (
  POOLINGS,
  Pooling,
  batch_norms,
  build_embedder,
  check_images,
  check_model,
  pooling_name,
)

__all__ = [
  'BACKBONES',
  'NECKS',
  'POOLINGS',
  'Backbone',
  'Conv',
  'ConvNet',
  'Embedder',
  'Features',
  'Neck',
  'Pooling',
  'ProxyHead',
  'batch_norms',
  'build_embedder',
  'check_images',
  'check_model',
  'conv2d',
  'max_pool',
  'pooling_name',
]
