"""Compiles what a test calls."""

from collections.abc import Callable

import jax


def compiled(function: Callable) -> Callable:
  """Compiles a function whole, which then returns NumPy's arrays.

  Operation by operation each would be a program of its own, and so would each
  operation on arrays of JAX that come out.
  """
  run = jax.jit(function)
  return lambda *args, **keywords: jax.device_get(run(*args, **keywords))
