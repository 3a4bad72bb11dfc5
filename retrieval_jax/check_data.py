"""Looks for what is wrong with data: `python -m retrieval_jax.check_data`.

Flags, and one call: `inspect_collection` of
`retrieval_jax.data.checks.inspection` does the work and can be called from
Python.
"""

import argparse
import os
import sys
from collections.abc import Sequence

import tqdm

from retrieval_jax import command_line
from retrieval_jax.core.errors import InputError
from retrieval_jax.core.strings import printable
from retrieval_jax.data import loading, roles
from retrieval_jax.data.checks import contact_sheet, findings, inspection
from retrieval_jax.data.checks.duplicates import MAX_BITS
from retrieval_jax.data.collection import Collection
from retrieval_jax.training import config as config_lib
from retrieval_jax.training import config_checks

_DESCRIPTION = """\
Looks for leaks between training and test images, files that cannot be read,
duplicates, wrong labels and boxes. Nothing is changed.

  python -m retrieval_jax.check_data --config=configs/zero_shot.py
  python -m retrieval_jax.check_data --data=photos --html=photos.html
  python -m retrieval_jax.check_data --data=items.csv --root=photos

Exit status: 0 if there are no errors (warnings do not count), 1 if there are, 2
for a mistake in the command. Any key of the config is changed with
--config.KEY=VALUE."""


def parse_flags(
  argv: Sequence[str],
) -> tuple[argparse.Namespace, list[tuple[str, str]]]:
  """Returns the flags, and the (key, text) of each --config.KEY=TEXT.

  Raises:
    InputError: a flag that is unknown, or has no or a wrong value.
  """
  parser = command_line.Parser(
    'python -m retrieval_jax.check_data', _DESCRIPTION
  )
  which = parser.add_mutually_exclusive_group(required=True)
  which.add_argument('--config', help='checks the data that a config trains on')
  which.add_argument(
    '--data', help='checks a folder with a folder for each class, or a table'
  )
  parser.add_argument('--root', help='of the paths in the table of --data')
  parser.add_argument('--html', help='where to write a page with pictures')
  parser.add_argument(
    '--overwrite', action='store_true', help='replace the file of --html'
  )
  parser.add_argument(
    '--near_duplicates',
    type=_bits,
    default=inspection.DEFAULT_BITS,
    metavar='BITS',
    help=f'of 63 that the hashes of nearly equal pictures differ in: 0 to '
    f"{MAX_BITS}, default {inspection.DEFAULT_BITS}, or 'off'",
  )
  parser.add_argument(
    '--max_images',
    type=command_line.natural(1),
    help='read that many pictures, drawn at random; default: all',
  )
  parser.add_argument(
    '--num_threads',
    type=command_line.natural(0),
    default=0,
    help='that read and decode; default: as many as there are cores',
  )
  flags, overrides = command_line.parse_with_overrides(parser, argv)
  if overrides and not flags.config:
    raise InputError(
      f'--config.{overrides[0][0]} is given without --config; allowed is it '
      'with a config: give --config, and the data as --config.data.dir'
    )
  if flags.root is not None and not os.path.isfile(flags.data or ''):
    raise InputError(
      f'--root is {flags.root!r}; allowed is it with the CSV or Parquet file '
      'of --data alone: leave --root out, or name the file by --data'
    )
  return flags, overrides


def load(
  flags: argparse.Namespace, overrides: Sequence[tuple[str, str]]
) -> Collection:
  """Returns what the flags name.

  Data that come without splits have none here, unless a config makes them:
  there is no leak where nothing is trained on.

  Raises:
    InputError: for data that cannot be had.
  """
  if flags.config:
    config = config_lib.load(flags.config)
    for key, text in overrides:
      config_lib.override(config, key, text)
    config_checks.validate(config)
    if config.data.name == loading.MIXTURE:
      raise InputError(
        f'data.name is {loading.MIXTURE!r}; allowed is one data set at a time: '
        'give the name of a member by --config.data.name'
      )
    options = config_lib.dataset_options(config)
    return loading.load_collection(**loading.collection_options(options))
  if os.path.isdir(flags.data):
    collection = loading.find_loader('folder')(dir=flags.data)
  elif os.path.isfile(flags.data):
    options = {} if flags.root is None else {'dir': flags.root}
    collection = loading.find_loader('table')(file=flags.data, **options)
  else:
    raise InputError(
      f'--data is {flags.data!r}, which does not exist; allowed are a folder, '
      'and a CSV or Parquet file'
    )
  if collection.split is None:
    return collection
  return roles.resolve_roles(collection)


def run(argv: Sequence[str]) -> int:
  """Does what the flags say; returns 1 if there are errors in the data."""
  flags, overrides = parse_flags(argv)
  if flags.html is not None:
    command_line.check_output_file('--html', flags.html, flags.overwrite)
  collection = load(flags, overrides)
  total = min(len(collection), flags.max_images or len(collection))
  bar = tqdm.tqdm(
    total=total, unit=' images', leave=False, disable=not sys.stderr.isatty()
  )
  with bar:
    found = inspection.inspect_collection(
      collection,
      near_duplicate_bits=flags.near_duplicates,
      max_images=flags.max_images,
      num_threads=flags.num_threads,
      progress=bar.update,
    )
  command_line.echo(findings.format_findings(found, collection))
  if flags.html is not None:
    page = contact_sheet.render_page(found, collection, flags.num_threads)
    command_line.write_output('--html', flags.html, page)
    command_line.echo(f'Pictures: {printable(flags.html)}')
  return 1 if found.of('error') else 0


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command; returns its exit status: 0, 1, or 2 for a mistake."""
  return command_line.run_command(run, argv)


def _bits(text: str) -> int | None:
  """Reads --near_duplicates."""
  if text == 'off':
    return None
  if text.isdecimal() and int(text) <= MAX_BITS:
    return int(text)
  raise argparse.ArgumentTypeError(
    f"{text!r} is not allowed, but 0 to {MAX_BITS} and 'off' are"
  )


if __name__ == '__main__':
  sys.exit(main())
