"""Two programs measured in turn: this project, the peer, this project, ...

A benchmark script lists its cases and calls `main`:

    def ours(batch):          # builds the inputs, compiles, returns the call
      ...
      return lambda: float(step(inputs))      # blocks until it is done

    def peer(batch):
      import torch            # peers are imported where they are used
      ...
      return lambda: run().item()

    CASES = [paired.Case('circle, B 256', ours, peer, {'batch': 256})]

    if __name__ == '__main__':
      paired.main(__file__, CASES)

Each side of a case lives in a worker process of its own for as long as the
case lasts, so that memory, threads and settings are apart; the two take turns,
so that a change of the machine's load meets both. A worker is pinned to one
core with one thread (torch on two busy cores stalls at its barriers), or on a
quiet machine to several, with `--cores=0,1`.

Extra memory is the peak resident memory of the calls over the resident memory
after the inputs were built and the step was compiled. A side that fails, or
asks for more than `--memory` GiB, is shown with its reason instead of a time; a
first call of more than 20 seconds is the only one.
"""

import argparse
import ctypes
import dataclasses
import importlib.util
import json
import math
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any

_ROOT = pathlib.Path(__file__).resolve().parents[1]
# A turn lasts at least this long: calls of microseconds are repeated.
_MIN_TURN_SECONDS = 0.02
# A first call of that length is not repeated.
_LONG_SECONDS = 20.0
_CLOCKS = {'wall': time.perf_counter, 'cpu': time.process_time}


@dataclasses.dataclass(frozen=True)
class Case:
  """One row of the table.

  Attributes:
    name: what is measured, with its sizes.
    ours: top-level function of the script; called with `arguments` in the
      worker, it builds inputs, compiles, and returns a function without
      arguments that does the work, blocks until it is done, and may return a
      number (shown for both sides: the same work gives the same number).
    peer: likewise for the peer, or None to measure this project alone.
    arguments: keyword arguments of both, of what JSON can hold.
    bar: the ratio of times to reach, if there is one.
  """

  name: str
  ours: Callable[..., Callable[[], Any]]
  peer: Callable[..., Callable[[], Any]] | None = None
  arguments: dict[str, Any] = dataclasses.field(default_factory=dict)
  bar: float | None = None


@dataclasses.dataclass(frozen=True)
class Side:
  """What one side of a case took: seconds a call, MiB extra, its number.

  A side that failed has NaN for seconds, and the reason in `failure`.
  """

  seconds: float = math.nan
  extra_mib: float = math.nan
  value: float | None = None
  failure: str = ''


@dataclasses.dataclass(frozen=True)
class Measurement:
  """Both sides of a case; `ratio` is this project's time over the peer's."""

  case: Case
  ours: Side
  peer: Side | None

  @property
  def ratio(self) -> float | None:
    """Ratio of the median times, NaN if a side failed; below 1 is faster."""
    return None if self.peer is None else self.ours.seconds / self.peer.seconds


def measure(
  script: str,
  case: Case,
  *,
  peer_python: str = sys.executable,
  rounds: int = 7,
  seconds: float = 60.0,
  cores: Sequence[int] | None = None,
  clock: str = 'wall',
  memory: float = 10.0,
) -> Measurement:
  """Measures one case.

  Args:
    script: path of the file whose top-level functions the case names.
    case: what to measure.
    peer_python: the interpreter that has the peer.
    rounds: turns of each side; the median counts.
    seconds: no further turn is begun after that long (three at least).
    cores: the cores both sides are pinned to, each with as many threads; the
      last one by default.
    clock: 'wall', or 'cpu' for the processor time of the worker, which other
      programs on the same core do not lengthen.
    memory: GiB that a side may allocate; beyond that it fails.
  """
  cores = cores or [max(os.sched_getaffinity(0))]
  makers = [(case.ours, sys.executable)]
  if case.peer is not None:
    makers.append((case.peer, peer_python))
  sides = [
    _Worker(script, function, case.arguments, python, cores, clock, memory)
    for function, python in makers
  ]
  try:
    # The second call is the first that pays for nothing but the work.
    for _ in range(2):
      for side in sides:
        if not side.is_done:
          side.turn(calls=1)
    for side in sides:
      side.forget()
    begin = time.monotonic()
    for turn in range(rounds):
      if turn >= 3 and time.monotonic() - begin > seconds:
        break
      for side in sides:
        if not side.is_done:
          side.turn()
    results = [side.result() for side in sides]
  finally:
    for side in sides:
      side.close()
  return Measurement(case, results[0], results[1] if case.peer else None)


