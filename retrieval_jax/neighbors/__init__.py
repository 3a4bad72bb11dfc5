"""Nearest neighbours: exact search, indexes of images on disk, post-processing.

Each post-processing is a pure function, and a row of `POSTPROCESSING`;
`parse_postprocessing` and `rank` chain them by name.
"""

from retrieval_jax.neighbors.diffusion import diffusion_reranking
from retrieval_jax.neighbors.index import Index
from retrieval_jax.neighbors.index_files import Manifest
from retrieval_jax.neighbors.index_writer import IndexWriter, remove_images
from retrieval_jax.neighbors.k_reciprocal import k_reciprocal_reranking
from retrieval_jax.neighbors.label_aware import (
  Predictions,
  label_aware_reranking,
  predict_labels,
  rerank_by_labels,
)
from retrieval_jax.neighbors.lists import RankedLists
from retrieval_jax.neighbors.options import Sizes
from retrieval_jax.neighbors.postprocessing import (
  Embedded,
  Step,
  check_sizes,
  needs,
  parse_postprocessing,
  rank,
  transform,
)
from retrieval_jax.neighbors.query_expansion import (
  alpha_query_expansion,
  average_query_expansion,
  database_augmentation,
)
from retrieval_jax.neighbors.registry import POSTPROCESSING, Postprocessing
from retrieval_jax.neighbors.search import Searcher, top_k
from retrieval_jax.neighbors.superglobal import superglobal_reranking
from retrieval_jax.neighbors.thresholding import (
  adaptive_threshold,
  constant_threshold,
)
from retrieval_jax.neighbors.whitening import (
  Whitening,
  apply_whitening,
  fit_learned_whitening,
  fit_pca_whitening,
)

__all__ = [
  'Embedded',
  'Index',
  'IndexWriter',
  'Manifest',
  'POSTPROCESSING',
  'Postprocessing',
  'Predictions',
  'RankedLists',
  'Searcher',
  'Sizes',
  'Step',
  'Whitening',
  'adaptive_threshold',
  'alpha_query_expansion',
  'apply_whitening',
  'average_query_expansion',
  'check_sizes',
  'constant_threshold',
  'database_augmentation',
  'diffusion_reranking',
  'fit_learned_whitening',
  'fit_pca_whitening',
  'k_reciprocal_reranking',
  'label_aware_reranking',
  'needs',
  'parse_postprocessing',
  'predict_labels',
  'rank',
  'remove_images',
  'rerank_by_labels',
  'superglobal_reranking',
  'top_k',
  'transform',
]
