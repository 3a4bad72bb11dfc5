"""The table of the four losses on digits: runs it, collects it, writes it.

    python benchmarks/digits.py run --data=mnist_5k --seeds=5
    python benchmarks/digits.py run --data=mnist --data_dir=DIR --seeds=1
    python benchmarks/digits.py table

`run` adds to `benchmarks/digits.json`, `--jobs` trainings at a time, and
`table` writes that between the two marks in README.md; see `trainings.py`.
"""

import argparse

import trainings
from trainings import Row

# Batch 32 and 10 epochs, as the figures that the project set out from, then
# what suits a loss better.
ROWS = (
  Row('Circle', 'circle.py'),
  Row('Triplet', 'triplet.py'),
  Row('Triplet, semi-hard', 'triplet.py', {'miner.name': 'triplet_margin'}),
  Row('ArcFace', 'arcface.py'),
  Row('CosFace', 'cosface.py'),
  Row('Circle, rate 5e-3', 'circle.py', {'optimizer.learning_rate': 5e-3}),
  Row('ArcFace, rate 3e-3', 'arcface.py', {'optimizer.learning_rate': 3e-3}),
  Row('CosFace, rate 3e-3', 'cosface.py', {'optimizer.learning_rate': 3e-3}),
  Row('Harry, ArcFace', 'harry_mnist.py'),
  Row('Harry, Circle', 'harry_mnist.py:circle'),
)
METRICS = {
  'precision_at_1': 'P@1',
  'r_precision': 'R-precision',
  'mean_average_precision_at_r': 'mAP@R',
  'mean_average_precision': 'mAP',
}
TABLE = trainings.Table('digits', METRICS)
# P@1 on `mnist` of the note that the project starts from, one run each.
NOTE = {
  'Circle': 0.9899,
  'Triplet': 0.9873,
  'ArcFace': 0.9845,
  'CosFace': 0.9832,
}


def run(arguments) -> None:
  """Runs all rows and seeds of one data set."""
  # Measured once, at the end.
  common = {'eval_every_steps': 1_000_000, 'data.name': arguments.data}
  if arguments.data_dir:
    common['data.dir'] = arguments.data_dir
  rows = [
    Row(row.label, f'configs/{row.config}', common | row.overrides)
    for row in ROWS
    if not arguments.only or row.label in arguments.only
  ]
  trainings.run(TABLE, rows, arguments.data, arguments.seeds, arguments.jobs)


def table(data: str) -> str:
  """Returns the rows of one data set as Markdown."""
  labels = [row.label for row in ROWS]
  labels += [f'PML {label}' for label in labels]
  has_note = data == 'mnist'
  rows = [[f'`{data}`', 'seeds', *METRICS.values()]]
  rows[0] += ["the note's P@1"] if has_note else []
  for label in labels:
    cells = TABLE.cells(label, data)
    if cells:
      note = [str(NOTE.get(label, ''))] if has_note else []
      rows.append([label, *cells, *note])
  return trainings.markdown(rows)


def write_table() -> None:
  """Puts the tables of all data sets between the marks in README.md."""
  collected = TABLE.collected()
  sets = [
    name
    for name in ('mnist', 'fashion_mnist', 'mnist_5k')
    if any(key.startswith(f'{name}/') for key in collected)
  ]
  trainings.write('\n\n'.join(table(name) for name in sets), TABLE.name)


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  commands = parser.add_subparsers(dest='command', required=True)
  runner = commands.add_parser('run')
  runner.add_argument('--data', default='mnist_5k')
  runner.add_argument('--data_dir')
  runner.add_argument('--seeds', type=int, default=5)
  runner.add_argument('--jobs', type=int, default=2)
  runner.add_argument('--only', action='append', help='the label of a row')
  commands.add_parser('table')
  arguments = parser.parse_args()
  if arguments.command == 'run':
    run(arguments)
  else:
    write_table()


if __name__ == '__main__':
  main()
