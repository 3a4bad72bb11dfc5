"""Whitening: a linear map after which no direction counts more than another.

It is fitted on embeddings that are not measured on (those of the training
images), and then applied to queries and gallery alike.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from retrieval_jax.core import relations, tiles
from retrieval_jax.core.errors import InputError
from retrieval_jax.neighbors import options as options_lib
from retrieval_jax.neighbors.options import Limit, Sizes

PCA_OPTIONS = {
  'dim': options_lib.OPTIONAL_COUNT,
  'power': options_lib.NONNEGATIVE,
}
LEARNED_OPTIONS = {'dim': options_lib.OPTIONAL_COUNT}

# Of the largest variance; what is below is the rounding of float32.
_NO_VARIANCE = 1e-10
# Of the mean variance within pairs, added to the variance of each direction, so
# that one without any has an inverse.
_RIDGE = 1e-6


class Whitening(NamedTuple):
  """x' = L2(projection^T (L2(x) - mean)).

  Attributes:
    mean: [D] float64.
    projection: [D, E] float64, its columns by what they tell, most first.
  """

  mean: np.ndarray
  projection: np.ndarray


def limits(sizes: Sizes, *, dim: int | None, **options) -> Iterator[Limit]:
  """Yields what bounds the options of a whitening."""
  del options
  if dim is not None:
    yield Limit('dim', dim, sizes.dim, 'the dimension of the embeddings')
    yield Limit('dim', dim, sizes.train - 1, 'the training images less one')


def fit_pca_whitening(
  embeddings,
  *,
  dim: int | None = None,
  power: float = 0.5,
  memory_budget_mb: float = 128,
) -> Whitening:
  """Fits a principal component analysis with whitening.

      P = U_E diag(v_1, ..., v_E)^-power,

  with U the eigenvectors of the covariance of the unit rows and v its
  eigenvalues, the largest first.

  Args:
    embeddings: [N, D] any float dtype, normalised inside; not the test set.
    dim: E, how many components are kept; None: all that vary.
    power: 0.5 gives each component the variance 1; 0.25 goes half the way,
      which is safer where the last components are noise; 0 only rotates.
    memory_budget_mb: MiB beyond the input, the result and five D x D matrices
      to stay within.

  Returns:
    What `apply_whitening` takes.

  Raises:
    InputError: for embeddings that cannot be used or do not vary, or a `dim`
      beyond the directions in which they vary.

  Example:
    >>> angles = np.array([0.0, 0.2, 0.4])
    >>> x = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    >>> fit_pca_whitening(x, dim=1).projection.shape
    (2, 1)

  References:
    Jegou and Chum, Negative Evidences and Co-occurrences in Image Retrieval,
    ECCV 2012, section 2; power 0.25: Revaud et al., Learning with Average
    Precision, ICCV 2019 (their code).
  """
  given = {'dim': dim, 'power': power}
  options_lib.check('pca_whitening', given, PCA_OPTIONS)
  budget = tiles.check_memory_budget(memory_budget_mb)
  embeddings = tiles.check_embeddings(embeddings)
  mean, covariance = _moments(embeddings, budget)
  variances, vectors = _components(covariance, dim, 'pca_whitening')
  return Whitening(mean, vectors * variances**-power)


def fit_learned_whitening(
  embeddings,
  labels,
  *,
  dim: int | None = None,
  memory_budget_mb: float = 128,
) -> Whitening:
  """Fits a whitening that makes matching pairs alike, Lw.

      S = mean over matching pairs of (x_i - x_j) (x_i - x_j)^T = L L^T,
      P = L^-T U_E,

  with U the eigenvectors of the covariance of L^-1 x: what differs within a
  class is whitened, and of the rest the directions that vary most are kept. The
  matching pairs are all pairs of rows of a class; a large class has many.

  Args:
    embeddings: [N, D] any float dtype, normalised inside; not the test set.
    labels: [N] int.
    dim: E, how many components are kept; None: all that vary.
    memory_budget_mb: MiB beyond the input, the result and five D x D matrices
      to stay within.

  Returns:
    What `apply_whitening` takes.

  Raises:
    InputError: for embeddings that cannot be used, without two rows of a class
      that differ, or a `dim` beyond the directions in which they vary.

  Example:
    >>> x = np.array([[1.0, 0.1], [1.0, -0.1], [-1.0, 0.2], [-1.0, -0.2]])
    >>> fit_learned_whitening(x, np.array([0, 0, 1, 1])).projection.shape
    (2, 2)

  References:
    Mikolajczyk and Matas, Improving Descriptors for Fast Tree Matching by
    Optimal Linear Projection, ICCV 2007; Radenovic, Tolias, Chum, TPAMI 2018,
    section 3.3.
  """
  options_lib.check('learned_whitening', {'dim': dim}, LEARNED_OPTIONS)
  budget = tiles.check_memory_budget(memory_budget_mb)
  embeddings = tiles.check_embeddings(embeddings)
  labels = relations.check_labels(labels)
  if len(labels) != len(embeddings):
    raise InputError(
      f'labels have {len(labels)} rows but the embeddings {len(embeddings)}; '
      'allowed is one label a row: check how they were gathered'
    )
  mean, covariance = _moments(embeddings, budget)
  within = _pair_covariance(embeddings, labels, budget)
  ridge = _RIDGE * np.trace(within) / len(within)
  if ridge <= 0:
    raise InputError(
      'labels have no class with two rows that differ; allowed is at least one '
      'matching pair: pass embeddings of classes with several images'
    )
  inverse = np.linalg.inv(
    np.linalg.cholesky(within + ridge * np.eye(len(within)))
  )
  _, vectors = _components(
    inverse @ covariance @ inverse.T, dim, 'learned_whitening'
  )
  return Whitening(mean, inverse.T @ vectors)


def apply_whitening(
  whitening: Whitening, embeddings, *, memory_budget_mb: float = 128
) -> np.ndarray:
  """Returns whitened embeddings, x' = L2(P^T (L2(x) - mean)).

  Args:
    whitening: fitted.
    embeddings: [N, D] any float dtype, normalised inside.
    memory_budget_mb: MiB beyond the input and the result to stay within.

  Returns:
    [N, E] float32, unit rows.

  Raises:
    InputError: for embeddings of another width than those it was fitted on.

  Example:
    >>> rotation = Whitening(np.zeros(2), np.array([[0.0, 1.0], [1.0, 0.0]]))
    >>> apply_whitening(rotation, np.array([[3.0, 4.0]])).round(4).tolist()
    [[0.800000011920929, 0.6000000238418579]]
  """
  budget = tiles.check_memory_budget(memory_budget_mb)
  embeddings = tiles.check_embeddings(embeddings)
  dim, new_dim = whitening.projection.shape
  if embeddings.shape[1] != dim:
    raise InputError(
      f'embeddings have {embeddings.shape[1]} columns but the whitening was '
      f'fitted on {dim}; allowed is the same width: fit it on embeddings of '
      'the same model'
    )
  whitened = np.empty((len(embeddings), new_dim), np.float32)
  block_rows = max(1, budget // (24 * (dim + new_dim)))
  for block in tiles.blocks(len(embeddings), block_rows):
    # In float64, so that rounding to float32 makes equal rows equal again.
    rows = tiles.unit_rows(embeddings[block]) - whitening.mean
    whitened[block] = tiles.unit_rows(rows @ whitening.projection)
  return whitened


def _unit_blocks(embeddings, budget, order=None):
  """Yields unit rows [B, D] float64, block by block."""
  block_rows = max(1, budget // (32 * embeddings.shape[1]))
  for block in tiles.blocks(len(embeddings), block_rows):
    picked = block if order is None else order[block]
    yield block, tiles.unit_rows(embeddings[picked]).astype(np.float64)


def _moments(embeddings, budget):
  """Returns the mean [D] and the covariance [D, D] of the unit rows."""
  dim = embeddings.shape[1]
  mean, covariance = np.zeros(dim), np.zeros((dim, dim))
  for _, rows in _unit_blocks(embeddings, budget):
    mean += rows.sum(axis=0)
  mean /= len(embeddings)
  for _, rows in _unit_blocks(embeddings, budget):
    rows -= mean
    covariance += rows.T @ rows
  return mean, covariance / len(embeddings)


def _pair_covariance(embeddings, labels, budget):
  """Returns S [D, D], of all pairs of a class.

  Of n rows of a class with the sum s the pairs give
  n sum_i x_i x_i^T - s s^T, so none is formed.
  """
  _, classes, counts = np.unique(
    labels, return_inverse=True, return_counts=True
  )
  num_pairs = (counts * (counts - 1) // 2).sum()
  dim = embeddings.shape[1]
  within = np.zeros((dim, dim))
  if not num_pairs:
    return within
  order = np.argsort(classes, kind='stable')
  open_class, open_sum = -1, np.zeros(dim)
  for block, rows in _unit_blocks(embeddings, budget, order):
    of_rows = classes[order[block]]
    within += (rows * counts[of_rows, None]).T @ rows
    starts = np.flatnonzero(np.diff(of_rows, prepend=-1))
    sums = np.add.reduceat(rows, starts, axis=0)
    if of_rows[0] == open_class:
      sums[0] += open_sum
    else:
      sums = np.concatenate([open_sum[None], sums])
    within -= sums[:-1].T @ sums[:-1]
    open_class, open_sum = of_rows[-1], sums[-1]
  within -= np.outer(open_sum, open_sum)
  return within / num_pairs


def _components(covariance, dim, owner):
  """Returns the largest eigenvalues [E] and their vectors [D, E]."""
  variances, vectors = np.linalg.eigh((covariance + covariance.T) / 2)
  variances, vectors = variances[::-1], vectors[:, ::-1]
  rank = int((variances > _NO_VARIANCE * max(variances[0], 0)).sum())
  if variances[0] <= _NO_VARIANCE:
    raise InputError(
      'the embeddings are all alike; allowed are some that differ, to fit a '
      'whitening on: look at the loss and the learning rate'
    )
  if dim is not None and dim > rank:
    raise InputError(
      f'{owner}.dim is {dim}; allowed is at most {rank}, the directions in '
      'which the embeddings that it is fitted on vary: choose a smaller one'
    )
  kept = rank if dim is None else dim
  variances, vectors = variances[:kept], vectors[:, :kept]
  # The sign of an eigenvector is free; the same data give the same one.
  largest = np.abs(vectors).argmax(axis=0)
  return variances, vectors * np.sign(vectors[largest, np.arange(kept)])
