"""The names of metrics of a whole set, in the lists of all metrics."""

import doctest
import importlib.util
import json
import pathlib

import numpy as np
import pytest

from retrieval_jax import metrics
from retrieval_jax.core.errors import InputError
from retrieval_jax.metrics import (
  clustering,
  embedding_health,
  pairs,
  set_metrics,
  verification,
)

ROOT = pathlib.Path(__file__).parents[2]
NAMES = (
  *set_metrics.SET_METRICS,
  *(f'{family}_0.1' for family in set_metrics.FAMILIES),
)


def _data(seed=0, noise=0.5, num_classes=6):
  rng = np.random.default_rng(seed)
  labels = np.append(np.arange(60) % num_classes, [90, 91, 92])
  centers = rng.normal(size=(93, 8))
  x = centers[labels] + noise * rng.normal(size=(len(labels), 8))
  return x.astype(np.float32), labels


def test_all_stand_beside_rankings_in_the_order_asked_for():
  x, labels = _data()
  names = ('auroc', 'precision_at_1', *NAMES[1:])
  result = metrics.evaluate_retrieval(x, labels, metrics=names)
  assert tuple(result.metrics) == names
  assert tuple(result.protocol['definitions']) == names
  assert tuple(result.per_query) == tuple(result.ranges) == ('precision_at_1',)
  for name, value in result.metrics.items():
    low, high = set_metrics.bounds(name)
    assert low <= value <= high, name
    assert type(value) is float
  found = result.metrics
  assert found['tpr_at_fpr_0.1'] == pytest.approx(1 - found['fnmr_at_fmr_0.1'])
  assert found['uniformity'] < 0 < found['hubness']
  assert 1 < found['effective_rank'] <= 8
  assert found['pcf'] in np.arange(1, 9) / 8
  assert found['pcf_0.1'] <= found['pcf']
  assert found['nmi'] > 0.5
  protocol = json.loads(json.dumps(result.protocol))
  assert protocol['num_positive_pairs'] == 6 * 10 * 9 / 2
  assert protocol['num_negative_pairs'] == 63 * 62 / 2 - 270
  assert protocol['num_unknown_queries'] == 3
  assert result.pairs.roc.auroc == found['auroc']
  assert protocol['thresholds'].keys() == {
    *('best_f1', 'best_accuracy', 'tpr_at_fpr_0.1', 'fnmr_at_fmr_0.1'),
    *('open_set_tpr_at_fpr_0.1', 'dir_at_far_0.1'),
  }


def test_thresholds_are_what_gives_the_values():
  x, labels = _data(noise=1.0)
  names = ('best_f1', 'best_accuracy', 'tpr_at_fpr_0.1', 'fnmr_at_fmr_0.01')
  result = metrics.evaluate_retrieval(x, labels, metrics=names)
  unit = x / np.linalg.norm(x, axis=1, keepdims=True)
  places = np.triu_indices(len(x), 1)
  is_match = (labels[:, None] == labels)[places]
  for name, value in result.metrics.items():
    threshold = result.protocol['thresholds'][name]
    # Similarities are rounded to 2 ** -22.
    accepted = (unit @ unit.T)[places] >= threshold - 2**-22
    hits = (accepted & is_match).sum()
    found = {
      'best_f1': 2 * hits / (accepted.sum() + is_match.sum()),
      'best_accuracy': (accepted == is_match).mean(),
      'tpr_at_fpr_0.1': hits / is_match.sum(),
      'fnmr_at_fmr_0.01': 1 - hits / is_match.sum(),
    }
    assert value == pytest.approx(found[name]), name
  # The nearest pair does not match: nothing may be accepted.
  x, labels = np.eye(3)[[0, 0, 1, 2]], np.array([0, 1, 0, 1])
  result = metrics.evaluate_retrieval(x, labels, metrics=['tpr_at_fpr_0.1'])
  assert result.protocol['thresholds'] == {'tpr_at_fpr_0.1': None}
  json.dumps(result.protocol, allow_nan=False)


