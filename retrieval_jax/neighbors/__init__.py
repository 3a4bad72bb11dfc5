"""Nearest neighbours."""

from retrieval_jax.neighbors.search import top_k

__all__ = ['top_k']
