"""Data sets of TensorFlow Datasets (TFDS), read without TensorFlow."""

from retrieval_jax.data.prepared.load import load_prepared

__all__ = ['load_prepared']
