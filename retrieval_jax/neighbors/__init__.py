"""Nearest neighbours: exact search, and indexes of images on disk."""

from retrieval_jax.neighbors.index import Index
from retrieval_jax.neighbors.index_files import Manifest
from retrieval_jax.neighbors.index_writer import IndexWriter, remove_images
from retrieval_jax.neighbors.search import top_k

__all__ = ['Index', 'IndexWriter', 'Manifest', 'remove_images', 'top_k']
