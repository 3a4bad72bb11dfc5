"""The post-processing there is: name -> function, options, and what they need.

To add one: a pure function in a module of its own subject, and its row here.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from retrieval_jax.core.hyperparameters import Hyperparameter
from retrieval_jax.neighbors import (
  diffusion,
  k_reciprocal,
  label_aware,
  query_expansion,
  superglobal,
  thresholding,
  whitening,
)
from retrieval_jax.neighbors.options import Limit, Sizes


def _no_limits(sizes: Sizes, **options) -> Iterator[Limit]:
  del sizes, options
  return iter(())


class Postprocessing(NamedTuple):
  """A row of `POSTPROCESSING`.

  Attributes:
    stage: see `postprocessing`.
    function: what does it. By stage it is called as
        'whitening'  f(train_embeddings[, train_labels], ...) -> Whitening
        'queries'    f(queries, gallery, exclude_self=, ...) -> queries
        'gallery'    f(gallery, ...) -> gallery
        'ranking'    f(queries, gallery, k, exclude_self=, ...) -> lists
        'threshold'  f(lists, ...) -> lists
        'labels'     f(lists, queries, gallery, train_embeddings, train_labels,
                       exclude_self=, ...) -> lists
      with its options and, but for 'threshold', memory_budget_mb=.
    options: the keyword arguments a user may set.
    limits: what bounds them.
    needs: 'train' for training embeddings, 'train_labels' for their labels too.
  """

  stage: str
  function: Callable[..., Any]
  options: Mapping[str, Hyperparameter]
  limits: Callable[..., Iterator[Limit]] = _no_limits
  needs: tuple[str, ...] = ()


POSTPROCESSING: dict[str, Postprocessing] = {
  'average_query_expansion': Postprocessing(
    'queries',
    query_expansion.average_query_expansion,
    query_expansion.AVERAGE_OPTIONS,
    query_expansion.limits,
  ),
  'alpha_query_expansion': Postprocessing(
    'queries',
    query_expansion.alpha_query_expansion,
    query_expansion.ALPHA_OPTIONS,
    query_expansion.limits,
  ),
  'database_augmentation': Postprocessing(
    'gallery',
    query_expansion.database_augmentation,
    query_expansion.ALPHA_OPTIONS,
    query_expansion.augmentation_limits,
  ),
  'pca_whitening': Postprocessing(
    'whitening',
    whitening.fit_pca_whitening,
    whitening.PCA_OPTIONS,
    whitening.limits,
    needs=('train',),
  ),
  'learned_whitening': Postprocessing(
    'whitening',
    whitening.fit_learned_whitening,
    whitening.LEARNED_OPTIONS,
    whitening.limits,
    needs=('train', 'train_labels'),
  ),
  'k_reciprocal': Postprocessing(
    'ranking',
    k_reciprocal.k_reciprocal_reranking,
    k_reciprocal.OPTIONS,
    k_reciprocal.limits,
  ),
  'diffusion': Postprocessing(
    'ranking',
    diffusion.diffusion_reranking,
    diffusion.OPTIONS,
    diffusion.limits,
  ),
  'superglobal': Postprocessing(
    'ranking',
    superglobal.superglobal_reranking,
    superglobal.OPTIONS,
    superglobal.limits,
  ),
  'label_aware': Postprocessing(
    'labels',
    label_aware.label_aware_reranking,
    label_aware.OPTIONS,
    label_aware.limits,
    needs=('train', 'train_labels'),
  ),
  'constant_threshold': Postprocessing(
    'threshold',
    thresholding.constant_threshold,
    thresholding.CONSTANT_OPTIONS,
  ),
  'adaptive_threshold': Postprocessing(
    'threshold',
    thresholding.adaptive_threshold,
    thresholding.ADAPTIVE_OPTIONS,
  ),
}
