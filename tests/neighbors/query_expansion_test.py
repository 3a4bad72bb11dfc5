"""Query expansion against a loop in float64."""

import numpy as np
import pytest

from retrieval_jax import neighbors
from retrieval_jax.core.errors import InputError


def expand(queries, gallery, k, alpha, exclude_self):
  expanded = []
  for i, query in enumerate(queries):
    cosines = gallery @ query
    order = [j for j in np.argsort(-cosines) if not (exclude_self and i == j)]
    total = query.copy()
    for j in order[:k]:
      total += max(cosines[j], 0) ** alpha * gallery[j]
    expanded.append(total / np.linalg.norm(total))
  return np.array(expanded)


@pytest.mark.parametrize('exclude_self', [False, True])
@pytest.mark.parametrize('budget_mb', [1e-3, 128])
def test_equals_a_loop(draw, unit, exclude_self, budget_mb):
  gallery, _ = draw()
  queries = gallery if exclude_self else draw(15, seed=1)[0]
  rest = {'exclude_self': exclude_self, 'memory_budget_mb': budget_mb}
  found = neighbors.alpha_query_expansion(
    queries, gallery, k=7, alpha=2.5, **rest
  )
  expected = expand(unit(queries), unit(gallery), 7, 2.5, exclude_self)
  np.testing.assert_allclose(found, expected, atol=1e-6)
  assert found.dtype == np.float32
  average = neighbors.average_query_expansion(queries, gallery, k=3, **rest)
  expected = expand(unit(queries), unit(gallery), 3, 0.0, exclude_self)
  np.testing.assert_allclose(average, expected, atol=1e-6)


def test_far_rows_and_a_negative_cosine_weigh_nothing():
  query = np.array([[1.0, 0.0]])
  gallery = np.array([[-1.0, 0.1], [0.0, 1.0]])
  found = neighbors.alpha_query_expansion(query, gallery, k=2, alpha=3.0)
  np.testing.assert_allclose(found, query, atol=1e-6)


def test_database_augmentation_is_the_expansion_of_the_gallery(draw, unit):
  gallery, _ = draw()
  found = neighbors.database_augmentation(gallery, k=5, alpha=3.0)
  expected = expand(unit(gallery), unit(gallery), 5, 3.0, True)
  np.testing.assert_allclose(found, expected, atol=1e-6)


def test_it_helps_where_classes_are_noisy(draw):
  gallery, labels = draw(300, noise=1.2)
  queries, query_labels = draw(60, noise=1.2, seed=1)

  def precision(rows):
    indices = neighbors.top_k(rows, gallery, 20)[1]
    return (labels[indices] == query_labels[:, None]).mean()

  expanded = neighbors.alpha_query_expansion(queries, gallery, k=20)
  assert precision(expanded) > precision(queries)


def test_bad_input(draw):
  gallery, _ = draw(10)
  with pytest.raises(InputError, match='from 1 to 9'):
    neighbors.average_query_expansion(gallery, gallery, exclude_self=True)
  with pytest.raises(InputError, match=r'expansion.alpha is -1.*at least 0'):
    neighbors.alpha_query_expansion(gallery, gallery, k=2, alpha=-1)
  with pytest.raises(InputError, match=r'augmentation.k is 0.*at least 1'):
    neighbors.database_augmentation(gallery, k=0)