def test_a_pass_is_made_once(monkeypatch):
  calls = []
  count = verification.count_pairs

  def counted(task):
    calls.append(task)
    return count(task)

  monkeypatch.setattr(verification, 'count_pairs', counted)
  x, labels = _data()
  names = [n for n in NAMES if set_metrics.find_metric(n).source == 'pairs']
  metrics.retrieval_metrics(x, labels, metrics=names)
  assert len(names) > 5
  assert len(calls) == 1
  metrics.retrieval_metrics(x, labels)
  assert len(calls) == 1


def test_what_is_undefined_is_left_out_and_said():
  x, labels = np.eye(4)[[0, 1, 0, 1]], np.array([0, 1, 0, 1])
  names = ('precision_at_1', 'open_set_auroc', 'dir_at_far_0.01', 'auroc')
  with pytest.warns(UserWarning, match='no value of open_set_auroc, dir_at'):
    found = metrics.retrieval_metrics(x, labels, metrics=names)
  assert found == {'precision_at_1': 1.0, 'auroc': 1.0}
  result = metrics.evaluate_retrieval(
    np.ones((4, 2)), labels, metrics=('effective_rank', 'pcf')
  )
  assert result.metrics == {'effective_rank': pytest.approx(1.0)}
  assert 'no value of pcf' in result.protocol['warnings'][-1]
  with pytest.raises(InputError, match='no value of open_set_auroc'):
    metrics.evaluate_retrieval(x, labels, metrics=('open_set_auroc',))
  sets = np.stack([labels, labels + 2], axis=1)
  result = metrics.evaluate_retrieval(x, sets, metrics=('auroc', 'nmi'))
  assert result.metrics == {'auroc': 1.0}
  assert 'not label sets' in result.protocol['warnings'][-1]


@pytest.mark.parametrize('labels', (np.arange(12), np.zeros(12, int)))
def test_what_needs_no_positive_or_no_negative_has_a_value(labels):
  x = np.random.default_rng(0).normal(size=(12, 3)).astype(np.float32)
  names = ('uniformity', 'alignment', 'nmi', 'effective_rank', 'auroc')
  result = metrics.evaluate_retrieval(x, labels, metrics=names, curves=True)
  unit = x / np.linalg.norm(x, axis=1, keepdims=True)
  squares = ((unit[:, None] - unit) ** 2).sum(axis=2)[np.triu_indices(12, 1)]
  expected = {'uniformity': np.log(np.exp(-2 * squares).mean())}
  if labels.any():
    lacking, kind = 'alignment, auroc', 'are relevant'
    assert result.protocol['num_lone_queries'] == 12
    assert result.curves is None
  else:
    expected['alignment'] = squares.mean()
    lacking, kind = 'auroc', 'are not relevant'
  assert result.metrics.keys() == {*names} - {*lacking.split(', ')}
  for name, value in expected.items():
    assert result.metrics[name] == pytest.approx(value, abs=1e-5)
  (warning,) = result.protocol['warnings']
  assert warning.startswith(f'no value of {lacking}: ') and kind in warning
  sizes = 66 * labels.any(), 66 * (not labels.any())
  assert result.protocol['num_negative_pairs'] == sizes[0]
  assert result.protocol['num_positive_pairs'] == sizes[1]


def test_rankings_need_a_positive_where_they_are_asked_for():
  with pytest.raises(InputError, match='none of the 4 queries'):
    metrics.retrieval_metrics(
      np.eye(4), np.arange(4), metrics=('uniformity', 'precision_at_1')
    )


