"""How many similarities reach each of some thresholds, by comparing them."""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from retrieval_jax.core import tiles

# Compared at a time on a CPU (measured with AVX2).
_CHUNK = 16
_CHUNK_OF_COLUMNS = 8
_MOST_THRESHOLDS = 64  # Whose counts stay in registers.


@functools.partial(jax.jit, static_argnames='mesh')
def add_rows(
  similarities: jax.Array,
  thresholds: jax.Array,
  counts: jax.Array,
  *,
  mesh: Mesh,
) -> jax.Array:
  """Returns counts [devices, B, K] plus those of the rows, a device its own.

  Args:
    similarities: [B, T] float32, the columns split over the devices.
    thresholds: [B, K] float32, all of it on each device.
    counts: [devices, B, K] int32, on each device its own.
    mesh: the devices, along an axis named `rows`.
  """
  size = chunk(mesh)
  add = jax.shard_map(
    lambda s, t, c: c + count_reached(s, t, size)[None],
    mesh=mesh,
    in_specs=(P(None, 'rows'), P(), P('rows')),
    out_specs=P('rows'),
  )
  return add(similarities, thresholds, counts)


@functools.partial(jax.jit, static_argnames='mesh')
def add_columns(
  similarities: jax.Array,
  thresholds: jax.Array,
  counts: jax.Array,
  *,
  mesh: Mesh,
) -> jax.Array:
  """Returns counts [K, T] plus those of the columns.

  Args:
    similarities: [B, T] float32; the columns of this and all others are split
      over the devices.
    thresholds: [K, T] float32.
    counts: [K, T] int32.
    mesh: the devices, along an axis named `rows`.
  """
  size = chunk(mesh) and _CHUNK_OF_COLUMNS
  spec = P(None, 'rows')
  add = jax.shard_map(
    lambda s, t, c: c + count_reached_by_columns(s, t, size),
    mesh=mesh,
    in_specs=(spec, spec, spec),
    out_specs=spec,
  )
  return add(similarities, thresholds, counts)


def chunk(mesh: Mesh) -> int | None:
  """Returns how many similarities of a row devices are to compare at a time."""
  return _CHUNK if mesh.devices.flat[0].platform == 'cpu' else None


def count_reached(
  similarities: jax.Array, thresholds: jax.Array, chunk: int | None
) -> jax.Array:
  """Returns c_ij = #{t : s_it >= thresholds_ij}.

  Args:
    similarities: [B, T] float32.
    thresholds: [B, K] float32.
    chunk: similarities compared at a time, row by row: a CPU keeps what it
      counts in registers; or None for one comparison [B, T, K] that a GPU
      compiler fuses into the sum.

  Returns:
    [B, K] int32.

  Example:
    >>> similarities = jnp.array([[0.3, 0.1, 0.2, 0.9]])
    >>> count_reached(similarities, jnp.array([[0.2, 0.95]]), 2).tolist()
    [[3, 0]]
  """
  if chunk is None:
    reached = similarities[:, :, None] >= thresholds[:, None, :]
    return jnp.sum(reached, axis=1, dtype=jnp.int32)
  if thresholds.shape[1] > _MOST_THRESHOLDS:
    parts = [
      count_reached(similarities, thresholds[:, part], chunk)
      for part in tiles.blocks(thresholds.shape[1], _MOST_THRESHOLDS)
    ]
    return jnp.concatenate(parts, axis=1)

  def count_row(row):
    of_row, row_thresholds = row

    def count(some):
      reached = some[:, None] >= row_thresholds[None, :]
      return jnp.sum(reached, axis=0, dtype=jnp.int32)

    return _sum_over_chunks(count, of_row, chunk)

  return lax.map(count_row, (similarities, thresholds))


def count_reached_by_columns(
  similarities: jax.Array, thresholds: jax.Array, chunk: int | None
) -> jax.Array:
  """Returns c_jt = #{i : s_it >= thresholds_jt}.

  Args:
    similarities: [B, T] float32.
    thresholds: [K, T] float32.
    chunk: as in `count_reached`.

  Returns:
    [K, T] int32.

  Example:
    >>> similarities = jnp.array([[0.3], [0.1], [0.2], [0.9]])
    >>> thresholds = jnp.array([[0.2], [0.95]])
    >>> count_reached_by_columns(similarities, thresholds, 2).tolist()
    [[3], [0]]
  """

  def count(rows):
    reached = rows[:, None, :] >= thresholds[None, :, :]
    return jnp.sum(reached, axis=0, dtype=jnp.int32)

  return _sum_over_chunks(count, similarities, chunk or len(similarities))


def _sum_over_chunks(count, x, chunk):
  """Sums `count` of `chunk` elements along the first axis of x at a time."""
  whole = len(x) // chunk
  counts = count(x[whole * chunk :])
  if not whole:
    return counts

  def add(i, counts):
    return counts + count(lax.dynamic_slice_in_dim(x, i * chunk, chunk))

  return lax.fori_loop(0, whole, add, counts)
