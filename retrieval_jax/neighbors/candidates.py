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

_MIN_COLLECTED = 64  # Candidates of a query that wait to be merged.
_WORD = 8  # Booleans looked at at once.


def row_bytes(gallery: tiles.Tiles, num_candidates: int, dim: int) -> int:
  """Returns the memory that one query of a block needs."""
  # Similarities of two tiles, which are large, and what they become.
  of_tile = 16 * gallery.tile_rows
  # Candidates in lists, sorted, padded, in order; their rows, recomputed.
  return of_tile + 100 * (num_candidates + _MIN_COLLECTED) + 4 * dim


def find_on_host(
  gallery: tiles.Tiles, queries, num_candidates: int
) -> tuple[np.ndarray, np.ndarray]:
  """Returns the best candidates of a block of queries, best first.

  Args:
    gallery: the tiles, with one column: the row of the gallery.
    queries: the block on the devices: rows [B, D], and one column: the row of
      the gallery that is left out, or -2.
    num_candidates: K, how many.

  Returns:
    (scores [B, K] float32, gallery rows [B, K] int32); -inf and -1 where the
    tiles of this process have no more.
  """
  rows, (itself,) = queries
  itself = np.asarray(itself)
  best = (
    np.full((len(itself), num_candidates), -np.inf, np.float32),
    np.full((len(itself), num_candidates), -1, np.int32),
  )
  most_collected = len(itself) * max(num_candidates, _MIN_COLLECTED)
  collected, num_collected, merge_after = [], 0, 0
  ahead = _scores(rows, gallery[0][0])
  for index in range(len(gallery)):
    scores = ahead
    if index + 1 < len(gallery):  # Computed while this one is looked through.
      ahead = _scores(rows, gallery[index + 1][0])
    start = gallery.start(index)
    num_columns = min(gallery.tile_rows, gallery.num_rows - start)
    if num_columns <= 0:
      break
    values = np.asarray(scores)[:, :num_columns]
    # What only equals the worst that is kept comes after it.
    row, column = np.divmod(
      _find_true(values > best[0][:, -1:]), values.shape[1]
    )
    gallery_row = (column + start).astype(np.int32)
    other = gallery_row != itself[row]
    row, column = row[other], column[other]
    collected.append((row, values[row, column], gallery_row[other]))
    num_collected += len(row)
    # As many tiles again give each query about as many candidates again.
    if index >= merge_after or num_collected > most_collected:
      best = _add(best, collected)
      collected, num_collected, merge_after = [], 0, 2 * index + 1
  return _add(best, collected)


def _find_true(mask):
  """Returns the flat places of the few that are True, ascending."""
  flat = mask.reshape(-1)
  words = np.flatnonzero(flat.view(np.uint64))
  inside = flat.reshape(-1, _WORD)[words]
  word, bit = np.nonzero(inside)
  return words[word] * _WORD + bit


def _add(best, collected):
  """Returns the best of `best` and of [(rows, scores, gallery rows), ...]."""
  if not collected:
    return best
  row, score, gallery_row = map(np.concatenate, zip(*collected, strict=True))
  order = np.argsort(row, kind='stable')
  row, score, gallery_row = row[order], score[order], gallery_row[order]
  more = np.bincount(row, minlength=len(best[0]))
  width = best[0].shape[1]
  place = width + np.arange(len(row)) - np.repeat(np.cumsum(more) - more, more)
  shape = len(more), width + int(more.max(initial=0))
  scores = np.full(shape, -np.inf, np.float32)
  gallery_rows = np.full(shape, -1, np.int32)
  scores[:, :width], gallery_rows[:, :width] = best
  scores[row, place], gallery_rows[row, place] = score, gallery_row
  # Rows of the gallery ascend among equal scores, and a stable sort keeps that.
  order = np.argsort(-scores, axis=1, kind='stable')[:, :width]
  return tuple(
    np.take_along_axis(part, order, axis=1) for part in (scores, gallery_rows)
  )


def merge(
  scores: np.ndarray, gallery_rows: np.ndarray, num_candidates: int
) -> tuple[np.ndarray, np.ndarray]:
  """Returns the best of lists [lists, B, K], the lower row among equals."""
  scores, gallery_rows = (
    np.concatenate(list(part), axis=1) for part in (scores, gallery_rows)
  )
  order = np.lexsort((gallery_rows, -scores), axis=-1)[:, :num_candidates]
  return tuple(
    np.take_along_axis(part, order, axis=1) for part in (scores, gallery_rows)
  )


def find_on_devices(
  gallery: tiles.Tiles, queries, num_candidates: int
) -> tuple[np.ndarray, np.ndarray]:
  """As `find_on_host`: each device keeps the best of its part."""
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
