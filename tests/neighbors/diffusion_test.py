"""Diffusion against a dense solution in float64."""

import numpy as np
import pytest

from retrieval_jax import neighbors
from retrieval_jax.core.errors import InputError


def dense_heat(queries, gallery, kd, kq, truncation, alpha, gamma, itself):
  cosines = gallery @ gallery.T
  np.fill_diagonal(cosines, -np.inf)
  order = np.argsort(-cosines, axis=1)[:, :kd]
  count = len(gallery)
  affinities = np.zeros((count, count))
  for i in range(count):
    for j in order[i]:
      if i in order[j]:
        affinities[i, j] = max(cosines[i, j], 0) ** gamma
  degrees = affinities.sum(axis=1)
  scale = np.array([d**-0.5 if d > 0 else 0.0 for d in degrees])
  graph = scale[:, None] * affinities * scale
  results = []
  for i, query in enumerate(queries):
    near = gallery @ query
    if itself:
      near[i] = -np.inf
    candidates = np.argsort(-near, kind='stable')[:truncation]
    heat = np.zeros(truncation)
    heat[:kq] = np.maximum(near[candidates[:kq]], 0) ** gamma
    system = np.eye(truncation) - alpha * graph[np.ix_(candidates, candidates)]
    results.append((candidates, np.linalg.solve(system, heat)))
  return results


@pytest.mark.parametrize('exclude_self', [False, True])
@pytest.mark.parametrize('budget_mb', [0.01, 128])
def test_equals_a_dense_solution(draw, unit, exclude_self, budget_mb):
  gallery, _ = draw(60)
  queries = gallery if exclude_self else draw(9, seed=1)[0]
  options = {'kd': 8, 'kq': 3, 'truncation': 30, 'alpha': 0.9, 'gamma': 2.0}
  lists = neighbors.diffusion_reranking(
    queries,
    gallery,
    12,
    num_iterations=200,
    exclude_self=exclude_self,
    memory_budget_mb=budget_mb,
    **options,
  )
  expected = dense_heat(
    unit(queries), unit(gallery), itself=exclude_self, **options
  )
  for scores, indices, (candidates, heat) in zip(*lists, expected, strict=True):
    np.testing.assert_allclose(
      scores, np.sort(heat)[::-1][:12], atol=1e-4, rtol=1e-4
    )
    place = {row: i for i, row in enumerate(candidates)}
    found = [heat[place[row]] for row in indices]
    np.testing.assert_allclose(found, scores, atol=1e-4, rtol=1e-4)


def test_it_follows_a_manifold():
  # Two arcs: the far end of the query's own is further than the other's start.
  angles = np.linspace(0, 1.2, 40)
  one = np.stack([np.cos(angles), np.sin(angles), 0 * angles], axis=1)
  other = np.stack([np.cos(angles), 0 * angles, -np.sin(angles)], axis=1)
  gallery = np.concatenate([one[1:], other[12:]])
  lists = neighbors.diffusion_reranking(
    one[:1], gallery, 39, kd=4, kq=1, truncation=len(gallery)
  )
  assert (lists.indices < 39).all()
  assert (neighbors.top_k(one[:1], gallery, 39)[1] >= 39).any()


@pytest.mark.parametrize('exclude_self', [False, True])
def test_the_search_goes_on_behind_the_truncation(draw, exclude_self):
  gallery, _ = draw(60)
  queries = gallery if exclude_self else draw(9, seed=1)[0]
  options = {'kd': 8, 'kq': 3, 'truncation': 30, 'exclude_self': exclude_self}
  k = 60 - exclude_self
  short = neighbors.diffusion_reranking(queries, gallery, 30, **options)
  whole = neighbors.diffusion_reranking(queries, gallery, k, **options)
  found = neighbors.top_k(queries, gallery, k, exclude_self=exclude_self)[1]
  np.testing.assert_array_equal(whole.indices[:, :30], short.indices)
  np.testing.assert_array_equal(whole.indices[:, 30:], found[:, 30:])
  assert (np.diff(whole.scores) <= 0).all()


def test_what_is_not_reached_keeps_its_order():
  gallery = np.eye(6)[:, :6] + 0.01 * np.arange(6)[:, None] * np.eye(6)[0]
  lists = neighbors.diffusion_reranking(
    np.eye(6)[:1], gallery, 6, kd=1, kq=1, truncation=6
  )
  expected = neighbors.top_k(np.eye(6)[:1], gallery, 6)[1]
  np.testing.assert_array_equal(lists.indices, expected)


@pytest.mark.parametrize(
  'options, words',
  [
    ({'truncation': 10}, r'diffusion.truncation is 10; allowed is at most 9'),
    ({'kd': 10}, r'diffusion.kd is 10; allowed is at most 9, the other rows'),
    ({'k': 10}, 'k is 10; allowed is at most 9'),
    ({'k': 0}, 'k is 0; allowed is an integer of at least 1'),
    ({'alpha': 1.0}, 'diffusion.alpha is 1.0'),
  ],
)
def test_bad_input(draw, options, words):
  x, _ = draw(10)
  options = {'k': 5, 'kd': 4, 'kq': 2, 'truncation': 6} | options
  with pytest.raises(InputError, match=words):
    neighbors.diffusion_reranking(x, x, exclude_self=True, **options)
