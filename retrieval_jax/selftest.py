"""Checks a config's loss: `python -m retrieval_jax.selftest --config=FILE`.

It takes the very loss, miner, model and precision of the config, and shows that
several devices give one device's loss and gradient, that padding changes
nothing, and that bfloat16 stays finite.
"""

import argparse
import sys
from collections.abc import Sequence

import jax

from retrieval_jax import command_line
from retrieval_jax.core.errors import InputError
from retrieval_jax.training import config as config_lib
from retrieval_jax.training import selftest

_DESCRIPTION = """\
Checks the loss of a config on several devices, with padding, and in bfloat16.

  python -m retrieval_jax.selftest --config=configs/circle.py --devices=4

The exit status is 0 if all checks pass, and 1 if one does not."""


def parse_flags(
  argv: Sequence[str],
) -> tuple[argparse.Namespace, list[tuple[str, str]]]:
  """Returns the flags, and the (key, text) of each --config.KEY=TEXT."""
  parser = command_line.Parser('python -m retrieval_jax.selftest', _DESCRIPTION)
  parser.add_argument(
    '--config', required=True, help='a config file, and after a colon its data'
  )
  parser.add_argument(
    '--devices',
    type=int,
    help='how many to compare with one; where there are fewer, and no '
    'accelerator, they are simulated; default: those that there are',
  )
  return command_line.parse_with_overrides(parser, argv)


def run(argv: Sequence[str]) -> int:
  """Prints the table; returns the exit status."""
  flags, overrides = parse_flags(argv)
  if flags.devices is not None:
    _provide_devices(flags.devices)
  config = config_lib.load(flags.config)
  for key, text in overrides:
    config_lib.override(config, key, text)
  checks = selftest.run(config)
  print(selftest.table(checks))
  return 0 if all(check.passed for check in checks) else 1


def _provide_devices(number: int) -> None:
  """Makes jax see so many devices, simulated ones on a CPU."""
  if number < 1:
    raise InputError(f'--devices={number}; allowed is a number of at least 1')
  # Has to be said before jax looks for devices; an accelerator ignores it.
  jax.config.update('jax_num_cpu_devices', number)
  if jax.device_count() != number:
    raise InputError(
      f'--devices={number}, but there are {jax.device_count()}; allowed is '
      'that number: leave it out, or hide the accelerators with '
      'JAX_PLATFORMS=cpu'
    )


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command; returns its exit status: 0, 1, or 2 for a mistake."""
  return command_line.run_command(run, argv)


if __name__ == '__main__':
  sys.exit(main())
