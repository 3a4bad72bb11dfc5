"""Runs that are compared: matched, refused, told apart from noise."""

import contextlib
import io
import json
import os

import numpy as np
import pytest

from retrieval_jax import compare
from retrieval_jax.core.errors import InputError
from retrieval_jax.metrics import averages, uncertainty
from retrieval_jax.metrics.averages import Groups
from retrieval_jax.training import (
  comparison,
  comparison_table,
  loop,
  per_query,
)

pytestmark = pytest.mark.usefixtures('no_drawings')


def _write_run(
  folder,
  values,
  *,
  names=None,
  classes=None,
  groups=None,
  by_metric=None,
  **evaluation,
):
  """A workdir as `write_results` leaves it, with given values per query."""
  size = len(values)
  names = names or [f'{i}.png' for i in range(size)]
  classes = classes or [f'class {i // 4}' for i in range(size)]
  if by_metric is None:
    by_metric = {'precision_at_1': values}
  for prefix, over in averages.PREFIXES.items():
    if groups and over in groups:
      by_metric[f'{prefix}precision_at_1'] = values
  queries = per_query.QueryValues(names, classes, by_metric, groups or {})
  content = per_query.to_bytes({'test': queries})
  protocol = {'similarity': 'cosine', 'gallery_size': 50}
  evaluation = {
    'metrics': {'precision_at_1': float(np.nanmean(values)), 'auroc': 0.9},
    'protocol': protocol,
  } | evaluation
  results = {
    'step': 7,
    'per_query': per_query.checksum(content),
    'evaluations': {'test': evaluation},
  }
  folder.mkdir()
  (folder / 'per_query.npz').write_bytes(content)
  (folder / 'results.json').write_text(json.dumps(results))
  return str(folder)


def _values(share, seed=0, size=200):
  rng = np.random.default_rng(seed)
  return (rng.random(size) < share).astype(float)


def test_queries_are_matched_by_name(tmp_path):
  a, b = _values(0.5), _values(0.9, seed=1)
  order = np.random.default_rng(2).permutation(len(a))
  run_a = _write_run(tmp_path / 'a', a)
  run_b = _write_run(
    tmp_path / 'b',
    b[order],
    names=[f'{i}.png' for i in order],
    classes=[f'class {i // 4}' for i in order],
  )
  found = comparison.compare_runs(run_a, run_b)
  assert found.rows['precision_at_1'] == uncertainty.compare(a, b)
  assert found.whole == {'auroc': (0.9, 0.9)}
  assert not found.is_noise('precision_at_1')
  assert found.sentence('precision_at_1').startswith('B is better than A')
  table = comparison_table.table(found)
  assert 'B better' in table
  assert '200 queries with a match, 50 classes' in table
  turned = comparison.compare_runs(run_b, run_a)
  assert turned.sentence('precision_at_1').startswith('A is better than B')
  by_class = comparison.compare_runs(run_a, run_b, by_class=True)
  classes = [f'class {i // 4}' for i in range(200)]
  assert by_class.rows['precision_at_1'] == uncertainty.compare(a, b, classes)


def test_noise_is_called_noise(tmp_path):
  run_a = _write_run(tmp_path / 'a', _values(0.8))
  run_b = _write_run(tmp_path / 'b', _values(0.8, seed=1))
  found = comparison.compare_runs(run_a, run_b)
  assert found.is_noise('precision_at_1')
  assert 'may be noise' in comparison_table.table(found)
  same = comparison.compare_runs(run_a, run_a)
  assert same.rows['precision_at_1'].p_value == 1
  assert 'have the same precision_at_1' in comparison_table.table(same)


