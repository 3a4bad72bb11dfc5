"""Counting triplets, against sorting each row: three ways, in turn.

    python benchmarks/triplets.py [--batches 32,256] [--core 1] [--rounds 5]

All give, for each pair of the batch, in how many triplets within the margin it
is: the whole of the triplet loss and its gradient.

  counting      what the loss does, a comparison for each triplet, O(B^2 P)
  sorting       both kinds of each row sorted, and looked up, O(B^2 log B)
  bitonic sort  one sort of each row by a network of minima and maxima, without
                the looking up: the least a sort costs in vector instructions

One pinned core, one thread; the median of the turns, in milliseconds.
"""

import argparse
import functools
import os
import statistics
import time

os.environ |= {
  'JAX_PLATFORMS': 'cpu',
  'OMP_NUM_THREADS': '1',
  'XLA_FLAGS': '--xla_cpu_multi_thread_eigen=false',
}

import jax
import jax.numpy as jnp
import numpy as np

from retrieval_jax.core.distances import EUCLIDEAN
from retrieval_jax.losses.mining.counting import count_triplets

MARGIN = 0.05
DIM = 64


def make_inputs(batch, num_classes):
  """Returns distances and masks, the columns ordered by class."""
  random = np.random.RandomState(0)
  labels = np.sort(np.arange(batch) % num_classes)
  centers = random.randn(num_classes, DIM)
  x = (0.5 * centers[labels] + random.randn(batch, DIM)).astype(np.float32)
  d = EUCLIDEAN.matrix(jnp.asarray(x), jnp.asarray(x))
  same = labels[:, None] == labels[None, :]
  return d, jnp.asarray(same & ~np.eye(batch, dtype=bool)), jnp.asarray(~same)


def counting(d, positives, negatives):
  """Compares each positive with each negative."""
  return count_triplets(d, positives, negatives, None, d + MARGIN)


def sorting(d, positives, negatives):
  """Sorts both kinds of each row, and looks the others up."""
  far = jnp.where(negatives, d, jnp.inf)
  near = jnp.where(positives, d + MARGIN, -jnp.inf)
  up_to = jax.vmap(functools.partial(jnp.searchsorted, side='right'))
  below = jax.vmap(functools.partial(jnp.searchsorted, side='left'))
  per_positive = up_to(jnp.sort(far, axis=1), near)
  per_negative = d.shape[1] - below(jnp.sort(near, axis=1), far)
  return (
    jnp.where(positives, per_positive, 0).astype(jnp.float32),
    jnp.where(negatives, per_negative, 0).astype(jnp.float32),
  )


def bitonic(d, positives, negatives):
  """Sorts each row by a network."""
  del positives
  x = jnp.where(negatives, d, jnp.inf)
  rows, size = x.shape
  run = 2
  while run <= size:
    step = run // 2
    while step:
      pairs = x.reshape(rows, size // (2 * step), 2, step)
      low = jnp.minimum(pairs[:, :, 0], pairs[:, :, 1])
      high = jnp.maximum(pairs[:, :, 0], pairs[:, :, 1])
      blocks = np.arange(size // (2 * step)) * 2 * step
      upwards = jnp.asarray(blocks & run == 0)[None, :, None]
      pairs = jnp.stack(
        [jnp.where(upwards, low, high), jnp.where(upwards, high, low)], axis=2
      )
      # One stage at a time: fused, each would be computed again and again.
      x = jax.lax.optimization_barrier(pairs.reshape(rows, size))
      step //= 2
    run *= 2
  return x


WAYS = {'counting': counting, 'sorting': sorting, 'bitonic sort': bitonic}


def measure(batch, num_classes, rounds):
  """Returns {way: milliseconds}; checks that the counts agree."""
  inputs = make_inputs(batch, num_classes)
  steps = {
    name: jax.jit(way).lower(*inputs).compile() for name, way in WAYS.items()
  }
  found = {name: step(*inputs) for name, step in steps.items()}
  for a, b in zip(found['counting'], found['sorting'], strict=True):
    np.testing.assert_array_equal(a, b)
  times = {name: [] for name in WAYS}
  for _ in range(rounds):
    for name, step in steps.items():
      begin, calls = time.process_time(), 0
      while calls == 0 or time.process_time() - begin < 0.02:
        jax.block_until_ready(step(*inputs))
        calls += 1
      times[name].append(1e3 * (time.process_time() - begin) / calls)
  return {name: statistics.median(taken) for name, taken in times.items()}


def main():
  """Prints the table."""
  parser = argparse.ArgumentParser()
  parser.add_argument('--batches', default='32,256,1024,4096')
  parser.add_argument('--core', type=int, default=max(os.sched_getaffinity(0)))
  parser.add_argument('--rounds', type=int, default=5)
  flags = parser.parse_args()
  os.sched_setaffinity(0, {flags.core})
  print(f'| batch | classes | {" | ".join(WAYS)} |')
  print('|---:|---|' + '---:|' * len(WAYS))
  for batch in map(int, flags.batches.split(',')):
    for words, num_classes in (('10', 10), ('of 4 images', batch // 4)):
      times = measure(batch, num_classes, flags.rounds)
      cells = ' | '.join(f'{taken:.3g}' for taken in times.values())
      print(f'| {batch} | {words} | {cells} |', flush=True)


if __name__ == '__main__':
  main()
