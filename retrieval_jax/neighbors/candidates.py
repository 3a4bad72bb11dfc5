"""The best candidates of a block of queries, tile by tile.

Two ways that give the same: on the host, where few similarities of a tile are
above the worst that is kept, and only these are looked at; and on the devices,
by `lax.top_k`, which a CPU is slow at.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec as P

from retrieval_jax.core import arrays, tiles

# Candidates of a query that may wait to be merged, beside as many as wanted.
_MIN_COLLECTED = 128
_LAST_ROW = 2**31 - 1


def row_bytes(gallery: tiles.Tiles, num_candidates: int, dim: int) -> int:
  """Returns the memory that one query of a block needs."""
  # Similarities of two tiles, which are large; a copy and masks of one.
  of_tile = 20 * gallery.tile_rows
  # Candidates in lists, sorted, padded, in order; their rows, recomputed.
  return of_tile + 100 * (num_candidates + _MIN_COLLECTED) + 4 * dim


def find_on_host(
  gallery: tiles.Tiles, queries, num_candidates: int
) -> tuple[np.ndarray, np.ndarray]:
  """Returns the best candidates of a block of queries, best first.

  Args:
    gallery: the tiles, with one column: the row of the gallery.
    queries: the block on the devices: rows [B, D], and one column: the row of
      the gallery that is left out, or -2; -1 for padding, at the end.
    num_candidates: K, how many.

  Returns:
    (scores [B, K] float32, gallery rows [B, K] int32); -inf and -1 where the
    tiles of this process have no more. B is without the padding.
  """
  rows, (itself,) = queries
  itself = np.asarray(itself)
  itself = itself[itself != -1]  # Without the padding.
  best = np.full((len(itself), num_candidates), _NOTHING)
  waiting, num_waiting, merge_after = [], np.zeros(len(itself), int), 0
  ahead = _scores(rows, gallery[0][0])
  for index in range(len(gallery)):
    scores = ahead
    if index + 1 < len(gallery):  # Computed while this one is looked through.
      ahead = _scores(rows, gallery[index + 1][0])
    start = gallery.start(index)
    num_columns = min(gallery.tile_rows, gallery.num_rows - start)
    if num_columns <= 0:
      break
    values = np.asarray(scores)[: len(itself), :num_columns]
    # What only equals the worst that is kept comes after it. One more, since
    # the row that is left out may be among them.
    row, column = _find_above(values, best[:, :1], num_candidates + 1)
    gallery_row = column + start
    other = gallery_row != itself[row]
    row, column, gallery_row = row[other], column[other], gallery_row[other]
    waiting.append((row, _keys(values[row, column], gallery_row)))
    num_waiting += np.bincount(row, minlength=len(itself))
    # As many tiles again give each query about as many candidates again.
    is_full = num_waiting.max() > num_candidates + _MIN_COLLECTED
    if index >= merge_after or is_full:
      best = _add(best, waiting, num_waiting)
      waiting, merge_after = [], 2 * index + 1
      num_waiting[:] = 0
  return _decode(_descending(_add(best, waiting, num_waiting)))


def _find_above(values, keys, most):
  """Returns the places (row, column) of values that may be among the best.

  Args:
    values: [B, T] float32.
    keys: [B, 1], of what they have to exceed.
    most: how many of a row are enough, if there are many more.
  """
  many = most + _MIN_COLLECTED
  mask = values > _decode(keys)[0]
  if np.count_nonzero(mask) > many * len(mask):
    # Half as many as may be found are in all columns, as a sample has it.
    sample = values[:, :: max(1, many // (2 * most))]
    mask &= values >= _nth_largest(sample, most)
  if np.count_nonzero(mask) > many * len(mask):
    mask &= _are_best(values, most)
  row, column = np.divmod(np.flatnonzero(mask), mask.shape[1])
  crowded = np.bincount(row, minlength=len(mask)) > many
  if crowded.any():
    mask[crowded] &= _are_best(values[crowded], most)
    row, column = np.divmod(np.flatnonzero(mask), mask.shape[1])
  return row, column


def _nth_largest(values, n):
  """Returns [B, 1] of [B, T]: the n-th largest, or -inf without so many."""
  if values.shape[1] < n:
    return np.float32(-np.inf)
  negative = -values  # NaN, if any, goes to the end.
  negative.partition(n - 1, axis=1)
  return -negative[:, n - 1 : n]


def _are_best(values, most):
  """Returns where the best of each row of [B, T] are, the first of equals."""
  last = _nth_largest(values, most)
  equal = values == last
  first = np.cumsum(equal, axis=1, dtype=np.int32) <= most
  return (values > last) | (equal & first)


def _keys(scores, gallery_rows):
  """Returns int64 in the order of scores, the lower row above its equals."""
  # 0.0 and -0.0 are equal, and NaN is the worst.
  bits = (np.fmax(scores, np.float32(-np.inf)) + np.float32(0)).view(np.int32)
  # As integers, negative floats are in the opposite order.
  ordered = (bits ^ ((bits >> 31) & _LAST_ROW)).astype(np.int64)
  return (ordered << 32) + (_LAST_ROW - np.asarray(gallery_rows, np.int64))


def _decode(keys):
  """Returns (scores float32, gallery rows int32) of keys."""
  ordered = (keys >> 32).astype(np.int32)
  scores = (ordered ^ ((ordered >> 31) & _LAST_ROW)).view(np.float32)
  return scores, (_LAST_ROW - (keys & (2**32 - 1))).astype(np.int32)


_NOTHING = _keys(np.full(1, -np.inf, np.float32), -1)[0]


def _add(best, waiting, num_waiting):
  """Returns the best keys [B, K] of those, the worst first, and of more.

  Args:
    best: [B, K].
    waiting: [(row [n], key [n]), ...].
    num_waiting: [B], how many of each row.
  """
  more = int(num_waiting.max())
  if not more:
    return best
  row, key = map(np.concatenate, zip(*waiting, strict=True))
  order = np.argsort(row.astype(np.uint16), kind='stable')  # By radix.
  row, key = row[order], key[order]
  width = best.shape[1]
  first = np.cumsum(num_waiting) - num_waiting
  keys = np.full((len(best), width + more), _NOTHING)
  keys[:, :width] = best
  keys[row, width + np.arange(len(row)) - first[row]] = key
  keys.partition(more, axis=1)
  return keys[:, more:].copy()


def best_of(
  row: np.ndarray,
  scores: np.ndarray,
  gallery_rows: np.ndarray,
  num_candidates: int,
  num_rows: int,
) -> tuple[np.ndarray, np.ndarray]:
  """Returns the best of scored pairs, the lower gallery row among equals.

  Args:
    row: [P] int, of the block, below 2^16.
    scores: [P] float32.
    gallery_rows: [P] int, no pair twice.
    num_candidates: K, how many are kept of each row.
    num_rows: B, rows of the block.

  Returns:
    As `find_on_host`.

  Example:
    >>> row, score = np.array([0, 0, 1]), np.float32([0.5, 0.7, 0.2])
    >>> best_of(row, score, np.array([4, 2, 4]), 2, 2)[1].tolist()
    [[2, 4], [4, -1]]
  """
  best = np.full((num_rows, num_candidates), _NOTHING)
  keys = _keys(scores, gallery_rows)
  num_waiting = np.bincount(row, minlength=num_rows)
  return _decode(_descending(_add(best, [(row, keys)], num_waiting)))


def _descending(keys):
  return np.sort(keys, axis=1)[:, ::-1]


def merge(
  scores: np.ndarray, gallery_rows: np.ndarray, num_candidates: int
) -> tuple[np.ndarray, np.ndarray]:
  """Returns the best of lists [lists, B, K], the lower row among equals."""
  keys = np.concatenate(list(_keys(scores, gallery_rows)), axis=1)
  return _decode(_descending(keys)[:, :num_candidates])


def find_on_devices(
  gallery: tiles.Tiles, queries, num_candidates: int
) -> tuple[np.ndarray, np.ndarray]:
  """As `find_on_host`, padding included: each device keeps the best of its."""
  rows, (itself,) = queries
  shape = len(gallery.devices), len(itself), num_candidates
  best = gallery.put(
    (np.full(shape, -np.inf, np.float32), np.full(shape, -1, np.int32)),
    P('rows'),
  )
  for index in range(len(gallery)):
    tile_rows, (gallery_row,) = gallery[index]
    scores = _scores(rows, tile_rows)
    best = _merge(scores, gallery_row, itself, best, mesh=gallery.mesh)
  return merge(*map(np.asarray, best), num_candidates)


@jax.jit
def _scores(rows, tile_rows):
  return arrays.dot_products(rows, tile_rows)


@functools.partial(jax.jit, static_argnames='mesh')
def _merge(scores, gallery_row, itself, best, *, mesh):
  """Returns the best [devices, B, K] of those so far and of a tile."""

  def of_device(scores, gallery_row, itself, best):
    left_out = itself[:, None] == gallery_row[None, :]
    left_out |= (gallery_row < 0)[None, :]
    scores = jnp.where(left_out, -jnp.inf, scores)
    # `lax.top_k` prefers the lower place among equals: what came from earlier
    # tiles stands first, so the lower row wins.
    scores = jnp.concatenate([best[0][0], scores], axis=1)
    rows = jnp.concatenate(
      [best[1][0], jnp.where(left_out, -1, gallery_row[None, :])], axis=1
    )
    scores, places = lax.top_k(scores, best[0].shape[-1])
    return scores[None], jnp.take_along_axis(rows, places, axis=1)[None]

  return jax.shard_map(
    of_device,
    mesh=mesh,
    in_specs=(P(None, 'rows'), P('rows'), P(), P('rows')),
    out_specs=P('rows'),
  )(scores, gallery_row, itself, best)
