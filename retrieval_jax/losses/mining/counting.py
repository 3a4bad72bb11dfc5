"""Triplets are counted and summed, never listed: O(B G) memory.

The positives of an anchor are taken a few at a time, against all candidates.
Where the candidates are ordered by class, the positives of a row lie side by
side, and the loop is as long as a class is large.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

# Positives compared with all candidates in one go, and the lanes that the
# candidates are summed in.
_CHUNK = 16
_LANES = 64
# A matrix of more pairs than the first is counted in blocks of as many as the
# second, which a cache holds: 4,096 rows then take a sixth of the time.
_MAX_PAIRS = 2**18
_BLOCK = 2**17
# Triplets that `sum_over_positives` looks at in one go.
_MAX_TRIPLETS = 2**22


def count_triplets(
  distances: jax.Array,
  positives: jax.Array,
  negatives: jax.Array,
  lower: jax.Array | None,
  upper: jax.Array,
) -> tuple[jax.Array, jax.Array]:
  """Counts the triplets with lower_ap < d_an <= upper_ap, for each pair.

  A comparison counts for both pairs of its triplet and is summed where it is
  made. Sorting each row instead, O(G log G), is slower at every size that was
  measured: `benchmarks/triplets.py`.

  Args:
    distances: [B, G] float32.
    positives: [B, G] bool.
    negatives: [B, G] bool.
    lower: [B, G] float32, open, or None for no lower bound.
    upper: [B, G] float32, closed.

  Returns:
    (per_positive, per_negative), each [B, G] float32, 0 at other pairs; counts
    are exact up to 2 ** 24.

  Example:
    >>> d = jnp.array([[0.5, 0.4, 0.9]])
    >>> positives = jnp.array([[True, False, False]])
    >>> print(*count_triplets(d, positives, ~positives, None, d + 0.1))
    [[1. 0. 0.]] [[0. 1. 0.]]
  """
  num_rows, num_columns = distances.shape
  if not num_rows or not num_columns:
    return jnp.zeros_like(distances), jnp.zeros_like(distances)
  matrices = [distances, positives, negatives, upper]
  matrices += [] if lower is None else [lower]
  # No pair is both, so that one matrix holds the counts of both.
  counts = _in_blocks(_count_block, *matrices)
  return jnp.maximum(counts, 0.0), jnp.maximum(-counts, 0.0)


def _in_blocks(function, *matrices):
  """Applies a function to so many rows at a time as a cache holds."""
  num_rows, num_columns = matrices[0].shape
  if num_rows * num_columns <= _MAX_PAIRS:
    return function(*matrices)
  size = max(_BLOCK // num_columns, 1)
  missing = -num_rows % size
  blocks = [
    jnp.pad(m, ((0, missing), (0, 0))).reshape(-1, size, num_columns)
    for m in matrices
  ]
  found = lax.map(lambda block: function(*block), tuple(blocks))
  return found.reshape(-1, num_columns)[:num_rows]


def _count_block(distances, positives, negatives, upper, lower=None):
  """Returns [B, G] float32, the counts of negative pairs below 0."""
  num_rows, num_columns = distances.shape
  lanes = min(_LANES, num_columns)
  # No upper bound reaches infinity, where what is no negative lies.
  far = jnp.where(negatives, distances, jnp.inf)
  ceiling = jnp.finfo(jnp.float32).max
  upper = jnp.where(positives, jnp.minimum(upper, ceiling), -jnp.inf)
  blocks = jnp.pad(
    far, ((0, 0), (0, -num_columns % lanes)), constant_values=jnp.inf
  ).reshape(num_rows, 1, -1, lanes)
  first, width = _spans(positives)
  num_chunks = -(-width // _CHUNK)

  def chunk_of(x, start):
    return jax.vmap(lambda r, s: lax.dynamic_slice(r, (s,), (_CHUNK,)))(
      _pad_chunk(x, -jnp.inf), start
    )

  def add_chunk(i, counts):
    per_positive, per_negative = counts
    start = jnp.minimum(first + i * _CHUNK, num_columns)
    high = chunk_of(upper, start)
    low = None if lower is None else chunk_of(lower, start)

    def used(shape, d):
      inside = d <= high.reshape(shape)
      return inside if low is None else inside & (d > low.reshape(shape))

    # Summed down the lanes first, then across them: the other way round no
    # vector instruction applies. The barrier keeps the two sums apart.
    shape = (num_rows, _CHUNK, 1, 1)
    down = jnp.sum(used(shape, blocks), axis=2, dtype=jnp.int32)
    across = jnp.sum(lax.optimization_barrier(down), axis=2, dtype=jnp.int32)
    per_positive = jax.vmap(
      lambda row, counts, s: lax.dynamic_update_slice(row, counts, (s,))
    )(per_positive, across, start)
    return per_positive, per_negative + _sum_of_chunk(high, low, far)

  zeros = jnp.zeros((num_rows, num_columns), jnp.int32)
  per_positive, per_negative = lax.fori_loop(
    0, jnp.max(num_chunks), add_chunk, (_pad_chunk(zeros, 0), zeros)
  )
  return (per_positive[:, :num_columns] - per_negative).astype(jnp.float32)


def sum_over_positives(
  function: Callable[[jax.Array, jax.Array, Any, Any], Any],
  positives: jax.Array,
  fixed: Any,
  operands: Any,
) -> Any:
  """Sums a function over chunks of the positives of each row.

  The loop ends with the widest row, a length that only the device knows; so the
  gradient is a loop of its own, which computes each chunk again and keeps
  nothing between the chunks.

  Args:
    function: (columns [B, c] int32, valid [B, c] bool, fixed, operands) ->
      pytree of float32, what these positives add. It closes over no array.
    positives: [B, G] bool.
    fixed: arrays without a gradient, passed on.
    operands: arrays with a gradient, passed on.

  Returns:
    The sum, a pytree as of the function.

  Example:
    >>> mask, d = jnp.array([[True, False, True]]), jnp.array([[1.0, 2.0, 4.0]])
    >>> def function(columns, valid, fixed, d):
    ...   return jnp.sum(jnp.where(valid, take(d, columns), 0.0), axis=1)
    >>> print(sum_over_positives(function, mask, None, d))
    [5.]
  """
  num_rows, num_columns = positives.shape
  size = _MAX_TRIPLETS // max(num_rows * num_columns, 1)
  size = min(max(size, 1), _CHUNK, max(num_columns, 1))

  def add_chunk(i, positives, first, fixed, operands):
    columns = first[:, None] + i * size
    columns += jnp.arange(size, dtype=jnp.int32)[None, :]
    inside = columns < num_columns
    columns = jnp.minimum(columns, max(num_columns - 1, 0))
    valid = inside & take(positives, columns)
    return function(columns, valid, fixed, operands)

  @jax.custom_vjp
  def total(num_chunks, positives, first, fixed, operands):
    def add(i, so_far):
      chunk = add_chunk(i, positives, first, fixed, operands)
      return jax.tree.map(jnp.add, so_far, chunk)

    shapes = jax.eval_shape(add_chunk, 0, positives, first, fixed, operands)
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    return lax.fori_loop(0, num_chunks, add, zeros)

  def forward(*arguments):
    return total(*arguments), arguments

  def backward(arguments, cotangents):
    num_chunks, positives, first, fixed, operands = arguments

    def add(i, so_far):
      def chunk(operands):
        return add_chunk(i, positives, first, fixed, operands)

      (gradient,) = jax.vjp(chunk, operands)[1](cotangents)
      return jax.tree.map(jnp.add, so_far, gradient)

    zeros = jax.tree.map(jnp.zeros_like, operands)
    gradient = lax.fori_loop(0, num_chunks, add, zeros)
    return None, None, None, None, gradient

  total.defvjp(forward, backward)
  if not num_rows or not num_columns:
    first = jnp.zeros(num_rows, jnp.int32)
    return total(jnp.int32(0), positives, first, fixed, operands)
  first, width = _spans(positives)
  num_chunks = jnp.max(-(-width // size))
  return total(num_chunks, positives, first, fixed, operands)


def take(x: jax.Array, columns: jax.Array) -> jax.Array:
  """Returns x_i,c for the columns c of each row: [B, G], [B, c] -> [B, c]."""
  if not x.shape[1]:
    return jnp.zeros(columns.shape, x.dtype)
  return jnp.take_along_axis(x, columns, axis=1, mode='clip')


def _sum_of_chunk(high, low, far):
  """Counts, for each candidate, the positives of the chunk that use it."""
  total = jnp.zeros(far.shape, jnp.int32)
  for i in range(_CHUNK):
    used = far <= high[:, i, None]
    if low is not None:
      used &= far > low[:, i, None]
    total += used.astype(jnp.int32)
  return total


def _spans(mask):
  """Returns each row's first True column, and how many to the last."""
  num_columns = mask.shape[1]
  # Of 32-bit numbers a minimum is faster than an argmax of booleans.
  columns = jnp.arange(num_columns, dtype=jnp.int32)[None, :]
  first = jnp.min(jnp.where(mask, columns, num_columns), axis=1)
  end = jnp.max(jnp.where(mask, columns + 1, 0), axis=1)
  first = jnp.minimum(first, end)
  return first, end - first


def _pad_chunk(x, value):
  return jnp.pad(x, ((0, 0), (0, _CHUNK)), constant_values=value)
