"""Exact metrics and search of a gallery of a million rows in little memory.

Command:

    python benchmarks/million.py [--rows N] [--queries Q] [--dim D]

The gallery is written to a temporary file in blocks and given as a memory map.
Each line has the time and the peak resident memory of the process so far.
TensorFlow is not imported.
"""

import argparse
import pathlib
import resource
import sys
import tempfile
import time

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

_ROWS_OF_CLASS = 10
_BLOCK_ROWS = 10_000


def _rows(random, labels, dim):
  # The centre of a class is a function of its label alone.
  centers = np.stack(
    [
      np.random.default_rng(int(label)).normal(size=dim)
      for label in np.unique(labels)
    ]
  )
  which = np.unique(labels, return_inverse=True)[1]
  noise = 1.3 * random.normal(size=(len(labels), dim))
  return (centers[which] + noise).astype(np.float32)


def _peak_mib():
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main():
  parser = argparse.ArgumentParser()
  parser.add_argument('--rows', type=int, default=1_000_000)
  parser.add_argument('--queries', type=int, default=1_000)
  parser.add_argument('--dim', type=int, default=128)
  flags = parser.parse_args()
  random = np.random.default_rng(0)
  labels = np.arange(flags.rows) // _ROWS_OF_CLASS

  begin = time.perf_counter()

  def report(name):
    nonlocal begin
    seconds = time.perf_counter() - begin
    print(f'{name}: {seconds:.1f} s, peak {_peak_mib():.0f} MiB', flush=True)
    begin = time.perf_counter()

  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder) / 'gallery.f32'
    with path.open('wb') as file:
      for start in range(0, flags.rows, _BLOCK_ROWS):
        block = labels[start : start + _BLOCK_ROWS]
        file.write(_rows(random, block, flags.dim).tobytes())
    report('gallery written')
    gallery = np.memmap(path, np.float32, 'r', shape=(flags.rows, flags.dim))
    query_labels = random.choice(labels, flags.queries)
    queries = _rows(random, query_labels, flags.dim)

    from retrieval_jax import metrics, neighbors

    report('imports')
    values = metrics.retrieval_metrics(queries, query_labels, gallery, labels)
    report('metrics')
    print(', '.join(f'{name} {value:.4f}' for name, value in values.items()))
    for k in (10, 100):
      _, indices = neighbors.top_k(queries, gallery, k)
      report(f'top_k, k={k}')
    hits = (labels[indices[:, 0]] == query_labels).mean()
    print(f'precision_at_1 of top_k {hits:.4f}')
  print('tensorflow imported:', 'tensorflow' in sys.modules)


if __name__ == '__main__':
  main()
