"""Collectives that a step uses, right under differentiation.

Every function takes `axis_name=None` for a computation on one device, so that
the same step runs alone, under `jax.pmap` and in a test.

How gradients come out right (measured against one device on the global batch):
each device computes the rows of its own anchors against the gathered batch,
the loss is psum(sum) / psum(count), and the gradients are `pmean`ed. With a
`psum` of the gradients they would be N times too large, and with
`stop_gradient` on the gathered rows they would point elsewhere.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax


def all_gather_rows(x: Any, axis_name: str | None) -> Any:
  """Concatenates the rows of all devices: [B, ...] -> [G, ...], any pytree.

  Differentiable: the gradient of a gathered row flows back to the device that
  owns it.
  """
  if axis_name is None:
    return x
  return jax.tree.map(
    lambda leaf: lax.all_gather(leaf, axis_name, axis=0, tiled=True), x
  )


def row_ids(num_rows: int, axis_name: str | None) -> jax.Array:
  """Returns [B] int32, the rows of this device within the gathered batch."""
  ids = jnp.arange(num_rows, dtype=jnp.int32)
  if axis_name is None:
    return ids
  return ids + lax.axis_index(axis_name) * num_rows


def axis_size(axis_name: str | None) -> int:
  """Returns the number of devices along an axis, 1 for None."""
  return 1 if axis_name is None else lax.axis_size(axis_name)


def psum(x: Any, axis_name: str | None) -> Any:
  """Sums a pytree over the devices."""
  return x if axis_name is None else lax.psum(x, axis_name)


def pmean(x: Any, axis_name: str | None) -> Any:
  """Averages a pytree over the devices."""
  return x if axis_name is None else lax.pmean(x, axis_name)


def masked_mean(
  values: jax.Array, counts: jax.Array, axis_name: str | None = None
) -> jax.Array:
  """Returns sum(values) / sum(counts) over rows and devices.

  Args:
    values: [B] float32, each the sum of a row's terms.
    counts: [B] the number (or weight) of terms in the row; 0 leaves it out. No
      gradient flows through the counts.
    axis_name: the axis of the devices, or None.

  Returns:
    float32 scalar; 0, with zero gradient, if nothing counts.

  Example:
    >>> masked_mean(jnp.array([2.0, 4.0, 9.0]), jnp.array([1, 2, 0])).item()
    2.0
  """
  counts = lax.stop_gradient(counts).astype(jnp.float32)
  kept = jnp.where(counts > 0, values, 0.0)
  total = psum(jnp.sum(kept), axis_name)
  count = psum(jnp.sum(counts), axis_name)
  return total / jnp.where(count > 0, count, 1.0)


def masked_sum(
  values: jax.Array, counts: jax.Array, axis_name: str | None = None
) -> jax.Array:
  """Returns sum(values) over rows and devices, where something counts.

  Args:
    values: [B] float32, each the sum of a row's terms.
    counts: [B], 0 leaves the row out.
    axis_name: the axis of the devices, or None.

  Example:
    >>> masked_sum(jnp.array([2.0, 4.0, 9.0]), jnp.array([1, 2, 0])).item()
    6.0
  """
  return psum(jnp.sum(jnp.where(counts > 0, values, 0.0)), axis_name)
