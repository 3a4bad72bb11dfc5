"""Macro averages against loops."""

import json

import numpy as np
import pytest

from retrieval_jax import metrics
from retrieval_jax.core.errors import InputError

_BASES = ('recall_at_1', 'mean_average_precision')
_NAMES = (
  *_BASES,
  *(f'macro_{name}' for name in _BASES),
  *(f'category_macro_{name}' for name in _BASES),
)


def _macro(values, labels):
  """The mean over labels of the mean of their queries, lone ones left out."""
  means = []
  for label in np.unique(labels[labels >= 0]):
    own = values[(labels == label) & ~np.isnan(values)]
    if len(own):
      means.append(own.mean())
  return np.mean(means), len(means)


def _case():
  random = np.random.default_rng(3)
  labels = np.repeat([0, 1, 2, 3], [20, 6, 3, 1])
  x = random.normal(size=(30, 3)) + np.eye(4, 3)[labels]
  x[:10:3] = x[21] = x[1]  # Ties, so that there is a range.
  return x, labels, np.array([5, 5, -1, 7])[labels]


def test_means_of_groups():
  x, labels, categories = _case()
  result = metrics.evaluate_retrieval(
    x, labels, categories=categories, metrics=_NAMES
  )
  assert list(result.metrics) == list(_NAMES)
  for base in _BASES:
    values = result.per_query[base]
    assert result.metrics[base] == pytest.approx(np.nanmean(values))
    for prefix, groups in (('macro', labels), ('category_macro', categories)):
      name = f'{prefix}_{base}'
      mean, number = _macro(values, groups)
      assert result.metrics[name] == pytest.approx(mean, abs=1e-12)
      for end, own in zip(
        result.ranges[name], result.per_query_ranges[name], strict=True
      ):
        assert end == pytest.approx(_macro(own, groups)[0], abs=1e-12)
      np.testing.assert_array_equal(result.per_query[name], values)
      size = {'macro': 'num_classes', 'category_macro': 'num_categories'}
      assert result.protocol[size[prefix]] == number
  low, high = result.ranges['macro_recall_at_1']
  assert low < result.metrics['macro_recall_at_1'] < high
  # The class of one image is lone, and so in no mean.
  assert result.protocol['num_classes'] == 3
  by_class = result.group_means('recall_at_1')
  assert by_class.ids.tolist() == [0, 1, 2]
  assert by_class.counts.tolist() == [20, 6, 3]
  by_category = result.group_means('recall_at_1', 'category')
  assert by_category.ids.tolist() == [5]
  assert by_category.counts.tolist() == [26]
  json.dumps(result.protocol)
  assert result.protocol['definitions']['macro_recall_at_1'].startswith(
    'mean over classes of'
  )


def test_classes_of_equal_size_make_no_difference():
  random = np.random.default_rng(0)
  labels = np.arange(40) % 8
  values = metrics.retrieval_metrics(
    random.normal(size=(40, 3)),
    labels,
    metrics=('r_precision', 'macro_r_precision'),
  )
  assert values['r_precision'] == pytest.approx(values['macro_r_precision'])


def test_a_query_of_several_labels_is_in_the_class_of_each():
  random = np.random.default_rng(0)
  labels = np.array([[0, 1], [0, -1], [1, 2], [2, 0], [1, 0]])
  result = metrics.evaluate_retrieval(
    random.normal(size=(5, 3)),
    labels,
    metrics=('macro_mean_reciprocal_rank',),
  )
  values = result.per_query['macro_mean_reciprocal_rank']
  means = [values[(labels == k).any(axis=1)].mean() for k in range(3)]
  assert result.metrics['macro_mean_reciprocal_rank'] == pytest.approx(
    np.mean(means)
  )
  assert result.group_means('macro_mean_reciprocal_rank').counts.tolist() == [
    *(4, 3, 2)
  ]


def test_a_negative_int_is_a_class():
  x, labels, _ = _case()
  labels = np.where(labels == 1, -1, labels)
  names = ('recall_at_1', 'macro_recall_at_1')
  result = metrics.evaluate_retrieval(x, labels, metrics=names)
  values = result.per_query['recall_at_1']
  means = [values[labels == k].mean() for k in (-1, 0, 2)]
  assert result.metrics['macro_recall_at_1'] == pytest.approx(np.mean(means))
  assert result.group_means('recall_at_1').ids.tolist() == [-1, 0, 2]
  assert result.protocol['num_classes'] == 3
  # Nothing but the negative class, and by lists.
  whole = metrics.retrieval_metrics(x, np.full(30, -1), metrics=names)
  assert whole == dict.fromkeys(names, 1.0)
  lists = (np.arange(30)[:, None] + np.arange(1, 3)) % 30
  found = metrics.evaluate_lists(lists, labels, metrics=names)
  relabelled = metrics.evaluate_lists(lists, labels + 1, metrics=names)
  assert found.metrics == relabelled.metrics


def test_a_mean_over_no_group_is_left_out():
  _, labels, _ = _case()
  x = np.random.default_rng(0).normal(size=(30, 3))
  none, lone = np.full(30, -1), np.where(labels == 3, 0, -1)
  by_category = [name for name in _NAMES if name.startswith('category')]
  sentence = (
    'no value of category_macro_recall_at_1, '
    'category_macro_mean_average_precision: no category has a query with a '
    'match'
  )
  for categories in (none, lone):
    found = metrics.evaluate_retrieval(
      x, labels, categories=categories, metrics=(*_NAMES, 'auroc')
    )
    kept = [name for name in _NAMES if name not in by_category]
    assert list(found.metrics) == [*kept, 'auroc']
    assert found.per_query.keys() == found.ranges.keys() == {*kept}
    assert found.protocol['warnings'].count(sentence) == 1
    assert 'num_categories' not in found.protocol
    assert found.protocol['definitions'].keys() == found.metrics.keys()
    with pytest.warns(UserWarning, match=sentence):
      values = metrics.retrieval_metrics(
        x, labels, categories=categories, metrics=[*by_category, 'auroc']
      )
    assert values == {'auroc': found.metrics['auroc']}
    with pytest.raises(InputError, match=f'{sentence}.*; allowed is'):
      metrics.retrieval_metrics(
        x, labels, categories=categories, metrics=by_category
      )
  listed = [[1]] + [[]] * 29
  found = metrics.evaluate_listed(
    x, None, listed, categories=none, metrics=[*by_category, 'recall_at_1']
  )
  assert list(found.metrics) == ['recall_at_1']
  assert sentence in found.protocol['warnings']
  with pytest.raises(InputError, match=f'{sentence}.*; allowed is'):
    metrics.evaluate_listed(
      x, None, listed, categories=none, metrics=by_category
    )


def test_refusals():
  x, labels, categories = _case()
  with pytest.raises(InputError, match='no categories are given'):
    metrics.retrieval_metrics(x, labels, metrics=['category_macro_ndcg'])
  with pytest.raises(InputError, match='categories has 29 rows'):
    metrics.retrieval_metrics(x, labels, categories=categories[:-1])
  with pytest.raises(InputError, match="'recal_at_1'.*mean 'recall_at_<k>'"):
    metrics.check_metrics(['macro_recal_at_1'])
  with pytest.raises(InputError, match='no categories'):
    metrics.evaluate_retrieval(x, labels).group_means('r_precision', 'category')
