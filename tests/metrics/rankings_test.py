"""Given rankings: against the embeddings that make them, and by hand."""

import numpy as np
import pytest

from retrieval_jax import metrics
from retrieval_jax.core.errors import InputError
from tests.metrics.loops import NAMES


def test_whole_rankings_equal_those_of_embeddings():
  random = np.random.default_rng(0)
  queries, gallery = random.normal(size=(12, 4)), random.normal(size=(30, 4))
  relevant = [random.permutation(30)[: random.integers(0, 9)] for _ in queries]
  ignored = [random.permutation(30)[: random.integers(0, 4)] for _ in queries]
  gallery_unit = gallery / np.linalg.norm(gallery, axis=1, keepdims=True)
  rankings = np.argsort(-queries @ gallery_unit.T, axis=1)
  given = metrics.evaluate_rankings(
    rankings, relevant, ignored=ignored, metrics=NAMES
  )
  embedded = metrics.evaluate_listed(
    queries,
    gallery,
    relevant,
    ignored=metrics.Ignored(rows=ignored),
    metrics=NAMES,
  )
  for name in NAMES:
    np.testing.assert_allclose(
      given.per_query[name], embedded.per_query[name], atol=1e-12, err_msg=name
    )
  assert (
    given.protocol['num_lone_queries'] == embedded.protocol['num_lone_queries']
  )


@pytest.mark.parametrize('size, cut', [(None, 0), (2, 0), (7, 1)])
def test_definitions_say_where_rankings_end_before_the_gallery(size, cut):
  result = metrics.evaluate_rankings(
    [[4, 2], [1, 3]],
    [[4], [3, 5]],
    metrics=('revisited_mean_average_precision',),
    gallery_size=size,
  )
  (sentence,) = result.protocol['definitions'].values()
  assert sentence.count('by the first 2 of ') == cut
  assert result.protocol.get('gallery_size') == size


def test_what_is_not_ranked_is_not_found():
  result = metrics.evaluate_rankings(
    [[9, 3], [], [5]], [[3, 4], [1], []], metrics=NAMES
  )
  assert result.protocol['num_lone_queries'] == 1
  assert result.protocol['list_length'] == 2
  found = {
    name: result.per_query[name][0]
    for name in (
      *('mean_average_precision', 'mean_reciprocal_rank', 'r_precision'),
      *('precision_at_10', 'mean_average_precision_at_10_over_hits', 'ndcg'),
    )
  }
  assert found == pytest.approx(
    {
      'mean_average_precision': 1 / 4,
      'mean_reciprocal_rank': 1 / 2,
      'r_precision': 1 / 2,
      'precision_at_10': 1 / 10,
      'mean_average_precision_at_10_over_hits': 1 / 2,
      'ndcg': (1 / np.log2(3)) / (1 + 1 / np.log2(3)),
    }
  )
  for name in NAMES:
    assert result.per_query[name][1] == 0, name  # An empty ranking.
    assert np.isnan(result.per_query[name][2])


def test_repetitions_keep_their_rank():
  # 4 counts once; 7 stands at rank 4, not 3.
  result = metrics.evaluate_rankings(
    [[4, 4, 2, 7]],
    [[4, 7]],
    metrics=('mean_average_precision', 'precision_at_2', 'recall_at_3'),
  )
  assert result.metrics == pytest.approx(
    {
      'mean_average_precision': (1 + 2 / 4) / 2,
      'precision_at_2': 1 / 2,
      'recall_at_3': 1,
    }
  )


@pytest.mark.parametrize(
  'rankings, relevant, words',
  [
    ([[1]], [[1], [2]], 'relevant has 2 rows for 1 queries'),
    ([[1]], [[]], 'relevant: none of the 1 queries'),
    (np.ones((1, 2)), [[1]], 'rankings has shape .* float64'),
    ([['a']], [[1]], r"rankings has \['a'\]"),
  ],
)
def test_refusals(rankings, relevant, words):
  with pytest.raises(InputError, match=words):
    metrics.evaluate_rankings(rankings, relevant)
