"""The hardest so many, without a sort."""

import jax
import jax.numpy as jnp
from jax import lax


def nearness_order(matrix: jax.Array, inverted: bool) -> jax.Array:
  """Returns the matrix so that smaller is nearer, float32, no gradient."""
  matrix = lax.stop_gradient(matrix.astype(jnp.float32))
  return -matrix if inverted else matrix


def largest(values: jax.Array, mask: jax.Array, count: jax.Array) -> jax.Array:
  """Marks the `count` largest values of each row.

  The value of rank `count` is found bit by bit, in 32 comparisons of the row; a
  sort moves it a dozen times.

  Args:
    values: [B, N] float32.
    mask: [B, N] bool, which of them there are.
    count: [B] int32, how many to mark; all, if there are fewer.

  Returns:
    [B, N] bool. Of equal values the first ones are marked; a NaN is the
    largest, so that the loss sees it.

  Example:
    >>> x = jnp.array([[3.0, 5.0, 5.0, 9.0]])
    >>> mask = jnp.array([[True, True, True, False]])
    >>> largest(x, mask, jnp.array([1])).tolist()
    [[False, True, False, False]]
  """
  # An order of unsigned integers that is the order of floats; 0 is -0.
  bits = lax.bitcast_convert_type(
    jnp.where(values == 0, 0.0, values), jnp.uint32
  )
  sign = jnp.uint32(1 << 31)
  order = jnp.where(bits >= sign, ~bits, bits | sign)
  order = jnp.where(jnp.isnan(values), ~jnp.uint32(0), order)
  count = count[:, None]

  def add_bit(i, least):
    more = least | (sign >> i.astype(jnp.uint32))
    reached = jnp.sum(mask & (order >= more), axis=1, keepdims=True)
    return jnp.where(reached >= count, more, least)

  least = jnp.zeros((values.shape[0], 1), jnp.uint32)
  least = lax.fori_loop(0, 32, add_bit, least)
  above = mask & (order > least)
  level = mask & (order == least)
  left = count - jnp.sum(above, axis=1, keepdims=True)
  return above | (level & (jnp.cumsum(level, axis=1) <= left))
