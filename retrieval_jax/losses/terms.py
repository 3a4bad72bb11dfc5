"""What a loss returns: named terms, each with a value and a count per row.

Sum and count travel together to the end, so that padding, row weights and the
number of devices change nothing.
"""

import jax
import jax.numpy as jnp

Terms = dict[str, tuple[jax.Array, jax.Array]]
"""{name: (values [B] float32, counts [B] float32)}: the sum of the row's
counted terms, and their number (or weight)."""

REDUCERS = ('mean', 'nonzero_mean')


def row_term(values: jax.Array, valid: jax.Array, reducer: str) -> Terms:
  """Returns the terms of a loss that has one value a row.

  Args:
    values: [B] float32.
    valid: [B] bool, the rows that have a value.
    reducer: 'mean' counts the valid rows, 'nonzero_mean' (PML's
      AvgNonZeroReducer) those of them with a value above 0.

  Returns:
    `{'loss': (values, counts)}`. A NaN is counted: it must not pass for 0.

  Example:
    >>> valid = jnp.array([True, True, False])
    >>> values = jnp.array([2.0, 0.0, 5.0])
    >>> values, counts = row_term(values, valid, 'nonzero_mean')['loss']
    >>> print(values, counts)
    [2. 0. 0.] [1. 0. 0.]
  """
  counted = valid
  if reducer == 'nonzero_mean':
    counted = valid & ~(values <= 0)
  values = jnp.where(valid, values, 0.0)
  return {'loss': (values, counted.astype(jnp.float32))}
