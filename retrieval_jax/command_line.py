"""What the commands share: flags, config overrides, mistakes in one line."""

import argparse
import logging
import os
import re
import sys
from collections.abc import Callable, Sequence

from retrieval_jax.core.errors import InputError, unknown_name


class Parser(argparse.ArgumentParser):
  """Raises what argparse would print with its usage."""

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


def run_command(
  run: Callable[[Sequence[str]], int | None], argv: Sequence[str] | None
) -> int:
  """Runs a command, with its log on stderr.

  Args:
    run: takes the arguments and returns the exit status; None counts as 0.
    argv: None: those of the process.

  Returns:
    What `run` returned, or 2 for a user's mistake, which is printed.
  """
  logging.basicConfig(
    format='%(asctime)s %(message)s', datefmt='%H:%M:%S', level=logging.WARNING
  )
  logging.getLogger('retrieval_jax').setLevel(logging.INFO)
  # Orbax and clu log through absl, and TensorFlow (which clu writes events
  # with) about oneDNN, what is no news to a user.
  logging.getLogger('absl').setLevel(logging.ERROR)
  os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '0')
  try:
    return run(sys.argv[1:] if argv is None else argv) or 0
  except InputError as error:
    print(f'retrieval_jax: {error}', file=sys.stderr)
    return 2
