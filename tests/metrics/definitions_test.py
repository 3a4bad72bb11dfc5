"""Every metric, and its value in ties, against all orders in loops."""

import numpy as np
import pytest

from retrieval_jax import metrics
from retrieval_jax.core.errors import InputError
from retrieval_jax.metrics import definitions, ties
from retrieval_jax.metrics.ranks import Ranks
from tests.metrics.loops import NAMES, loop_metrics, over_orders

# Of a query each: the grades of the rows, those that tie in one tuple.
_RANKINGS = (
  ((1, 0), (0,), (1,)),
  ((0,), (1, 0, 0), (1, 1, 0), (0,)),
  ((0, 0, 0, 1), (1,)),
  ((1,), (0, 1, 1, 0, 0), (1,)),
  ((0,), (0, 0), (1,), (0,), (1, 0)),
  ((1, 1, 1, 0, 0, 0),),
  ((1,), (1,), (0, 0, 0, 1, 1, 0)),
  ((1, 0), (1, 1, 0), (0,), (1, 0)),
  ((1, 1), (0, 0), (1,)),
  ((1,), (0,), (0,), (0,), (0, 0), (0,), (0,), (0,), (0, 0, 1), (0,)),
  ((0, 1), (1, 0), (1, 0)),
)
_GRADED = (
  ((1, 0.5), (0,), (0.25, 1)),
  ((0.5, 0, 1, 0.25), (0, 0.5)),
  ((0,), (0.1, 3.0, 0.1), (2.0,), (0, 0)),
  ((1, 1, 0.5, 0, 0, 2),),
)


def _ranks(rankings, *, graded=False):
  """Returns the `Ranks` of queries, as a ranker would find them."""
  hits, ranks, tied, num_tied, grades, keys = ([] for _ in range(6))
  counts = []
  for groups in rankings:
    above = found = 0
    for key, group in enumerate(groups):
      positives = sorted((g for g in group if g > 0), reverse=True)
      negatives = len(group) - len(positives)
      for grade in positives:
        found += 1
        hits.append(float(found))
        ranks.append(float(found + above))
        grades.append(float(grade))
        keys.append(key)
        if negatives:
          tied.append(len(hits) - 1)
          num_tied.append(negatives)
      above += negatives
    counts.append(found)
  return Ranks(
    np.arange(len(rankings)),
    np.array(counts),
    np.array(hits),
    np.array(ranks),
    np.array(tied, int),
    np.array(num_tied, int),
    grades=np.array(grades) if graded else None,
    keys=np.array(keys) if graded else None,
  )


def _certain(values):
  """Values that do not depend on the order of ties."""
  return ties.Values(*[np.array(values)] * 3)


def _rows(names):
  return {name: metrics.get_metric(name) for name in names}


@pytest.mark.parametrize('name', NAMES)
def test_every_order_of_ties(name):
  for rankings, graded in ((_RANKINGS, False), (_GRADED, True)):
    ranks = _ranks(rankings, graded=graded)
    values = definitions.evaluate(ranks, _rows([name]))[name]
    expected = [over_orders(groups)[name] for groups in rankings]
    for found, wanted in zip(values, np.transpose(expected), strict=True):
      np.testing.assert_allclose(found, wanted, atol=1e-12)


def test_random_rankings():
  random = np.random.default_rng(0)
  rankings = []
  while len(rankings) < 60:
    # Few and small groups: all their orders are gone through.
    groups = tuple(
      tuple(random.integers(0, 2, random.integers(1, 5)).tolist())
      for _ in range(random.integers(1, 4))
    )
    if any(map(any, groups)):
      rankings.append(groups)
  values = definitions.evaluate(_ranks(rankings), _rows(NAMES))
  expected = [over_orders(groups) for groups in rankings]
  for name in NAMES:
    np.testing.assert_allclose(
      np.transpose(values[name]),
      [row[name] for row in expected],
      atol=1e-12,
      err_msg=name,
    )


def test_wide_ties_agree_with_draws():
  # Too wide to enumerate: 40 positives of 120 that tie across the ranks asked.
  random = np.random.default_rng(1)
  head, tied = [1, 0, 1, 0, 0], [1] * 40 + [0] * 80
  names = (
    'mean_average_precision_at_50_over_hits',
    'revisited_precision_at_100',
    'ndcg_at_50',
    'recall_at_6',
  )
  values = definitions.evaluate(
    _ranks([[*((g,) for g in head), tuple(tied)]]), _rows(names)
  )
  draws = [
    loop_metrics([*head, *random.permutation(tied)], ks=(6, 50, 100))
    for _ in range(400)
  ]
  for name in names:
    drawn = np.array([row[name] for row in draws])
    assert values[name].lowest <= drawn.min() + 1e-12
    assert values[name].highest >= drawn.max() - 1e-12
    error = drawn.std() / len(draws) ** 0.5
    assert abs(values[name].expected - drawn.mean()) < 4 * error + 1e-12


def test_ranges_of_mean_average_precision_over_hits_are_not_at_the_ends():
  # After a hit at rank 1, a second one at rank 3 lowers the mean precision: the
  # order with all positives first is not the best one.
  values = definitions.evaluate(
    _ranks([((1,), (0,), (1, 0))]),
    _rows(['mean_average_precision_at_3_over_hits']),
  )
  assert [v.tolist() for v in values.popitem()[1]] == [
    [pytest.approx(11 / 12)],
    [pytest.approx(5 / 6)],
    [pytest.approx(1.0)],
  ]


