"""What an index of 1,000,000 images costs: seconds and memory of each change.

    PYTHONPATH=. python benchmarks/index.py [--images 1000000] [--dim 128]

Random unit vectors and paths of 40 characters, in a temporary folder. `peak` is
the most memory that the process held during the step (VmHWM) beyond what it
held before, `file` that part of it which is pages of the mapped files: the
system takes these back when it needs them.
"""

import argparse
import pathlib
import tempfile
import time

import numpy as np

from retrieval_jax import neighbors
from retrieval_jax.core.strings import Strings

BLOCK = 10_000


def status(key):
  """Returns a figure of this process, in MiB."""
  for line in pathlib.Path('/proc/self/status').read_text().splitlines():
    if line.startswith(key + ':'):
      return int(line.split()[1]) / 1024
  raise KeyError(key)


def measured(name, call):
  """Prints a line of the table; returns what the call returned."""
  pathlib.Path('/proc/self/clear_refs').write_text('5')  # Forgets the peak.
  before, files = status('VmRSS'), status('RssFile')
  begin = time.perf_counter()
  result = call()
  seconds = time.perf_counter() - begin
  peak, mapped = status('VmHWM') - before, status('RssFile') - files
  print(f'| {name} | {seconds:.2f} | {peak:.0f} | {max(mapped, 0):.0f} |')
  return result


def add(folder, manifest, num_images, dim, first):
  """Adds random rows, in blocks."""
  rng = np.random.default_rng(first)
  rows = rng.normal(size=(BLOCK, dim)).astype(np.float32)
  rows /= np.linalg.norm(rows, axis=1, keepdims=True)
  with neighbors.IndexWriter(folder, manifest) as writer:
    for begin in range(first, first + num_images, BLOCK):
      ids = range(begin, min(begin + BLOCK, first + num_images))
      names = Strings.of(
        f'/data/photographs/of/everything/{i:08}.jpg' for i in ids
      )
      writer.add(np.roll(rows, begin, axis=1)[: len(ids)], names)
    writer.commit(complete=True)


def main():
  parser = argparse.ArgumentParser()
  parser.add_argument('--images', type=int, default=1_000_000)
  parser.add_argument('--dim', type=int, default=128)
  flags = parser.parse_args()
  print('| step | s | peak, MiB | file, MiB |\n|---|---:|---:|---:|')
  with tempfile.TemporaryDirectory() as folder:
    new = neighbors.Manifest(flags.dim, {})
    measured('write', lambda: add(folder, new, flags.images, flags.dim, 0))
    index = measured('open', lambda: neighbors.Index.open(folder))
    measured(
      'open, sizes alone', lambda: neighbors.Index.open(folder, verify=False)
    )
    measured(
      'add 1,000',
      lambda: add(folder, index.manifest, 1_000, flags.dim, flags.images),
    )
    index = neighbors.Index.open(folder)
    measured('remove 1', lambda: neighbors.remove_images(index, np.array([7])))


if __name__ == '__main__':
  main()
