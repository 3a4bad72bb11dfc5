"""Files that are whole or not there."""

import os


def write_text(path: str, text: str) -> None:
  """Writes a file whole or not at all: a temporary name, then a rename.

  Args:
    path: replaced if it exists.
    text: written as UTF-8.

  Raises:
    OSError: if it cannot be written; nothing is left behind then.
  """
  temporary = f'{path}.{os.getpid()}.tmp'
  try:
    with open(temporary, 'w', encoding='utf-8') as file:
      file.write(text)
    os.replace(temporary, path)
  except OSError:
    if os.path.exists(temporary):
      os.remove(temporary)
    raise
