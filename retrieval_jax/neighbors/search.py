"""Exact search for the nearest neighbours, streamed in bounded memory."""

import math
from collections.abc import Sequence

import jax
import numpy as np

from retrieval_jax.core import row_files, tiles
from retrieval_jax.core.errors import InputError, unknown_name
from retrieval_jax.neighbors import candidates, scores

# In the first pass of a search by distance: more than k, since its rounding is
# that of squares of norms.
_SPARE = 16


class Searcher:
  """A gallery that is made ready once and searched often.

  Checking a gallery, scaling its rows and putting them on the devices takes
  longer than to search it for a few queries. Here it is done when the searcher
  is made; `top_k`, indexes and commands stand on this object.

  The tiles stay on the devices if they fit into half of the memory budget. If
  not, they are cut anew by every search: raise the budget to twice the size of
  the gallery in float32 for a service that answers single queries.

  The similarities of up to 8, 16, 32, ..., 512 queries are compiled once each.
  Several threads may search at a time.

  Attributes:
    shape: (N, D) of the gallery.
    distance: what it is searched by.
    first_pass: None, or what candidates are found with.
    is_resident: whether the tiles stay on the devices.

  Example:
    >>> searcher = Searcher(np.array([[1.0, 0.0], [0.0, 1.0], [2.0, 0.0]]))
    >>> searcher.top_k(np.array([[3.0, 0.0]]), 2)[1].tolist()
    [[0, 2]]
    >>> searcher.top_k(np.array([[0.0, 0.5]]), 1)[1].tolist()
    [[1]]
  """

  def __init__(
    self,
    gallery,
    *,
    distance: str = 'cosine',
    first_pass: str | None = None,
    memory_budget_mb: float = 128,
    all_processes: bool = False,
    devices: Sequence[jax.Device] | None = None,
  ):
    """Checks and cuts up a gallery.

    Args:
      gallery: [N, D], see `top_k`; it must not be changed meanwhile.
      distance: see `top_k`.
      first_pass: likewise.
      memory_budget_mb: MiB beyond the inputs and the results to stay within,
        the tiles and one search together.
      all_processes: see `top_k`; all of them then make a searcher, and search.
      devices: all local devices, if None.

    Raises:
      InputError: for a gallery that cannot be searched, or an unknown option.
    """
    self._budget = tiles.check_memory_budget(memory_budget_mb)
    if distance not in scores.SCORES:
      raise unknown_name('distance', distance, list(scores.SCORES))
    if first_pass not in (None, 'bfloat16'):
      raise InputError(
        f"first_pass is {first_pass!r}; allowed are None and 'bfloat16': None "
        'is exact'
      )
    gallery = tiles.check_embeddings(gallery, 'gallery')
    self.shape, self.distance = gallery.shape, distance
    self.first_pass = first_pass
    self._score = score = scores.SCORES[distance]
    self._rows = row_files.RowReader(gallery)
    self._tiles = tiles.Tiles(
      gallery,
      (np.arange(len(gallery), dtype=np.int32),),
      budget=self._budget // 2,
      devices=devices,
      process=tiles.this_process(all_processes),
      prepare=lambda rows: score.gallery(rows, first_pass),
    )
    self.is_resident = self._tiles.resident
    # XLA's top_k is slow on a CPU.
    on_host = self._tiles.devices[0].platform == 'cpu'
    self._find = (
      candidates.find_on_host if on_host else candidates.find_on_devices
    )

  def __len__(self) -> int:
    """Returns N."""
    return self.shape[0]

  def top_k(
    self,
    queries,
    k: int,
    *,
    oversampling: float = 4.0,
    exclude_self: bool = False,
  ) -> tuple[np.ndarray, np.ndarray]:
    """Returns the k nearest gallery rows, as the function `top_k`.

    Args:
      queries: [Q, D] any float dtype, or the path of an .npy file.
      k: neighbours a query, at most N (N - 1 without itself).
      oversampling: see `top_k`.
      exclude_self: whether row i of the gallery is left out for query i.

    Returns:
      (similarities, or distances for 'l2', [Q, k] float32; indices [Q, k]
      int32).

    Raises:
      InputError: for queries that do not fit, or a k out of range.
    """
    queries = tiles.check_embeddings(queries, 'queries', self.shape[1])
    check_self(queries, self, exclude_self)
    largest = len(self) - exclude_self
    if (
      isinstance(k, bool)
      or not isinstance(k, (int, np.integer))
      or not 1 <= k <= largest
    ):
      raise InputError(
        f'k is {k!r}; allowed is an int from 1 to {largest}, the rows of the '
        'gallery that can be found: choose a smaller k'
      )
    if not isinstance(oversampling, (int, float)) or not (
      1 <= oversampling < math.inf
    ):
      raise InputError(
        f'oversampling is {oversampling!r}; allowed is a number from 1: leave '
        'it out for the default'
      )
    wanted = k = int(k)
    if self.first_pass is not None:
      wanted = math.ceil(k * oversampling)
    elif self._score.is_recomputed:
      wanted = k + _SPARE
    return self._search(queries, k, min(wanted, largest), exclude_self)

  def _search(self, queries, k, num_candidates, exclude_self):
    gallery, score = self._tiles, self._score
    query_rows = row_files.RowReader(queries)
    found_scores = np.empty((len(queries), k), np.float32)
    indices = np.empty((len(queries), k), np.int32)
    budget = self._budget - gallery.num_bytes
    row_bytes = candidates.row_bytes(gallery, num_candidates, self.shape[1])
    block_rows = gallery.block_rows(len(queries), row_bytes, budget)
    for block in tiles.blocks(len(queries), block_rows):
      picked = np.arange(block.start, block.stop)
      itself = picked if exclude_self else np.full(len(picked), -2)
      rows = query_rows[block]
      on_devices = gallery.put_queries(
        rows,
        (itself,),
        block_rows,
        prepare=lambda rows: score.queries(rows, self.first_pass),
      )
      best = self._find(gallery, on_devices, num_candidates)
      if gallery.process[1] > 1:
        best = candidates.merge(
          *map(tiles.gather_from_processes, best), num_candidates
        )
      best = tuple(part[: len(picked)] for part in best)
      if self.first_pass is not None or score.is_recomputed:
        best = _recompute(score, rows, self._rows, best[1], k, budget)
      found_scores[block], indices[block] = best[0][:, :k], best[1][:, :k]
    return found_scores, indices


