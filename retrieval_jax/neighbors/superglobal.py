"""SuperGlobal re-ranking: the best few refine each other, then the query."""

import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from retrieval_jax.core import arrays, tiles
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
  'top_m': options_lib.COUNT,
  'num_neighbors': options_lib.COUNT,
  'beta': options_lib.NONNEGATIVE,
}

_MAX_BLOCK_ROWS = 64


def limits(
  sizes: Sizes, *, top_m: int, num_neighbors: int, **options
) -> Iterator[Limit]:
  """Yields what bounds the options."""
  del options
  yield Limit('top_m', top_m, sizes.found, FOUND)
  yield Limit(LIST_LENGTH, sizes.list_length, sizes.found, FOUND)
  yield Limit('num_neighbors', num_neighbors, top_m - 1, 'top_m less one')


def superglobal_reranking(
  queries,
  gallery,
  k: int,
  *,
  top_m: int = 400,
  num_neighbors: int = 9,
  beta: float = 0.15,
  exclude_self: bool = False,
  memory_budget_mb: float = 128,
) -> RankedLists:
  """Returns the k best, the M nearest gallery rows refined by each other.

  Of the M nearest rows of a query, each is averaged with its K nearest among
  them, the best of these are maximised over, and both are compared:

      r_i = (x_i + beta sum_j s_ij x_j) / (1 + beta sum_j s_ij),
            s_ij = max(<x_i, x_j>, 0),
      S1_i = <q, r_i>,
      e = element-wise maximum of the K + 1 rows r with the largest S1,
      S2_i = <e, r_i>,
      score = (S1 + S2) / 2.

  Negative similarities, which the source has not, weigh nothing. Equal scores
  come in the order of the first search, and so does what is not among the M,
  behind them; see `lists.append_found`.

  Args:
    queries: [Q, D] any float dtype, normalised inside.
    gallery: [N, D] likewise.
    k: length of the lists, at most N (N - 1 without itself).
    top_m: M, candidates of a query, at most N (N - 1 without itself).
    num_neighbors: K, at most M - 1.
    beta: the weight of the neighbours.
    exclude_self: whether the gallery is the queries, and row i of it is left
      out for query i.
    memory_budget_mb: MiB beyond the inputs and the lists to stay within, if it
      holds one query a device.

  Returns:
    Lists [Q, k]; the scores are no cosines, since e is not of unit length.

  Raises:
    InputError: for arrays that cannot be searched, or an option out of range.

  Example:
    >>> angles = np.array([0.1, 0.2, -0.15, -0.6])
    >>> x = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    >>> superglobal_reranking(np.array([[1.0, 0.0]]), x, 3, top_m=4,
    ...                       num_neighbors=1, beta=1.0).indices.tolist()
    [[0, 1, 2]]

  References:
    Shao, Chen, Karpur, Cui, Araujo, Cao, Global Features are All You Need for
    Image Retrieval and Reranking, ICCV 2023, section 3.3 and their code.
  """
  given = {'top_m': top_m, 'num_neighbors': num_neighbors, 'beta': beta}
  options_lib.check('superglobal', given, OPTIONS)
  budget = tiles.check_memory_budget(memory_budget_mb)
  queries, gallery = search.check_pair(queries, gallery, exclude_self)
  sizes = Sizes(found=len(gallery) - exclude_self, list_length=k)
  check_list_length(k)
  options_lib.check('superglobal', {}, {}, limits(sizes, **given))
  devices = jax.local_devices()
  by_row = NamedSharding(Mesh(np.array(devices), ('rows',)), P('rows'))
  # Candidates thrice (as found, refined, sorted) and their similarities twice.
  dim = queries.shape[1]
  row_bytes = 16 * top_m * dim + 16 * top_m * top_m
  fitting = max(1, budget // 2 // row_bytes // len(devices))
  wanted = -(-len(queries) // len(devices))
  block_rows = min(_MAX_BLOCK_ROWS, fitting, wanted) * len(devices)
  lists = empty_lists(len(queries), k)
  num_reranked = min(k, top_m)
  for part, near in search_in_blocks(
    queries,
    gallery,
    max(k, top_m),
    exclude_self=exclude_self,
    row_bytes=0,
    budget=budget // 2,
  ):
    for block in tiles.blocks(part.stop - part.start, block_rows):
      rows = slice(part.start + block.start, part.start + block.stop)
      candidates = near.indices[block, :top_m]
      found = tiles.unit_rows(gallery[candidates.reshape(-1)])
      padding = block_rows - len(candidates)
      block_queries, found = jax.device_put(
        (
          np.pad(tiles.unit_rows(queries[rows]), ((0, padding), (0, 0))),
          np.pad(found.reshape(-1, top_m, dim), ((0, padding), (0, 0), (0, 0))),
        ),
        by_row,
      )
      best = _refine(
        block_queries, found, beta, k=num_reranked, num_neighbors=num_neighbors
      )
      scores, places = (np.asarray(x)[: len(candidates)] for x in best)
      lists.scores[rows, :num_reranked] = scores
      lists.indices[rows, :num_reranked] = np.take_along_axis(
        candidates, places, axis=1
      )
    append_found(lists, part, near, num_reranked)
  return lists


@functools.partial(jax.jit, static_argnames=('k', 'num_neighbors'))
def _refine(queries, candidates, beta, *, k, num_neighbors):
  """Returns the k best (scores, places) of candidates [B, M, D]."""

  def of_query(query, found):
    similarities = arrays.dot_products(found, found)
    # Each is in its own average by its weight of 1.
    others = jnp.where(jnp.eye(len(found), dtype=bool), -jnp.inf, similarities)
    near, places = lax.top_k(others, num_neighbors)
    weights = beta * jnp.maximum(near, 0)

    def add(i, total):
      return total + weights[:, i, None] * found[places[:, i]]

    refined = lax.fori_loop(0, num_neighbors, add, found)
    refined /= 1 + jnp.sum(weights, axis=1, keepdims=True)
    first = arrays.dot_products(query[None], refined)[0]
    _, best = lax.top_k(first, num_neighbors + 1)
    expanded = jnp.max(refined[best], axis=0)
    second = arrays.dot_products(expanded[None], refined)[0]
    return lax.top_k((first + second) / 2, k)

  return jax.vmap(of_query)(queries, candidates)
