"""What a run says while it runs: a bar or log lines, TensorBoard, history.

This is the only module that knows clu. Of several processes only the first
reports.
"""

import contextlib
import json
import logging
import math
import os
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
import tqdm
import tqdm.contrib.logging
from clu import metric_writers, parameter_overview

from retrieval_jax import metrics
from retrieval_jax.core.errors import InputError
from retrieval_jax.training import config as config_lib
from retrieval_jax.training import state as state_lib

HISTORY_FILE = 'history.jsonl'

# What a bar or a log line has room for; TensorBoard and the history have all.
_SHOWN = {
  'loss': 'loss',
  'top_1_accuracy': 'top-1',
  'top_5_accuracy': 'top-5',
  'images_per_second': 'images/s',
  'data_wait_share': 'waiting',
}

_log = logging.getLogger(__name__)


def read_history(workdir: str) -> list[dict[str, float]]:
  """Returns the reported rows in step order: {'step': ..., 'train/loss': ...}.

  A last line that a kill cut short is left out.
  """
  path = os.path.join(workdir, HISTORY_FILE)
  if not os.path.exists(path):
    return []
  rows = []
  with open(path, encoding='utf-8') as file:
    for line in file:
      if line.endswith('\n'):
        rows.append(json.loads(line))
  return rows


def eval_prefix(name: str) -> str:
  """Returns what the metrics of a set are called under in the history.

  Example:
    >>> eval_prefix('validation') + 'precision_at_1'
    'eval/validation/precision_at_1'
  """
  return f'eval/{name}/'


def format_results(result: metrics.RetrievalResult) -> str:
  """Returns the metrics as a table for the terminal, with what they are of.

  Below them is what they are to be read with: the warnings.
  """
  lone = result.protocol['num_lone_queries']
  without = f', {lone} of them left out for want of a match' if lone else ''
  return (
    f'{result.protocol["num_queries"]} queries{without}, '
    f'{result.protocol["gallery_size"]} gallery images\n'
    + format_values(
      result.metrics, result.ranges, result.protocol.get('thresholds')
    )
    + ''.join(f'\n  warning: {w}' for w in result.protocol['warnings'])
  )


def format_values(
  values: Mapping[str, float],
  ranges: Mapping[str, tuple[float, float]] | None = None,
  thresholds: Mapping[str, float | None] | None = None,
) -> str:
  """Returns named values as lines, with the range that ties leave.

  Args:
    values: name -> value.
    ranges: name -> (lowest, highest) by the order of ties.
    thresholds: name -> the similarity that the value is found at, see
      `metrics.RetrievalResult.protocol`.

  Example:
    >>> print(format_values({'best_f1': 0.8}, thresholds={'best_f1': 0.75}))
      best_f1  0.8000  (accepted from a similarity of 0.7500)
    >>> print(format_values({'ndcg': 0.5, 'recall_at_1': 1.0}))
      ndcg         0.5000
      recall_at_1  1.0000
  """
  width = max(map(len, values))
  lines = []
  for name, value in values.items():
    ends = (ranges or {}).get(name, (value, value))
    low, high = (f'{end:.4f}' for end in ends)
    tied = f'  ({low} to {high} by the order of ties)' if low != high else ''
    found_at = ''
    if name in (thresholds or {}):
      found_at = f'  ({describe_threshold(thresholds[name])})'
    lines.append(f'  {name:<{width}}  {value:.4f}{tied}{found_at}')
  return '\n'.join(lines)


def describe_threshold(threshold: float | None) -> str:
  """Says which pairs a threshold accepts; None: it accepts none.

  Example:
    >>> describe_threshold(0.75), describe_threshold(None)
    ('accepted from a similarity of 0.7500', 'nothing is accepted')
  """
  if threshold is None:
    return 'nothing is accepted'
  return f'accepted from a similarity of {threshold:.4f}'


