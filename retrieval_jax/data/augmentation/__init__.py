"""What is done to the images of a training step, on the device."""

from retrieval_jax.data.augmentation.options import Augmentation
from retrieval_jax.data.augmentation.pipeline import augment, mix

__all__ = ['Augmentation', 'augment', 'mix']