def test_impossible_values_are_a_defect(monkeypatch):
  row = set_metrics.SET_METRICS['auroc']._replace(read=lambda found: 95.7)
  monkeypatch.setitem(set_metrics.SET_METRICS, 'auroc', row)
  x, labels = _data()
  with pytest.raises(AssertionError, match='auroc is 95.7, outside'):
    metrics.retrieval_metrics(x, labels, metrics=('auroc',))


@pytest.mark.parametrize(
  'name, value, bounds',
  [
    ('effective_rank', 8.1, '1.0, 8'),
    ('covariance_effective_rank', 8.1, '1.0, 8'),
    ('covariance_effective_rank', 0.9, '1.0, 8'),
    ('pcf', 0.1, '0.125, 1.0'),
    ('hubness', 7.8, '-7.747'),
    ('hubness', -7.8, '-7.747'),
    ('hubness', np.nan, '-7.747'),
  ],
)
def test_bounds_are_those_of_the_data(monkeypatch, name, value, bounds):
  row = set_metrics.SET_METRICS[name]._replace(read=lambda found: value)
  monkeypatch.setitem(set_metrics.SET_METRICS, name, row)
  x, labels = _data()  # 63 rows of dimension 8.
  with pytest.raises(AssertionError, match=rf'outside \[{bounds}'):
    metrics.retrieval_metrics(x, labels, metrics=(name,))


def test_bounds_can_be_reached():
  # One row that all others are nearest to; directions that are used alike.
  for number in (1, 2, 3, 50, 10_000):
    occurrences = np.append(np.zeros(number - 1), 7.0)
    _, high = embedding_health.hubness_limits(occurrences)
    assert embedding_health.hubness(occurrences) == pytest.approx(high)
  x, labels = np.concatenate([np.eye(4), -np.eye(4)]), np.arange(8) % 2
  names = ('effective_rank', 'covariance_effective_rank', 'pcf_1.0')
  found = metrics.evaluate_retrieval(x, labels, metrics=names).metrics
  assert found == pytest.approx({names[0]: 4, names[1]: 4, names[2]: 1})


@pytest.mark.parametrize(
  'name, words',
  [
    ('aurok', "did you mean 'auroc'"),
    ('tpr_at_fpr_2', 'tpr_at_fpr_<x>'),
    ('tpr_at_fpr_0', 'tpr_at_fpr_<x>'),
    ('pcf_x', 'pcf_<x>'),
    ('precision_at_11x', 'precision_at_1'),
  ],
)
def test_unknown_names(name, words):
  with pytest.raises(InputError, match=words):
    metrics.check_metrics(['precision_at_1', name])


@pytest.mark.parametrize('text', ('0.001', '1e-3', '.001'))
def test_rates_may_be_written_in_several_ways(text):
  assert set_metrics.find_metric(f'tpr_at_fpr_{text}').at == 0.001


def test_a_missing_package_is_said_before_anything_is_computed(monkeypatch):
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  assert metrics.check_metrics(['auroc']) == ('auroc',)
  with pytest.raises(InputError, match=r"'retrieval_jax\[clustering\]'"):
    metrics.check_metrics(['ami'])


def test_clusters_are_seeded_and_by_chance_agree_with_nothing():
  x, labels = _data()
  task = pairs.Task(x[:60], labels[:60], x, labels, False)
  assert clustering.cluster(task) == clustering.cluster(task)
  shuffled = np.random.default_rng(0).permutation(labels[:60])
  assert abs(clustering.cluster(task._replace(labels=shuffled)).ami) < 0.15
  collapsed = task._replace(queries=np.ones((60, 8)))
  assert clustering.cluster(collapsed) == (0, 0)


def test_examples_of_the_page_are_true():
  path = ROOT / 'docs' / 'verification.md'
  found = doctest.testfile(str(path), module_relative=False)
  assert found.attempted > 10
  assert found.failed == 0


def test_every_name_is_on_the_page():
  text = (ROOT / 'docs' / 'verification.md').read_text()
  assert not [name for name in set_metrics.NAMES if f'`{name}`' not in text]
