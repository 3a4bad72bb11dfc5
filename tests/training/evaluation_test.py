"""What an evaluation set knows reaches the metrics."""

import dataclasses
import json

import numpy as np
import pytest

from retrieval_jax import data, metrics, neighbors
from retrieval_jax.core import relations, tiles
from retrieval_jax.core.errors import InputError
from retrieval_jax.data.collection import TEST
from retrieval_jax.training import (
  config_checks,
  dataset_checks,
  evaluation,
  loop,
  reporting,
  results,
)
from retrieval_jax.training.experiment import make_experiment

_NAMES = ('precision_at_1', 'ndcg', 'category_macro_ndcg', 'macro_ndcg')


@pytest.fixture
def known(monkeypatch):
  """The tiny data set with a category, a sequence and a camera each."""
  plain = data.DATASETS['tiny']()
  rows = np.arange(len(plain))
  full = dataclasses.replace(
    plain,
    category=(plain.labels // 4).astype(np.int32),
    category_names=('a', 'b', 'c'),
    sequence=np.where(rows % 3, rows % 7, -1).astype(np.int32),
    domain=(rows % 2).astype(np.int32),
    domain_names=('left', 'right'),
  )
  monkeypatch.setitem(data.DATASETS, 'tiny', lambda: full)
  return data.load_dataset('tiny')


def _evaluate(config, dataset, embeddings, readable):
  """Measures given embeddings; `readable`: which images could be read."""
  evaluator = evaluation.Evaluator(config, None, dataset.class_categories)
  return _measure(evaluator, dataset, embeddings, readable)


def _measure(evaluator, dataset, embeddings, readable):
  evaluator.embed = lambda variables, source, name: (
    embeddings[source.rows],
    readable[source.rows],
  )
  return evaluator.measure(None, dataset.tests)['test']


def test_columns_reach_the_metrics(known, make_config):
  config = make_config(
    eval__metrics=_NAMES,
    eval__ignore=('sequence', 'domain'),
    eval__same_category_grade=0.25,
  )
  dataset_checks.validate_dataset(config, known)
  random = np.random.default_rng(0)
  x = random.normal(size=(120, 6)).astype(np.float32)
  readable = np.arange(120) % 11 > 0
  found = _evaluate(config, known, x, readable)
  collection = data.DATASETS['tiny']()
  asked, searched = np.arange(80, 120), np.arange(80)
  asked, searched = asked[readable[asked]], searched[readable[searched]]
  labels = collection.labels
  expected = metrics.evaluate_retrieval(
    x[asked],
    labels[asked],
    x[searched],
    labels[searched],
    metrics=_NAMES,
    grades=relations.category_grades(np.arange(10) // 4, 0.25),
    categories=labels[asked] // 4,
    ignored=metrics.Ignored(
      sequences=(collection.sequence[asked], collection.sequence[searched]),
      cameras=(collection.domain[asked], collection.domain[searched]),
    ),
  )
  assert found.result.metrics == expected.metrics
  assert found.result.protocol['num_unreadable_images'] == 120 - readable.sum()
  assert len(found.group.sequences[1]) == len(found.gallery_embeddings)


def test_nothing_is_ignored_by_default(known, make_config):
  x = np.random.default_rng(0).normal(size=(120, 6)).astype(np.float32)
  found = _evaluate(make_config(), known, x, np.ones(120, bool)).result
  assert 'ignored' not in found.protocol
  assert 'relevance' not in found.protocol


def test_an_experiment_says_what_it_ignored(known, make_config):
  config = make_config(
    eval__metrics=('recall_at_1', 'category_macro_recall_at_1'),
    eval__ignore=('sequence',),
    eval__same_category_grade=0.5,
  )
  experiment = make_experiment(config)
  x = np.random.default_rng(0).normal(size=(120, 6)).astype(np.float32)
  found = _measure(
    experiment.evaluator, experiment.dataset, x, np.ones(120, bool)
  )
  protocol = json.loads(json.dumps(found.result.protocol))
  assert protocol['ignored'] == ["rows of the query's own sequence"]
  assert protocol['num_categories'] == 3
  assert protocol['relevance'] == 'a grade above 0'
  np.testing.assert_array_equal(found.grades, experiment.evaluator._grades)


@pytest.mark.parametrize(
  'keys, words',
  [
    ({'eval__ignore': ('sequence',)}, "'sequence'.*no sequences.*`sequence`"),
    ({'eval__ignore': ('domain',)}, "'domain'.*no domains.*domain_column"),
    (
      {'eval__metrics': ('category_macro_ndcg',)},
      "'category_macro_ndcg'.*no query of tiny has a category.*`category`",
    ),
    ({'eval__same_category_grade': 0.5}, 'same_category_grade is 0.5, but'),
  ],
)
def test_what_the_data_do_not_know(tiny_dataset, make_config, keys, words):
  with pytest.raises(InputError, match=words) as caught:
    dataset_checks.validate_dataset(make_config(**keys), tiny_dataset)
  assert '\n' not in str(caught.value)


_MIXED = ('recall_at_1', 'category_macro_recall_at_1')


@pytest.mark.parametrize('lacks', ['column', 'values'])
def test_a_set_without_categories_leaves_their_mean_out(
  known, make_config, lacks
):
  """Of two sets, as of two data sets that are mixed, one has categories."""
  with_them = known.tests['test']
  without = dataclasses.replace(
    with_them,
    categories=None
    if lacks == 'column'
    else np.full(len(with_them.query), -1, np.int32),
  )
  both = {'a/test': with_them, 'b/test': without}
  dataset = dataclasses.replace(known, tests=both)
  config = make_config(eval__metrics=_MIXED)
  dataset_checks.validate_dataset(config, dataset)
  evaluator = evaluation.Evaluator(config, None, dataset.class_categories)
  x = np.random.default_rng(0).normal(size=(120, 6)).astype(np.float32)
  evaluator.embed = lambda variables, source, name: (
    x[source.rows],
    np.ones(len(source), bool),
  )
  found = evaluator.measure(None, both)
  assert tuple(found['a/test'].result.metrics) == _MIXED
  assert found['a/test'].result.protocol['warnings'] == []
  lacking = found['b/test'].result
  assert tuple(lacking.metrics) == _MIXED[:1]
  (warning,) = lacking.protocol['warnings']
  assert warning.startswith('no value of category_macro_recall_at_1: ')
  # Refused early: no set has a value, or one has no value of anything.
  for tests, names, words in (
    ({'b/test': without}, _MIXED, r'no query of tiny.*\(sets: b/test\)'),
    (both, _MIXED[1:], 'nothing but category_macro_recall_at_1.*the b/test'),
  ):
    dataset = dataclasses.replace(known, tests=tests)
    config = make_config(eval__metrics=names)
    with pytest.raises(InputError, match=words) as caught:
      dataset_checks.validate_dataset(config, dataset)
    assert '\n' not in str(caught.value)


@pytest.mark.usefixtures('no_drawings')
def test_a_run_without_categories_in_its_test_set_says_so(
  known, make_config, monkeypatch, tmp_path, capsys
):
  full = data.DATASETS['tiny']()
  category = np.where(full.split == TEST, -1, full.category)
  full = dataclasses.replace(full, category=category)
  monkeypatch.setitem(data.DATASETS, 'tiny', lambda: full)
  config = make_config(
    num_train_steps=1, data__validation='images', eval__metrics=_MIXED[::-1]
  )
  loop.train_and_evaluate(config, str(tmp_path))
  text = (tmp_path / 'results.json').read_text()
  found = json.loads(text)
  (metric,) = found['evaluations']['test']['metrics']
  assert metric == 'recall_at_1'
  printed = capsys.readouterr().out
  assert printed.count('\n  warning: no value of category_macro_recall') == 1
  # The validation set has them, and its first metric selects the weights.
  history = reporting.read_history(str(tmp_path))
  assert found['selection']['score'] == pytest.approx(
    history[-1]['eval/validation/category_macro_recall_at_1']
  )


@pytest.mark.parametrize(
  'key, value',
  [
    ('ignore', "('camera',)"),
    ('same_category_grade', 2),
  ],
)
def test_refused_values(make_config, key, value):
  with pytest.raises(InputError, match=f'eval.{key} is'):
    config_checks.validate(make_config(**{f'eval__{key}': value}), 4)


def test_post_processing_ignores_too(known, make_config):
  options = {'eval__k_reciprocal__k1': 5}
  config = make_config(
    eval__ignore=('sequence', 'domain'),
    eval__postprocessing=('k_reciprocal',),
    eval__list_length=20,
    eval__same_category_grade=0.5,
    **options,
  )
  evaluator = make_experiment(config).evaluator
  x = np.random.default_rng(0).normal(size=(120, 6)).astype(np.float32)
  found = _measure(evaluator, known, x, np.ones(120, bool))
  without, with_it = evaluator.ablate(None, {'test': found}, known.train)[
    'test'
  ]
  # The first precision is of the ranking that the metrics of the run are of.
  assert without.result.metrics['precision_at_1'] == pytest.approx(
    found.result.metrics['precision_at_1']
  )
  assert with_it.result.protocol['ignored'] == found.result.protocol['ignored']
  # The re-ranking sees all rows; what is ignored is then taken out, by a loop.
  rows = data.DATASETS['tiny']()
  asked, searched = np.arange(80, 120), np.arange(80)
  whole = neighbors.k_reciprocal_reranking(x[asked], x[searched], 80, k1=5)[1]
  values = []
  for i, ranking in zip(asked, whole, strict=True):
    hits = []
    for j in ranking:
      hit = rows.labels[i] // 4 == rows.labels[j] // 4
      if rows.sequence[i] == rows.sequence[j] >= 0:
        continue
      if hit and rows.domain[i] == rows.domain[j]:
        continue
      hits.append(hit)
    precisions = [sum(hits[: k + 1]) / (k + 1) for k in range(20) if hits[k]]
    values.append(sum(precisions) / min(sum(hits), 20))
  assert with_it.result.metrics['mean_average_precision_at_20'] == (
    pytest.approx(np.mean(values))
  )


def test_the_page_shows_nothing_that_is_ignored(known, make_config, tmp_path):
  config = make_config(
    eval__ignore=('sequence', 'domain'), eval__same_category_grade=0.5
  )
  x = np.random.default_rng(0).normal(size=(120, 6)).astype(np.float32)
  found = _evaluate(config, known, x, np.ones(120, bool))
  page = results._report_data(
    str(tmp_path),
    config,
    known,
    'test',
    found,
    results.Selection(1, (), None),
    (),
  )
  rows = data.DATASETS['tiny']()
  asked, searched = np.arange(80, 120), np.arange(80)
  order = np.argsort(
    -tiles.unit_rows(x[asked]) @ tiles.unit_rows(x[searched]).T
  )
  for i, ranking, shown, right in zip(
    asked, order, page.neighbor_indices, page.right, strict=True
  ):
    judged = []
    for j in ranking:
      same = rows.labels[i] // 4 == rows.labels[j] // 4
      if not (
        rows.sequence[i] == rows.sequence[j] >= 0
        or (same and rows.domain[i] == rows.domain[j])
      ):
        judged.append((j, same))
    assert list(zip(shown, right, strict=True)) == judged[:10]
  assert page.pairs is None
  assert 'ignored rows' in page.pairs_note


@pytest.mark.parametrize('list_length', [25, 80])
def test_lists_of_a_benchmark_say_where_they_end(
  known, make_config, list_length
):
  options = {'top_m': 20, 'num_neighbors': 3}
  config = make_config(
    eval__postprocessing=('superglobal',),
    eval__list_length=list_length,
    **{f'eval__superglobal__{key}': value for key, value in options.items()},
  )
  random = np.random.default_rng(0)
  group = dataclasses.replace(
    known.tests['test'],
    benchmark='revisited',
    relevant=[random.choice(40, 5, False) for _ in range(40)],
    ignored=[40 + random.choice(40, i % 7, False) for i in range(40)],
  )
  dataset = dataclasses.replace(known, tests={'test': group})
  dataset_checks.validate_dataset(config, dataset)
  evaluator = make_experiment(config).evaluator
  x = random.normal(size=(120, 6)).astype(np.float32)
  found = _measure(evaluator, dataset, x, np.ones(120, bool))
  without, with_it = evaluator.ablate(None, {'test': found}, None)['test']
  name = 'revisited_mean_average_precision'
  is_whole = list_length == 80
  for variant in (without, with_it):
    sentence = variant.result.protocol['definitions'][name]
    assert ('first 25 of 80 gallery rows' in sentence) != is_whole
  official = found.result.metrics
  if is_whole:
    assert without.result.metrics == pytest.approx(official, abs=1e-12)
  else:
    assert without.result.metrics[name] < official[name]
  # The lists are the first of a whole ranking from which junk was taken.
  rankings = neighbors.superglobal_reranking(x[80:], x[:80], 80, **options)[1]
  rankings = [
    [row for row in ranking if row not in junk][:list_length]
    for ranking, junk in zip(rankings, group.ignored, strict=True)
  ]
  by_hand = metrics.evaluate_rankings(
    rankings, group.relevant, metrics=tuple(official)
  )
  assert with_it.result.metrics == pytest.approx(by_hand.metrics, abs=1e-12)
