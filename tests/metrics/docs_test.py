"""The worked examples of docs/metrics.md."""

import pathlib
import re

import numpy as np
import pytest

from retrieval_jax import metrics
from retrieval_jax.metrics import averages

_TEXT = (pathlib.Path(__file__).parents[2] / 'docs/metrics.md').read_text()
_POSITIVES, _ROWS = [1, 3, 4, 8], 8


def _table():
  """Yields (names, example) of the table of ranking metrics."""
  for row in re.findall(r'^\| (`.*) \|$', _TEXT, re.MULTILINE):
    cells = [cell.strip() for cell in row.split(' | ')]
    if len(cells) == 3:
      yield re.findall(r'`([^`]+)`', cells[0]), cells[2]


def _examples():
  """Returns metric -> what the page says that it is, as an expression."""
  found = {}
  for names, example in _table():
    match = re.fullmatch(r'(?:`(\w+)` = )?([-+*/(). 0-9]+)', example)
    if match:
      found[match[1] or names[0]] = match[2]
  return found


def test_every_metric_has_a_row_and_an_example():
  rows = {name for names, _ in _table() for name in names}
  assert rows >= {*metrics.METRICS, *metrics.METRICS_AT_K}
  assert len(_examples()) == 14


@pytest.mark.parametrize('name, expression', _examples().items())
def test_examples(name, expression):
  assert re.fullmatch(r'[-+*/(). 0-9]+', expression)
  result = metrics.evaluate_rankings(
    [list(range(1, _ROWS + 1))], [_POSITIVES], metrics=[name]
  )
  value = eval(expression)  # Digits and signs alone.
  assert result.metrics[name] == pytest.approx(value, abs=1e-6)


def test_ties():
  x = np.array([[1.0, 0.0], [0.8, 0.6], [0.8, 0.6], [0.0, 1.0]])
  names = ('precision_at_1', 'mean_average_precision')
  result = metrics.evaluate_retrieval(
    x[:1], np.array([1]), x[1:], np.array([1, 2, 1]), metrics=names
  )
  for name in names:
    cells = re.search(
      rf'^\| `{name}` \| (\S+) \| (\S+) \| (\S+) \|$', _TEXT, re.M
    )
    for cell, value in zip(
      cells.groups(),
      (result.metrics[name], *result.ranges[name]),
      strict=True,
    ):
      top, _, bottom = cell.partition('/')
      assert value == pytest.approx(int(top) / int(bottom or 1))


def test_grades():
  # Grades 1, 0 and 0.5 at ranks 1, 2 and 3.
  angles = np.array([0.1, 0.2, 0.3])
  value = metrics.retrieval_metrics(
    np.array([[1.0, 0.0]]),
    np.array([0]),
    np.stack([np.cos(angles), np.sin(angles)], axis=1),
    np.array([0, 2, 1]),
    grades=[[1, 0.5, 0], [0.5, 1, 0], [0, 0, 1]],
    metrics=['ndcg'],
  )['ndcg']
  assert value == pytest.approx(1.25 / (1 + 0.5 / np.log2(3)))
  assert f'nDCG = {value:.6f}' in _TEXT


def test_macro():
  values = np.array([1, 1, 0.5, 0])
  groups = averages.Groups.of_labels(np.array([0, 0, 0, 1]))
  assert f'= {averages.mean(values):.3f}, macro' in _TEXT
  assert f'/ 2 = {averages.mean(values, groups):.6f}' in _TEXT
