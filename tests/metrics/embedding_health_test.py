"""Spectra by a decomposition of the whole matrix, occurrences by a loop."""

import jax
import numpy as np
import pytest

from retrieval_jax.metrics import embedding_health, pairs


def _rows(size=300, dim=7, seed=0):
  rng = np.random.default_rng(seed)
  x = rng.normal(size=(size, dim)) * np.geomspace(1, 0.01, dim) + 0.2
  return x.astype(np.float32)


@pytest.mark.parametrize('size', (5, 1500))
def test_spectrum_is_that_of_the_matrix(size):
  x = _rows(size)
  unit = x.astype(float) / np.linalg.norm(x.astype(float), axis=1)[:, None]
  found = embedding_health.spectrum(x)
  singular = np.zeros(7)
  values = np.linalg.svd(unit, compute_uv=False)
  singular[: len(values)] = values
  np.testing.assert_allclose(
    found.second_moments, singular**2 / size, atol=1e-7
  )
  variances = np.linalg.eigvalsh(np.cov(unit.T, bias=True))[::-1]
  np.testing.assert_allclose(found.variances, variances, atol=1e-7)
  shares = singular[singular > 1e-6] / singular.sum()
  assert embedding_health.effective_rank(
    np.sqrt(found.second_moments)
  ) == pytest.approx(np.exp(-(shares * np.log(shares)).sum()), abs=1e-4)


def test_effective_rank_counts_directions_in_equal_use():
  x = np.eye(6)[[0, 1, 2, 0, 1, 2]] * 5
  found = embedding_health.spectrum(x)
  rank = embedding_health.effective_rank
  assert rank(np.sqrt(found.second_moments)) == pytest.approx(3)
  assert rank(found.variances) == pytest.approx(2)
  collapsed = embedding_health.spectrum(np.ones((9, 6)))
  assert rank(np.sqrt(collapsed.second_moments)) == pytest.approx(1)
  with pytest.raises(pairs.UndefinedError, match='do not vary'):
    rank(collapsed.variances)
  with pytest.raises(pairs.UndefinedError, match='do not vary'):
    embedding_health.component_share(collapsed.variances, 0.5)


@pytest.mark.parametrize('share', (0.1, 0.5, 0.9, 1.0))
def test_component_share_by_a_loop(share):
  variances = embedding_health.spectrum(_rows()).variances
  number, held = 0, 0.0
  while held < share * variances.sum() * (1 - 1e-12):
    held += variances[number]
    number += 1
  assert embedding_health.component_share(variances, share) == number / 7


def _loop_occurrences(task, k):
  """Rows that tie for the last places share them."""
  unit = [
    x.astype(float) / np.linalg.norm(x.astype(float), axis=1)[:, None]
    for x in (task.queries, task.gallery)
  ]
  found = np.zeros(len(task.gallery))
  for i, query in enumerate(unit[0]):
    similarities = (unit[1] @ query).round(5)
    if task.self_excluded:
      similarities[i] = -np.inf
    last = np.sort(similarities)[::-1][k - 1]
    above, tied = similarities > last, similarities == last
    found += above + tied * (k - above.sum()) / tied.sum()
  return found


@pytest.mark.parametrize('self_excluded', (True, False))
@pytest.mark.parametrize('k', (1, 3, 10))
def test_occurrences_equal_a_loop(k, self_excluded, monkeypatch):
  x = _rows(200, seed=1)
  x[50:90] = x[np.random.default_rng(0).integers(0, 3, 40)]  # Many ties.
  y = np.zeros(len(x), int)
  gallery = x if self_excluded else x[:130]
  task = pairs.Task(x, y, gallery, y[: len(gallery)], self_excluded)
  expected = _loop_occurrences(task, k)
  for tile_rows, num_devices in ((4096, 4), (64, 1)):
    monkeypatch.setattr('retrieval_jax.core.tiles.TILE_ROWS', tile_rows)
    devices = tuple(jax.local_devices()[:num_devices])
    found = embedding_health.k_occurrences(task._replace(devices=devices), k)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert found.sum() == pytest.approx(k * len(x), rel=1e-6)
  centred = expected - expected.mean()
  skewness = (centred**3).mean() / (centred**2).mean() ** 1.5
  assert embedding_health.hubness(found) == pytest.approx(skewness, rel=1e-3)
  assert embedding_health.antihub_share(found) == (expected == 0).mean()


def test_collapsed_embeddings_have_no_hubs():
  x, y = np.ones((30, 4)), np.zeros(30, int)
  found = embedding_health.k_occurrences(pairs.Task(x, y, x, y, True))
  np.testing.assert_allclose(found, 10, rtol=1e-5)
  assert embedding_health.hubness(found) == 0
  assert embedding_health.antihub_share(found) == 0


def test_more_places_than_candidates_are_all_of_them():
  x, y = np.eye(4)[:, :2], np.zeros(4, int)
  found = embedding_health.k_occurrences(pairs.Task(x, y, x, y, True), k=10)
  assert found.tolist() == [3.0] * 4
  one = pairs.Task(x[:1], y[:1], x[:1], y[:1], True)
  assert embedding_health.k_occurrences(one).tolist() == [0.0]