def test_json_says_the_same(tmp_path, capsys):
  run_a = _write_run(tmp_path / 'a', _values(0.5))
  run_b = _write_run(tmp_path / 'b', _values(0.9, seed=1))
  assert compare.main([run_a, run_b, '--json', '--metric=precision_at_1']) == 0
  found = json.loads(capsys.readouterr().out)
  row = found['metrics']['precision_at_1']
  assert row['difference'] == pytest.approx(row['mean_b'] - row['mean_a'])
  assert row['interval'][0] < row['difference'] < row['interval'][1]
  assert row['is_noise'] is False
  assert found['metrics_of_the_set'] == {}
  assert (found['a']['step'], found['set']) == (7, 'test')


def test_other_queries_are_refused_and_shared_ones_compared(tmp_path):
  a, b = _values(0.5), _values(0.9, seed=1)
  run_a = _write_run(tmp_path / 'a', a)
  run_b = _write_run(tmp_path / 'b', b[:150])
  with pytest.raises(InputError, match='150 are the same.*--shared_only'):
    comparison.compare_runs(run_a, run_b)
  found = comparison.compare_runs(run_a, run_b, shared_only=True)
  assert found.rows['precision_at_1'] == uncertainty.compare(a[:150], b[:150])
  assert found.whole == {}
  assert '50 queries of A and 0 of B' in comparison_table.table(found)
  names = [f'other {i}' for i in range(200)]
  run_c = _write_run(tmp_path / 'c', b, names=names)
  with pytest.raises(InputError, match='0 are the same.*on the same data'):
    comparison.compare_runs(run_a, run_c, shared_only=True)
  run_d = _write_run(tmp_path / 'd', b, classes=['one'] * 200)
  with pytest.raises(InputError, match="'0.png' is of class 'class 0'"):
    comparison.compare_runs(run_a, run_d)


def _class_means(values, labels):
  return np.array([np.nanmean(values[labels == k]) for k in np.unique(labels)])


def test_macro_averages_are_compared_over_their_groups(tmp_path, capsys):
  labels = np.repeat(np.arange(8), [60, 40, 30, 30, 20, 10, 9, 1])
  categories = np.array([0, 0, 1, 1, 2, 2, -1, 3])[labels]
  a, b = _values(0.4), _values(0.8, seed=1)
  a[labels == 7] = b[labels == 7] = np.nan  # The class of one image is lone.
  order = np.random.default_rng(2).permutation(200)
  runs = []
  for name, values, rows, number in (
    ('a', a, np.arange(200), labels),
    ('b', b, order, 10 - labels),  # Numbered otherwise in another run.
  ):
    groups = {
      'class': Groups.of_labels(number[rows]),
      'category': Groups.of_categories(categories[rows]),
    }
    folder = _write_run(
      tmp_path / name,
      values[rows],
      names=[f'{i}.png' for i in rows],
      classes=[f'class {labels[i]}' for i in rows],
      groups=groups,
    )
    runs.append(folder)
  found = comparison.compare_runs(*runs)
  assert found.whole.keys() == {'auroc'}
  lone = labels < 7
  means = [_class_means(v[lone], labels[lone]) for v in (a, b)]
  row = found.rows['macro_precision_at_1']
  assert row == uncertainty.compare(*means)
  assert row.mean_a == pytest.approx(means[0].mean())
  assert row.num_queries == 7
  in_one = (categories >= 0) & lone
  assert found.rows['category_macro_precision_at_1'] == uncertainty.compare(
    *(_class_means(v[in_one], categories[in_one]) for v in (a, b))
  )
  by_class = comparison.compare_runs(*runs, by_class=True)
  assert by_class.rows['macro_precision_at_1'] == row
  # A verdict in words, in the table, and for programs.
  name = 'macro_precision_at_1'
  assert compare.main([*runs, f'--metric={name}', '--over=classes']) == 0
  table = capsys.readouterr().out
  assert '199 queries with a match, 7 classes; classes resampled' in table
  assert '(7 classes resampled)' in table
  assert f'B is better than A in {name}' in table
  assert 'the choice of the classes' in table
  assert compare.main([*runs, '--json']) == 0
  rows = json.loads(capsys.readouterr().out)['metrics']
  assert rows[name]['num_classes'] == 7
  assert rows['precision_at_1']['num_queries'] == 199
  assert rows['category_macro_precision_at_1']['num_categories'] == 3
  assert rows['category_macro_precision_at_1']['resampled'] == 'categories'


