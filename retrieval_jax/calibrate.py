"""Lets searches answer "no match": `python -m retrieval_jax.calibrate`.

Flags, and one call: `calibrate` of `retrieval_jax.training.calibrating` does
the work and can be called from Python.
"""

import argparse
import sys
from collections.abc import Sequence

from retrieval_jax import command_line, neighbors
from retrieval_jax.core.strings import printable

_DESCRIPTION = """\
Chooses the similarity from which on the nearest image is an answer, on labelled
images, and keeps it in the index.

  python -m retrieval_jax.calibrate --index=photos.index --precision=0.99
  python -m retrieval_jax.calibrate --index=photos.index \\
      --false_positive_rate=0.01 --data=labelled.csv

Exit status: 0, or 2 where nothing could be done."""


def parse_flags(argv: Sequence[str]) -> argparse.Namespace:
  """Returns the flags.

  Raises:
    InputError: a flag that is unknown, or has no or a wrong value.
  """
  parser = command_line.Parser(
    'python -m retrieval_jax.calibrate', _DESCRIPTION
  )
  parser.add_argument('--index', required=True, help='folder of the index')
  wanted = parser.add_mutually_exclusive_group(required=True)
  wanted.add_argument(
    '--precision', type=float, help='share of right answers among the answers'
  )
  wanted.add_argument(
    '--false_positive_rate',
    type=float,
    help='share of queries that are answered although there is no match',
  )
  parser.add_argument(
    '--data',
    help='labelled images, a folder for each class or a table with the columns '
    'path and label; default: the validation set of the run',
  )
  parser.add_argument(
    '--workdir', help='of the run; default: where it was for the index'
  )
  return command_line.parse(parser, argv)


def run(argv: Sequence[str]) -> None:
  """Does what the flags say; raises `InputError` for a user's mistake."""
  flags = parse_flags(argv)
  index = neighbors.Index.open(flags.index)
  # Imported here: what a mistake in the flags does not wait for.
  from retrieval_jax import inference
  from retrieval_jax.training import calibrating

  model = inference.load_model_of(index, flags.workdir)
  if flags.data is None:
    workdir = model.description['workdir']
    group = calibrating.validation_images(model, workdir)
  else:
    group = calibrating.labelled_images(model, flags.data)
  found = calibrating.calibrate(
    model,
    index,
    group,
    precision=flags.precision,
    false_positive_rate=flags.false_positive_rate,
  )
  wanted = (
    f'a precision of {flags.precision:g}'
    if flags.precision is not None
    else f'a false positive rate of {flags.false_positive_rate:g}'
  )
  on = flags.data or f'the validation set of {model.description["workdir"]}'
  calibrating.save(index, found, wanted=f'for {wanted} on {on}')
  command_line.echo(
    f'{printable(flags.index)}: no match below {found.value:.4f}\n'
    f'  chosen for {wanted} on {printable(on)}, '
    f'{found.num_queries:,} queries:\n'
    f'  {found.answered:.2%} are answered, {found.precision:.2%} of these '
    f'rightly; without a match {found.false_positive_rate:.2%} would be'
  )


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command; returns its exit status: 0, or 2 for a mistake."""
  return command_line.run_command(run, argv)


if __name__ == '__main__':
  sys.exit(main())
