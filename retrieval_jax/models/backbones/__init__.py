"""Backbones: images -> feature maps."""

from retrieval_jax.models.backbones.conv_net import ConvNet

__all__ = ['ConvNet']
