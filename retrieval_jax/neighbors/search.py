"""Exact search for the nearest neighbours, streamed in bounded memory."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from retrieval_jax.core import arrays, tiles
from retrieval_jax.core.errors import InputError


def top_k(
  queries,
  gallery,
  k: int,
  *,
  exclude_self: bool = False,
  memory_budget_mb: float = 128,
) -> tuple[np.ndarray, np.ndarray]:
  """Returns the k gallery rows with the largest cosine, best first.

  Exact: every similarity is computed, in float32. Equal similarities come in
  the order of their index, and equal gallery rows have equal similarities.

  Args:
    queries: [Q, D] any float dtype, normalised inside. The similarities of a
      zero row are 0.
    gallery: [N, D] likewise.
    k: neighbours a query, at most N (N - 1 without itself).
    exclude_self: whether the gallery is the queries, and row i of it is left
      out for query i.
    memory_budget_mb: MiB beyond the inputs and the results to stay within.

  Returns:
    (similarities [Q, k] float32, indices [Q, k] int32).

  Raises:
    InputError: for arrays that cannot be searched, or a k out of range.

  Example:
    >>> gallery = np.array([[1.0, 0.0], [0.0, 1.0], [2.0, 0.0]])
    >>> top_k(np.array([[3.0, 0.0]]), gallery, 2)[1].tolist()
    [[0, 2]]
  """
  budget = tiles.check_memory_budget(memory_budget_mb)
  queries, gallery = check_pair(queries, gallery, exclude_self)
  largest = len(gallery) - exclude_self
  if (
    isinstance(k, bool)
    or not isinstance(k, (int, np.integer))
    or not 1 <= k <= largest
  ):
    raise InputError(
      f'k is {k!r}; allowed is an int from 1 to {largest}, the rows of the '
      'gallery that can be found: choose a smaller k'
    )
  return _search(queries, gallery, int(k), exclude_self, budget)


def check_pair(
  queries, gallery, exclude_self: bool = False
) -> tuple[np.ndarray, np.ndarray]:
  """Returns queries and gallery as arrays that can be searched.

  Args:
    queries: [Q, D] any float dtype.
    gallery: [N, D] likewise.
    exclude_self: whether the gallery is the queries.

  Raises:
    InputError: for arrays that cannot be, or do not fit each other.
  """
  queries = tiles.check_embeddings(queries, 'queries')
  gallery = tiles.check_embeddings(gallery, 'gallery', queries.shape[1])
  if exclude_self and len(queries) != len(gallery):
    raise InputError(
      f'exclude_self is True with {len(queries)} queries and a gallery of '
      f'{len(gallery)}; allowed is the same array twice: pass '
      'exclude_self=False'
    )
  return queries, gallery


def _search(
  queries: np.ndarray,
  gallery: np.ndarray,
  k: int,
  exclude_self: bool,
  budget: int,
  devices: Sequence[jax.Device] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
  rows = np.arange(len(gallery), dtype=np.int32)
  tiled = tiles.Tiles(gallery, (rows,), budget=budget // 2, devices=devices)
  similarities = np.empty((len(queries), k), np.float32)
  indices = np.empty((len(queries), k), np.int32)
  # Candidates with their indices, their sorted copy, and the product.
  row_bytes = 24 * (tiled.tile_rows + k)
  block_rows = tiled.block_rows(
    len(queries), row_bytes, budget - tiled.num_bytes
  )
  for block in tiles.blocks(len(queries), block_rows):
    picked = np.arange(block.start, block.stop)
    itself = picked if exclude_self else np.full(len(picked), -2)
    block_queries = tiled.put_queries(queries[block], (itself,), block_rows)
    best = _nothing(block_queries, k=k)
    for index in range(len(tiled)):
      best = _merge(block_queries, tiled[index], best, k=k)
    similarities[block] = np.asarray(best[0])[: len(picked)]
    indices[block] = np.asarray(best[1])[: len(picked)]
  return similarities, indices


@functools.partial(jax.jit, static_argnames='k')
def _nothing(queries, *, k):
  """Returns the best k of no candidates: similarity -inf, index -1."""
  _, (itself,) = queries
  nothing = jnp.zeros_like(itself)[:, None] + jnp.full((1, k), -1, jnp.int32)
  return jnp.full_like(nothing, -jnp.inf, jnp.float32), nothing


@functools.partial(jax.jit, static_argnames='k')
def _merge(queries, tile, best, *, k):
  """Returns the best k of those so far and of a tile."""
  rows, (itself,) = queries
  gallery_rows, (index,) = tile
  similarities = arrays.dot_products(rows, gallery_rows)
  left_out = itself[:, None] == index[None, :]
  left_out |= (index < 0)[None, :]
  similarities = jnp.where(left_out, -jnp.inf, similarities)
  # `lax.top_k` prefers the lower place among equals: what came from earlier
  # tiles stands first, so the lower index wins.
  similarities = jnp.concatenate([best[0], similarities], axis=1)
  indices = jnp.concatenate(
    [best[1], jnp.broadcast_to(index[None, :], left_out.shape)], axis=1
  )
  similarities, places = lax.top_k(similarities, k)
  return similarities, jnp.take_along_axis(indices, places, axis=1)
