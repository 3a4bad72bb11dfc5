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


def mib(name):
  lines = pathlib.Path('/proc/self/status').read_text().splitlines()
  (line,) = (line for line in lines if line.startswith(name))
  return int(line.split()[1]) / 1024


path, budget, num_queries = sys.argv[1:]
gallery = np.load(path, mmap_mode='r')
picked = np.arange(int(num_queries)) * 7
queries = np.array(gallery[picked])
options = {'memory_budget_mb': float(budget)}
# The same shapes, to compile; of a gallery that takes no memory.
neighbors.top_k(
  queries, np.broadcast_to(queries[:1], gallery.shape), 10, **options
)
pathlib.Path('/proc/self/clear_refs').write_text('5')  # Forgets the peak.
before = mib('VmRSS:')
indices = neighbors.top_k(queries, gallery, 10, **options)[1]
print(json.dumps({
  'extra_mib': mib('VmHWM:') - before,
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
  # The allocator may keep some; with the pages of a map or a copy of the file
  # it would be the file and more.
  assert found['extra_mib'] < _ROWS * _DIM * 4 / 2**20
