"""Statistics of a batch over all devices, and their moving averages."""

import jax
import jax.numpy as jnp
from jax import lax

from retrieval_jax.core import collectives


def batch_mean(
  values: jax.Array, valid: jax.Array, axis_name: str | None
) -> tuple[jax.Array, jax.Array]:
  """Returns (mean, count) of the valid rows of all devices, without gradient.

  Args:
    values: [B] float32.
    valid: [B] bool.
    axis_name: of the devices that hold the other rows, or None.

  Returns:
    Scalars; the mean of no rows is 0.

  Example:
    >>> values, valid = jnp.array([2.0, 4.0, 9.0]), jnp.array([1, 1, 0], bool)
    >>> print(*batch_mean(values, valid, None))
    3.0 2.0
  """
  values = lax.stop_gradient(jnp.where(valid, values, 0.0))
  sums = jnp.sum(values), jnp.sum(valid.astype(jnp.float32))
  total, count = collectives.psum(sums, axis_name)
  return total / jnp.maximum(count, 1.0), count


def moving_average(
  old: jax.Array, new: jax.Array, decay: float, count: jax.Array
) -> jax.Array:
  """Returns decay * old + (1 - decay) * new.

  A batch without rows leaves the average as it is, and so does a NaN: its loss
  is NaN, but the state would never recover.

  Args:
    old: scalar.
    new: scalar, of the batch.
    decay: in [0, 1).
    count: rows in the batch.

  Example:
    >>> one, three = jnp.float32(1.0), jnp.float32(3.0)
    >>> print(moving_average(one, three, 0.75, one))
    1.5
  """
  usable = (count > 0) & jnp.isfinite(new)
  next_value = decay * old + (1.0 - decay) * jnp.where(usable, new, old)
  return lax.stop_gradient(jnp.where(usable, next_value, old))