def test_denominators_of_average_precision():
  # Positives at ranks 1 and 5, five more that stand far below.
  grades = [1, 0, 0, 0, 1, *[0] * 200, 1, 1, 1, 1, 1]
  values = definitions.evaluate(
    _ranks([[(grade,) for grade in grades]]),
    _rows(
      f'mean_average_precision_at_{k}{end}'
      for k in (5, 100)
      for end in ('', '_over_r', '_over_hits')
    ),
  )
  found = {name: float(value.expected[0]) for name, value in values.items()}
  total = 1 + 2 / 5
  assert found == pytest.approx(
    {
      'mean_average_precision_at_5': total / 5,
      'mean_average_precision_at_5_over_r': total / 7,
      'mean_average_precision_at_5_over_hits': total / 2,
      'mean_average_precision_at_100': total / 7,
      'mean_average_precision_at_100_over_r': total / 7,
      'mean_average_precision_at_100_over_hits': total / 2,
    }
  )


def test_ideal_gain_is_of_all_relevant_rows():
  # One of three relevant rows is found. A calculator that builds the ideal from
  # what was retrieved gives 1.
  values = definitions.evaluate(
    _ranks([((1,), (0,), (0,), (1,), (1,))]), _rows(['ndcg_at_3'])
  )
  ideal = 1 + 1 / np.log2(3) + 1 / 2
  assert values['ndcg_at_3'].expected == pytest.approx(1 / ideal)


@pytest.mark.parametrize('name', [*definitions.METRICS, *NAMES])
def test_definitions_are_sentences_that_name_a_denominator(name):
  sentence = metrics.get_metric(name).definition
  assert sentence.startswith(('mean over queries of', 'share of queries'))


@pytest.mark.parametrize(
  'name, near',
  [
    ('precision_at_0', 'precision_at_<k>'),
    ('ndgc', 'ndcg'),
    ('mean_average_precision_at_5_over_k', 'over_r'),
    ('recall_at_-1', 'recall_at_<k>'),
    ('recall_at_1.5', 'recall_at_<k>'),
    (None, 'known'),
  ],
)
def test_unknown_names(name, near):
  with pytest.raises(InputError, match=near):
    metrics.get_metric(name)


@pytest.mark.parametrize(
  'smaller, larger',
  [
    ('mean_average_precision_at_r', 'r_precision'),
    ('precision_at_1', 'recall_at_5'),
    ('precision_at_5', 'recall_at_5'),
    ('recall_at_2', 'recall_at_10'),
    ('mean_average_precision_at_5', 'mean_average_precision_at_5_over_hits'),
    ('mean_average_precision_at_5_over_r', 'mean_average_precision'),
    ('ndcg_at_5', 'recall_at_5'),
  ],
)
def test_impossible_orders_are_a_defect(smaller, larger):
  low, high = _certain([0.25, 1.0]), _certain([0.5, 1.0])
  definitions.check_invariants({smaller: low, larger: high})
  with pytest.raises(AssertionError, match=f'{smaller} > {larger}'):
    definitions.check_invariants({larger: low, smaller: high})


@pytest.mark.parametrize(
  'values, words',
  [
    ((0.5, 0.5, 98.0), r'left \[0, 1\]'),
    ((0.5, -0.1, 0.5), r'left \[0, 1\]'),
    ((0.5, 0.6, 0.7), 'left the range'),
    ((0.5, 0.3, 0.4), 'left the range'),
    ((np.nan, 0.3, 0.4), 'left the range'),
    ((0.5, np.nan, 0.6), r'left \[0, 1\]'),
    ((0.5, 0.5, np.nan), r'left \[0, 1\]'),
  ],
)
def test_impossible_values_are_a_defect(values, words):
  possible = (0.5 + 1e-12, 0.5, 0.5)
  definitions.check_invariants({'ndcg': ties.Values(*np.array([possible]).T)})
  both = np.array([possible, values]).T
  with pytest.raises(AssertionError, match=f'ndcg {words}'):
    definitions.check_invariants({'ndcg': ties.Values(*both)})


def test_a_query_with_a_positive_has_a_value(monkeypatch):
  def forgets_one(block):
    values = np.full(block.ranks.queries.shape, 0.5)
    values[0] = np.nan
    return ties.Values(values, values, values)

  metric = metrics.get_metric('ndcg')._replace(values=forgets_one)
  monkeypatch.setitem(definitions.METRICS, 'ndcg', metric)
  with pytest.raises(AssertionError, match='ndcg left'):
    metrics.retrieval_metrics(
      np.eye(4), np.array([0, 0, 1, 1]), metrics=['ndcg']
    )


def test_what_is_not_ordered_may_be_anything():
  low, high = _certain([0.25]), _certain([0.5])
  for pair in (
    ('precision_at_5', 'recall_at_4'),
    ('mean_average_precision_at_5', 'recall_at_4'),
    ('mean_average_precision', 'mean_reciprocal_rank'),
  ):
    definitions.check_invariants(dict(zip(pair, (high, low), strict=True)))


def test_invariants_hold_in_any_order_of_random_rankings():
  random = np.random.default_rng(4)
  rankings = [
    [(g,) for g in random.integers(0, 2, random.integers(1, 12))]
    for _ in range(300)
  ]
  rankings = [row for row in rankings if any(map(any, row))]
  values = definitions.evaluate(_ranks(rankings), _rows(NAMES))
  definitions.check_invariants(values)
  tied = definitions.evaluate(_ranks(_RANKINGS), _rows(NAMES))
  definitions.check_invariants(tied)


def test_hits_in_places_of_a_large_tie():
  number, probability = ties.hits_in_places(400_000, 1_000_000, 1000)
  assert number.tolist() == list(range(1001))
  assert probability.sum() == pytest.approx(1)
  assert probability @ number == pytest.approx(400)
  variance = 1000 * 0.4 * 0.6 * (1_000_000 - 1000) / 999_999
  assert probability @ (number - 400.0) ** 2 == pytest.approx(variance)
