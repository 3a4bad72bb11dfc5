"""What a training step allocates for a large batch, at once and in chunks.

    PYTHONPATH=. python benchmarks/gradient_cache.py [--loss ntxent]

`temporary` is what the compiled step allocates besides its inputs and outputs,
as the compiler says; nothing is run. The network and the images are those of
`configs/zero_shot.py`, without BatchNorm, whose statistics of a chunk would be
others than those of the batch.
"""

import argparse
import functools

import jax
import jax.numpy as jnp
import optax

from retrieval_jax.training import config as config_lib
from retrieval_jax.training import steps, tasks

IMAGE_SHAPE = (32, 32, 1)
CASES = ((256, None), (4096, None), (4096, 256))


def temporary_mib(loss, batch, chunk) -> float:
  """Returns what a step allocates."""
  config = config_lib.load(f'configs/zero_shot.py:{loss}')
  config.model.normalization = 'none'
  config.data.batch_size = batch
  config.gradient_cache.chunk_size = chunk
  classes = config_lib.Classes(number=886)
  task = tasks.make_task(config, classes, IMAGE_SHAPE, axis_name=None)
  optimizer = optax.sgd(0.1)
  state = jax.eval_shape(functools.partial(task.new_state, optimizer), 0)
  step = functools.partial(
    steps.train_step,
    task=task,
    optimizer=optimizer,
    schedule=optax.constant_schedule(0.1),
    axis_name=None,
  )
  inputs = {
    'images': jax.ShapeDtypeStruct((batch, *IMAGE_SHAPE), jnp.uint8),
    'labels': jax.ShapeDtypeStruct((batch,), jnp.int32),
  }
  compiled = jax.jit(step).lower(state, inputs).compile()
  return compiled.memory_analysis().temp_size_in_bytes / 2**20


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--loss', nargs='+', default=['ntxent', 'triplet_margin'])
  arguments = parser.parse_args()
  print('| loss | batch | chunk | temporary, MiB |\n|---|---:|---:|---:|')
  for loss in arguments.loss:
    for batch, chunk in CASES:
      found = temporary_mib(loss, batch, chunk)
      print(f'| {loss} | {batch} | {chunk or ""} | {found:.0f} |', flush=True)


if __name__ == '__main__':
  main()
