"""What the all-gather of embeddings costs: a step with it, and without.

    python benchmarks/all_gather.py

The training step of the small net with the Circle loss on 2 forced CPU devices;
without the gather each device compares its rows with its own rows only, which
is another (and a worse) loss. Measured in turn, medians.
"""

import functools
import statistics
import time
from unittest import mock

import jax
import numpy as np

from retrieval_jax.core import collectives
from retrieval_jax.training import config as config_lib
from retrieval_jax.training import optim, steps, tasks
from retrieval_jax.training import state as state_lib

DEVICES, ROUNDS = 2, 30


def make_step(batch_size: int, gather: bool):
  """Returns a function that does one compiled step and waits for it."""
  config = config_lib.load('configs/circle.py')
  schedule = optim.make_schedule(config.optimizer, 1000)
  optimizer = optim.make_optimizer(config.optimizer, schedule)
  task = tasks.make_task(config, config_lib.Classes(10), (28, 28, 1))
  state = state_lib.replicate(
    state_lib.create_state(functools.partial(task.new_state, optimizer), 0)
  )
  p_step = jax.pmap(
    functools.partial(
      steps.train_step, task=task, optimizer=optimizer, schedule=schedule
    ),
    axis_name=state_lib.AXIS,
  )
  rng = np.random.default_rng(0)
  batch = state_lib.shard(
    {
      'images': rng.integers(0, 255, (batch_size, 28, 28, 1)).astype(np.uint8),
      'labels': rng.integers(0, 10, batch_size).astype(np.int32),
    }
  )

  def step():
    jax.block_until_ready(p_step(state, batch))

  if gather:
    step()
    return step
  local = mock.patch.multiple(
    collectives,
    all_gather_rows=lambda x, axis_name: x,
    row_ids=lambda rows, axis_name: jax.numpy.arange(rows),
  )
  with local:  # Traced once, here.
    step()
  return step


def main() -> None:
  jax.config.update('jax_num_cpu_devices', DEVICES)
  print('| batch | gathered, ms | local, ms | ratio |\n|---|---|---|---|')
  for batch_size in (32, 256, 1024):
    contestants = [make_step(batch_size, gather) for gather in (True, False)]
    times = [[], []]
    for _ in range(ROUNDS):
      for step, seconds in zip(contestants, times, strict=True):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    with_it, without = (1e3 * statistics.median(t) for t in times)
    ratio = statistics.median(a / b for a, b in zip(*times, strict=True))
    print(f'| {batch_size} | {with_it:.1f} | {without:.1f} | {ratio:.2f} |')


if __name__ == '__main__':
  main()
