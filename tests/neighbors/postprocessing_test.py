"""Chains: what is refused, and that they do their steps in order."""

import inspect
import pathlib

import numpy as np
import pytest

from retrieval_jax import neighbors
from retrieval_jax.core.errors import InputError
from retrieval_jax.training import config as config_lib

CONFIG = pathlib.Path(__file__).parents[2] / 'configs' / 'default.py'


@pytest.mark.parametrize('name', neighbors.POSTPROCESSING)
def test_the_config_has_the_defaults_of_the_functions(name):
  row = neighbors.POSTPROCESSING[name]
  defaults = {
    key: parameter.default
    for key, parameter in inspect.signature(row.function).parameters.items()
    if key in row.options
  }
  assert set(defaults) == set(row.options)
  assert config_lib.load(str(CONFIG)).eval[name].to_dict() == defaults


@pytest.mark.parametrize('name', neighbors.POSTPROCESSING)
@pytest.mark.parametrize('exclude_self', [False, True])
def test_each_alone(draw, name, exclude_self):
  gallery, _ = draw(60)
  queries = gallery if exclude_self else draw(9, seed=1)[0]
  train, train_labels = draw(50, seed=2)
  small = {
    'alpha_query_expansion': {'k': 5},
    'diffusion': {'kd': 5, 'kq': 3, 'truncation': 20},
    'superglobal': {'top_m': 20},
    'k_reciprocal': {'k1': 8},
  }
  embedded = neighbors.Embedded(
    queries, gallery, exclude_self, train, train_labels
  )
  steps = neighbors.parse_postprocessing([name], small)
  lists = neighbors.rank(steps, embedded, 10)
  assert lists.indices.shape == lists.scores.shape == (len(queries), 10)
  assert lists.indices.max() < len(gallery)
  assert lists.indices[:, 0].min() >= 0
  scores = np.where(np.isinf(lists.scores), -9, lists.scores)
  assert (np.diff(scores, axis=1) <= 0).all()
  if exclude_self:
    assert not (lists.indices == np.arange(60)[:, None]).any()
  again = neighbors.rank(steps, embedded, 10)
  np.testing.assert_array_equal(again.indices, lists.indices)


@pytest.mark.parametrize('exclude_self', [False, True])
@pytest.mark.parametrize(
  'name',
  [
    'average_query_expansion',
    'database_augmentation',
    'k_reciprocal',
    'diffusion',
    'superglobal',
    'constant_threshold',
  ],
)
def test_left_out_rows_are_taken_out_of_the_whole_ranking(
  draw, name, exclude_self
):
  gallery, _ = draw(30)
  queries = gallery if exclude_self else draw(6, seed=1)[0]
  options = {
    'average_query_expansion': {'k': 5},
    'diffusion': {'kd': 5, 'kq': 3, 'truncation': 29},
    'superglobal': {'top_m': 29},
    'k_reciprocal': {'k1': 8},
    'constant_threshold': {'threshold': 0.2},
  }
  embedded = neighbors.Embedded(queries, gallery, exclude_self)
  steps = neighbors.parse_postprocessing([name], options)
  whole = neighbors.rank(steps, embedded, 29)
  random = np.random.default_rng(0)
  left_out = [
    whole.indices[i, random.permutation(20)[: i % 5]]
    for i in range(len(queries))
  ]
  rows = np.full((len(queries), 4), -1)
  for own, out in zip(rows, left_out, strict=True):
    own[: len(out)] = out
  found = neighbors.rank(steps, embedded, 12, left_out=rows)
  for i, out in enumerate(left_out):
    kept = [
      (score, row)
      for score, row in zip(*(part[i] for part in whole), strict=True)
      if row >= 0 and row not in out
    ][:12]
    kept += [(-np.inf, -1)] * (12 - len(kept))
    assert found.indices[i].tolist() == [row for _, row in kept]
    np.testing.assert_allclose(found.scores[i], [s for s, _ in kept], rtol=1e-5)


