"""What the commands share: flags, config overrides, mistakes in one line."""

import argparse
import contextlib
import logging
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence

import PIL.Image

from retrieval_jax.core import files
from retrieval_jax.core.errors import InputError, unknown_name
from retrieval_jax.core.strings import printable


class Parser(argparse.ArgumentParser):
  """Raises what argparse would print with its usage; empty texts are refused.

  Example:
    >>> parser = Parser('prog', 'Does nothing.')
    >>> _ = parser.add_argument('--images')
    >>> parse(parser, ['--images='])
    Traceback (most recent call last):
    ...
    retrieval_jax.core.errors.InputError: argument --images: '' is not \
allowed, but a text is: is a variable of the shell unset?; see --help
  """

  def __init__(self, prog: str, description: str):
    """Starts a parser that knows --help alone.

    Args:
      prog: what the command is called by.
      description: shown by --help as it is.
    """
    super().__init__(
      prog=prog,
      description=description,
      formatter_class=argparse.RawDescriptionHelpFormatter,
      allow_abbrev=False,
    )
    # The type of what has none. A path that is empty would be the folder that
    # the command is called in.
    self.register('type', None, _text)

  def error(self, message: str):
    """Raises `InputError`."""
    raise InputError(f'{message}; see --help')


def parse_with_overrides(
  parser: Parser, argv: Sequence[str]
) -> tuple[argparse.Namespace, list[tuple[str, str]]]:
  """Returns the flags, and the (key, text) of each --config.KEY=TEXT.

  Raises:
    InputError: a flag that is unknown, or has no or a wrong value.

  Example:
    >>> parser = Parser('prog', 'Does nothing.')
    >>> _ = parser.add_argument('--config')
    >>> parse_with_overrides(parser, ['--config=a.py', '--config.seed=1'])
    (Namespace(config='a.py'), [('seed', '1')])
  """
  flags, rest = parser.parse_known_args(argv)
  overrides = []
  for flag in rest:
    match = re.fullmatch(r'--config\.([\w.]+)=(.*)', flag, re.DOTALL)
    if not match and flag.startswith('--config.'):
      raise InputError(f'{flag} has no value; allowed is --config.KEY=VALUE')
    if not match:
      known = [f'--{name}' for name in vars(flags)]
      raise unknown_name('flag', flag.partition('=')[0], known)
    overrides.append((match[1], match[2]))
  return flags, overrides


def parse(parser: Parser, argv: Sequence[str]) -> argparse.Namespace:
  """Returns the flags of a command without a config.

  Raises:
    InputError: a flag that is unknown, or has no or a wrong value.
  """
  flags, rest = parser.parse_known_args(argv)
  if rest:
    known = [f'--{name}' for name in vars(flags)]
    raise unknown_name('flag', rest[0].partition('=')[0], known)
  return flags


def _text(text: str) -> str:
  """Reads a flag of no other type."""
  if text:
    return text
  raise argparse.ArgumentTypeError(
    "'' is not allowed, but a text is: is a variable of the shell unset?"
  )


def natural(least: int) -> Callable[[str], int]:
  """Returns what reads an integer of at least `least` from a flag.

  Example:
    >>> natural(1)('10')
    10
  """

  def read(text: str) -> int:
    if text.isdecimal() and int(text) >= least:
      return int(text)
    raise argparse.ArgumentTypeError(
      f'{text!r} is not allowed, but integers of at least {least} are'
    )

  return read


def check_output_file(flag: str, path: str, overwrite: bool) -> None:
  """Raises unless a file may be written there, before all the work.

  Args:
    flag: that names the file.
    path: of the file.
    overwrite: whether the file may be there.

  Raises:
    InputError: no folder for it, a folder in its place, or a file that is not
      to be replaced.
  """
  folder = os.path.dirname(path) or '.'
  if not os.path.isdir(folder):
    raise InputError(
      f'{flag} is {path!r}, but there is no folder {folder!r}; allowed is a '
      'file in a folder that exists: make the folder'
    )
  if os.path.isdir(path):
    raise InputError(f'{flag} is {path!r}, a folder; allowed is a file')
  if os.path.exists(path) and not overwrite:
    raise InputError(
      f'{flag} is {path!r}, which exists; allowed is a new file: choose '
      'another, or give --overwrite'
    )


@contextlib.contextmanager
def writing(flag: str, path: str) -> Iterator[None]:
  """Turns a failure to write a file into the user's line.

  Args:
    flag: that names the file.
    path: of the file.

  Raises:
    InputError: it cannot be written.
  """
  try:
    yield
  except OSError as error:
    raise InputError(
      f'{flag} is {path!r}, which cannot be written: '
      f'{error.strerror or error}; allowed is a file where there is room and '
      'the right to write: choose another'
    ) from error


def write_output(flag: str, path: str, text: str) -> None:
  """Writes a file whole or not at all; see `writing`."""
  with writing(flag, path):
    files.write_text(path, text)


def echo(text: str) -> None:
  """Prints; names that the terminal cannot show are spelt out."""
  encoding = sys.stdout.encoding or 'utf-8'
  print(text.encode(encoding, 'backslashreplace').decode(encoding))


def run_command(
  run: Callable[[Sequence[str]], int | None], argv: Sequence[str] | None
) -> int:
  """Runs a command, with its log on stderr.

  Args:
    run: takes the arguments and returns the exit status; None counts as 0.
    argv: None: those of the process.

  Returns:
    What `run` returned; 2 for a user's mistake, which is printed; 130 if
    Ctrl-C stopped it.
  """
  logging.basicConfig(
    format='%(asctime)s %(message)s', datefmt='%H:%M:%S', level=logging.WARNING
  )
  logging.getLogger('retrieval_jax').setLevel(logging.INFO)
  # Orbax and clu log through absl, and TensorFlow (which clu writes events
  # with) about oneDNN, what is no news to a user.
  logging.getLogger('absl').setLevel(logging.ERROR)
  os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '0')
  # An image of too many pixels is refused by name; Pillow would warn besides.
  warnings.simplefilter('ignore', PIL.Image.DecompressionBombWarning)
  try:
    return run(sys.argv[1:] if argv is None else argv) or 0
  except InputError as error:
    # A line, though a name in it may hold newlines.
    print(f'retrieval_jax: {printable(str(error))}', file=sys.stderr)
    return 2
  except KeyboardInterrupt as stop:
    print(f'retrieval_jax: stopped; {stop}'.rstrip('; '), file=sys.stderr)
    return 130
