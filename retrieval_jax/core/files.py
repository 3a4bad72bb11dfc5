"""Files that are whole or not there."""

import os


def write_text(path: str, text: str) -> None:
  """Writes a text as UTF-8, whole or not at all; see `write_bytes`."""
  write_bytes(path, text.encode())


def write_bytes(path: str, content: bytes) -> None:
  """Writes a file whole or not at all: a temporary name, then a rename.

  Args:
    path: replaced if it exists.
    content: of the file.

  Raises:
    OSError: if it cannot be written; nothing is left behind then.
  """
  temporary = f'{path}.{os.getpid()}.tmp'
  try:
    with open(temporary, 'wb') as file:
      file.write(content)
    os.replace(temporary, path)
  except OSError:
    if os.path.exists(temporary):
      os.remove(temporary)
    raise
