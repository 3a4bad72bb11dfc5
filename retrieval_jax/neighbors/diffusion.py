"""Re-ranking by diffusion over the graph of nearest neighbours, truncated.

A query heats its nearest gallery rows, and the heat spreads along the graph of
the gallery: what lies on the same manifold gets warm, be it far away.
"""

from collections.abc import Iterator

import numpy as np
from scipy import sparse
from scipy.sparse import linalg

from retrieval_jax.core import tiles
from retrieval_jax.neighbors import options as options_lib
from retrieval_jax.neighbors import search
from retrieval_jax.neighbors.lists import (
  RankedLists,
  append_found,
  check_list_length,
  empty_lists,
  search_in_blocks,
)
from retrieval_jax.neighbors.options import FOUND, LIST_LENGTH, Limit, Sizes

OPTIONS = {
  'kd': options_lib.COUNT,
  'kq': options_lib.COUNT,
  'truncation': options_lib.COUNT,
  'alpha': options_lib.Number(closed=True, most=1 - 1e-6),
  'gamma': options_lib.NONNEGATIVE,
  'num_iterations': options_lib.COUNT,
}

_TOLERANCE = 1e-6  # Of the residual, relative; conjugate gradients stop there.


def limits(
  sizes: Sizes, *, kd: int, kq: int, truncation: int, **options
) -> Iterator[Limit]:
  """Yields what bounds the options."""
  del options
  yield Limit('truncation', truncation, sizes.found, FOUND)
  yield Limit(LIST_LENGTH, sizes.list_length, sizes.found, FOUND)
  yield Limit('kq', kq, truncation, 'the truncation')
  yield Limit('kd', kd, sizes.gallery - 1, 'the other rows of the gallery')


def diffusion_reranking(
  queries,
  gallery,
  k: int,
  *,
  kd: int = 50,
  kq: int = 10,
  truncation: int = 1000,
  alpha: float = 0.99,
  gamma: float = 3.0,
  num_iterations: int = 20,
  exclude_self: bool = False,
  memory_budget_mb: float = 128,
) -> RankedLists:
  """Returns the k best gallery rows by diffusion among the nearest.

      A_ij = max(<x_i, x_j>, 0)^gamma if i and j are each among the kd nearest
             of the other, else 0,
      S = D^-1/2 A D^-1/2, D the row sums of A,
      y_i = max(<q, x_i>, 0)^gamma if i is among the kq nearest of q, else 0,
      (I - alpha S_T) f = y_T, score = f,

  with T the `truncation` nearest rows of the query and S_T the rows and columns
  of S in it. The system is solved by conjugate gradients. What no heat reaches
  keeps its order by cosine.

  Args:
    queries: [Q, D] any float dtype, normalised inside.
    gallery: [N, D] likewise.
    k: length of the lists, at most N (N - 1 without itself); what is not among
      the `truncation` nearest follows them as the search found it, see
      `lists.append_found`.
    kd: neighbours of a gallery row in the graph.
    kq: gallery rows that a query heats.
    truncation: candidates of a query, at most N (N - 1 without itself).
    alpha: how far heat spreads, in [0, 1).
    gamma: of the affinities.
    num_iterations: of conjugate gradients, at most.
    exclude_self: whether the gallery is the queries, and row i of it is left
      out for query i, as a candidate and as a source.
    memory_budget_mb: MiB for the blocks. Besides, the graph takes up to 24 kd
      bytes a gallery row.

  Returns:
    Lists [Q, k]; scores are heat, at least 0 up to rounding.

  Raises:
    InputError: for arrays that cannot be searched, or an option out of range.

  Example:
    Rows 0 to 2 lie on an arc that begins near the query. Row 3 is nearer than
    row 2, but linked to none of them.

    >>> angles = np.array([0.1, 0.4, 0.7, -0.6])
    >>> x = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    >>> diffusion_reranking(np.array([[1.0, 0.0]]), x, 4, kd=2, kq=1,
    ...                     truncation=4, alpha=0.5).indices.tolist()
    [[0, 1, 2, 3]]

  References:
    Iscen, Tolias, Avrithis, Furon, Chum, Efficient Diffusion on Region
    Manifolds, CVPR 2017, sections 3 and 4 (and their truncation); Yang,
    Hinami, Matsui, Ly, Satoh, Efficient Image Retrieval via Decoupling
    Diffusion into Online and Offline Processing, AAAI 2019 (mutual
    neighbours, gamma 3, kd 50, 20 iterations).
  """
  given = {
    'kd': kd,
    'kq': kq,
    'truncation': truncation,
    'alpha': alpha,
    'gamma': gamma,
    'num_iterations': num_iterations,
  }
  options_lib.check('diffusion', given, OPTIONS)
  budget = tiles.check_memory_budget(memory_budget_mb)
  queries, gallery = search.check_pair(queries, gallery, exclude_self)
  sizes = Sizes(len(gallery) - exclude_self, len(gallery), list_length=k)
  check_list_length(k)
  options_lib.check('diffusion', {}, {}, limits(sizes, **given))
  graph = _normalised_graph(gallery, kd, gamma, memory_budget_mb)
  lists = empty_lists(len(queries), k)
  for block, near in search_in_blocks(
    queries,
    gallery,
    max(k, truncation),
    exclude_self=exclude_self,
    row_bytes=0,
    budget=budget,
  ):
    nearest = (part[:, :truncation] for part in near)
    for row, (cosines, candidates) in enumerate(zip(*nearest, strict=True)):
      heat = np.zeros(truncation)
      heat[:kq] = np.maximum(cosines[:kq], 0) ** gamma
      spread = graph[candidates][:, candidates]
      system = sparse.identity(truncation, format='csr') - alpha * spread
      solution, _ = linalg.cg(
        system, heat, rtol=_TOLERANCE, atol=0.0, maxiter=num_iterations
      )
      order = np.argsort(-solution, kind='stable')[:k]
      lists.scores[block.start + row, : len(order)] = solution[order]
      lists.indices[block.start + row, : len(order)] = candidates[order]
    append_found(lists, block, near, truncation)
  return lists


def _normalised_graph(gallery, kd, gamma, memory_budget_mb):
  """Returns S, [N, N] CSR float64."""
  similarities, indices = search.top_k(
    gallery, gallery, kd, exclude_self=True, memory_budget_mb=memory_budget_mb
  )
  affinities = sparse.csr_matrix(
    (
      np.maximum(similarities.astype(np.float64), 0).reshape(-1) ** gamma,
      indices.reshape(-1),
      np.arange(0, indices.size + 1, kd),
    ),
    shape=(len(gallery), len(gallery)),
  )
  # 0 unless both have each other; both similarities are equal up to rounding.
  affinities = affinities.minimum(affinities.T)
  degrees = np.asarray(affinities.sum(axis=1)).reshape(-1)
  inverse = np.zeros(len(degrees))
  np.divide(1, np.sqrt(degrees), out=inverse, where=degrees > 0)
  scale = sparse.diags(inverse, format='csr')
  return (scale @ affinities @ scale).tocsr()
