"""Necks against worked values, and on several devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from retrieval_jax import models
from retrieval_jax.core.errors import InputError


def random_rows(*shape, seed=0):
  values = np.random.default_rng(seed).normal(1, 2, size=shape)
  return values.astype(np.float32)


def run(name, features, dim, train=True, axis_name=None, variables=None):
  """Returns (embeddings, variables, updated statistics)."""
  neck = models.Neck(models.NECKS[name], dim, axis_name)
  if variables is None:
    variables = neck.init(jax.random.key(0), features, False)
  embeddings, updates = neck.apply(
    variables, features, train, mutable=['batch_stats']
  )
  return embeddings, variables, updates.get('batch_stats', {})


def normalized(x, axis, eps):
  x = np.asarray(x, np.float64)
  deviation = x - x.mean(axis, keepdims=True)
  return deviation / np.sqrt(x.var(axis, keepdims=True) + eps)


@pytest.mark.parametrize('name', models.NECKS)
def test_equals_its_formula(name):
  features = random_rows(6, 4)
  embeddings, variables, _ = run(name, features, 4)
  params = variables.get('params', {})
  expected = features.astype(np.float64)
  if name == 'layer_norm_dense':
    expected = normalized(expected, 1, 1e-6)
  if 'dense' in name:
    dense = params['projection']
    expected = expected @ np.asarray(dense['kernel'], np.float64)
    assert ('bias' in dense) == ('batch_norm' not in name and 'bn' not in name)
  if 'batch_norm' in name or 'bnneck' in name:
    expected = normalized(expected, 0, 1e-5)
    # A frozen bias is none.
    assert ('bias' in params['embedding_norm']) == ('batch_norm' in name)
  if 'prelu' in name:
    expected = np.where(expected > 0, expected, 0.01 * expected)
  assert embeddings.dtype == jnp.float32
  np.testing.assert_allclose(embeddings, expected, atol=1e-5)


@pytest.mark.parametrize('name', ['identity', 'bnneck'])
def test_without_a_projection_the_dimension_is_that_of_the_features(name):
  words = 'model.embedding_dim is 3; allowed is 4, .*embedding_dim=4'
  with pytest.raises(InputError, match=words):
    run(name, random_rows(2, 4), 3)


def test_four_devices_have_the_statistics_of_one():
  features = random_rows(8, 4) * np.repeat([[1], [2], [3], [4]], 2, axis=0)
  expected, variables, statistics = run('bnneck', features, 4)
  split = features.reshape(4, 2, 4)
  step = functools.partial(
    run, 'bnneck', dim=4, axis_name='batch', variables=variables
  )
  found, _, several = jax.pmap(lambda rows: step(rows), 'batch')(split)
  np.testing.assert_allclose(found.reshape(8, 4), expected, atol=1e-5)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a[2], b, rtol=1e-5),
    several,
    statistics,
  )


def test_evaluation_does_not_look_at_the_batch():
  features = random_rows(5, 4)
  whole, variables, _ = run('dense_bnneck', features, 3, train=False)
  alone, _, _ = run(
    'dense_bnneck', features[:1], 3, train=False, variables=variables
  )
  np.testing.assert_allclose(whole[:1], alone, atol=1e-6)