def means_over_sets(
  results: Mapping[str, metrics.RetrievalResult],
) -> dict[str, dict[str, float]]:
  """Returns the mean of each metric over sets '<data set>/<kind>' of a kind.

  Args:
    results: by the name of the set.

  Returns:
    kind -> metric -> mean, of kinds that two or more data sets have.
  """
  kinds: dict[str, list[metrics.RetrievalResult]] = {}
  for name, result in results.items():
    member, _, kind = name.rpartition('/')
    if member:
      kinds.setdefault(kind, []).append(result)
  return {
    kind: {
      name: float(np.mean([result.metrics[name] for result in found]))
      for name in found[0].metrics
      if all(name in result.metrics for result in found)
    }
    for kind, found in kinds.items()
    if len(found) > 1
  }


def log_parameters(params: Any) -> None:
  """Logs every parameter's shape and size; `params` is a host tree."""
  overview = parameter_overview.get_parameter_overview(
    params, include_stats=False
  )
  _log.info('parameters:\n%s', overview)


class Reporter:
  """Writes TensorBoard events and history, and shows the progress.

  Use it as a context manager.
  """

  def __init__(
    self, workdir: str, *, first_step: int, num_steps: int, is_lead: bool
  ):
    """Opens the writers.

    Args:
      workdir: where events and history go.
      first_step: the steps done before; history after it is dropped, since it
        belongs to steps that are done again.
      num_steps: of the whole run.
      is_lead: whether this process reports.
    """
    self._history = None
    self._bar = None
    self._open = contextlib.ExitStack()
    if not is_lead:
      self._writer = metric_writers.MultiWriter([])
      return
    rows = [row for row in read_history(workdir) if row['step'] <= first_step]
    path = os.path.join(workdir, HISTORY_FILE)
    with open(f'{path}.tmp', 'w', encoding='utf-8') as file:
      file.writelines(json.dumps(row) + '\n' for row in rows)
    os.replace(f'{path}.tmp', path)
    self._history = self._open.enter_context(open(path, 'a', encoding='utf-8'))
    self._writer = metric_writers.SummaryWriter(workdir)
    self._open.callback(self._writer.close)
    if sys.stderr.isatty():
      bar = tqdm.tqdm(
        total=num_steps, initial=first_step, unit='step', dynamic_ncols=True
      )
      self._bar = self._open.enter_context(bar)
      # Log lines then go above the bar, not through it.
      self._open.enter_context(tqdm.contrib.logging.logging_redirect_tqdm())
    self._num_steps = num_steps

  def __enter__(self):
    return self

  def __exit__(self, *error):
    self._open.close()

  def hyperparameters(self, config: Mapping[str, Any]) -> None:
    """Writes the config for TensorBoard's table of runs."""
    flat = config_lib.flatten(config)
    self._writer.write_hparams(
      {
        key: value if isinstance(value, int | float | str) else str(value)
        for key, value in flat.items()
      }
    )

  def scalars(self, step: int, values: Mapping[str, float]) -> None:
    """Writes named values of a step to TensorBoard and to the history."""
    self._writer.write_scalars(step, dict(values))
    self._writer.flush()
    if self._history is not None:
      self._history.write(json.dumps({'step': step, **values}) + '\n')
      self._history.flush()

  def image(self, step: int, name: str, image: np.ndarray) -> None:
    """Writes a uint8 [H, W, 3] image to TensorBoard."""
    self._writer.write_images(step, {name: image[None]})
    self._writer.flush()

  def progress(self, step: int, values: Mapping[str, float]) -> None:
    """Shows where the run is: on a bar in a terminal, else as a log line."""
    shown = {
      word: f'{values[name]:.4g}'
      for name, word in _SHOWN.items()
      if name in values
    }
    if self._bar is not None:
      self._bar.set_postfix(shown, refresh=False)
      self._bar.update(step - self._bar.n)
    elif self._history is not None:
      words = '  '.join(f'{word} {value}' for word, value in shown.items())
      _log.info('step %d/%d  %s', step, self._num_steps, words)

  def finish(self) -> None:
    """Ends the bar, so that what is printed next stands below it."""
    if self._bar is not None:
      self._bar.close()

  def evaluation(
    self, step: int, results: Mapping[str, metrics.RetrievalResult]
  ) -> None:
    """Reports the metrics of a step, and the warnings that go with them.

    Args:
      step: that was measured.
      results: by the name of the set.
    """
    self.scalars(
      step,
      {
        f'{eval_prefix(name)}{metric}': value
        for name, result in results.items()
        for metric, value in result.metrics.items()
      }
      | {
        f'{eval_prefix(f"mean/{kind}")}{metric}': value
        for kind, values in means_over_sets(results).items()
        for metric, value in values.items()
      },
    )
    if self._history is None:
      return
    for name, result in results.items():
      values = result.metrics.items()
      words = '  '.join(f'{metric} {value:.4f}' for metric, value in values)
      _log.info('step %d  %s: %s', step, name, words)
      for sentence in result.protocol['warnings']:
        _log.warning('step %d, %s: %s', step, name, sentence)


