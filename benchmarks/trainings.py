"""What tables of trainings share: run them, keep their metrics, write a table.

A `Table` names its files; a `Row` is one training. `run` starts
`retrieval_jax.main` for each row and seed, each on one core; runs that were
stopped go on, finished ones are not repeated. Their metrics are collected in a
JSON file, and tables of them are written between marks in README.md or a page
of docs/.
"""

import concurrent.futures
import dataclasses
import json
import os
import pathlib
import queue
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[1]
README = ROOT / 'README.md'
# Seeds of a row are one program, which is compiled once.
_ENVIRONMENT = {
  'OMP_NUM_THREADS': '1',
  'JAX_COMPILATION_CACHE_DIR': str(ROOT / 'runs' / 'compiled'),
}


@dataclasses.dataclass(frozen=True)
class Row:
  """A training that is run with several seeds.

  Attributes:
    label: in the table.
    config: as `--config` takes it.
    overrides: {key of the config: value}.
  """

  label: str
  config: str
  overrides: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Table:
  """Where runs and metrics are kept.

  Attributes:
    name: of the folder in runs/ and the JSON file.
    metrics: {name in results.json: heading of the column}.
    selection: the name that the value on the validation set is recorded by;
      None leaves it out.
  """

  name: str
  metrics: Mapping[str, str]
  selection: str | None = None

  @property
  def collected_path(self) -> pathlib.Path:
    """The JSON file with the metrics of all runs."""
    return ROOT / 'benchmarks' / f'{self.name}.json'

  def workdir(self, label: str, data: str, seed: int) -> pathlib.Path:
    """Returns the folder of one run."""
    return ROOT / 'runs' / self.name / key_of(label, data, seed)

  def collected(self) -> dict[str, dict[str, float]]:
    """Returns {key of the run: {metric: value}}."""
    path = self.collected_path
    return json.loads(path.read_text()) if path.exists() else {}

  def record(self, key: str, metrics: Mapping[str, float]) -> None:
    """Adds the metrics of one run."""
    found = self.collected()
    found[key] = {name: round(value, 6) for name, value in metrics.items()}
    text = json.dumps(dict(sorted(found.items())), indent=1) + '\n'
    self.collected_path.write_text(text)

  def runs(self, label: str, data: str) -> list[dict[str, float]]:
    """Returns the metrics of each seed."""
    prefix = key_of(label, data, 0)[: -len('0')]
    return [
      row for key, row in self.collected().items() if key.startswith(prefix)
    ]

  def cells(self, label: str, data: str) -> list[str] | None:
    """Returns the number of seeds and mean ± standard deviation, or None."""
    runs = self.runs(label, data)
    if not runs:
      return None
    cells = [str(len(runs))]
    for name in self.metrics:
      values = [row[name] for row in runs]
      spread = f' ± {statistics.stdev(values):.4f}' if len(runs) > 1 else ''
      cells.append(f'{statistics.mean(values):.4f}{spread}')
    return cells


def write(text: str, mark: str, page: pathlib.Path = README) -> None:
  """Puts a text between two marks, `<!-- mark: begin -->` and `end`."""
  begin, end = (f'<!-- {mark}: {word} -->' for word in ('begin', 'end'))
  before, rest = page.read_text().split(begin)
  _, after = rest.split(end)
  page.write_text(f'{before}{begin}\n{text}\n{end}{after}')


def key_of(label: str, data: str, seed: int) -> str:
  """Returns the name of one run."""
  words = label.lower().replace(',', '').replace(' ', '_')
  return f'{data}/{words}/seed_{seed}'


def markdown(rows: Sequence[Sequence[str]]) -> str:
  """Returns a table whose first row is the heading."""
  lines = ['| ' + ' | '.join(row) + ' |' for row in rows]
  lines.insert(1, '|' + '---|' * len(rows[0]))
  return '\n'.join(lines)


def run(
  table: Table,
  rows: Sequence[Row],
  data: str,
  seeds: int,
  jobs: int = 2,
) -> None:
  """Runs all rows with all seeds, some at a time, and records their metrics."""
  cores = queue.Queue()
  for core in sorted(os.sched_getaffinity(0))[:jobs]:
    cores.put(core)

  def job(row, seed):
    core = cores.get()
    try:
      return _run_one(table, row, data, seed, core)
    finally:
      cores.put(core)

  with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
    futures = {
      pool.submit(job, row, seed): (row, seed)
      for seed in range(seeds)
      for row in rows
    }
    for done in concurrent.futures.as_completed(futures):
      row, seed = futures[done]
      table.record(key_of(row.label, data, seed), done.result())
      print(row.label, seed, done.result(), flush=True)


def _run_one(table, row, data, seed, core) -> dict[str, float]:
  """Runs, or goes on with, one training; returns its metrics."""
  workdir = table.workdir(row.label, data, seed)
  results = workdir / 'results.json'
  command = [
    *('taskset', '-c', str(core), sys.executable, '-m', 'retrieval_jax.main'),
    f'--config={row.config}',
    f'--workdir={workdir}',
    f'--config.seed={seed}',
    *(f'--config.{key}={value}' for key, value in row.overrides.items()),
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
        env=os.environ | _ENVIRONMENT,
      )
  found = json.loads(results.read_text())
  metrics = found['evaluations']['test']['metrics']
  recorded = {name: metrics[name] for name in table.metrics}
  if table.selection is not None:
    recorded[table.selection] = found['selection']['score']
  return recorded
