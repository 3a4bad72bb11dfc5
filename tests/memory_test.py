"""What a mapped file takes of the memory of a process that works on it."""

import json
import subprocess
import sys

import numpy as np
import pytest

_ROWS, _DIM, _QUERIES = 100_000, 256, 100
_FILE_MIB = _ROWS * _DIM * 4 / 2**20
_SCRIPT = """
import json, pathlib, sys
import numpy as np
from retrieval_jax import metrics, neighbors


def mib(name):
  lines = pathlib.Path('/proc/self/status').read_text().splitlines()
  (line,) = (line for line in lines if line.startswith(name))
  return int(line.split()[1]) / 1024


path, what, budget, num_queries = sys.argv[1:]
mapped = np.load(path, mmap_mode='r')
picked = np.arange(int(num_queries)) * 7
queries = np.array(mapped[picked])
labels, known = picked % 100, np.arange(len(mapped)) % 200


def run(gallery):
  if what == 'search':
    found = neighbors.top_k(queries, gallery, 10, memory_budget_mb=budget)
    return bool((found[1][:, 0] == picked).all())
  if what == 'many queries':
    pair = gallery, known, queries, labels
  else:
    pair = queries, labels, gallery, known
  found = metrics.retrieval_metrics(
    *pair, metrics=json.loads(what_metrics), memory_budget_mb=budget
  )
  return all(np.isfinite(list(found.values())))


budget = float(budget)
what, _, what_metrics = what.partition(':')
# The same shapes, to compile; of a gallery that takes little memory.
numbers = np.random.default_rng(1).normal(size=sum(mapped.shape) - 1)
run(np.lib.stride_tricks.sliding_window_view(
  numbers.astype(np.float32), mapped.shape[1]
))
pathlib.Path('/proc/self/clear_refs').write_text('5')  # Forgets the peak.
before = mib('VmRSS:')
right = run(mapped)
print(json.dumps({
  'extra_mib': mib('VmHWM:') - before,
  'right': right,
  'tensorflow': 'tensorflow' in sys.modules,
}))
"""


@pytest.fixture(scope='module')
def path(tmp_path_factory):
  path = tmp_path_factory.mktemp('mapped') / 'gallery.npy'
  rows = np.random.default_rng(0).normal(size=(20_000, _DIM))
  gallery = np.lib.format.open_memmap(
    path, 'w+', np.float32, shape=(_ROWS, _DIM)
  )
  for i in range(0, _ROWS, len(rows)):
    gallery[i : i + len(rows)] = np.roll(rows, i // len(rows), axis=1)
  gallery.flush()
  return path


@pytest.mark.parametrize(
  'what',
  [
    'search',
    'metrics:["precision_at_1", "effective_rank"]',
    'many queries:["open_set_auroc"]',
  ],
)
def test_a_mapped_file_takes_no_more_than_the_budget(path, what):
  budget_mib = 16
  done = subprocess.run(
    [sys.executable, '-c', _SCRIPT, path, what, str(budget_mib), str(_QUERIES)],
    stdout=subprocess.PIPE,
    check=True,
    text=True,
  )
  found = json.loads(done.stdout.splitlines()[-1])
  assert found['right']
  assert not found['tensorflow']
  # With the pages of the map, or with a copy on the devices, it would be more
  # than the file.
  assert found['extra_mib'] < _FILE_MIB / 2