class DivergedError(InputError):
  """A loss or a gradient is not finite.

  Attributes:
    learning_rate: of that step.
  """

  def __init__(self, message: str, learning_rate: float):
    """Says what is known without looking into the step."""
    super().__init__(message)
    self.learning_rate = learning_rate


class Window:
  """The scalars of the steps since the last report, and their time."""

  def __init__(self, loss: str, batch_size: int):
    """Starts the clock.

    Args:
      loss: its name, for the message when it diverges.
      batch_size: global, for the rate.
    """
    self._loss = loss
    self._batch_size = batch_size
    self._clear()

  def _clear(self):
    self._pending, self._rows = [], []
    self._started, self._excluded = time.perf_counter(), 0.0
    self._waited = 0.0

  @contextlib.contextmanager
  def waiting(self) -> Iterator[None]:
    """Counts the time in which the devices may run dry for want of data."""
    started = time.perf_counter()
    yield
    self._waited += time.perf_counter() - started

  def add(self, step: int, replicated_scalars: Mapping[str, Any]) -> None:
    """Takes the scalars of a step, and waits for those of two steps ago.

    Two steps under way keep the devices busy; without a bound the batches of
    many would lie on them.
    """
    self._pending.append((step, replicated_scalars))
    if len(self._pending) > 2:
      jax.block_until_ready(self._pending[-3][1])

  def check(self) -> None:
    """Waits for the steps so far; raises `DivergedError` if one did."""
    fetched = state_lib.unreplicate([scalars for _, scalars in self._pending])
    for (step, _), scalars in zip(self._pending, fetched, strict=True):
      values = {name: float(value) for name, value in scalars.items()}
      _check_finite(step, values, self._loss)
      self._rows.append(values)
    self._pending = []

  def exclude(self, seconds: float) -> None:
    """Leaves a pause out of the rate."""
    self._excluded += seconds

  def report(self) -> dict[str, float]:
    """Returns the means since the last call, and the throughput.

    `images_per_second` leaves evaluations and saves out; `data_wait_share` is
    the part of that time, in [0, 1], in which the loop waited for a batch.
    """
    self.check()
    seconds = time.perf_counter() - self._started - self._excluded
    means = {
      name: float(np.mean([row[name] for row in self._rows]))
      for name in self._rows[0]
    }
    throughput = {
      'images_per_second': len(self._rows) * self._batch_size / seconds,
      'data_wait_share': min(1.0, self._waited / seconds),
    }
    self._clear()
    return means | throughput


def _check_finite(step: int, values: Mapping[str, float], loss: str) -> None:
  """Raises `DivergedError` if the loss or its gradient is not finite."""
  wrong = [
    name
    for name, value in values.items()
    if name.startswith(('loss', 'gradient_norm')) and not math.isfinite(value)
  ]
  if not wrong:
    return
  terms = ', '.join(
    f'{name.removeprefix("loss_")} {values[name]}'
    if name != 'loss'
    else f'{loss} {values[name]}'
    for name in wrong
  )
  rate = values['learning_rate']
  raise DivergedError(
    f'the loss is not finite at step {step} ({terms}; embedding_norm '
    f'{values["embedding_norm"]:.3g}): training stops and the checkpoints '
    'before it stay',
    learning_rate=rate,
  )
