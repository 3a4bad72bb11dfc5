"""Whitening against its definition, pairs enumerated, in float64."""

import numpy as np
import pytest

from retrieval_jax import neighbors
from retrieval_jax.core.errors import InputError
from retrieval_jax.neighbors import whitening


@pytest.mark.parametrize('budget_mb', [1e-3, 128])
def test_pca_gives_unit_variance_and_no_correlation(draw, unit, budget_mb):
  x, _ = draw(200)
  fitted = neighbors.fit_pca_whitening(x, memory_budget_mb=budget_mb)
  rows = (unit(x) - fitted.mean) @ fitted.projection
  covariance = rows.T @ rows / len(rows)
  np.testing.assert_allclose(covariance, np.eye(8), atol=1e-6)
  found = neighbors.apply_whitening(fitted, x, memory_budget_mb=budget_mb)
  np.testing.assert_allclose(found, unit(rows), atol=1e-5)


def test_power_and_dimension(draw, unit):
  x, _ = draw(200)
  variances = np.linalg.eigvalsh(np.cov(unit(x).T, bias=True))[::-1]
  for power in (0.0, 0.25):
    fitted = neighbors.fit_pca_whitening(x, dim=3, power=power)
    rows = (unit(x) - fitted.mean) @ fitted.projection
    np.testing.assert_allclose(
      rows.var(axis=0), variances[:3] ** (1 - 2 * power), rtol=1e-5
    )


@pytest.mark.parametrize('budget_mb', [1e-3, 128])
def test_learned_equals_all_pairs(draw, unit, budget_mb):
  x, labels = draw(90, noise=1.0)
  labels[labels == 5] = np.arange((labels == 5).sum()) + 10  # Lone rows.
  rows = unit(x)
  pairs = [
    (i, j) for i in range(len(x)) for j in range(i) if labels[i] == labels[j]
  ]
  differences = np.array([rows[i] - rows[j] for i, j in pairs])
  within = differences.T @ differences / len(pairs)
  found = whitening._pair_covariance(x, labels, int(budget_mb * 2**20))
  np.testing.assert_allclose(found, within, atol=1e-7)
  within += 1e-6 * np.trace(within) / 8 * np.eye(8)
  inverse = np.linalg.inv(np.linalg.cholesky(within))
  projected = (rows - rows.mean(axis=0)) @ inverse.T
  _, vectors = np.linalg.eigh(projected.T @ projected)
  expected = unit(projected @ vectors[:, ::-1][:, :5])
  fitted = neighbors.fit_learned_whitening(
    x, labels, dim=5, memory_budget_mb=budget_mb
  )
  found = neighbors.apply_whitening(fitted, x)
  # The sign of a component is free.
  np.testing.assert_allclose(found @ found.T, expected @ expected.T, atol=1e-5)


def test_dead_and_constant_directions_fall_away(draw):
  x, labels = draw(100)
  x = np.concatenate([x, np.zeros((100, 2), np.float32)], axis=1)
  for fitted in (
    neighbors.fit_pca_whitening(x),
    neighbors.fit_learned_whitening(x, labels),
  ):
    assert fitted.projection.shape == (10, 8)
    assert np.isfinite(neighbors.apply_whitening(fitted, x)).all()


def test_equal_rows_stay_equal(draw):
  x, _ = draw(100, dim=30)
  x[97] = x[2]
  whitened = neighbors.apply_whitening(
    neighbors.fit_pca_whitening(x), x, memory_budget_mb=0.02
  )
  np.testing.assert_array_equal(whitened[97], whitened[2])


def test_bad_input(draw):
  x, labels = draw(20)
  with pytest.raises(InputError, match=r'whitening.dim is 9; .* at most 8'):
    neighbors.fit_pca_whitening(x, dim=9)
  with pytest.raises(InputError, match='all alike'):
    neighbors.fit_pca_whitening(np.ones((5, 3)))
  with pytest.raises(InputError, match='matching pair'):
    neighbors.fit_learned_whitening(x, np.arange(20))
  with pytest.raises(InputError, match='labels have 19 rows'):
    neighbors.fit_learned_whitening(x, labels[1:])
  with pytest.raises(InputError, match='7 columns .* fitted on 8'):
    neighbors.apply_whitening(neighbors.fit_pca_whitening(x), x[:, :7])
