"""Says what a config needs: `python -m retrieval_jax.plan --config=FILE`.

Memory of a device, the largest batch that fits, images a second and hours,
before a machine is rented: neither the devices nor the data have to be there.
"""

import argparse
import sys
from collections.abc import Callable, Sequence

from retrieval_jax import command_line
from retrieval_jax.core.errors import InputError, unknown_name
from retrieval_jax.training import config as config_lib
from retrieval_jax.training import devices, planner, planner_table

_DESCRIPTION = """\
Counts what training by a config needs, from shapes alone.

  python -m retrieval_jax.plan --config=configs/partial_fc.py --devices=4 \\
      --device=rtx_3090 --num_classes=81313 --num_images=1580470 \\
      --config.model.name=resnet50 --config.data.image_size=224

What is not given of --num_classes, --num_images, --config.data.image_size and
--config.data.channels is looked up in the data."""


def parse_flags(
  argv: Sequence[str],
) -> tuple[argparse.Namespace, list[tuple[str, str]]]:
  """Returns the flags, and the (key, text) of each --config.KEY=TEXT."""
  parser = command_line.Parser('python -m retrieval_jax.plan', _DESCRIPTION)
  parser.add_argument(
    '--config', required=True, help='a config file, and after a colon its data'
  )
  count = command_line.natural(1)
  parser.add_argument(
    '--devices',
    type=count,
    default=1,
    help='that share a batch; default: %(default)s',
  )
  parser.add_argument(
    '--device',
    help=f'its kind, which says memory and speed: {", ".join(devices.DEVICES)}',
  )
  parser.add_argument(
    '--device_memory_gb', type=_positive(), help='GiB of a device'
  )
  parser.add_argument(
    '--memory_fraction',
    type=_positive(1.0),
    default=0.75,
    help='share of it that JAX takes (XLA_PYTHON_CLIENT_MEM_FRACTION); '
    'default: %(default)s, as JAX has it',
  )
  parser.add_argument(
    '--flops_per_second',
    type=_positive(),
    help='peak of a device, such as 71e12; default: that of its kind',
  )
  parser.add_argument(
    '--bytes_per_second',
    type=_positive(),
    help='bandwidth of its memory, such as 936e9; default: that of its kind',
  )
  parser.add_argument(
    '--utilisation',
    type=_positive(1.0),
    default=0.3,
    help='share of the peak that is reached, an assumption; '
    'default: %(default)s',
  )
  parser.add_argument('--num_classes', type=count, help='of the training set')
  parser.add_argument('--num_images', type=count, help='of the training set')
  return command_line.parse_with_overrides(parser, argv)


def _positive(most: float = float('inf')) -> Callable[[str], float]:
  """Returns what reads a number in (0, most] from a flag."""

  def read(text: str) -> float:
    try:
      number = float(text)
    except ValueError:
      number = 0.0
    if 0 < number <= most and number != float('inf'):
      return number
    limit = '' if most == float('inf') else f' up to {most:g}'
    raise argparse.ArgumentTypeError(
      f'{text!r} is not allowed, but numbers above 0{limit} are'
    )

  return read


def run(argv: Sequence[str]) -> None:
  """Prints the plan."""
  flags, overrides = parse_flags(argv)
  kinds = devices.DEVICES
  if flags.device is not None:
    if flags.device not in kinds:
      raise unknown_name('--device', flags.device, kinds)
    kinds = {flags.device: kinds[flags.device]}
  memory_gb = flags.device_memory_gb
  if memory_gb is None:
    if flags.device is None:
      raise InputError(
        'neither --device nor --device_memory_gb is given; allowed is one of '
        'them, such as --device_memory_gb=24'
      )
    memory_gb = kinds[flags.device].memory_gb
  config = config_lib.load(flags.config)
  for key, text in overrides:
    config_lib.override(config, key, text)
  plans = planner.make_plans(
    config,
    flags.devices,
    int(memory_gb * 2**30 * flags.memory_fraction),
    flags.num_classes,
    flags.num_images,
  )
  speeds = {
    name: devices.Speed(kind.flops[config.model.dtype], kind.bandwidth)
    for name, kind in kinds.items()
  }
  if flags.flops_per_second is not None:
    own = kinds[flags.device].bandwidth if flags.device else None
    speeds = {'as given': devices.Speed(flags.flops_per_second, own)}
  if flags.bytes_per_second is not None:
    speeds = {
      name: speed._replace(bandwidth=flags.bytes_per_second)
      for name, speed in speeds.items()
    }
  print(planner_table.table(plans, speeds, flags.utilisation))


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command; returns its exit status: 0, or 2 for a mistake."""
  return command_line.run_command(run, argv)


if __name__ == '__main__':
  sys.exit(main())
