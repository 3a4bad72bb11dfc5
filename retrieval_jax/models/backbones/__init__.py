"""Backbones: images -> feature maps."""

from retrieval_jax.models.backbones.conv_net import (
  NORMALIZATIONS,
  POOLINGS,
  ConvNet,
)

__all__ = ['NORMALIZATIONS', 'POOLINGS', 'ConvNet']
