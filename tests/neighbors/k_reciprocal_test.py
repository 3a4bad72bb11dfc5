"""Sparse k-reciprocal re-ranking against the dense definition in float64."""

import numpy as np
import pytest

from retrieval_jax import neighbors
from retrieval_jax.core.errors import InputError


def dense_distances(nodes, k1, k2, lambda_value):
  """Returns the final distance of all nodes [M, M], by loops over sets."""
  count = len(nodes)
  distance = np.maximum(2 - 2 * nodes @ nodes.T, 0)
  distance /= distance.max(axis=1, keepdims=True)
  order = []
  for i in range(count):
    ranked = [j for j in np.argsort(distance[i], kind='stable') if j != i]
    order.append([i, *ranked])

  def reciprocal(i, k):
    return {j for j in order[i][: k + 1] if i in order[j][: k + 1]}

  codes = np.zeros((count, count))
  for i in range(count):
    members = first = reciprocal(i, k1)
    for j in first:
      core = reciprocal(j, int(np.around(k1 / 2)))
      if len(core & first) > 2 / 3 * len(core):
        members = members | core
    for j in members:
      codes[i, j] = np.exp(-distance[i, j])
    codes[i] /= codes[i].sum()
  codes = np.array([codes[order[i][:k2]].mean(axis=0) for i in range(count)])
  jaccard = np.zeros((count, count))
  for i in range(count):
    least = np.minimum(codes[i], codes).sum(axis=1)
    most = np.maximum(codes[i], codes).sum(axis=1)
    jaccard[i] = 1 - least / most
  return (1 - lambda_value) * jaccard + lambda_value * distance


def check(lists, distances, k):
  order = np.argsort(distances, axis=1, kind='stable')[:, :k]
  expected = 1 - np.take_along_axis(distances, order, axis=1)
  np.testing.assert_allclose(lists.scores, expected, atol=1e-5)
  # The order, unless scores are equal up to rounding.
  found = 1 - np.take_along_axis(distances, lists.indices, axis=1)
  np.testing.assert_allclose(found, expected, atol=1e-5)
  assert (lists.indices == order).mean() > 0.95


@pytest.mark.parametrize('k1, k2', [(20, 6), (5, 1), (6, 3)])
@pytest.mark.parametrize('budget_mb', [0.01, 128])
def test_query_and_gallery(draw, unit, k1, k2, budget_mb):
  gallery, _ = draw(70)
  queries, _ = draw(12, seed=1)
  nodes = unit(np.concatenate([queries, gallery]))
  distances = dense_distances(nodes, k1, k2, 0.3)[:12, 12:]
  lists = neighbors.k_reciprocal_reranking(
    queries, gallery, 70, k1=k1, k2=k2, memory_budget_mb=budget_mb
  )
  check(lists, distances, 70)
  shorter = neighbors.k_reciprocal_reranking(
    queries, gallery, 9, k1=k1, k2=k2, memory_budget_mb=budget_mb
  )
  np.testing.assert_array_equal(shorter.indices, lists.indices[:, :9])


def test_queries_are_the_gallery(draw, unit):
  x, _ = draw(60)
  distances = dense_distances(unit(x), 8, 4, 0.2)
  np.fill_diagonal(distances, np.inf)
  lists = neighbors.k_reciprocal_reranking(
    x, x, 30, k1=8, k2=4, lambda_value=0.2, exclude_self=True
  )
  check(lists, distances, 30)
  assert not (lists.indices == np.arange(60)[:, None]).any()


def test_only_the_distance_is_the_search(draw):
  gallery, _ = draw(50)
  queries, _ = draw(7, seed=1)
  lists = neighbors.k_reciprocal_reranking(
    queries, gallery, 50, k1=5, lambda_value=1.0
  )
  expected = neighbors.top_k(queries, gallery, 50)[1]
  np.testing.assert_array_equal(lists.indices, expected)


@pytest.mark.parametrize('is_one_set', [False, True])
def test_without_the_distance_what_shares_nothing_is_in_search_order(
  draw, unit, is_one_set
):
  gallery, _ = draw(50)
  queries = gallery if is_one_set else draw(7, seed=1)[0]
  options = {'k1': 3, 'k2': 1, 'lambda_value': 0.0, 'exclude_self': is_one_set}
  longest = len(gallery) - is_one_set
  lists = neighbors.k_reciprocal_reranking(queries, gallery, longest, **options)
  nodes = gallery if is_one_set else np.concatenate([queries, gallery])
  scores = 1 - dense_distances(unit(nodes), 3, 1, 0.0)
  scores = scores[: len(queries), -len(gallery) :]
  searched = neighbors.top_k(
    queries, gallery, longest, exclude_self=is_one_set
  )[1]
  for i, ranked in enumerate(lists.indices):
    apart = [j for j in searched[i] if scores[i, j] < 1e-9]
    assert 30 < len(apart) and sorted(ranked) == sorted(searched[i])
    assert ranked[-len(apart) :].tolist() == apart
  for k in (1, 4, 10):
    shorter = neighbors.k_reciprocal_reranking(queries, gallery, k, **options)
    np.testing.assert_array_equal(shorter.indices, lists.indices[:, :k])
    np.testing.assert_array_equal(shorter.scores, lists.scores[:, :k])


def test_equal_rows():
  x = np.ones((9, 3), np.float32)
  lists = neighbors.k_reciprocal_reranking(
    x, x, 3, k1=4, k2=3, exclude_self=True
  )
  assert lists.indices[0].tolist() == [1, 2, 3]
  assert np.isfinite(lists.scores).all()


@pytest.mark.parametrize(
  'options, words',
  [
    ({'k1': 10}, r'k_reciprocal.k1 is 10; allowed is at most 9'),
    ({'k1': 3, 'k2': 5}, r'k2 is 5; allowed is at most 4, k1 and the row'),
    ({'lambda_value': 1.5}, 'lambda_value is 1.5.*at most 1'),
    ({'k': 10}, 'from 1 to 9'),
  ],
)
def test_bad_input(draw, options, words):
  x, _ = draw(10)
  options = {'k': 5, 'k1': 5} | options
  with pytest.raises(InputError, match=words):
    neighbors.k_reciprocal_reranking(x, x, exclude_self=True, **options)
