"""Query expansion: a query is moved towards what it finds.

The new embedding is a weighted sum of the old one and its k nearest gallery
rows. Of the gallery itself the same is called database augmentation.
"""

from collections.abc import Iterator

import numpy as np

from retrieval_jax.core import tiles
from retrieval_jax.neighbors import options as options_lib
from retrieval_jax.neighbors import search
from retrieval_jax.neighbors.options import FOUND, Limit, Sizes

AVERAGE_OPTIONS = {'k': options_lib.COUNT}
ALPHA_OPTIONS = {'k': options_lib.COUNT, 'alpha': options_lib.NONNEGATIVE}


def limits(sizes: Sizes, *, k: int, **options) -> Iterator[Limit]:
  """Yields what bounds the options of an expansion of queries."""
  del options
  yield Limit('k', k, sizes.found, FOUND)


def augmentation_limits(sizes: Sizes, *, k: int, **options) -> Iterator[Limit]:
  """Yields what bounds the options of an augmentation of the gallery."""
  del options
  yield Limit('k', k, sizes.gallery - 1, 'the other rows of the gallery')


def average_query_expansion(
  queries,
  gallery,
  *,
  k: int = 10,
  exclude_self: bool = False,
  memory_budget_mb: float = 128,
) -> np.ndarray:
  """Returns each query averaged with its k nearest gallery rows.

      q' = L2(q + sum_{i <= k} x_i)

  Args:
    queries: [Q, D] any float dtype, normalised inside.
    gallery: [N, D] likewise.
    k: neighbours to average with, at most N (N - 1 without itself). All count
      alike, so it has to be small where classes are.
    exclude_self: whether the gallery is the queries, and row i of it is no
      neighbour of query i.
    memory_budget_mb: MiB beyond the inputs and the result to stay within.

  Returns:
    [Q, D] float32, unit rows, to search the same gallery with.

  Raises:
    InputError: for arrays that cannot be searched, or an option out of range.

  Example:
    >>> gallery = np.array([[0.6, 0.8], [0.0, -1.0]])
    >>> average_query_expansion(np.array([[1.0, 0.0]]), gallery, k=1).round(
    ...   4).tolist()
    [[0.8944000005722046, 0.4472000002861023]]

  References:
    Chum et al., Total Recall: Automatic Query Expansion with a Generative
    Feature Model for Object Retrieval, ICCV 2007, section 4 (average).
  """
  options_lib.check('average_query_expansion', {'k': k}, AVERAGE_OPTIONS)
  return _expand(queries, gallery, k, 0.0, exclude_self, memory_budget_mb)


def alpha_query_expansion(
  queries,
  gallery,
  *,
  k: int = 50,
  alpha: float = 3.0,
  exclude_self: bool = False,
  memory_budget_mb: float = 128,
) -> np.ndarray:
  """Returns each query averaged with its neighbours by their similarity.

      q' = L2(q + sum_{i <= k} max(<q, x_i>, 0)^alpha x_i)

  What is far counts little, so that k need not fit the size of the class. With
  alpha = 0 it is `average_query_expansion`.

  Args:
    queries: [Q, D] any float dtype, normalised inside.
    gallery: [N, D] likewise.
    k: neighbours to average with, at most N (N - 1 without itself).
    alpha: of the weights, at least 0.
    exclude_self: whether the gallery is the queries, and row i of it is no
      neighbour of query i.
    memory_budget_mb: MiB beyond the inputs and the result to stay within.

  Returns:
    [Q, D] float32, unit rows, to search the same gallery with.

  Raises:
    InputError: for arrays that cannot be searched, or an option out of range.

  Example:
    >>> gallery = np.array([[0.6, 0.8], [0.0, -1.0]])
    >>> alpha_query_expansion(np.array([[1.0, 0.0]]), gallery, k=2).round(
    ...   4).tolist()
    [[0.9884999990463257, 0.15119999647140503]]

  References:
    Radenovic, Tolias, Chum, Fine-tuning CNN Image Retrieval with No Human
    Annotation, TPAMI 2018, section 3.4.
  """
  given = {'k': k, 'alpha': alpha}
  options_lib.check('alpha_query_expansion', given, ALPHA_OPTIONS)
  return _expand(queries, gallery, k, alpha, exclude_self, memory_budget_mb)


def database_augmentation(
  gallery,
  *,
  k: int = 10,
  alpha: float = 3.0,
  memory_budget_mb: float = 128,
) -> np.ndarray:
  """Returns each gallery row averaged with its neighbours in the gallery.

      x' = L2(x + sum_{i <= k} max(<x, x_i>, 0)^alpha x_i)

  `alpha_query_expansion` of the gallery by itself: done once, and searched
  with the queries as they are.

  Args:
    gallery: [N, D] any float dtype, normalised inside.
    k: neighbours to average with, at most N - 1.
    alpha: of the weights, at least 0; 0 for the average.
    memory_budget_mb: MiB beyond the inputs and the result to stay within.

  Returns:
    [N, D] float32, unit rows.

  Raises:
    InputError: for an array that cannot be searched, or an option out of range.

  Example:
    >>> gallery = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    >>> database_augmentation(gallery, k=1).tolist()
    [[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]

  References:
    Turcot and Lowe, Better Matching with Fewer Features, ICCV workshops 2009;
    Arandjelovic and Zisserman, Three Things Everyone Should Know to Improve
    Object Retrieval, CVPR 2012, section 5.
  """
  given = {'k': k, 'alpha': alpha}
  options_lib.check('database_augmentation', given, ALPHA_OPTIONS)
  return _expand(gallery, gallery, k, alpha, True, memory_budget_mb)


def _expand(rows, gallery, k, alpha, exclude_self, memory_budget_mb):
  similarities, indices = search.top_k(
    rows,
    gallery,
    k,
    exclude_self=exclude_self,
    memory_budget_mb=memory_budget_mb,
  )
  weights = np.maximum(similarities, 0) ** np.float32(alpha)
  rows, gallery = np.asarray(rows), np.asarray(gallery)
  dim = rows.shape[1]
  expanded = np.empty((len(rows), dim), np.float32)
  # The neighbours as they are, as float32, and what normalising takes.
  row_bytes = 24 * k * dim
  budget = tiles.check_memory_budget(memory_budget_mb)
  for block in tiles.blocks(len(rows), max(1, budget // row_bytes)):
    found = tiles.unit_rows(gallery[indices[block].reshape(-1)])
    moved = np.einsum('bk,bkd->bd', weights[block], found.reshape(-1, k, dim))
    expanded[block] = tiles.unit_rows(tiles.unit_rows(rows[block]) + moved)
  return expanded
