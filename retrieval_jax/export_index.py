"""Writes an index for other tools: `python -m retrieval_jax.export_index`."""

import argparse
import sys
from collections.abc import Sequence

from retrieval_jax import command_line, neighbors
from retrieval_jax.core.strings import printable
from retrieval_jax.neighbors import export

_DESCRIPTION = """\
Writes an index as a file of faiss, Parquet or NumPy; the ending says which.

  python -m retrieval_jax.export_index --index=photos.index \\
      --output=photos.parquet

Row i is the same image in all of them; faiss files hold no names.

Exit status: 0, or 2 where nothing could be done."""


def parse_flags(argv: Sequence[str]) -> argparse.Namespace:
  """Returns the flags.

  Raises:
    InputError: a flag that is unknown, or has no or a wrong value.
  """
  parser = command_line.Parser(
    'python -m retrieval_jax.export_index', _DESCRIPTION
  )
  parser.add_argument('--index', required=True, help='folder of the index')
  parser.add_argument(
    '--output',
    required=True,
    help=f'a file that ends in {", ".join(export.EXPORTS)}',
  )
  parser.add_argument(
    '--overwrite', action='store_true', help='replace the file'
  )
  return command_line.parse(parser, argv)


def run(argv: Sequence[str]) -> None:
  """Does what the flags say; raises `InputError` for a user's mistake."""
  flags = parse_flags(argv)
  write = export.find_export(flags.output)
  command_line.check_output_file('--output', flags.output, flags.overwrite)
  index = neighbors.Index.open(flags.index)
  with command_line.writing('--output', flags.output):
    write(index, flags.output)
  command_line.echo(f'{printable(flags.output)}: {len(index):,} images')


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command; returns its exit status: 0, or 2 for a mistake."""
  return command_line.run_command(run, argv)


if __name__ == '__main__':
  sys.exit(main())
