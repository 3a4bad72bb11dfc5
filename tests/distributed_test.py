"""Two processes over loopback make the run of one."""

import json
import os
import socket
import subprocess
import sys

import jax
import numpy as np

from retrieval_jax.training import checkpoint

_COMMAND = (
  '--config=configs/circle.py',
  '--config.num_train_steps=8',
  '--config.eval_every_steps=4',
  '--config.checkpoint_every_steps=4',
  '--config.log_every_steps=2',
  '--config.optimizer.name=sgd',
  '--config.optimizer.learning_rate=0.01',
)


def _free_port() -> int:
  with socket.socket() as listener:
    listener.bind(('localhost', 0))
    return listener.getsockname()[1]


def _run(workdir, num_processes, devices, *flags):
  """Runs the command in processes; returns their outputs."""
  env = os.environ | {'JAX_NUM_CPU_DEVICES': str(devices)}
  together = []
  port = _free_port()
  for process in range(num_processes):
    hosts = []
    if num_processes > 1:
      hosts = [
        f'--coordinator_address=localhost:{port}',
        f'--num_processes={num_processes}',
        f'--process_id={process}',
      ]
    together.append(
      subprocess.Popen(
        [sys.executable, '-m', 'retrieval_jax.main', *_COMMAND, *flags]
        + [f'--workdir={workdir}', *hosts],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=env,
      )
    )
  outputs = [process.communicate(timeout=300)[0] for process in together]
  for process, output in zip(together, outputs, strict=True):
    assert process.returncode == 0, output
  return outputs


def test_two_processes_equal_one(tmp_path):
  one, two = tmp_path / 'one', tmp_path / 'two'
  _run(one, num_processes=1, devices=1)
  lead, other = _run(two, num_processes=2, devices=2)
  assert 'precision_at_1' in lead
  assert 'precision_at_1' not in other
  for a, b in zip(
    jax.tree.leaves(checkpoint.restore_params(str(one))),
    jax.tree.leaves(checkpoint.restore_params(str(two))),
    strict=True,
  ):
    np.testing.assert_allclose(a, b, atol=1e-4 * max(1e-3, np.abs(a).max()))
  metrics = [
    json.loads((run / 'results.json').read_text())['evaluations']['test']
    for run in (one, two)
  ]
  for name in ('num_queries', 'gallery_size', 'num_lone_queries'):
    assert metrics[0]['protocol'][name] == metrics[1]['protocol'][name]
  for name, value in metrics[0]['metrics'].items():
    np.testing.assert_allclose(metrics[1]['metrics'][name], value, atol=2e-3)
  # A run of two processes and four devices goes on in one, and the reverse.
  (again,) = _run(two, 1, 1)
  assert 'the run is finished' in again
