"""What a table of 5,000,000 images costs: seconds, and memory at its peak.

    python benchmarks/table_memory.py

Writes a CSV file of 200,000 classes (300 MB, in a temporary folder), loads it
in a fresh process, forms the training, validation and test sets, and draws a
batch of 64 classes x 4 images. The peak is VmHWM: the most memory that the
process ever held.
"""

import argparse
import os
import pathlib
import subprocess
import sys
import tempfile
import time

import numpy as np

MIB_ALLOWED = 1024


def write_table(file: pathlib.Path, num_rows: int, num_classes: int) -> None:
  """Writes a table whose first image exists."""
  rng = np.random.default_rng(0)
  with open(file, 'w') as content:
    content.write('path,label,split\n')
    for begin in range(0, num_rows, 100_000):
      count = min(100_000, num_rows - begin)
      labels = rng.integers(0, num_classes, count).tolist()
      for row, label in enumerate(labels, begin):
        # An odd factor mixes the bits and gives no number twice.
        name = f'{row * 0x9E3779B97F4A7C15 % 2**64:016x}'
        split = 'train' if label < 0.9 * num_classes else 'test'
        folder = '/'.join(name[:3])
        content.write(f'train/{folder}/{name}.jpg,class {label},{split}\n')
  first = file.parent / 'train/0/0/0/0000000000000000.jpg'
  first.parent.mkdir(parents=True)
  first.touch()


def status(key: str) -> float:
  """Returns a figure of this process, in MiB."""
  for line in pathlib.Path('/proc/self/status').read_text().splitlines():
    if line.startswith(key + ':'):
      return int(line.split()[1]) / 1024
  raise KeyError(key)


def load(file: str) -> None:
  """Is the fresh process."""
  from retrieval_jax import data

  imported = status('VmHWM')
  start = time.perf_counter()
  dataset = data.load_dataset(
    'table', file=file, image_size=224, validation='classes'
  )
  sampler = data.make_sampler(
    dataset.train.labels, seed=0, batch_size=256, classes_per_batch=64
  )
  seconds = time.perf_counter() - start
  paths = [dataset.train.describe(row) for row in sampler(1000).tolist()]
  assert len(set(paths)) == 256, len(set(paths))
  groups = [*dataset.tests.values(), *dataset.validations.values()]
  num_rows = len(dataset.train) + sum(len(group.query) for group in groups)
  assert 'tensorflow' not in sys.modules
  peak = status('VmHWM')
  print(
    f'{num_rows:,} rows, {len(dataset.class_names):,} classes: '
    f'{seconds:.1f} s, peak {peak:.0f} MiB, of which {imported:.0f} MiB are '
    f'imports; now {status("VmRSS"):.0f} MiB',
    flush=True,
  )
  assert peak < MIB_ALLOWED, f'{peak:.0f} MiB; allowed are {MIB_ALLOWED}'


def main() -> None:
  parser = argparse.ArgumentParser()
  parser.add_argument('--rows', type=int, default=5_000_000)
  parser.add_argument('--classes', type=int, default=200_000)
  parser.add_argument('--load', help='loads this file, in this process')
  arguments = parser.parse_args()
  if arguments.load:
    load(arguments.load)
    return
  with tempfile.TemporaryDirectory() as folder:
    file = pathlib.Path(folder) / 'images.csv'
    write_table(file, arguments.rows, arguments.classes)
    print(f'{file.stat().st_size / 2**20:.0f} MiB of CSV')
    subprocess.run(
      [sys.executable, __file__, '--load', str(file)],
      check=True,
      env=os.environ | {'PYTHONPATH': str(pathlib.Path(__file__).parents[1])},
    )


if __name__ == '__main__':
  main()
