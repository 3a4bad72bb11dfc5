"""SuperGlobal re-ranking against loops in float64."""

import numpy as np
import pytest

from retrieval_jax import neighbors
from retrieval_jax.core.errors import InputError


def rerank(query, candidates, num_neighbors, beta):
  cosines = candidates @ candidates.T
  refined = []
  for i, row in enumerate(candidates):
    near = [j for j in np.argsort(-cosines[i]) if j != i][:num_neighbors]
    weights = [beta * max(cosines[i, j], 0) for j in near]
    total = row + np.array(weights) @ candidates[near]
    refined.append(total / (1 + sum(weights)))
  refined = np.array(refined)
  first = refined @ query
  best = np.argsort(-first)[: num_neighbors + 1]
  expanded = refined[best].max(axis=0)
  return (first + refined @ expanded) / 2


@pytest.mark.parametrize('exclude_self', [False, True])
@pytest.mark.parametrize('budget_mb', [0.01, 128])
def test_equals_loops(draw, unit, exclude_self, budget_mb):
  gallery, _ = draw(50)
  queries = gallery if exclude_self else draw(9, seed=1)[0]
  lists = neighbors.superglobal_reranking(
    queries,
    gallery,
    10,
    top_m=20,
    num_neighbors=3,
    beta=0.4,
    exclude_self=exclude_self,
    memory_budget_mb=budget_mb,
  )
  near = neighbors.top_k(queries, gallery, 20, exclude_self=exclude_self)[1]
  rows = unit(gallery)
  for i, query in enumerate(unit(queries)):
    scores = rerank(query, rows[near[i]], 3, 0.4)
    order = np.argsort(-scores)[:10]
    np.testing.assert_allclose(lists.scores[i], scores[order], atol=1e-5)
    np.testing.assert_array_equal(lists.indices[i], near[i][order])


@pytest.mark.parametrize('exclude_self', [False, True])
def test_the_search_goes_on_behind_the_best(draw, exclude_self):
  gallery, _ = draw(50)
  queries = gallery if exclude_self else draw(9, seed=1)[0]
  options = {'top_m': 20, 'num_neighbors': 3, 'exclude_self': exclude_self}
  k = 50 - exclude_self
  short = neighbors.superglobal_reranking(queries, gallery, 20, **options)
  whole = neighbors.superglobal_reranking(queries, gallery, k, **options)
  found = neighbors.top_k(queries, gallery, k, exclude_self=exclude_self)
  np.testing.assert_array_equal(whole.indices[:, :20], short.indices)
  np.testing.assert_array_equal(whole.scores[:, :20], short.scores)
  np.testing.assert_array_equal(whole.indices[:, 20:], found[1][:, 20:])
  np.testing.assert_allclose(
    np.diff(whole.scores[:, 19:]), np.diff(found[0][:, 19:]), atol=1e-6
  )
  assert (np.diff(whole.scores) <= 0).all()


@pytest.mark.parametrize(
  'options, words',
  [
    ({'top_m': 10}, r'superglobal.top_m is 10; allowed is at most 9'),
    ({'num_neighbors': 8}, 'num_neighbors is 8; allowed is at most 7, top_m'),
    ({'k': 10}, 'k is 10; allowed is at most 9'),
    ({'beta': float('nan')}, 'superglobal.beta is nan'),
  ],
)
def test_bad_input(draw, options, words):
  x, _ = draw(10)
  options = {'k': 5, 'top_m': 8, 'num_neighbors': 2} | options
  with pytest.raises(InputError, match=words):
    neighbors.superglobal_reranking(x, x, exclude_self=True, **options)
