"""Files that are whole or not there."""

import contextlib
import os
from collections.abc import Iterator


def write_text(path: str, text: str) -> None:
  """Writes a text as UTF-8, whole or not at all; see `replacing`."""
  write_bytes(path, text.encode())


def write_bytes(path: str, content: bytes) -> None:
  """Writes a file whole or not at all; see `replacing`."""
  with replacing(path) as temporary, open(temporary, 'wb') as file:
    file.write(content)


@contextlib.contextmanager
def replacing(path: str) -> Iterator[str]:
  """Yields a temporary name, which becomes `path` when the block is done.

  Args:
    path: replaced if it exists.

  Raises:
    OSError: if it cannot be written. Whatever the block raises, nothing is left
      behind, and what was there is as it was.
  """
  temporary = f'{path}.{os.getpid()}.tmp'
  try:
    yield temporary
    os.replace(temporary, path)
  except BaseException:
    if os.path.exists(temporary):
      os.remove(temporary)
    raise