def test_macro_averages_of_other_groups_are_refused(tmp_path):
  values, halves = _values(0.5), np.arange(200) % 2
  run_a, run_b = (
    _write_run(tmp_path / name, values, groups={'category': groups})
    for name, groups in (
      ('a', Groups.of_categories(halves)),
      ('b', Groups.of_categories(np.arange(200) // 100)),
    )
  )
  with pytest.raises(InputError, match='categories of the queries differ'):
    comparison.compare_runs(run_a, run_b)
  found = comparison.compare_runs(run_a, run_b, names=['precision_at_1'])
  assert found.rows.keys() == {'precision_at_1'}


def test_runs_without_a_metric_in_common_are_refused(tmp_path):
  run_a = _write_run(tmp_path / 'a', _values(0.5))
  run_b = _write_run(tmp_path / 'b', _values(0.5), by_metric={}, metrics={})
  with pytest.raises(InputError, match='have no metric in common'):
    comparison.compare_runs(run_a, run_b)


def test_what_else_differs_is_said(tmp_path):
  run_a = _write_run(tmp_path / 'a', _values(0.5))
  protocol = {'similarity': 'cosine', 'gallery_size': 99}
  run_b = _write_run(tmp_path / 'b', _values(0.5), protocol=protocol)
  found = comparison.compare_runs(run_a, run_b)
  assert found.warnings == [
    'the numbers of gallery images differ: 50 in A, 99 in B'
  ]


def test_other_views_of_the_images_are_said(tmp_path):
  runs = [_write_run(tmp_path / name, _values(0.5)) for name in 'ab']
  for name, flip in (('a', True), ('b', False)):
    path = tmp_path / name / 'results.json'
    results = json.loads(path.read_text())
    results['config'] = {'eval': {'flip': flip, 'scales': [1.0]}}
    path.write_text(json.dumps(results))
  found = comparison.compare_runs(*runs)
  assert found.warnings == ['eval.flip differs: True in A, False in B']


def test_names_that_come_twice_stay_apart(tmp_path):
  names = ['é\udcff\n.png', 'b', 'b', 'b']
  unique = per_query.unique_names(names)
  assert len(set(unique)) == 4
  for twins in (
    ['a', 'a', 'a #2'],
    ['a #2', 'a', 'a', 'a #2', 'a #2 #2', 'a #3', 'a'],
  ):
    found = per_query.unique_names(twins)
    assert len(set(found)) == len(twins)
    assert [found.index(name) for name in set(twins)] == [
      twins.index(name) for name in set(twins)
    ]
  run = _write_run(tmp_path / 'a', np.arange(4.0), names=unique)
  results = json.loads((tmp_path / 'a' / 'results.json').read_text())
  read = per_query.read(run, 'test', results['per_query'])
  assert read.names == unique
  np.testing.assert_array_equal(read.values['precision_at_1'], np.arange(4.0))


def _break_values(run):
  content = bytearray((run / 'per_query.npz').read_bytes())
  content[len(content) // 2] ^= 255
  (run / 'per_query.npz').write_bytes(content)


def _with_results(text):
  return lambda run: (run / 'results.json').write_text(text)


@pytest.mark.parametrize(
  'spoil, flags, words',
  [
    (None, ['--metric=auprc'], "did you mean 'auroc'"),
    (None, ['--set=validation'], 'allowed is one of test'),
    (None, ['--levl=0.9'], "did you mean '--level'"),
    (None, ['--level=95'], 'level is 95'),
    (None, ['--over=images'], 'invalid choice'),
    (None, ['third'], "'third'"),
    (_break_values, [], 'is damaged'),
    (lambda run: os.remove(run / 'per_query.npz'), [], '--mode=evaluate'),
    (lambda run: os.remove(run / 'results.json'), [], 'is not the workdir'),
    (_with_results('{'), [], 'no results file'),
    (_with_results('[]'), [], 'no results file'),
    (_with_results('{"evaluations": {"test": {}}}'), [], 'lacks a step'),
    *(
      (
        _with_results(f'{{"step": 1, "evaluations": {part}}}'),
        [],
        'evaluations',
      )
      for part in ('{}', '[]', '{"test": []}', '{"test": {"metrics": {}}}')
    ),
    (None, ['--seed=-1'], "'-1' is not allowed"),
  ],
)
def test_a_mistake_is_one_line_and_status_2(
  tmp_path, capsys, spoil, flags, words
):
  run_a = _write_run(tmp_path / 'a', _values(0.5))
  run_b = _write_run(tmp_path / 'b', _values(0.9))
  if spoil:
    spoil(tmp_path / 'b')
  assert compare.main([run_a, run_b, *flags]) == 2
  error = capsys.readouterr().err
  assert words in error
  assert error.count('\n') == 1


@pytest.mark.parametrize('name', ('\udcff', 'é', 'two\nlines\x1b[2J'))
def test_any_name_of_a_workdir_is_a_line_of_any_terminal(tmp_path, name):
  run_a = _write_run(tmp_path / f'a{name}', _values(0.5))
  run_b = _write_run(tmp_path / 'b', _values(0.9))
  terminal = io.TextIOWrapper(io.BytesIO(), 'ascii')
  with contextlib.redirect_stdout(terminal):
    assert compare.main([run_a, run_b]) == 0
  terminal.flush()
  table = terminal.buffer.getvalue().decode('ascii')
  (line,) = (line for line in table.split('\n') if line.startswith('  A  '))
  assert line.endswith('(step 7)')
  assert '\x1b' not in table
  error = io.StringIO()
  with contextlib.redirect_stderr(error):
    os.remove(tmp_path / f'a{name}' / 'per_query.npz')
    assert compare.main([run_a, run_b]) == 2
    assert compare.main([run_b, run_a, '--set=hard']) == 2
    os.remove(tmp_path / f'a{name}' / 'results.json')
    assert compare.main([run_a, run_b]) == 2
  assert error.getvalue().count('\n') == 3


def test_a_run_that_was_trained_is_compared(make_config, tmp_path, capsys):
  names = (
    *('precision_at_1', 'macro_precision_at_1'),
    *('auroc', 'effective_rank', 'uniformity', 'best_accuracy'),
  )
  config = make_config('circle', num_train_steps=2, eval_every_steps=1)
  config.eval.metrics = names
  loop.train_and_evaluate(config, str(tmp_path / 'a'))
  results = json.loads((tmp_path / 'a' / 'results.json').read_text())
  test = results['evaluations']['test']
  assert set(test['metrics']) == set(names)
  assert tuple(test['intervals']) == names[:2]
  for name in names[:2]:
    low, high = test['intervals'][name]
    assert low <= test['metrics'][name] <= high
  page = (tmp_path / 'a' / 'report.html').read_text()
  printed = capsys.readouterr().out
  assert 'effective_rank on the test set' in page
  threshold = test['protocol']['thresholds']['best_accuracy']
  assert f'accepted from a similarity of {threshold:.4f}' in page
  assert f'accepted from a similarity of {threshold:.4f}' in printed
  assert not list((tmp_path / 'a').glob('*.tmp'))
  assert compare.main([str(tmp_path / 'a')] * 2) == 0
  table = capsys.readouterr().out
  assert '40 queries with a match, 10 classes' in table
  assert 'effective_rank' in table
  assert '(10 classes resampled)' in table