def top_k(
  queries,
  gallery,
  k: int,
  *,
  distance: str = 'cosine',
  first_pass: str | None = None,
  oversampling: float = 4.0,
  exclude_self: bool = False,
  memory_budget_mb: float = 128,
  all_processes: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
  """Returns the k nearest gallery rows, nearest first.

  Exact: every similarity is computed, in float32. What is equally near comes in
  the order of its index, and equal gallery rows are equally near.

  With `first_pass='bfloat16'` the similarities are computed from embeddings
  rounded to 8 bits of precision, which is fast where hardware multiplies such,
  and the `oversampling * k` best of each query are computed again in float32. A
  neighbour is missed if rounding puts so many others before it.

  A gallery that is searched again is better made a `Searcher` of.

  Args:
    queries: [Q, D] any float dtype, or the path of an .npy file.
    gallery: [N, D] likewise; the rows of a memory map are read from its file,
      so that it does not take the memory of the process.
    k: neighbours a query, at most N (N - 1 without itself).
    distance: 'cosine' (the similarities of a zero row are 0), 'dot' for inner
      products, or 'l2' for Euclidean distances.
    first_pass: None or 'bfloat16'.
    oversampling: at least 1, what the first pass finds for each neighbour.
    exclude_self: whether the gallery is the queries, and row i of it is left
      out for query i.
    memory_budget_mb: MiB beyond the inputs and the results to stay within.
    all_processes: whether all processes of `jax.distributed` call this with
      the same arguments: each then searches its share of the gallery.

  Returns:
    (similarities, or distances for 'l2', [Q, k] float32; indices [Q, k] int32).

  Raises:
    InputError: for arrays that cannot be searched, or a k out of range.

  Example:
    >>> gallery = np.array([[1.0, 0.0], [0.0, 1.0], [2.0, 0.0]])
    >>> top_k(np.array([[3.0, 0.0]]), gallery, 2)[1].tolist()
    [[0, 2]]
    >>> distances, indices = top_k(gallery[:1], gallery, 2, distance='l2')
    >>> distances.tolist(), indices.tolist()
    ([[0.0, 1.0]], [[0, 2]])
  """
  searcher = Searcher(
    gallery,
    distance=distance,
    first_pass=first_pass,
    memory_budget_mb=memory_budget_mb,
    all_processes=all_processes,
  )
  return searcher.top_k(
    queries, k, oversampling=oversampling, exclude_self=exclude_self
  )


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
  check_self(queries, gallery, exclude_self)
  return queries, gallery


def check_self(queries, gallery, exclude_self: bool) -> None:
  """Raises `InputError` if a gallery cannot be the queries, but should."""
  if exclude_self and len(queries) != len(gallery):
    raise InputError(
      f'exclude_self is True with {len(queries)} queries and a gallery of '
      f'{len(gallery)}; allowed is the same array twice: pass '
      'exclude_self=False'
    )


def _recompute(score, queries, gallery_rows, candidates_, k, budget):
  """Returns the best k of candidates [b, K] by their exact scores."""
  num_candidates = candidates_.shape[1]
  best = np.empty((2, len(queries), k))
  # The rows of the candidates, three times over while they are multiplied.
  row_bytes = 16 * num_candidates * queries.shape[1]
  for block in tiles.blocks(len(queries), max(1, budget // 2 // row_bytes)):
    found = candidates_[block]
    rows = gallery_rows[found.reshape(-1)]
    exact = score.exact(
      queries[block], rows.reshape(*found.shape, queries.shape[1])
    )
    best[:, block] = candidates.merge(exact[None], found[None], k)
  return score.shown(best[0]).astype(np.float32), best[1].astype(np.int32)