def test_labels_bring_nothing_back_and_thresholds_see_what_is_judged(draw):
  gallery, _ = draw(40)
  queries, _ = draw(8, seed=1)
  train, train_labels = draw(50, seed=2)
  embedded = neighbors.Embedded(queries, gallery, False, train, train_labels)
  out = np.random.default_rng(0).integers(0, 40, (8, 6))
  options = {
    'adaptive_threshold': {'n_std': 3.0},
    'label_aware': {'threshold': 0.5},
  }
  steps = neighbors.parse_postprocessing(list(options), options)
  found = neighbors.rank(steps, embedded, 10, left_out=out).indices
  # Judged: the ten nearest of what remains, up to the first large gap.
  whole = neighbors.top_k(queries, gallery, 40)
  judged = neighbors.RankedLists(*np.zeros((2, 8, 10)))
  for i in range(8):
    keep = ~np.isin(whole[1][i], out[i])
    for part, values in zip(judged, whole, strict=True):
      part[i] = values[i][keep][:10]
  judged = judged._replace(indices=judged.indices.astype(int))
  judged = neighbors.adaptive_threshold(judged, n_std=3.0).indices
  of_queries, of_gallery = (
    neighbors.predict_labels(x, train, train_labels) for x in (queries, gallery)
  )
  inserted = 0
  for i, own in enumerate(judged):
    own = own[own >= 0]
    alike = of_gallery.labels == of_queries.labels[i]
    surest = of_gallery.scores + of_queries.scores[i] > 0.5
    missed = [
      j
      for j in np.argsort(-of_gallery.scores, kind='stable')
      if alike[j] and surest[j] and j not in own
    ]
    allowed = [j for j in missed if j not in out[i]]
    inserted += len(missed) - len(allowed)
    expected = [*own[alike[own]], *allowed, *own[~alike[own]]][:10]
    assert found[i][found[i] >= 0].tolist() == expected
  assert inserted  # Some of what is left out would have come in.


def test_more_left_out_than_remains(draw):
  gallery, _ = draw(5)
  out = np.array([[0, 1, 2, 3, 4], [4, -1, -1, -1, -1]])
  lists = neighbors.rank(
    (), neighbors.Embedded(gallery[:2], gallery), 3, left_out=out
  )
  assert (lists.indices[0] == -1).all()
  assert np.isinf(lists.scores[0]).all()
  assert set(lists.indices[1]) < {0, 1, 2, 3}


def test_a_chain_is_its_steps_one_after_the_other(draw):
  gallery, _ = draw(60)
  queries, _ = draw(9, seed=1)
  train, _ = draw(50, seed=2)
  options = {
    'pca_whitening': {'dim': 5},
    'alpha_query_expansion': {'k': 5},
    'k_reciprocal': {'k1': 8},
    'constant_threshold': {'threshold': 0.3},
  }
  steps = neighbors.parse_postprocessing(list(options), options)
  embedded = neighbors.Embedded(queries, gallery, train=train)
  found = neighbors.rank(steps, embedded, 9)
  fitted = neighbors.fit_pca_whitening(train, dim=5)
  queries, gallery = (
    neighbors.apply_whitening(fitted, x) for x in (queries, gallery)
  )
  queries = neighbors.alpha_query_expansion(queries, gallery, k=5)
  lists = neighbors.k_reciprocal_reranking(queries, gallery, 9, k1=8)
  lists = neighbors.constant_threshold(lists, threshold=0.3)
  np.testing.assert_array_equal(found.indices, lists.indices)
  np.testing.assert_array_equal(found.scores, lists.scores)
  assert (found.indices < 0).any()


def test_nothing_is_the_search(draw):
  x, _ = draw(30)
  lists = neighbors.rank((), neighbors.Embedded(x, x, exclude_self=True), 5)
  expected = neighbors.top_k(x, x, 5, exclude_self=True)
  np.testing.assert_array_equal(lists.indices, expected[1])


@pytest.mark.parametrize(
  'names, options, words',
  [
    (['pca_whitning'], {}, "did you mean 'pca_whitening'"),
    (['k_reciprocal', 'diffusion'], {}, 'one of them'),
    (['diffusion', 'pca_whitening'], {}, 'move it'),
    (['label_aware', 'constant_threshold'], {}, 'move it'),
    (['diffusion'], {'diffusion': {'k': 3}}, "not a hyperparameter of 'diff"),
    (['diffusion'], {'diffusion': {'kq': 2000}}, 'at most 1000, the trunc'),
    (['k_reciprocal'], {'k_reciprocal': {'k2': 30}}, 'at most 21, k1'),
  ],
)
def test_what_means_nothing_is_refused(names, options, words):
  with pytest.raises(InputError, match=words) as error:
    neighbors.parse_postprocessing(names, options)
  assert '\n' not in str(error.value)


def test_sizes_and_missing_training_images(draw):
  steps = neighbors.parse_postprocessing(['pca_whitening', 'superglobal'])
  with pytest.raises(InputError, match='eval.list_length is 50; .*at most 40'):
    neighbors.check_sizes(
      steps,
      neighbors.Sizes(found=40, list_length=50),
      list_length_key='eval.list_length',
    )
  with pytest.raises(InputError, match='eval.superglobal.top_m is 400'):
    neighbors.check_sizes(steps, neighbors.Sizes(found=40), section='eval.')
  x, _ = draw(30)
  with pytest.raises(InputError, match='train is None'):
    neighbors.rank(steps, neighbors.Embedded(x, x, exclude_self=True), 5)
