"""Each pooling equals a loop in float64, and has finite gradients."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from retrieval_jax import models
from retrieval_jax.core.errors import InputError
from retrieval_jax.models import pooling
from retrieval_jax.models.dolg import DOLG, orthogonal_component
from retrieval_jax.models.features import Features

_EPS = 1e-6


def random_maps(*shape, seed=0):
  """Maps of both signs, half of the entries zero as behind a ReLU."""
  values = np.random.default_rng(seed).normal(size=shape)
  values[..., ::2] = np.maximum(values[..., ::2], 0)
  return values.astype(np.float32)


@functools.partial(jax.jit, static_argnums=0)
def pool(module, x, params=None, token=None):
  # Compiled whole: operation by operation takes ten times as long.
  variables = {'params': params} if params else {}
  return module.apply(variables, Features((x,), token), False)


def gem_loop(x, p):
  """The generalised mean of [B, h, w, F], entry by entry."""
  batch, height, width, channels = x.shape
  found = np.zeros((batch, channels))
  for b, c in np.ndindex(batch, channels):
    total = 0.0
    for i, j in np.ndindex(height, width):
      total += max(float(x[b, i, j, c]), _EPS) ** p
    found[b, c] = (total / (height * width)) ** (1 / p)
  return found


def regional_loop(x, p, size):
  batch, height, width, channels = x.shape
  border = (size - 1) // 2

  def reflected(i, length):
    if length == 1:
      return 0
    i = abs(i) % (2 * (length - 1))
    return min(i, 2 * (length - 1) - i)

  found = np.zeros(x.shape)
  for b, i, j, c in np.ndindex(x.shape):
    total = 0.0
    offsets = range(-border, border + 1)
    for di, dj in itertools.product(offsets, offsets):
      value = x[b, reflected(i + di, height), reflected(j + dj, width), c]
      total += max(float(value), _EPS) ** p
    found[b, i, j, c] = (total / size**2) ** (1 / p)
  return found


def rmac_loop(x, regions):
  found = np.zeros((x.shape[0], x.shape[-1]))
  for b in range(len(x)):
    for i, j, height, width in regions:
      part = x[b, i : i + height, j : j + width].astype(np.float64)
      largest = part.reshape(-1, x.shape[-1]).max(axis=0)
      found[b] += largest / np.linalg.norm(largest)
  return found


class TestAgainstLoops:
  x = random_maps(2, 5, 4, 6)

  def test_average_max_and_their_sum(self):
    mean, largest = np.zeros((2, 6)), np.full((2, 6), -np.inf)
    for b, i, j, c in np.ndindex(self.x.shape):
      mean[b, c] += self.x[b, i, j, c] / 20
      largest[b, c] = max(largest[b, c], self.x[b, i, j, c])
    for module, expected in (
      (pooling.Average(), mean),
      (pooling.Max(), largest),
      (pooling.AverageMax(), mean + largest),
    ):
      np.testing.assert_allclose(pool(module, self.x), expected, atol=1e-6)

  def test_flatten_is_row_by_row(self):
    flat = pool(pooling.Flatten(), self.x)
    np.testing.assert_array_equal(flat[1, 6 * (4 * 3 + 2)], self.x[1, 3, 2, 0])
    assert flat.shape == (2, 120)

  @pytest.mark.parametrize('p', [1.0, 3.0, 10.0])
  def test_gem(self, p):
    found = pool(pooling.GeM(), self.x, {'p': np.float32(p)})
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, gem_loop(self.x, p), rtol=1e-5)
    fixed = pool(pooling.GeM(p=p, learn_p=False), self.x)
    np.testing.assert_allclose(fixed, found, rtol=1e-6)

  def test_the_power_stays_in_bounds(self):
    for p, bound in ((-2.0, 1.0), (0.5, 1.0), (40.0, 10.0)):
      found = pool(pooling.GeM(), self.x, {'p': np.float32(p)})
      np.testing.assert_allclose(found, gem_loop(self.x, bound), rtol=1e-5)

  @pytest.mark.parametrize('shape', [(1, 5, 7, 3), (1, 2, 1, 2)])
  def test_regional_gem(self, shape):
    x = random_maps(*shape, seed=1)
    module = pooling.RegionalGeM(p=4.6, learn_p=False)
    mixed = (x.astype(np.float64) + regional_loop(x, 2.5, 5)) / 2
    np.testing.assert_allclose(pool(module, x), gem_loop(mixed, 4.6), rtol=1e-5)

  @pytest.mark.parametrize('size', [(4, 4), (3, 7), (7, 3), (1, 1)])
  def test_rmac(self, size):
    x = np.abs(random_maps(2, *size, 3, seed=2)) + 0.1
    regions = [(0, 0, *size), *pooling.rmac_regions(*size, 3)]
    np.testing.assert_allclose(
      pool(pooling.RMAC(), x), rmac_loop(x, regions), rtol=1e-5
    )

  def test_attention(self):
    module = pooling.Attention(num_heads=2, mlp_ratio=2)
    x = random_maps(2, 3, 2, 4, seed=3)
    features = Features((jnp.asarray(x),))
    found, variables = jax.jit(
      functools.partial(module.init_with_output, train=False)
    )(jax.random.key(0), features)
    params = jax.tree.map(lambda a: np.asarray(a, np.float64), variables)
    np.testing.assert_allclose(
      found, attention_loop(x, params['params'], 2), atol=1e-5
    )

  def test_class_token(self):
    token = np.arange(12, dtype=np.float32).reshape(2, 6)
    np.testing.assert_array_equal(
      pool(pooling.ClassToken(), self.x, token=token), token
    )


def attention_loop(x, params, heads):
  """The attention pooling of [B, h, w, F] in float64."""
  size = x.shape[-1] // heads
  weights = params['attention']
  found = []
  for places in x.reshape(len(x), -1, x.shape[-1]).astype(np.float64):
    y = weights['out']['bias'].copy()
    for head in range(heads):

      def project(name, vector, head=head):
        part = weights[name]
        return vector @ part['kernel'][:, head] + part['bias'][head]

      query = project('query', params['query'][0])
      scores = [query @ project('key', place) for place in places]
      scores = np.exp(np.array(scores) / math.sqrt(size))
      values = [project('value', place) for place in places]
      value = sum(s * v for s, v in zip(scores, values, strict=True))
      y += value / scores.sum() @ weights['out']['kernel'][head]
    z = (y - y.mean()) / math.sqrt(y.var() + 1e-6)
    z = z * params['norm']['scale'] + params['norm']['bias']
    z = z @ params['hidden']['kernel'] + params['hidden']['bias']
    z = 0.5 * z * (1 + np.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)))
    found.append(y + z @ params['out']['kernel'] + params['out']['bias'])
  return np.stack(found)


class TestRegions:
  def test_those_of_the_source(self):
    # cirtorch's rmac(x, L=3) on maps of 24 x 32, worked through by hand: along
    # the longer side one more region, since (24 - 8) / 24 = 0.67 is nearest.
    regions = pooling.rmac_regions(24, 32, 3)
    assert len(regions) == 1 * 2 + 2 * 3 + 3 * 4
    assert regions[:2] == [(0, 0, 24, 24), (0, 8, 24, 24)]
    assert regions[2:8] == [
      (row, column, 16, 16) for row in (0, 8) for column in (0, 8, 16)
    ]

  def test_all_lie_in_the_map(self):
    for height, width in itertools.product(range(1, 12), repeat=2):
      for i, j, h, w in pooling.rmac_regions(height, width, 4):
        assert 0 <= i <= i + h <= height
        assert 0 <= j <= j + w <= width


@functools.partial(jax.jit, static_argnums=0)
def total_and_gradients(module, x, p=None):
  """Returns the sum of what is pooled, and its gradients by x and the power."""

  def total(x, p):
    return pool(module, x, None if p is None else {'p': p}).sum()

  return jax.value_and_grad(total, argnums=(0, 1))(x, p)


@pytest.mark.parametrize('value', [0.0, -1.0, _EPS, 1e6])
@pytest.mark.parametrize('p', [1.0, 3.0, 10.0])
def test_gradients_of_flat_maps_are_finite(p, value):
  x, p = np.full((2, 3, 3, 2), value, np.float32), np.float32(p)
  for module in (pooling.GeM(), pooling.RegionalGeM(region_p=5.0)):
    found, gradients = total_and_gradients(module, x, p)
    np.testing.assert_allclose(found, 4 * max(value, _EPS), rtol=0.5)
    for leaf in gradients:
      assert np.isfinite(leaf).all()
  for module in (pooling.RMAC(), pooling.AverageMax()):
    _, (gradient, _) = total_and_gradients(module, x)
    assert np.isfinite(gradient).all()


def test_gradients_of_the_power_by_differences():
  x = random_maps(2, 3, 3, 2)
  x[0, 0, 0] = 1e4  # Its tenth power overflows float32.
  for p in (1.5, 9.5):
    _, (_, gradient) = total_and_gradients(pooling.GeM(), x, np.float32(p))
    difference = (gem_loop(x, p + 1e-4) - gem_loop(x, p - 1e-4)).sum() / 2e-4
    np.testing.assert_allclose(gradient, difference, rtol=1e-3)


def test_bfloat16_maps_are_pooled_in_float32():
  x = np.ones((1, 64, 64, 1), jnp.bfloat16)
  x[0, 0, 0, 0] = 2.0
  expected = gem_loop(np.asarray(x, np.float32), 3.0)
  found = pool(pooling.GeM(learn_p=False), x)
  np.testing.assert_allclose(found, expected, rtol=1e-6)
  assert np.asarray(found)[0, 0] > 1


class TestOrthogonality:
  component = staticmethod(
    jax.jit(orthogonal_component, static_argnames='true_projection')
  )

  def test_equals_a_loop(self):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3, 5)).astype(np.float32)
    g = 3 * rng.normal(size=(3, 5)).astype(np.float32)
    true, once = (
      np.asarray(self.component(x, g, true_projection=projection), np.float64)
      for projection in (True, False)
    )
    for b in range(3):
      direction = g[b].astype(np.float64) / np.linalg.norm(g[b].astype(float))
      expected = x[b] - (x[b] @ direction) * direction
      np.testing.assert_allclose(true[b], expected, atol=1e-5)
      assert abs(true[b] @ direction) < 1e-5
      assert abs(once[b] @ direction) > 1e-2

  def test_the_two_agree_on_unit_directions(self):
    g = np.array([[0.6, 0.8, 0.0]], np.float32)
    x = np.array([[1.0, -2.0, 3.0]], np.float32)
    np.testing.assert_allclose(
      self.component(x, g),
      self.component(x, g, true_projection=False),
      rtol=1e-5,
    )


def convolve(x, kernel, bias=0.0, dilation=1):
  """A convolution of [h, w, C] with zero padding, place by place."""
  height, width, _ = x.shape
  reach = kernel.shape[0] // 2
  found = np.zeros((height, width, kernel.shape[-1]))
  for i, j in np.ndindex(height, width):
    for di, dj in itertools.product(range(-reach, reach + 1), repeat=2):
      row, column = i + dilation * di, j + dilation * dj
      if 0 <= row < height and 0 <= column < width:
        found[i, j] += x[row, column] @ kernel[di + reach, dj + reach]
  return found + bias


@pytest.mark.parametrize('true_projection', [True, False])
def test_dolg_equals_a_loop_that_projects_at_each_place(true_projection):
  module = DOLG(
    features=4,
    branch_features=3,
    dilations=(1, 2),
    true_projection=true_projection,
  )
  c4, c5 = random_maps(1, 5, 4, 3), random_maps(1, 2, 2, 5, seed=1)
  features = Features((jnp.asarray(c4), jnp.asarray(c5)))
  found, variables = jax.jit(
    functools.partial(module.init_with_output, train=False)
  )(jax.random.key(0), features)
  assert found.shape == (1, 8)
  assert found.dtype == jnp.float32
  params = jax.tree.map(
    lambda a: np.asarray(a, np.float64), variables['params']
  )
  c4, c5 = c4[0].astype(np.float64), c5[0].astype(np.float64)
  unit_variance = math.sqrt(1 + 1e-5)  # Of the fresh running statistics.
  branches = [
    convolve(c4, **params[f'atrous_{index}'], dilation=dilation)
    for index, dilation in enumerate((1, 2))
  ]
  a = np.maximum(
    convolve(np.concatenate(branches, axis=-1), **params['local_conv']), 0
  )
  b = convolve(a, **params['attention_conv']) / unit_variance
  scores = convolve(np.maximum(b, 0), **params['attention'])
  local = b / np.linalg.norm(b, axis=-1, keepdims=True)
  local = local * np.log1p(np.exp(scores))
  x = convolve(c5, **params['global_conv']) / unit_variance
  g = gem_loop((x / (1 + np.exp(-x)))[None], 3.0)[0]
  orthogonal = np.zeros(4)
  for i, j in np.ndindex(5, 4):
    norm = np.linalg.norm(g) ** (2 if true_projection else 1)
    orthogonal += (local[i, j] - local[i, j] @ g / norm * g) / 20
  np.testing.assert_allclose(
    found[0], np.concatenate([orthogonal, g]), rtol=1e-4, atol=1e-5
  )
  if true_projection:
    first, second = np.split(np.asarray(found[0], np.float64), 2)
    cosine = first @ second / np.linalg.norm(first) / np.linalg.norm(second)
    assert abs(cosine) < 1e-5


@pytest.mark.parametrize(
  'module, words',
  [
    (pooling.ClassToken(), 'model.pooling'),
    (DOLG(), 'takes the last two maps'),
    (pooling.Attention(num_heads=5), 'num_heads is 5; allowed is a divisor'),
  ],
)
def test_what_a_backbone_does_not_give(module, words):
  features = Features((np.zeros((1, 2, 2, 4), np.float32),))
  with pytest.raises(InputError, match=words):
    module.init(jax.random.key(0), features, False)


def test_every_pooling_has_options_of_its_module():
  for row in models.POOLINGS.values():
    assert set(row.options) <= set(row.module.__dataclass_fields__)
