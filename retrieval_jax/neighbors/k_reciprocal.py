"""Re-ranking by k-reciprocal neighbours, sparse.

Who has the same neighbours, and is had by them, is alike. Each row is encoded
by weights of its reciprocal neighbours; the rows with which it shares some are
ranked by the overlap, and nothing of size [N, N] exists.
"""

from collections.abc import Iterator

import numpy as np
from scipy import sparse

from retrieval_jax.core import tiles
from retrieval_jax.neighbors import candidates, search
from retrieval_jax.neighbors import options as options_lib
from retrieval_jax.neighbors.lists import RankedLists, empty_lists
from retrieval_jax.neighbors.options import FOUND, LIST_LENGTH, Limit, Sizes

OPTIONS = {
  'k1': options_lib.COUNT,
  'k2': options_lib.COUNT,
  'lambda_value': options_lib.SHARE,
}

# Blocks that stay in the cache.
_MAX_BLOCK_ROWS = 64
_MAX_PAIRS = 512


def limits(sizes: Sizes, *, k1: int, k2: int, **options) -> Iterator[Limit]:
  """Yields what bounds the options."""
  del options
  yield Limit(LIST_LENGTH, sizes.list_length, sizes.found, FOUND)
  yield Limit('k1', k1, sizes.found, FOUND)
  yield Limit('k2', k2, k1 + 1, 'k1 and the row itself')


