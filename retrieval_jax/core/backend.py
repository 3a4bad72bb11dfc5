"""For which kind of device a program is traced.

Some functions are written in another way for a CPU. A program that is traced
for its cost alone, on a machine that has not the devices it is meant for, has
to be the one of those devices.
"""

import contextlib
import contextvars
from collections.abc import Iterator

import jax

_ASSUMED = contextvars.ContextVar('assumed backend', default=None)


def name() -> str:
  """Returns 'cpu', 'gpu' or 'tpu': what is assumed, else what JAX runs on."""
  return _ASSUMED.get() or jax.default_backend()


@contextlib.contextmanager
def assume(backend: str) -> Iterator[None]:
  """Traces for another kind of device; what is traced must not be run.

  Args:
    backend: as `name` returns it.

  Example:
    >>> with assume('gpu'):
    ...   name()
    'gpu'
  """
  token = _ASSUMED.set(backend)
  try:
    yield
  finally:
    _ASSUMED.reset(token)
