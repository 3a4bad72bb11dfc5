"""Compares two runs: `python -m retrieval_jax.compare RUN_A RUN_B`.

Which is better, by how much, and whether that is more than the noise of the
queries: from the values of each query that the runs have kept.
"""

import argparse
import sys
from collections.abc import Sequence

from retrieval_jax import command_line
from retrieval_jax.core.errors import unknown_name
from retrieval_jax.training import comparison, comparison_table

_DESCRIPTION = """\
Compares two runs on the queries that both were measured on.

  python -m retrieval_jax.compare runs/circle runs/arcface
  python -m retrieval_jax.compare runs/circle runs/arcface \\
      --metric=mean_average_precision --over=classes --json

The table has both means, their difference, its confidence interval (a paired
bootstrap) and a p-value (a sign-flip permutation test). The exit status is 0,
whichever is better."""


def parse_flags(argv: Sequence[str]) -> argparse.Namespace:
  """Returns the flags.

  Raises:
    InputError: a flag that is unknown, or has no or a wrong value.
  """
  parser = command_line.Parser('python -m retrieval_jax.compare', _DESCRIPTION)
  parser.add_argument('run_a', help='the workdir of a run with results')
  parser.add_argument('run_b', help='the workdir of another')
  parser.add_argument(
    '--set', help='the set that was measured; default: test, or the only one'
  )
  parser.add_argument(
    '--metric',
    action='append',
    default=[],
    help='a metric; may be given several times; default: all of both runs',
  )
  parser.add_argument(
    '--over',
    choices=('queries', 'classes'),
    default='queries',
    help='what is resampled: classes, where the queries of a class are alike',
  )
  parser.add_argument(
    '--shared_only',
    action='store_true',
    help='compare on the shared queries, where one run has others too',
  )
  parser.add_argument('--level', type=float, default=0.95)
  parser.add_argument('--seed', type=command_line.natural(0), default=0)
  parser.add_argument(
    '--json', action='store_true', help='print one JSON object'
  )
  flags, rest = parser.parse_known_args(argv)
  if rest:
    known = [f'--{name}' for name in vars(flags) if not name.startswith('run_')]
    raise unknown_name('flag', rest[0].partition('=')[0], known)
  return flags


def run(argv: Sequence[str]) -> None:
  """Prints the comparison."""
  flags = parse_flags(argv)
  found = comparison.compare_runs(
    flags.run_a,
    flags.run_b,
    set_name=flags.set,
    names=flags.metric,
    by_class=flags.over == 'classes',
    shared_only=flags.shared_only,
    level=flags.level,
    seed=flags.seed,
  )
  show = comparison_table.to_json if flags.json else comparison_table.table
  command_line.echo(show(found))


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command; returns its exit status: 0, or 2 for a mistake."""
  return command_line.run_command(run, argv)


if __name__ == '__main__':
  sys.exit(main())
