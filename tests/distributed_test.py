"""Two processes over loopback make the run of one."""

import json
import os
import shutil
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

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


def _flags(process: int, num_processes: int, port: int) -> list[str]:
  return [
    f'--coordinator_address=localhost:{port}',
    f'--num_processes={num_processes}',
    f'--process_id={process}',
  ]


def _slurm(process: int, num_processes: int, port: int) -> dict[str, str]:
  """What `srun` sets; the port of process 0 is computed from the job."""
  return {
    'SLURM_JOB_ID': str(port),
    'SLURM_STEP_NODELIST': 'localhost',
    'SLURM_NTASKS': str(num_processes),
    'SLURM_PROCID': str(process),
    'SLURM_LOCALID': str(process),
    'SLURM_STEP_NUM_NODES': '1',
  }


def _run(workdir, num_processes, devices, *flags, slurm=False):
  """Runs the command in processes; returns their outputs."""
  together = []
  port = _free_port()
  for process in range(num_processes):
    env = os.environ | {'JAX_NUM_CPU_DEVICES': str(devices)}
    hosts = []
    if slurm:
      hosts = ['--distributed']
      env |= _slurm(process, num_processes, port)
    elif num_processes > 1:
      hosts = _flags(process, num_processes, port)
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
  outputs = [process.communicate(timeout=600)[0] for process in together]
  for process, output in zip(together, outputs, strict=True):
    assert process.returncode == 0, output
  return outputs


@pytest.mark.slow
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
    # Eight steps after each other: rounding grows.
    np.testing.assert_allclose(a, b, atol=3e-4 * max(1e-3, np.abs(a).max()))
  evaluations = [
    json.loads((run / 'results.json').read_text())['evaluations']['test']
    for run in (one, two)
  ]
  for name in ('num_queries', 'gallery_size', 'num_lone_queries'):
    values = {row['protocol'][name] for row in evaluations}
    assert len(values) == 1
  for name, value in evaluations[0]['metrics'].items():
    np.testing.assert_allclose(
      evaluations[1]['metrics'][name], value, atol=2e-3
    )
  # A run of two processes and four devices goes on in one.
  (again,) = _run(two, 1, 1)
  assert 'the run is finished' in again


@pytest.mark.slow
def test_the_ablation_of_two_processes_is_that_of_one(tmp_path):
  one, two = tmp_path / 'one', tmp_path / 'two'
  _run(one, 1, 1)
  shutil.copytree(one, two)
  asked = (
    '--mode=evaluate',
    '--config.eval.flip=True',
    "--config.eval.postprocessing=('pca_whitening', 'k_reciprocal')",
    # Of the last batch of queries, one process has 40 and the other none.
    '--config.eval.batch_size=96',
  )
  _run(one, 1, 1, *asked)
  lead, other = _run(two, 2, 2, *asked)
  assert '| pca_whitening + k_reciprocal (flip) |' in lead
  assert 'k_reciprocal (flip)' not in other
  tables = [
    json.loads((run / 'results.json').read_text())['ablation']['test']
    for run in (one, two)
  ]
  chains = (
    ['pca_whitening'],
    ['k_reciprocal'],
    ['pca_whitening', 'k_reciprocal'],
  )
  for table in tables:
    assert [(row['views'], row['postprocessing']) for row in table] == [
      ('one view', []),
      ('flip', []),
      *(('flip', list(chain)) for chain in chains),
    ]
  for expected, found in zip(*tables, strict=True):
    assert found['protocol'] == expected['protocol']
    # The weights are the same; batches of other sizes round otherwise, and a
    # query in a thousand may find another image first.
    assert found['metrics'] == pytest.approx(expected['metrics'], abs=2e-3)
  # No two rows are as near to each other, so that none stands for another.
  values = [
    row['metrics']['mean_average_precision_at_100'] for row in tables[0]
  ]
  assert min(np.diff(np.sort(values))) > 4e-3


@pytest.mark.slow
def test_slurm_is_found(tmp_path):
  lead, other = _run(tmp_path, num_processes=2, devices=1, slurm=True)
  assert 'precision_at_1' in lead
  assert 'precision_at_1' not in other
