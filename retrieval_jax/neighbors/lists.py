"""Ranked lists: what search and re-ranking give, and how they are made."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from retrieval_jax.core import relations, tiles
from retrieval_jax.core.errors import InputError
from retrieval_jax.neighbors import options as options_lib
from retrieval_jax.neighbors import search


class RankedLists(NamedTuple):
  """The best gallery rows of each query, best first; as `top_k` returns them.

  Attributes:
    scores: [Q, k] float32, descending; -inf where the list has ended.
    indices: [Q, k] int32, gallery rows; -1 where the list has ended.
  """

  scores: np.ndarray
  indices: np.ndarray


def check_lists(lists) -> RankedLists:
  """Returns lists as arrays of the host, or says what is wrong.

  Args:
    lists: (scores [Q, k], indices [Q, k]), such as of `top_k`.

  Raises:
    InputError: for arrays of other or different shapes, or indices that are no
      integers.

  Example:
    >>> check_lists(([[0.5]], [[3]])).indices
    array([[3]], dtype=int32)
  """
  scores, indices = map(np.asarray, lists)
  if indices.ndim != 2 or scores.shape != indices.shape or not indices.size:
    raise InputError(
      f'lists have scores of shape {scores.shape} and indices of shape '
      f'{indices.shape}; allowed is (Q, k) of both, not empty: pass what '
      'neighbors.top_k returned'
    )
  if not np.issubdtype(indices.dtype, np.integer):
    raise InputError(
      f'lists have indices of dtype {indices.dtype}; allowed are integers: '
      'pass what neighbors.top_k returned, scores first'
    )
  return RankedLists(
    scores.astype(np.float32, copy=False), indices.astype(np.int32, copy=False)
  )


def check_list_length(k: int) -> None:
  """Raises `InputError` for a k that is no length of lists."""
  allowed = options_lib.COUNT.complaint(k)
  if allowed is not None:
    raise InputError(f'k is {k!r}; allowed is {allowed}')


def empty_lists(num_queries: int, k: int) -> RankedLists:
  """Returns lists without any entry, to be filled."""
  return RankedLists(
    np.full((num_queries, k), -np.inf, np.float32),
    np.full((num_queries, k), -1, np.int32),
  )


def append_found(
  lists: RankedLists, rows: slice, found: RankedLists, num_reranked: int
) -> None:
  """Writes what a search found behind what was re-ranked of it.

  Its order stays, and the differences of its scores: they are moved so that
  they do not exceed the last re-ranked score.

  Args:
    lists: whose first `num_reranked` entries are written, the others to be.
    rows: of the lists.
    found: [rows, at least k] of the search, of whose first `num_reranked` the
      re-ranked are an order.
    num_reranked: if at least k, nothing is written.

  Example:
    >>> lists = empty_lists(1, 3)
    >>> lists.scores[0, :2], lists.indices[0, :2] = [0.5, 0.25], [8, 7]
    >>> found = RankedLists(np.array([[1.0, 1.0, 0.5]]), np.array([[7, 8, 9]]))
    >>> append_found(lists, slice(0, 1), found, 2)
    >>> lists.scores.tolist(), lists.indices.tolist()
    ([[0.5, 0.25, -0.25]], [[8, 7, 9]])
  """
  k, last = lists.scores.shape[1], num_reranked - 1
  if k <= num_reranked:
    return
  scores, indices = (part[:, last:k] for part in found)
  lists.scores[rows, num_reranked:] = lists.scores[rows, last : last + 1] + (
    scores[:, 1:] - scores[:, :1]
  )
  lists.indices[rows, num_reranked:] = indices[:, 1:]


def leave_out(lists: RankedLists, rows: np.ndarray, k: int) -> RankedLists:
  """Returns the first k entries of each list that are not left out.

  Args:
    lists: at least k entries longer than the rows of a query, to be exact.
    rows: [Q, L] int rows of the gallery, padded with -1: in no list of a query.
    k: length of the lists that are returned; what is missing at their end is
      empty.

  Example:
    >>> lists = RankedLists(np.array([[0.9, 0.8, 0.7]]), np.array([[4, 0, 2]]))
    >>> leave_out(lists, np.array([[0, 3]]), 2).indices.tolist()
    [[4, 2]]
  """
  is_kept = (lists.indices >= 0) & ~relations.are_listed(lists.indices, rows)
  order = np.argsort(~is_kept, axis=1, kind='stable')[:, :k]
  is_kept, scores, indices = (
    np.take_along_axis(x, order, axis=1)
    for x in (is_kept, lists.scores, lists.indices)
  )
  kept = empty_lists(len(rows), k)
  width = indices.shape[1]
  kept.scores[:, :width] = np.where(is_kept, scores, -np.inf)
  kept.indices[:, :width] = np.where(is_kept, indices, -1)
  return kept


def search_in_blocks(
  queries: np.ndarray,
  gallery: np.ndarray,
  k: int,
  *,
  exclude_self: bool,
  row_bytes: int,
  budget: int,
) -> Iterator[tuple[slice, RankedLists]]:
  """Yields blocks of queries with their exact k nearest gallery rows.

  `top_k` keeps the lists of all queries; where k counts candidates that are
  only looked at, those of a block are enough.

  Args:
    queries: [Q, D], checked.
    gallery: [N, D], checked.
    k: at most N, or N - 1 without itself.
    exclude_self: whether row i of the gallery is left out for query i.
    row_bytes: memory that the caller needs for a query.
    budget: bytes for the block and the search.
  """
  wanted = min(k + exclude_self, len(gallery))
  block_rows = max(1, budget // 2 // (row_bytes + 16 * wanted))
  searcher = search.Searcher(gallery, memory_budget_mb=budget / 2 / tiles.MIB)
  for block in tiles.blocks(len(queries), block_rows):
    scores, indices = searcher.top_k(queries[block], wanted)
    if exclude_self:
      # It may not be among the first, where many rows are equal.
      itself = indices == np.arange(block.start, block.stop)[:, None]
      order = np.argsort(itself, axis=1, kind='stable')[:, :k]
      scores, indices = (
        np.take_along_axis(x, order, axis=1) for x in (scores, indices)
      )
    yield block, RankedLists(scores, indices)
