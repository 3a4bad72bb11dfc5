"""The table of the four losses on digits: runs it, collects it, writes it.

    python benchmarks/digits.py run --data=mnist_5k --seeds=5
    python benchmarks/digits.py run --data=mnist --data_dir=DIR --seeds=1
    python benchmarks/digits.py table

`run` starts `retrieval_jax.main` for each row and seed, `--jobs` at a time,
each on one core; runs that were stopped go on, finished ones are not repeated.
It collects their `results.json` in `benchmarks/digits.json`, and `table` writes
that between the two marks in README.md.
"""

import argparse
import concurrent.futures
import json
import os
import pathlib
import queue
import statistics
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
COLLECTED = ROOT / 'benchmarks' / 'digits.json'
README = ROOT / 'README.md'
MARKS = ('<!-- digits: begin -->', '<!-- digits: end -->')

# (label, config, overrides): batch 32 and 10 epochs, as the figures that the
# project set out from, then what suits a loss better.
ROWS = (
  ('Circle', 'circle', {}),
  ('Triplet', 'triplet', {}),
  ('Triplet, semi-hard', 'triplet', {'miner.name': 'triplet_margin'}),
  ('ArcFace', 'arcface', {}),
  ('CosFace', 'cosface', {}),
  ('Circle, rate 5e-3', 'circle', {'optimizer.learning_rate': 5e-3}),
  ('ArcFace, rate 3e-3', 'arcface', {'optimizer.learning_rate': 3e-3}),
  ('CosFace, rate 3e-3', 'cosface', {'optimizer.learning_rate': 3e-3}),
)
METRICS = {
  'precision_at_1': 'P@1',
  'r_precision': 'R-precision',
  'mean_average_precision_at_r': 'mAP@R',
  'mean_average_precision': 'mAP',
}
# P@1 on `mnist` of the note that the project starts from, one run each.
NOTE = {
  'Circle': 0.9899,
  'Triplet': 0.9873,
  'ArcFace': 0.9845,
  'CosFace': 0.9832,
}


def key_of(label: str, data: str, seed: int) -> str:
  """Returns the name of one run."""
  words = label.lower().replace(',', '').replace(' ', '_')
  return f'{data}/{words}/seed_{seed}'


def run_one(label, config, overrides, data, data_dir, seed, core) -> dict:
  """Runs, or goes on with, one training; returns its metrics."""
  workdir = ROOT / 'runs' / 'digits' / key_of(label, data, seed)
  results = workdir / 'results.json'
  command = [
    *('taskset', '-c', str(core), sys.executable, '-m', 'retrieval_jax.main'),
    f'--config=configs/{config}.py:{data}',
    f'--workdir={workdir}',
    f'--config.seed={seed}',
    '--config.eval_every_steps=1000000',  # Once, at the end.
    *(f'--config.{key}={value}' for key, value in overrides.items()),
    *([f'--config.data.dir={data_dir}'] if data_dir else []),
  ]
  if not results.exists():
    workdir.parent.mkdir(parents=True, exist_ok=True)
    with open(f'{workdir}.log', 'a') as log:
      subprocess.run(
        command,
        cwd=ROOT,
        stdout=log,
        stderr=log,
        check=True,
        env=os.environ | {'OMP_NUM_THREADS': '1'},
      )
  found = json.loads(results.read_text())['evaluations']['test']['metrics']
  return {name: found[name] for name in METRICS}


def run(arguments) -> None:
  """Runs all rows and seeds of one data set."""
  cores = queue.Queue()
  for core in sorted(os.sched_getaffinity(0))[: arguments.jobs]:
    cores.put(core)

  def job(seed, row):
    core = cores.get()
    try:
      return run_one(*row, arguments.data, arguments.data_dir, seed, core)
    finally:
      cores.put(core)

  jobs = {}
  with concurrent.futures.ThreadPoolExecutor(arguments.jobs) as pool:
    for seed in range(arguments.seeds):
      for row in ROWS:
        if arguments.only and row[0] not in arguments.only:
          continue
        jobs[pool.submit(job, seed, row)] = (row[0], seed)
    for done in concurrent.futures.as_completed(jobs):
      label, seed = jobs[done]
      record(key_of(label, arguments.data, seed), done.result())
      print(label, seed, done.result(), flush=True)


def record(key: str, metrics: dict) -> None:
  """Adds the metrics of one run to the collection."""
  collected = json.loads(COLLECTED.read_text()) if COLLECTED.exists() else {}
  collected[key] = {name: round(value, 6) for name, value in metrics.items()}
  text = json.dumps(dict(sorted(collected.items())), indent=1) + '\n'
  COLLECTED.write_text(text)


def table(data: str) -> str:
  """Returns the rows of one data set as Markdown."""
  collected = json.loads(COLLECTED.read_text())
  labels = [row[0] for row in ROWS]
  labels += [f'PML {label}' for label in labels]
  columns = [f'`{data}`', 'seeds', *METRICS.values()]
  if data == 'mnist':
    columns.append("the note's P@1")
  lines = [
    '| ' + ' | '.join(columns) + ' |',
    '|' + '---|' * len(columns),
  ]
  for label in labels:
    prefix = key_of(label, data, 0)[: -len('0')]
    runs = [row for key, row in collected.items() if key.startswith(prefix)]
    if not runs:
      continue
    cells = []
    for name in METRICS:
      values = [row[name] for row in runs]
      spread = f' ± {statistics.stdev(values):.4f}' if len(runs) > 1 else ''
      cells.append(f'{statistics.mean(values):.4f}{spread}')
    if data == 'mnist':
      cells.append(f'{NOTE[label]}' if label in NOTE else '')
    lines.append(f'| {label} | {len(runs)} | ' + ' | '.join(cells) + ' |')
  return '\n'.join(lines)


def write_table() -> None:
  """Puts the tables of all data sets between the marks in README.md."""
  collected = json.loads(COLLECTED.read_text())
  sets = [
    name
    for name in ('mnist', 'fashion_mnist', 'mnist_5k')
    if any(key.startswith(f'{name}/') for key in collected)
  ]
  text = README.read_text()
  before, rest = text.split(MARKS[0])
  _, after = rest.split(MARKS[1])
  tables = '\n\n'.join(table(name) for name in sets)
  README.write_text(f'{before}{MARKS[0]}\n{tables}\n{MARKS[1]}{after}')


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
