"""Measures a run on other data: `python -m retrieval_jax.evaluate`.

Flags, and one call: `evaluate_on` of `retrieval_jax.training.benchmarking` does
the work and can be called from Python.
"""

import argparse
import sys
from collections.abc import Sequence

from retrieval_jax import command_line
from retrieval_jax.core.errors import InputError

_DESCRIPTION = """\
Measures a trained run on other data, such as a benchmark.

  python -m retrieval_jax.evaluate --workdir=runs/landmarks \\
      --config.data.name=roxford5k --config.data.dir=DIR
  python -m retrieval_jax.evaluate --workdir=runs/landmarks \\
      --config.data.name=sop --config.data.dir=DIR \\
      --config.eval.metrics="('recall_at_1', 'recall_at_10')"

Any key of data.* and eval.* is changed with --config.KEY=VALUE. The results are
kept in evaluations/NAME/ of the run, whose own results stay as they are; two
runs are compared by their folders there.

Exit status: 0, or 2 for a mistake."""


def parse_flags(
  argv: Sequence[str],
) -> tuple[argparse.Namespace, list[tuple[str, str]]]:
  """Returns the flags, and the (key, text) of each --config.KEY=TEXT.

  Raises:
    InputError: a flag that is unknown, or has no or a wrong value.
  """
  parser = command_line.Parser('python -m retrieval_jax.evaluate', _DESCRIPTION)
  parser.add_argument('--workdir', required=True, help='of the run')
  parser.add_argument(
    '--name', help='of the measurement; default: that of the data'
  )
  parser.add_argument(
    '--step', type=command_line.natural(0), help='default: the best, or last'
  )
  flags, overrides = command_line.parse_with_overrides(parser, argv)
  if not overrides:
    raise InputError(
      'no data are given to measure the run on; allowed are its own by '
      'python -m retrieval_jax.main --mode=evaluate, others by '
      '--config.data.name=NAME --config.data.dir=DIR: give them'
    )
  return flags, overrides


def run(argv: Sequence[str]) -> None:
  """Does what the flags say; raises `InputError` for a user's mistake."""
  flags, overrides = parse_flags(argv)
  # Imported here: what a mistake in the flags does not wait for.
  from retrieval_jax.training import benchmarking

  benchmarking.evaluate_on(
    flags.workdir, overrides, name=flags.name, step=flags.step
  )


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command; returns its exit status: 0, or 2 for a mistake."""
  return command_line.run_command(run, argv)


if __name__ == '__main__':
  sys.exit(main())
