"""Trains and evaluates: `python -m retrieval_jax.main --config=FILE`.

Intentionally short: flags, and one call. `train_and_evaluate` in
`retrieval_jax.training.loop` does the work and can be called from Python.
"""

import argparse
import logging
import os
import re
import sys
from collections.abc import Sequence

from retrieval_jax import command_line
from retrieval_jax.core.errors import InputError
from retrieval_jax.training import config as config_lib
from retrieval_jax.training import config_checks, distributed

_log = logging.getLogger('retrieval_jax')

_DESCRIPTION = """\
Trains and evaluates an image retrieval model.

  python -m retrieval_jax.main --config=configs/circle.py
  python -m retrieval_jax.main --config=configs/circle.py:mnist \\
      --config.data.batch_size=128 --workdir=runs/large_batch

Any key of the config is changed with --config.KEY=VALUE. The same command again
continues a run that was stopped, and measures one that is finished."""


def parse_flags(
  argv: Sequence[str],
) -> tuple[argparse.Namespace, list[tuple[str, str]]]:
  """Returns the flags, and the (key, text) of each --config.KEY=TEXT.

  Raises:
    InputError: a flag that is unknown, or has no or a wrong value.
  """
  parser = command_line.Parser('python -m retrieval_jax.main', _DESCRIPTION)
  parser.add_argument(
    '--config', required=True, help='a config file, and after a colon its data'
  )
  parser.add_argument(
    '--workdir', help='default: runs/CONFIG[-DATA][-OVERRIDES]'
  )
  parser.add_argument('--mode', choices=('train', 'evaluate'), default='train')
  processes = parser.add_argument_group('several hosts')
  processes.add_argument(
    '--distributed',
    action='store_true',
    help='find the other processes by SLURM, Open MPI or Kubernetes',
  )
  processes.add_argument('--coordinator_address', help='HOST:PORT of process 0')
  processes.add_argument('--num_processes', type=int)
  processes.add_argument('--process_id', type=int)
  return command_line.parse_with_overrides(parser, argv)


def default_workdir(config: str, overrides: Sequence[tuple[str, str]]) -> str:
  """Returns runs/CONFIG[-DATA][-OVERRIDES], so that variants do not collide.

  Example:
    >>> default_workdir('configs/circle.py:mnist', [('seed', '1')])
    'runs/circle-mnist-seed=1'
  """
  file, _, argument = config.partition(':')
  name = os.path.splitext(os.path.basename(file))[0]
  parts = [name, argument] + [
    f'{key}={text}'
    for key, text in sorted(overrides)
    if not config_lib.is_free(key)
  ]
  text = '-'.join(part for part in parts if part)
  return os.path.join('runs', re.sub(r'[^\w.=,+-]', '_', text))


def run(argv: Sequence[str]) -> None:
  """Does what the flags say; raises `InputError` for a user's mistake."""
  flags, overrides = parse_flags(argv)
  config = config_lib.load(flags.config)
  for key, text in overrides:
    config_lib.override(config, key, text)
  config_checks.validate(config)
  processes = (flags.coordinator_address, flags.num_processes, flags.process_id)
  if flags.distributed or any(value is not None for value in processes):
    distributed.initialize(*processes)

  # Imported here: TensorBoard's writer takes seconds, which a mistake in the
  # config does not wait for.
  from retrieval_jax.training import loop

  workdir = flags.workdir or default_workdir(flags.config, overrides)
  _log.info('workdir: %s', workdir)
  start = loop.train_and_evaluate if flags.mode == 'train' else loop.evaluate
  try:
    start(config, workdir)
  except Exception as error:
    # TensorBoard's writer has an exception of its own for a full disk.
    if 'No space left on device' not in str(error):
      raise
    raise InputError(
      f'--workdir={workdir} cannot be written any further; the disk is full: '
      'free some space and run again'
    ) from error


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command; returns its exit status: 0, or 2 for a mistake."""
  return command_line.run_command(run, argv)


if __name__ == '__main__':
  sys.exit(main())
