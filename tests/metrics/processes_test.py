"""Two processes that share a gallery find what one finds, bit for bit."""

import json
import os
import socket
import subprocess
import sys

import numpy as np
import pytest

_SCRIPT = """
import json, sys
import jax
which, of_how_many, port = map(int, sys.argv[1:])
if of_how_many > 1:
  jax.distributed.initialize(f'localhost:{port}', of_how_many, which)
import numpy as np
from retrieval_jax import metrics, neighbors
random = np.random.default_rng(0)
labels = np.concatenate([random.integers(0, 300, 2500), np.full(300, 7)])
x = random.normal(size=(301, 16))[labels] + random.normal(size=(2800, 16))
x = x.astype(np.float32)
share = {'all_processes': True}
found = [
  metrics.evaluate_retrieval(x, labels, **share).per_query,
  metrics.evaluate_retrieval(x[::9], labels[::9], x, labels, **share).per_query,
]
found = [{k: v.tolist() for k, v in part.items()} for part in found]
for distance in ('cosine', 'l2'):
  parts = neighbors.top_k(x[:40], x, 9, distance=distance, **share)
  found.append([part.tolist() for part in parts])
print(json.dumps(found))
"""


def _run(num_processes, devices, folder):
  with socket.socket() as listener:
    listener.bind(('localhost', 0))
    port = listener.getsockname()[1]
  env = os.environ | {'JAX_NUM_CPU_DEVICES': str(devices)}
  # Files: who waits for a full pipe to be read holds up the others.
  outputs = [folder / f'{num_processes}-{i}' for i in range(num_processes)]
  processes = []
  for i, output in enumerate(outputs):
    command = [sys.executable, '-c', _SCRIPT, str(i), str(num_processes)]
    with output.open('w') as file:
      processes.append(
        subprocess.Popen([*command, str(port)], stdout=file, env=env)
      )
  try:
    assert not any([p.wait(timeout=300) for p in processes])
  finally:
    for process in processes:
      process.kill()
  return [json.loads(o.read_text().splitlines()[-1]) for o in outputs]


@pytest.mark.slow
def test_two_processes_find_what_one_finds(tmp_path):
  (one,) = _run(1, 1, tmp_path)
  for other in _run(2, 2, tmp_path):
    for expected, found in zip(one[:2], other[:2], strict=True):
      for name in expected:
        np.testing.assert_array_equal(expected[name], found[name])
    assert one[2:] == other[2:]
