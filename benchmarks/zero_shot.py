"""The zero-shot table on `glyphs`: runs it, collects it, writes it.

    PYTHONPATH=. python benchmarks/zero_shot.py run --seeds=3
    PYTHONPATH=. python benchmarks/zero_shot.py table
    PYTHONPATH=. python benchmarks/zero_shot.py pixels

`run` measures raw pixels, which need no seed, trains the four losses of
`configs/zero_shot.py`, and adds to `benchmarks/zero_shot.json`; `table` writes
that between the two marks in README.md; see `trainings.py`. `pixels` prints
what raw pixels reach on the test classes, on all, and from face to face.
"""

import argparse

import numpy as np
import trainings
from trainings import Row

DATA = 'glyphs'
PIXELS = 'Raw pixels'
# Batches, epochs and network are those of the config.
ROWS = (
  Row('Circle', 'configs/zero_shot.py:circle'),
  Row('Triplet', 'configs/zero_shot.py:triplet_margin'),
  Row('ArcFace', 'configs/zero_shot.py:arcface'),
  Row('CosFace', 'configs/zero_shot.py:cosface'),
)
TABLE = trainings.Table(
  'zero_shot',
  {'precision_at_1': 'P@1', 'mean_average_precision_at_r': 'mAP@R'},
)


def measure_pixels(collection, query, gallery=None) -> dict[str, float]:
  """Returns the metrics of the cosine of raw pixels.

  Args:
    collection: whose images are in memory.
    query: [N] bool, the rows that ask.
    gallery: [N] bool, the rows that are searched in; None: the queries, each
      excluded from its own ranking.
  """
  from retrieval_jax import metrics

  def part(rows):
    images = collection.images.images[rows].astype(np.float32)
    return images.reshape(len(images), -1), collection.labels[rows]

  return metrics.retrieval_metrics(
    *part(query),
    *(part(gallery) if gallery is not None else ()),
    metrics=tuple(TABLE.metrics),
  )


def print_pixels() -> None:
  """Prints what raw pixels reach, by task."""
  from retrieval_jax.data import glyphs
  from retrieval_jax.data.collection import TEST

  collection = glyphs.glyphs()
  is_test = collection.split == TEST
  of_face = np.array(collection.domain_names)[collection.domain]
  serif, sans = (
    is_test & np.char.startswith(of_face, f'DejaVu {family} ')
    for family in ('Serif', 'Sans')
  )
  sans &= ~np.char.startswith(of_face, 'DejaVu Sans Mono')
  everything = np.ones(len(collection), bool)
  rows = [['raw pixels', 'images', 'classes', *TABLE.metrics.values()]]
  for name, query, gallery in (
    ('test classes', is_test, None),
    ('all classes', everything, None),
    ('test classes, Serif in Sans', serif, sans),
  ):
    found = measure_pixels(collection, query, gallery)
    size = f'{query.sum():,}'
    if gallery is not None:
      size += f' in {gallery.sum():,}'
    classes = f'{len(np.unique(collection.labels[query])):,}'
    rows.append([name, size, classes, *(f'{v:.4f}' for v in found.values())])
  print(trainings.markdown(rows))


def run(arguments) -> None:
  """Measures raw pixels and runs all rows and seeds."""
  from retrieval_jax.data import glyphs
  from retrieval_jax.data.collection import TEST

  if not arguments.only or PIXELS in arguments.only:
    collection = glyphs.glyphs()
    found = measure_pixels(collection, collection.split == TEST)
    TABLE.record(trainings.key_of(PIXELS, DATA, 0), found)
    print(PIXELS, found, flush=True)
  rows = [
    row for row in ROWS if not arguments.only or row.label in arguments.only
  ]
  trainings.run(TABLE, rows, DATA, arguments.seeds, arguments.jobs)


def write_table() -> None:
  """Puts the table between the marks in README.md."""
  rows = [[f'`{DATA}`', 'seeds', *TABLE.metrics.values()]]
  for label in (PIXELS, *(row.label for row in ROWS)):
    cells = TABLE.cells(label, DATA)
    if cells:
      # Pixels are measured, not trained.
      rows.append(
        [label, *([''] if label == PIXELS else cells[:1]), *cells[1:]]
      )
  TABLE.write(trainings.markdown(rows))


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  commands = parser.add_subparsers(dest='command', required=True)
  runner = commands.add_parser('run')
  runner.add_argument('--seeds', type=int, default=3)
  runner.add_argument('--jobs', type=int, default=2)
  runner.add_argument('--only', action='append', help='the label of a row')
  commands.add_parser('table')
  commands.add_parser('pixels')
  arguments = parser.parse_args()
  if arguments.command == 'run':
    run(arguments)
  elif arguments.command == 'pixels':
    print_pixels()
  else:
    write_table()


if __name__ == '__main__':
  main()
