"""Files that are whole or not there, and are files."""

import contextlib
import errno
import os
import stat
from collections.abc import Iterator

_KINDS = {
  stat.S_IFBLK: 'a device',
  stat.S_IFCHR: 'a device',
  stat.S_IFDIR: 'a folder',
  stat.S_IFIFO: 'a pipe',
  stat.S_IFSOCK: 'a socket',
}


def check_regular(path: str) -> None:
  """Raises unless a path leads to a file with content of its own.

  To open a pipe waits for somebody who writes into it, and a device may have
  no end.

  Raises:
    OSError: whose `strerror` says why.

  Example:
    >>> check_regular(os.sep)
    Traceback (most recent call last):
    ...
    OSError: [Errno 22] It is a folder, not a file: '/'
  """
  kind = stat.S_IFMT(os.stat(path).st_mode)
  if kind != stat.S_IFREG:
    reason = f'It is {_KINDS.get(kind, "something else")}, not a file'
    raise OSError(errno.EINVAL, reason, path)


def read_bytes(path: str) -> bytes:
  """Returns what a file holds; see `check_regular`."""
  check_regular(path)
  with open(path, 'rb') as file:
    return file.read()


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