def k_reciprocal_reranking(
  queries,
  gallery,
  k: int,
  *,
  k1: int = 20,
  k2: int = 6,
  lambda_value: float = 0.3,
  exclude_self: bool = False,
  memory_budget_mb: float = 128,
) -> RankedLists:
  """Returns the k best gallery rows by k-reciprocal encoding.

  Queries and gallery are the nodes of one graph. N(p, n) is p with its n
  nearest nodes, and R(p, n) = {q in N(p, n): p in N(q, n)}. R*(p) is R(p, k1)
  with each R(q, k1 / 2), q in R(p, k1), of which more than two thirds are in
  R(p, k1). With d the squared Euclidean distance of the unit rows over the
  largest of the row,

      V_pq = exp(-d_pq) / sum over R*(p) if q in R*(p) else 0,
      V_p  <- mean of V over N(p, k2 - 1),
      J_pq = 1 - sum_n min(V_pn, V_qn) / sum_n max(V_pn, V_qn),
      score = 1 - (1 - lambda) J - lambda d.

  What shares nothing with a query has J = 1 and follows by its distance, so the
  k best are exact, and a shorter list is the beginning of a longer one. Equal
  scores come in the order of their index; with a `lambda_value` of 0 all that
  shares nothing has a score of 0, and comes in the order of the search.

  Args:
    queries: [Q, D] any float dtype, normalised inside.
    gallery: [N, D] likewise.
    k: length of the lists, at most N (N - 1 without itself).
    k1: neighbours that are encoded, about as many as a class has.
    k2: rows whose codes are averaged, itself included; 1: no average.
    lambda_value: of the original distance, in [0, 1].
    exclude_self: whether the gallery is the queries, and row i of it is left
      out for query i.
    memory_budget_mb: MiB for the blocks. Besides, the rows are copied, and the
      codes take O(k1 k2) numbers a node, some kilobytes.

  Returns:
    Lists [Q, k], scores in [0, 1].

  Raises:
    InputError: for arrays that cannot be searched, or an option out of range.

  Example:
    Row 2 is as near to the query as row 1, but only row 1 is near to row 0.

    >>> angles = np.array([0.0, 0.1, 0.4, -0.4])
    >>> x = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    >>> k_reciprocal_reranking(x[:1], x[1:], 3, k1=1, k2=1).indices.tolist()
    [[0, 1, 2]]

  References:
    Zhong, Zheng, Cao, Li, Re-ranking Person Re-identification with k-reciprocal
    Encoding, CVPR 2017, sections 3.2 to 3.5.
  """
  given = {'k1': k1, 'k2': k2, 'lambda_value': lambda_value}
  options_lib.check('k_reciprocal', given, OPTIONS)
  budget = tiles.check_memory_budget(memory_budget_mb)
  near = search.top_k(
    queries,
    gallery,
    k,
    exclude_self=exclude_self,
    memory_budget_mb=memory_budget_mb,
  )[1]
  queries, gallery = np.asarray(queries), np.asarray(gallery)
  sizes = Sizes(found=len(gallery) - exclude_self, list_length=k)
  options_lib.check('k_reciprocal', {}, {}, limits(sizes, **given))
  # Without a gallery of their own the queries are in the graph once.
  is_one_set = exclude_self and np.array_equal(queries, gallery)
  first = 0 if is_one_set else len(queries)
  nodes = tiles.unit_rows(
    gallery if is_one_set else np.concatenate([queries, gallery])
  )
  others = near[:, :k1] if is_one_set and k >= k1 else None
  codes, largest = _encode(nodes, others, k1, k2, budget)
  of_column = codes[first:].T.tocsr()
  # What is added up for a query: its code's columns.
  num_shared = np.append(0, np.cumsum(np.diff(of_column.indptr)[codes.indices]))
  num_shared = np.diff(num_shared[codes.indptr[: len(queries) + 1]])
  row_bytes = 20 * len(gallery) + 40 * int(num_shared.max())
  row_bytes += 16 * k * nodes.shape[1]
  num_rows = min(_MAX_BLOCK_ROWS, max(1, budget // row_bytes))
  lists = empty_lists(len(queries), k)
  for block in tiles.blocks(len(queries), num_rows):
    itself = np.arange(block.start, block.stop)
    row, found, overlap = _candidates(
      codes[block], of_column, near[block], itself if exclude_self else None
    )
    query = itself[row]
    distance = _pair_distances(nodes, query, first + found, budget)
    distance /= largest[query]
    scores = (1 - lambda_value) * overlap / (2 - overlap)
    scores += lambda_value * (1 - distance)
    place = found.astype(np.int64)
    if lambda_value == 0:
      # Equal, and more than is at hand: of all orders, only that of the search
      # begins with what is. The nearest are the first pairs, k of each query.
      (apart,) = np.nonzero(overlap == 0)
      place[apart] = len(gallery) + apart % k
    lists.scores[block], place = candidates.best_of(
      row, scores.astype(np.float32), place, k, len(itself)
    )
    is_apart = place >= len(gallery)
    rank = np.where(is_apart, place - len(gallery), 0)
    lists.indices[block] = np.where(
      is_apart, np.take_along_axis(near[block], rank, axis=1), place
    )
  return lists


def _candidates(codes, of_column, near, itself):
  """Returns the pairs that may be among the best: (row, gallery row, overlap).

  The nearest come first, in their order, then what else shares something.

  Args:
    codes: of b queries, CSR [b, M].
    of_column: CSR [M, N], the codes of the gallery transposed.
    near: [b, k], the nearest gallery rows of each.
    itself: [b], the gallery row that is left out, if there is one.
  """
  # sum_n min(V_pn, V_gn): each number of a query's code caps its column.
  capped = of_column[codes.indices]
  capped.data = np.minimum(
    capped.data, np.repeat(codes.data, np.diff(capped.indptr))
  )
  adds = sparse.csr_matrix(
    (np.ones_like(codes.data), np.arange(codes.nnz), codes.indptr),
    shape=(codes.shape[0], codes.nnz),
  )
  # Both codes sum to 1, so the maxima sum to 2 less this.
  overlap = adds @ capped
  rows = np.arange(len(near))
  near_row = np.repeat(rows, near.shape[1])
  near = near.reshape(-1)
  dense = overlap.toarray()
  near_overlap = dense[near_row, near]
  # What is listed already, or left out.
  dense[near_row, near] = -1
  if itself is not None:
    dense[rows, itself] = -1
  row = np.repeat(rows, np.diff(overlap.indptr))
  other = dense[row, overlap.indices] >= 0
  return (
    np.concatenate([near_row, row[other]]),
    np.concatenate([near, overlap.indices[other]]),
    np.concatenate([near_overlap, overlap.data[other]]),
  )


def _pair_distances(nodes, left, right, budget):
  """Returns the squared distances of pairs of nodes, [P] float64.

  They depend on the two rows alone, so equal rows are equally far.
  """
  num_pairs = min(_MAX_PAIRS, max(1, budget // (16 * nodes.shape[1])))
  rows = np.empty((2, num_pairs, nodes.shape[1]), np.float32)
  cosines = np.empty(len(left), np.float32)
  for pair in tiles.blocks(len(left), num_pairs):
    x, y = rows[:, : pair.stop - pair.start]
    # Without `clip`, numpy takes another buffer.
    np.take(nodes, left[pair], axis=0, out=x, mode='clip')
    np.take(nodes, right[pair], axis=0, out=y, mode='clip')
    np.einsum('pd,pd->p', x, y, out=cosines[pair])
  return _distances(cosines)


def _distances(cosines):
  return np.maximum(2 - 2 * cosines.astype(np.float64), 0)


def _encode(nodes, others, k1, k2, budget):
  """Returns the codes V as [M, M] CSR, and the largest distances [M].

  Args:
    nodes: [M, D] unit rows.
    others: [M, k1], the nearest other nodes of each, if they are known.
    k1: of `k_reciprocal_reranking`.
    k2: likewise.
    budget: bytes for the blocks.
  """
  budget_mb = budget / tiles.MIB
  if others is None:
    _, others = search.top_k(
      nodes, nodes, k1, exclude_self=True, memory_budget_mb=budget_mb
    )
  # The least cosine is the greatest with the opposite.
  greatest, _ = search.top_k(-nodes, nodes, 1, memory_budget_mb=budget_mb)
  largest = _distances(-greatest[:, 0])
  largest[largest == 0] = 1
  itself = np.arange(len(nodes), dtype=np.int32)[:, None]
  nearest = np.concatenate([itself, others], axis=1)
  reciprocal = _reciprocal(nearest)
  core = _reciprocal(nearest[:, : int(np.around(k1 / 2)) + 1])
  # Of a row: the product with the cores, and the rows of its pairs.
  row_bytes = 24 * (k1 + 1) ** 2 + 16 * (k1 + 1) * nodes.shape[1]
  codes = []
  for block in tiles.blocks(len(nodes), max(1, budget // row_bytes)):
    members = _expand(reciprocal[block], core)
    rows, columns = members.nonzero()
    distances = _pair_distances(nodes, block.start + rows, columns, budget)
    weights = np.exp(-distances / largest[block.start + rows])
    weights /= np.bincount(rows, weights)[rows]
    codes.append(
      sparse.csr_matrix(
        (weights.astype(np.float32), (rows, columns)), shape=members.shape
      )
    )
  codes = sparse.vstack(codes, format='csr')
  if k2 > 1:
    codes = _adjacency(nearest[:, :k2], 1 / k2) @ codes
  codes.sort_indices()
  return codes, largest


def _adjacency(nearest, value=1.0):
  """Returns [M, M] CSR with a value at each row's neighbours."""
  num_rows, width = nearest.shape
  return sparse.csr_matrix(
    (
      np.full(nearest.size, value, np.float32),
      nearest.reshape(-1),
      np.arange(0, nearest.size + 1, width),
    ),
    shape=(num_rows, num_rows),
  )


def _reciprocal(nearest):
  """Returns [M, M] CSR, 1 where each is among the neighbours of the other."""
  adjacency = _adjacency(nearest)
  return adjacency.multiply(adjacency.T).tocsr()


def _expand(reciprocal, core):
  """Returns R* of some rows, [B, M] CSR, nonzero at its members."""
  shared = (reciprocal @ core.T).multiply(reciprocal).tocsr()
  sizes = core.getnnz(axis=1)[shared.indices]
  shared.data = (3 * shared.data > 2 * sizes).astype(np.float32)
  members = (reciprocal + shared @ core).tocsr()
  members.eliminate_zeros()
  members.sort_indices()
  return members