def main(script: str, cases: Sequence[Case], peer: str = 'peer') -> None:
  """Runs a benchmark script: parses its flags, measures, prints the table.

  Args:
    script: `__file__` of the benchmark.
    cases: its rows.
    peer: the name of the peer, for the header.
  """
  parser = argparse.ArgumentParser()
  parser.add_argument(
    '--peer-python', default=sys.executable, help='interpreter with the peer'
  )
  parser.add_argument('--only', default='', help='cases whose name has this')
  parser.add_argument('--rounds', type=int, default=7)
  parser.add_argument('--seconds', type=float, default=60.0, help='per case')
  parser.add_argument(
    '--cores', type=lambda text: [int(core) for core in text.split(',')]
  )
  parser.add_argument('--clock', choices=sorted(_CLOCKS), default='wall')
  parser.add_argument('--memory', type=float, default=10.0, help='GiB, a side')
  parser.add_argument('--no-peer', action='store_true')
  parser.add_argument('--json', type=pathlib.Path, help='file to add to')
  flags = parser.parse_args()

  def measured() -> Iterator[Measurement]:
    for case in cases:
      if flags.only not in case.name:
        continue
      if flags.no_peer:
        case = dataclasses.replace(case, peer=None)
      found = measure(
        script,
        case,
        peer_python=flags.peer_python,
        rounds=flags.rounds,
        seconds=flags.seconds,
        cores=flags.cores,
        clock=flags.clock,
        memory=flags.memory,
      )
      if flags.json is not None:
        _add(flags.json, found)
      yield found

  for line in _table_lines(measured(), peer):
    print(line, flush=True)


def _add(path: pathlib.Path, measurement: Measurement) -> None:
  """Puts what was measured in the place of what the file has of the case."""
  collected = json.loads(path.read_text()) if path.exists() else {}
  sides = {'ours': measurement.ours, 'peer': measurement.peer}
  collected[measurement.case.name] = {
    name: _rounded(side) for name, side in sides.items() if side is not None
  }
  path.write_text(json.dumps(collected, indent=1) + '\n')


def _rounded(side: Side) -> dict[str, Any]:
  if side.failure:
    return {'failure': side.failure}
  found = {'seconds': side.seconds, 'extra_mib': side.extra_mib}
  found |= {} if side.value is None else {'value': side.value}
  return {name: float(f'{number:.4g}') for name, number in found.items()}


def _table_lines(measurements, peer: str) -> Iterator[str]:
  yield (
    f'| case | this project, ms | {peer}, ms | ratio | bar '
    f'| extra MiB | {peer}, MiB | value | {peer} |'
  )
  yield '|---|' + '---:|' * 8
  for m in measurements:
    other = m.peer or Side()
    cells = [
      m.case.name,
      m.ours.failure or f'{1e3 * m.ours.seconds:.4g}',
      '' if m.peer is None else other.failure or f'{1e3 * other.seconds:.4g}',
      '' if m.ratio is None or m.ratio != m.ratio else f'{m.ratio:.2g}',
      '' if m.case.bar is None else f'{m.case.bar:g}',
      '' if m.ours.failure else f'{m.ours.extra_mib:.0f}',
      '' if math.isnan(other.extra_mib) else f'{other.extra_mib:.0f}',
      '' if m.ours.value is None else f'{m.ours.value:.6g}',
      '' if other.value is None else f'{other.value:.6g}',
    ]
    yield '| ' + ' | '.join(cells) + ' |'


