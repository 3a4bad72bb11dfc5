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
from retrieval_jax.core import tiles

shares = set()


class Tiles(tiles.Tiles):
  def __init__(self, *args, **options):
    super().__init__(*args, **options)
    shares.add(self.process)


tiles.Tiles = Tiles
random = np.random.default_rng(0)
labels = np.concatenate([random.integers(0, 300, 2500), np.full(300, 7)])
x = random.normal(size=(301, 16))[labels] + random.normal(size=(2800, 16))
x = x.astype(np.float32)
share = {'all_processes': True}
found = [
  metrics.evaluate_retrieval(x, labels, **share).per_query,
  metrics.evaluate_retrieval(x[::9], labels[::9], x, labels, **share).per_query,
]
sets = np.stack([labels, labels // 2 + 400], axis=1)
ignored = metrics.Ignored(rows=[[i, i + 1] for i in range(0, 2700, 9)])
many = random.normal(size=(9000, 8))  # More than a tile for each process.
relevant = np.arange(50)[:, None] * 90 + np.array([0, 4100, 4500])
found += [
  metrics.evaluate_retrieval(x, sets, **share).per_query,
  metrics.evaluate_retrieval(
    x[:300], labels[:300], x, labels, ignored=ignored, **share
  ).per_query,
  metrics.evaluate_listed(many[:50], many, relevant, **share).per_query,
]
found = [{k: v.tolist() for k, v in part.items()} for part in found]
of_pairs = ('auroc', 'best_f1', 'hubness', 'uniformity', 'dir_at_far_0.1')
for known in (
  (x, labels), (x, sets), (x[:99], labels[:99] % 7, x[99:], labels[99:] % 5)
):
  found.append(metrics.evaluate_retrieval(
    *known, metrics=('precision_at_1', *of_pairs), **share
  ).metrics)
for distance in ('cosine', 'l2'):
  parts = neighbors.top_k(x[:40], x, 9, distance=distance, **share)
  found.append([part.tolist() for part in parts])
assert shares == {(which, of_how_many)}, shares
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
    for expected, found in zip(one[:5], other[:5], strict=True):
      for name in expected:
        np.testing.assert_array_equal(expected[name], found[name])
    assert one[5:] == other[5:]
