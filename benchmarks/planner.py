"""What the planner counts and estimates, beside training steps that are run.

    PYTHONPATH=. python benchmarks/planner.py [--devices=2] [--only=WORDS]

Each device is a core of this machine, and each case a process of its own. The
peak of a core is that of a float32 matrix product of 2,048 rows, its bandwidth
that of a copy of 256 MiB, both measured in the same process. Images are noise,
the data sets of the configs need not be there. Columns:

- GFLOP and GB: of a step on a device, as `plan` counts them.
- ms: a step, the median.
- utilisation: GFLOP / (ms x peak); `plan` assumes 0.3.
- estimate: what `plan` says of the step at 0.3, as a part of ms.
- MiB: temporary memory that XLA allocated, and what `plan` counts of it.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from typing import Any, NamedTuple

UTILISATION = 0.3  # As `plan` assumes.


class Case(NamedTuple):
  """A config and what is changed in it; the batch is that of a device."""

  name: str
  config: str
  batch: int
  image_shape: tuple[int, int, int]
  overrides: dict[str, Any] = {}
  num_classes: int = 1000


def _network(name, side, batch):
  return Case(
    f'`{name}`, {side} pixels, batch {batch}',
    'configs/arcface.py',
    batch,
    (side, side, 3),
    {'model.name': name},
  )


CASES = [
  Case(
    '`convnet`, 28 pixels, batch 128',
    'configs/arcface.py',
    128,
    (28, 28, 1),
    num_classes=10,
  ),
  Case(
    'the same, 81,313 classes in shards',
    'configs/partial_fc.py',
    128,
    (28, 28, 1),
    num_classes=81_313,
  ),
  Case(
    '`configs/fine_tuning.py`, batch 64',
    'configs/fine_tuning.py:supcon',
    64,
    (32, 32, 3),
    {'model.pretrained': None},
  ),
  Case(
    '`configs/harry_small.py`, batch 64',
    'configs/harry_small.py',
    64,
    (32, 32, 3),
    {'model.pretrained': None},
  ),
  _network('resnet18', 112, 16),
  _network('resnet50', 112, 16),
  _network('convnext_tiny', 112, 16),
  _network('vit_small_patch16', 112, 16),
]


def measure(case: Case, num_devices: int) -> dict[str, float]:
  """Runs some steps on the devices of this process."""
  import jax

  jax.config.update('jax_num_cpu_devices', num_devices)
  import functools

  import numpy as np

  from retrieval_jax.training import config as config_lib
  from retrieval_jax.training import (
    config_checks,
    devices,
    optim,
    planner,
    tasks,
  )
  from retrieval_jax.training import state as state_lib
  from retrieval_jax.training import steps as steps_lib
  from retrieval_jax.training.experiment import make_optimizer

  config = config_lib.load(case.config)
  batch_size = case.batch * num_devices
  for key, value in {
    'data.batch_size': batch_size,
    'data.image_size': case.image_shape[0],
    'data.channels': case.image_shape[2],
    **case.overrides,
  }.items():
    config_lib.override(config, key, str(value))
  config_checks.validate(config, num_devices)
  facts = planner.find_facts(config, case.num_classes, 100 * batch_size)
  counted = planner.measure(config, facts, num_devices, batch_size)

  schedule = optim.make_schedule(config.optimizer, 1000)
  optimizer = make_optimizer(config, schedule)
  task = tasks.make_task(config, facts.classes, case.image_shape)
  state = state_lib.create_state(
    functools.partial(task.new_state, optimizer), 0, backbone=False
  )
  state = state_lib.replicate(state, state_lib.class_sharding(task.objective))
  random = np.random.RandomState(0)
  images = random.randint(256, size=(batch_size, *case.image_shape))
  labels = np.arange(batch_size) // 4 % case.num_classes
  batch = state_lib.shard(
    {'images': np.uint8(images), 'labels': np.int32(labels)}
  )
  step = jax.pmap(
    functools.partial(
      steps_lib.train_step, task=task, optimizer=optimizer, schedule=schedule
    ),
    axis_name=state_lib.AXIS,
    donate_argnums=0,
  )
  compiled = step.lower(state, batch).compile()
  peaks, bandwidths, seconds = [], [], []
  for _ in range(8):
    peaks.append(_peak() / num_devices)
    bandwidths.append(_bandwidth() / num_devices)
    begin = time.perf_counter()
    state, scalars = compiled(state, batch)
    jax.block_until_ready((state, scalars))
    seconds.append(time.perf_counter() - begin)
  taken = statistics.median(seconds[1:])
  speed = devices.Speed(
    statistics.median(peaks[1:]), statistics.median(bandwidths[1:])
  )
  estimate = devices.seconds(counted.flops, counted.traffic, speed, UTILISATION)
  return {
    'flops': counted.flops,
    'traffic': counted.traffic,
    'seconds': taken,
    'peak': speed.flops,
    'bandwidth': speed.bandwidth,
    'estimate': estimate,
    'allocated': compiled.memory_analysis().temp_size_in_bytes,
    'counted': counted.memory.temporary,
  }


def _peak(side=2048):
  """Returns the operations a second of a matrix product."""
  import jax
  import jax.numpy as jnp

  x = jnp.ones((side, side))
  product = jax.jit(jnp.matmul)
  product(x, x).block_until_ready()
  begin = time.perf_counter()
  product(x, x).block_until_ready()
  return 2 * side**3 / (time.perf_counter() - begin)


def _bandwidth(size=2**28):
  """Returns the bytes a second that a copy reads and writes."""
  import numpy as np

  source, target = np.ones(size, np.uint8), np.ones(size, np.uint8)
  begin = time.perf_counter()
  np.copyto(target, source)
  return 2 * size / (time.perf_counter() - begin)


def _row(case, found):
  utilisation = found['flops'] / found['seconds'] / found['peak']
  mib = [round(found[key] / 2**20) for key in ('allocated', 'counted')]
  return (
    f'| {case.name} | {found["flops"] / 1e9:.1f} | {found["traffic"] / 1e9:.2f}'
    f' | {1e3 * found["seconds"]:.0f} | {utilisation:.2f} '
    f'| {found["estimate"] / found["seconds"]:.2f} | {mib[0]}, {mib[1]} |'
  )


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--devices', type=int, default=1)
  parser.add_argument('--only', default='', help='cases whose name has this')
  parser.add_argument('--case', help='run this case here, and print JSON')
  flags = parser.parse_args()
  if flags.case is not None:
    (case,) = (case for case in CASES if case.name == flags.case)
    print(json.dumps(measure(case, flags.devices)))
    return
  cores = sorted(os.sched_getaffinity(0))[: flags.devices]
  print('| step | GFLOP | GB | ms | utilisation | estimate | MiB |')
  print('|---|---|---|---|---|---|---|')
  measured = []
  for case in (case for case in CASES if flags.only in case.name):
    found = json.loads(
      subprocess.run(
        [sys.executable, __file__]
        + [f'--case={case.name}', f'--devices={flags.devices}'],
        check=True,
        stdout=subprocess.PIPE,
        preexec_fn=lambda: os.sched_setaffinity(0, cores),
      ).stdout
    )
    print(_row(case, found), flush=True)
    measured.append(found)
  peak, bandwidth = (
    statistics.median(found[key] for found in measured) / 1e9
    for key in ('peak', 'bandwidth')
  )
  print(f'a device: {peak:.0f} GFLOP/s, {bandwidth:.1f} GB/s')


if __name__ == '__main__':
  main()