class _Worker:
  """A process that runs one side of a case when it is asked to."""

  def __init__(self, script, function, arguments, python, cores, clock, memory):
    request = {
      'script': str(pathlib.Path(script).resolve()),
      'function': function.__name__,
      'arguments': arguments,
      'cores': cores,
      'clock': clock,
      'memory': memory,
    }
    self._process = subprocess.Popen(
      [python, str(pathlib.Path(__file__).resolve()), json.dumps(request)],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
      env=os.environ | _threads(len(cores)),
    )
    self._times = []
    self._calls = 1
    self._last = self._answer()

  @property
  def is_done(self) -> bool:
    """Whether another call would tell nothing, or take too long."""
    return (
      'failure' in self._last or max(self._times, default=0) > _LONG_SECONDS
    )

  def turn(self, calls: int | None = None) -> None:
    """Has the worker call its function so often, and keeps its answer."""
    calls = calls or self._calls
    try:
      self._process.stdin.write(json.dumps({'calls': calls}) + '\n')
      self._process.stdin.flush()
    except BrokenPipeError:
      pass
    self._last = self._answer()
    self._times.append(self._last.get('seconds', math.nan))

  def forget(self) -> None:
    """Ends the warm-up: turns are long enough to be measured from here on."""
    if not self.is_done:
      seconds = max(self._times.pop(), 1e-6)
      self._times.clear()
      self._calls = math.ceil(_MIN_TURN_SECONDS / seconds)

  def result(self) -> Side:
    """Returns what the turns took."""
    if 'failure' in self._last:
      return Side(failure=self._last['failure'])
    return Side(
      statistics.median(self._times),
      self._last['extra_mib'],
      self._last['value'],
    )

  def close(self) -> None:
    """Ends the worker."""
    try:
      self._process.stdin.close()
    except BrokenPipeError:
      pass
    self._process.stdout.close()
    try:
      self._process.wait(timeout=10)
    except subprocess.TimeoutExpired:
      self._process.kill()
      self._process.wait()

  def _answer(self) -> dict[str, Any]:
    line = self._process.stdout.readline()
    return json.loads(line) if line else {'failure': 'fails: ended early'}


def _threads(number: int) -> dict[str, str]:
  """Returns the environment of a worker that has so many threads."""
  return {
    'JAX_PLATFORMS': 'cpu',
    'MKL_NUM_THREADS': f'{number}',
    'OMP_NUM_THREADS': f'{number}',
    'OPENBLAS_NUM_THREADS': f'{number}',
    'TF_CPP_MIN_LOG_LEVEL': '3',
    'XLA_FLAGS': f'--xla_cpu_multi_thread_eigen={str(number > 1).lower()}',
  }


def _serve(request: dict[str, Any]) -> None:
  os.sched_setaffinity(0, request['cores'])
  # Whatever a library prints must not mix with the answers.
  answers = os.fdopen(os.dup(1), 'w')
  os.dup2(2, 1)
  script = pathlib.Path(request['script'])
  sys.path[:0] = [str(script.parent), str(_ROOT)]
  spec = importlib.util.spec_from_file_location(script.stem, script)
  module = importlib.util.module_from_spec(spec)
  sys.modules[script.stem] = module
  spec.loader.exec_module(module)
  step = getattr(module, request['function'])(**request['arguments'])
  _limit_memory(request['memory'])
  _give_back_freed_memory()
  before = _reset_peak_mib()
  clock = _CLOCKS[request['clock']]
  print('{}', file=answers, flush=True)
  for line in sys.stdin:
    calls = json.loads(line)['calls']
    try:
      begin = clock()
      for _ in range(calls):
        value = step()
      answer = {
        'seconds': (clock() - begin) / calls,
        'extra_mib': max(0.0, _status_mib('VmHWM') - before),
        'value': float(value) if isinstance(value, int | float) else None,
      }
    except Exception as error:
      traceback.print_exc()
      answer = {'failure': f'fails: {_reason(error)}'}
    print(json.dumps(answer), file=answers, flush=True)


def _limit_memory(gib: float) -> None:
  """Has an allocation beyond that fail, so that no other program is killed."""
  limit = int(gib * 2**30)
  resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def _reason(error: Exception) -> str:
  text = ' '.join(str(error).split())
  if isinstance(error, MemoryError) or 'alloc' in text:
    return 'out of memory'
  return text.partition('. ')[0][:60]


def _give_back_freed_memory() -> None:
  # What a compiler allocated and freed would otherwise hide what a call needs.
  try:
    ctypes.CDLL('libc.so.6').malloc_trim(0)
  except OSError:
    pass


def _reset_peak_mib() -> float:
  """Sets the peak of the resident memory to its present value, returned."""
  try:
    pathlib.Path('/proc/self/clear_refs').write_text('5')
  except OSError:
    pass
  return _status_mib('VmHWM')


def _status_mib(field: str) -> float:
  for line in pathlib.Path('/proc/self/status').read_text().splitlines():
    if line.startswith(field + ':'):
      return int(line.split()[1]) / 1024
  raise RuntimeError(f'/proc/self/status has no {field}')


if __name__ == '__main__':
  _serve(json.loads(sys.argv[1]))
