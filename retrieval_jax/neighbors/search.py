"""Exact search for the nearest neighbours, streamed in bounded memory."""

import math
from collections.abc import Sequence

import jax
import numpy as np

from retrieval_jax.core import row_files, tiles
from retrieval_jax.core.errors import InputError, unknown_name
from retrieval_jax.neighbors import candidates, scores

# A search by distance finds candidates by scores that are rounded as squares of
# norms are. It begins with a few more than k, takes more for the queries whose
# neighbours could be others, and compares the rest with every row.
_SPARE = 16
_MORE = 8
_MOST_CANDIDATES = 2048
_COMPARED_ROWS = 1024  # At a time, in the cache.
# Squares of sums of two such norms are finite in float32.
_LARGEST_NORM = 2.0**62


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
    centre = self._centre = _mean(self._rows) if score.is_distance else None
    self._largest_norm = self._check_norms(self._rows, 'gallery')
    self._tiles = tiles.Tiles(
      gallery,
      (np.arange(len(gallery), dtype=np.int32),),
      budget=self._budget // 2,
      devices=devices,
      process=tiles.this_process(all_processes),
      # Without `self`, whose tiles would else be freed late, as a cycle.
      prepare=lambda rows: score.gallery(_centred(rows, centre), first_pass),
    )
    self.is_resident = self._tiles.resident
    # XLA's top_k is slow on a CPU.
    on_host = self._tiles.devices[0].platform == 'cpu'
    self._find = (
      candidates.find_on_host if on_host else candidates.find_on_devices
    )

  def _norms(self, rows):
    rows = _centred(rows, self._centre)
    return np.linalg.norm(rows.astype(np.float64), axis=1)

  def _check_norms(self, rows, name):
    """Returns the largest norm, or says which row has no square in float32."""
    largest = 0.0
    if self.distance == 'cosine':
      return largest
    for block in tiles.blocks(len(rows), tiles.TILE_ROWS):
      norms = self._norms(rows[block])
      row = int(np.argmax(norms))
      largest = max(largest, float(norms[row]))
      if largest > _LARGEST_NORM:
        raise InputError(
          f'{name} row {block.start + row} has the norm {largest:.3g}; allowed '
          f'by {self.distance!r} are norms up to {_LARGEST_NORM:.3g}, whose '
          'squares are float32 numbers: scale the embeddings, or search by '
          "'cosine'"
        )
    return largest

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
    elif self._score.is_distance:
      wanted = k + _SPARE
    wanted = min(wanted, largest)
    rows = row_files.RowReader(queries)
    self._check_norms(rows, 'queries')
    itself = np.arange(len(rows)) if exclude_self else np.full(len(rows), -2)
    found, indices, is_sure = self._search(rows, itself, k, wanted)
    while self.first_pass is None and not is_sure.all():
      unsure = np.flatnonzero(~is_sure)
      wanted = min(_MORE * wanted, largest)
      find = self._search if wanted <= _MOST_CANDIDATES else self._compare
      found[unsure], indices[unsure], is_sure[unsure] = find(
        rows[unsure], itself[unsure], k, wanted
      )
    return self._score.shown(found), indices

  def _search(self, query_rows, itself, k, num_candidates):
    """Finds the k best of some candidates.

    Args:
      query_rows: [Q, D].
      itself: [Q] the row of the gallery that is left out, or -2.
      k: how many.
      num_candidates: at least k, at most what can be found.

    Returns:
      (scores [Q, k] float32, indices [Q, k] int32, [Q] bool, whether no other
      row can be among them).
    """
    gallery, score = self._tiles, self._score
    num_queries = len(itself)
    found_scores = np.empty((num_queries, k), np.float32)
    indices = np.empty((num_queries, k), np.int32)
    is_sure = np.ones(num_queries, bool)
    budget = self._budget - gallery.num_bytes
    row_bytes = candidates.row_bytes(gallery, num_candidates, self.shape[1])
    block_rows = gallery.block_rows(num_queries, row_bytes, budget)
    for block in tiles.blocks(num_queries, block_rows):
      rows = query_rows[block]
      on_devices = gallery.put_queries(
        rows,
        (itself[block],),
        block_rows,
        prepare=lambda rows: score.queries(
          _centred(rows, self._centre), self.first_pass
        ),
      )
      best = self._find(gallery, on_devices, num_candidates)
      if gallery.process[1] > 1:
        best = candidates.merge(
          *map(tiles.gather_from_processes, best), num_candidates
        )
      best = tuple(part[: len(rows)] for part in best)
      if score.is_distance or self.first_pass is not None:
        last = best[0][:, -1]
        best = _recompute(score, rows, self._rows, best[1], k, budget)
        if score.is_distance:
          is_sure[block] = self._are_sure(rows, best[0][:, -1], last)
      found_scores[block], indices[block] = best[0][:, :k], best[1][:, :k]
    if num_candidates == len(self) - (itself >= 0).any():
      is_sure[:] = True
    return found_scores, indices, is_sure

  def _are_sure(self, rows, kth, last):
    """Returns whether the k-th best is nearer than what is no candidate.

    Args:
      rows: [B, D] queries.
      kth: [B] its exact score, -d^2.
      last: [B] the score of the last candidate, as it was found.
    """
    norms = self._norms(rows)
    error = scores.rounding_error(norms, self._largest_norm, self.shape[1])
    # What is found as `last`, with d^2 = ||q||^2 - 2 `last`, up to the error.
    # The exact d^2 is rounded too, by a share of itself.
    least = norms**2 - 2 * (last + error)
    share = 1 + 2 * (self.shape[1] + 8) * 2.0**-24
    return -kth.astype(np.float64) * share < least

  def _compare(self, query_rows, itself, k, num_candidates):
    """Finds likewise by comparing with every row, as many times slower."""
    del num_candidates
    found = np.full((len(itself), k), -np.inf, np.float32)
    indices = np.full((len(itself), k), len(self), np.int32)
    for block in tiles.blocks(len(self), _COMPARED_ROWS):
      rows = self._rows[block][None]
      places = np.arange(block.start, block.stop, dtype=np.int32)
      for i, query in enumerate(query_rows):
        exact = self._score.exact(query[None], rows)[0]
        exact[places == itself[i]] = -np.inf
        merged = candidates.merge(
          *(
            np.concatenate(both)[None, None]
            for both in ((found[i], exact), (indices[i], places))
          ),
          k,
        )
        found[i], indices[i] = merged[0][0], merged[1][0]
    return found, indices, np.ones(len(itself), bool)


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
  the order of its index, and equal gallery rows are equally near. Distances are
  sums of squared differences; candidates come from inner products, as many as
  the rounding of these could hide, which is slow where very many rows are as
  near as the k-th up to rounding.

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


def _mean(rows):
  """Returns the mean row [D] float32."""
  total = np.zeros(rows.shape[1])
  for block in tiles.blocks(len(rows), tiles.TILE_ROWS):
    total += rows[block].sum(axis=0, dtype=np.float64)
  return (total / len(rows)).astype(np.float32)


def _centred(rows, centre):
  """Returns rows as they are searched; what is near then is less rounded."""
  if centre is None:
    return rows
  return rows.astype(np.float32, copy=False) - centre


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
  return best[0].astype(np.float32), best[1].astype(np.int32)
