"""What a search in a mapped file takes of the memory of a process."""

import json
import subprocess
import sys

import numpy as np

_ROWS, _DIM, _QUERIES = 200_000, 128, 1_000
_BUDGET_MIB = 32
_SEARCH = """
import json, pathlib, sys
import numpy as np
from retrieval_jax import neighbors


def peak_mib():
  lines = pathlib.Path('/proc/self/status').read_text().splitlines()
  (line,) = (line for line in lines if line.startswith('VmHWM:'))
  return int(line.split()[1]) / 1024


path, budget, num_queries = sys.argv[1:]
gallery = np.load(path, mmap_mode='r')
picked = np.arange(int(num_queries)) * 7
queries = np.array(gallery[picked])
options = {'memory_budget_mb': float(budget)}
neighbors.top_k(queries, queries, 10, **options)  # Starts JAX.
before = peak_mib()
indices = neighbors.top_k(queries, gallery, 10, **options)[1]
print(json.dumps({
  'extra_mib': peak_mib() - before,
  'all_found': bool((indices[:, 0] == picked).all()),
  'tensorflow': 'tensorflow' in sys.modules,
}))
"""


def test_a_mapped_gallery_is_searched_in_the_budget(tmp_path):
  path = tmp_path / 'gallery.npy'
  rows = np.random.default_rng(0).normal(size=(20_000, _DIM))
  gallery = np.lib.format.open_memmap(
    path, 'w+', np.float32, shape=(_ROWS, _DIM)
  )
  for i in range(0, _ROWS, len(rows)):
    gallery[i : i + len(rows)] = np.roll(rows, i // len(rows), axis=1)
  gallery.flush()
  del gallery
  done = subprocess.run(
    [sys.executable, '-c', _SEARCH, path, str(_BUDGET_MIB), str(_QUERIES)],
    stdout=subprocess.PIPE,
    check=True,
    text=True,
  )
  found = json.loads(done.stdout.splitlines()[-1])
  assert found['all_found']
  assert not found['tensorflow']
  # The budget, and about 70 MiB of the compiler and the allocator. With pages
  # of the map, or a copy of the file, it would be 98 MiB more.
  assert found['extra_mib'] < _BUDGET_MIB + 110
