"""What a class-sharded head costs a device: bytes, and the time of a step.

    python benchmarks/partial_fc.py [--classes 1000000] [--dim 64] [--batch 256]

A step of the head alone (ArcFace, of all classes and of a tenth) on 1, 2 and 4
forced CPU devices: gather, cosines, distributed softmax, clipping, update.
`state` is what one device holds between steps, the proxies and what the
optimizer keeps for them, counted from its arrays; a head that is not sharded
takes the first row on every device. `temporary` is what the compiled step
allocates on one device besides its inputs and outputs. The devices share the
cores of one machine, so the time shows the work, not a speed-up.
"""

import argparse
import functools
import json
import statistics
import subprocess
import sys
import time

import jax
import numpy as np
import optax

from retrieval_jax.core import arrays, class_shards, collectives
from retrieval_jax.losses.proxy import margin_softmax
from retrieval_jax.training import optim, sharding

AXIS = 'batch'
OPTIMIZER = {
  'weight_decay': 1e-4,
  'clip_norm': 1.0,
  'head_learning_rate_multiplier': 1.0,
  'backbone_learning_rate_multiplier': 1.0,
  'layer_decay': 1.0,
  'frozen': (),
  'head_only_steps': 0,
  'accumulate_steps': 1,
}


def head_step(state, batch, optimizer, classes, rate):
  """Does one step of the head; the embeddings are given."""
  params, opt_state, step = state
  key = jax.random.fold_in(jax.random.key(0), step)

  def loss_fn(params, embeddings):
    rows, labels = collectives.all_gather_rows(
      (embeddings, batch['labels']), AXIS
    )
    columns = class_shards.select_columns(
      params['head']['proxies'],
      labels,
      axis_name=AXIS,
      num_classes=classes.num_classes,
      rate=rate,
      key=key,
    )
    cosines = arrays.proxy_cosines(rows, columns.proxies)
    terms = margin_softmax.arcface(cosines, columns.labels, shard=columns.shard)
    return collectives.masked_mean(*terms['loss'], AXIS)

  loss, (gradients, embedding_gradients) = jax.value_and_grad(
    loss_fn, argnums=(0, 1)
  )(params, batch['embeddings'])
  gradients = sharding.mean_gradients(gradients, AXIS, AXIS)
  updates, opt_state = optimizer.update(gradients, opt_state, params)
  params = optax.apply_updates(params, updates)
  return (params, opt_state, step + 1), (loss, embedding_gradients)


def measure(devices, classes, dim, batch, name, rate, rounds):
  """Returns what one row of the table shows; the process is used up."""
  jax.config.update('jax_num_cpu_devices', devices)
  random = np.random.default_rng(0)
  head = sharding.ClassSharding(AXIS, num_classes=classes)
  optimizer = optim.make_optimizer(
    OPTIMIZER | {'name': name}, lambda _: 0.1, AXIS
  )
  proxies = random.standard_normal((classes, dim), np.float32)
  params = {'head': {'proxies': sharding.split(proxies, head)}}
  del proxies
  opt_state = jax.pmap(optimizer.init, AXIS)(params)
  kept = jax.tree.leaves((params, opt_state))
  first = jax.local_devices()[0]
  state_bytes = sum(
    part.data.nbytes
    for leaf in kept
    for part in leaf.addressable_shards
    if part.device == first
  )
  rows = {
    'embeddings': random.standard_normal((batch, dim), np.float32),
    'labels': random.integers(0, classes, batch).astype(np.int32),
  }
  rows = {k: v.reshape(devices, -1, *v.shape[1:]) for k, v in rows.items()}
  rows = jax.device_put(rows, sharding.device_axis(AXIS))
  step = jax.pmap(
    functools.partial(head_step, optimizer=optimizer, classes=head, rate=rate),
    AXIS,
    donate_argnums=(0,),
  )
  steps = jax.device_put(
    np.zeros(devices, np.int32), sharding.device_axis(AXIS)
  )
  state = params, opt_state, steps
  temporary = step.lower(state, rows).compile().memory_analysis()
  seconds = []
  for _ in range(rounds + 1):
    start = time.perf_counter()
    state, (loss, _) = jax.block_until_ready(step(state, rows))
    seconds.append(time.perf_counter() - start)
  return {
    'state': state_bytes,
    'temporary': temporary.temp_size_in_bytes,
    'seconds': statistics.median(seconds[1:]),
    'loss': float(loss[0]),
  }


def main() -> None:
  parser = argparse.ArgumentParser()
  parser.add_argument('--classes', type=int, default=1_000_000)
  parser.add_argument('--dim', type=int, default=64)
  parser.add_argument('--batch', type=int, default=256)
  parser.add_argument('--rounds', type=int, default=5)
  parser.add_argument('--case', help='one row, as JSON, in this process')
  flags = parser.parse_args()
  sizes = {k: getattr(flags, k) for k in ('classes', 'dim', 'batch', 'rounds')}
  if flags.case:
    print(json.dumps(measure(**json.loads(flags.case), **sizes)))
    return
  print(
    f'{flags.classes:,} classes, dimension {flags.dim}, batch {flags.batch}\n\n'
    '| optimizer | rate | devices | state, MiB | temporary, MiB | step, s '
    '| loss |\n|---|' + '---:|' * 6
  )
  for name in ('sgd', 'adamw'):
    for rate in (1.0, 0.1):
      for devices in (1, 2, 4):
        case = {'name': name, 'rate': rate, 'devices': devices}
        command = [sys.executable, __file__, '--case', json.dumps(case)]
        command += [f'--{k}={v}' for k, v in sizes.items()]
        # The number of devices is fixed once JAX has started.
        row = json.loads(subprocess.check_output(command))
        print(
          f'| {name} | {rate:g} | {devices} | {row["state"] / 2**20:.1f} '
          f'| {row["temporary"] / 2**20:.0f} | {row["seconds"]:.2f} '
          f'| {row["loss"]:.4f} |',
          flush=True,
        )


if __name__ == '__main__':
  main()
