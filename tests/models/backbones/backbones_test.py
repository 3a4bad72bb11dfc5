import functools

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized
from flax import linen as nn

from retrieval_jax.core.errors import InputError
from retrieval_jax.models.backbones import common, efficientnet, mobilenet
from retrieval_jax.models.backbones.convnext import ConvNeXt
from retrieval_jax.models.backbones.efficientnet import EfficientNet, Stage
from retrieval_jax.models.backbones.resnet import ResNet

# Small ones, with a block of each kind.
RESNET = functools.partial(ResNet, depths=(1, 1, 1, 2), bottleneck=False)
EFFICIENTNET = functools.partial(
  EfficientNet,
  stages=(
    Stage(1, 3, 1, 1, 8, fused=True),
    Stage(1, 3, 2, 2, 8, fused=True),
    Stage(1, 3, 2, 1, 8, 0.25),
    Stage(1, 3, 2, 2, 8),
    Stage(2, 3, 2, 2, 16, 0.25),
  ),
  stem_features=8,
  head_features=24,
)
CONVNEXT = functools.partial(
  ConvNeXt, depths=(1, 1, 1, 2), widths=(8, 8, 16, 16)
)
# Enough for what is costly to compile.
TINY = functools.partial(
  EfficientNet,
  stages=(Stage(2, 3, 2, 1, 8), Stage(1, 3, 2, 2, 8, 0.25)),
  stem_features=8,
  head_features=8,
)
SMALL = {'resnet': RESNET, 'efficientnet': EFFICIENTNET, 'convnext': CONVNEXT}
ALL = SMALL | {'tiny': TINY}
WITH_BATCH_NORM = ('resnet', 'efficientnet')


def random_images(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@functools.cache
def half_shapes(name):
  """Returns shapes and dtypes of a small backbone's variables in bfloat16."""
  return jax.eval_shape(
    functools.partial(ALL[name](dtype=jnp.bfloat16).init, train=False),
    jax.random.key(0),
    np.zeros((1, 32, 32, 3), np.float32),
  )


@functools.cache
def variables_of(name):
  """Returns variables of a small backbone in which nothing is 0 or 1."""
  flat = flax.traverse_util.flatten_dict(half_shapes(name))
  generator = np.random.default_rng(0)
  for path, leaf in flat.items():
    uniform = generator.uniform(size=leaf.shape).astype(np.float32)
    if len(leaf.shape) > 1:
      bound = np.sqrt(3 / np.prod(leaf.shape[:-1]))
      flat[path] = (2 * uniform - 1) * bound.astype(np.float32)
    else:
      low = 0.5 if path[-1] in ('scale', 'var') else -0.5
      flat[path] = low + uniform
  return flax.traverse_util.unflatten_dict(flat)


@functools.partial(jax.jit, static_argnums=(0, 3))
def _apply(module, variables, images, train, seed):
  features, updates = module.apply(
    variables,
    images,
    train=train,
    mutable=['batch_stats'],
    rngs={'dropout': jax.random.key(seed)},
  )
  return features.maps, updates


def apply(module, variables, images, train=False, seed=0):
  """Returns the maps, and what became of the statistics, as NumPy's arrays."""
  return jax.device_get(_apply(module, variables, images, train, seed))


@functools.partial(jax.jit, static_argnums=0)
def gradients_and_updates(module, variables, images, weights):
  """Returns the gradient of a function of the maps, and new statistics."""

  def loss(params):
    features, updates = module.apply(
      {**variables, 'params': params},
      images,
      train=True,
      mutable=['batch_stats'],
      rngs={'dropout': jax.random.key(0)},
    )
    terms = [jnp.sum(weights * jnp.tanh(x)) for x in features.maps]
    return sum(terms), updates

  return jax.grad(loss, has_aux=True)(variables['params'])


def shapes_of(module, *shape):
  features, _ = jax.eval_shape(
    functools.partial(module.init_with_output, train=False),
    jax.random.key(0),
    jax.ShapeDtypeStruct(shape, jnp.float32),
  )
  return [x.shape for x in features.maps]


class BackbonesTest(parameterized.TestCase):
  @parameterized.parameters(
    ('resnet', {}, [(1, 4, 5, 256), (1, 2, 3, 512)]),
    ('resnet', {'last_stage_stride': 1}, [(1, 4, 5, 256), (1, 4, 5, 512)]),
    ('efficientnet', {}, [(1, 4, 5, 8), (1, 2, 3, 24)]),
    (
      'efficientnet',
      {'stem_stride': 1, 'last_stage_stride': 1},
      [(1, 8, 10, 8), (1, 8, 10, 24)],
    ),
    ('convnext', {}, [(1, 4, 4, 16), (1, 2, 2, 16)]),
    ('convnext', {'last_stage_stride': 1}, [(1, 4, 4, 16), (1, 4, 4, 16)]),
  )
  def test_strides(self, name, options, shapes):
    module = SMALL[name](**options)
    self.assertEqual(shapes_of(module, 1, 64, 79, 3), shapes)

  @parameterized.parameters(*SMALL)
  def test_images_that_are_too_small_are_refused(self, name):
    self.assertEqual(shapes_of(SMALL[name](), 1, 32, 32, 1)[1][1:3], (1, 1))
    for shape in ((1, 31, 64, 3), (1, 64, 16, 3), (64, 64, 3)):
      with self.assertRaisesRegex(InputError, 'at least 32, the stride'):
        shapes_of(SMALL[name](), *shape)
    half = SMALL[name](last_stage_stride=1)
    self.assertEqual(shapes_of(half, 1, 16, 16, 3)[1][1:3], (1, 1))

  @parameterized.parameters(*SMALL)
  def test_bfloat16_is_near_float32_whose_parameters_it_has(self, name):
    images, variables = random_images(4, 32, 32, 3), variables_of(name)
    maps, _ = apply(SMALL[name](), variables, images)
    halves, _ = apply(SMALL[name](dtype=jnp.bfloat16), variables, images)
    for whole, half in zip(maps, halves, strict=True):
      self.assertEqual(half.dtype, jnp.bfloat16)
      error = np.abs(np.asarray(half, np.float32) - np.asarray(whole))
      self.assertLess(error.mean(), 0.05 * np.std(whole))
    for leaf in jax.tree.leaves(half_shapes(name)):
      self.assertEqual(leaf.dtype, jnp.float32)

  def test_rematerialised_blocks_give_the_same_gradients(self):
    self.check_remat('tiny')

  @parameterized.parameters('resnet', 'convnext')
  @pytest.mark.slow
  def test_rematerialised_blocks_of_all_give_the_same_gradients(self, name):
    self.check_remat(name)

  def check_remat(self, name):
    images, variables = random_images(4, 32, 32, 3), variables_of(name)
    weights = random_images(4, 1, 1, 1, seed=1)
    kept, again = (
      gradients_and_updates(
        ALL[name](remat=remat, stochastic_depth=0.2),
        variables,
        images,
        weights,
      )
      for remat in (False, True)
    )
    self.assertEqual(jax.tree.structure(kept), jax.tree.structure(again))
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(kept[0]))
    for a, b in zip(jax.tree.leaves(kept), jax.tree.leaves(again), strict=True):
      np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4 * largest)
    remat = ALL[name](remat=True)
    text = str(
      jax.make_jaxpr(functools.partial(remat.apply, train=False))(
        variables, images
      )
    )
    self.assertEqual(text.count('remat2['), 3 if name == 'tiny' else 5)

  @parameterized.parameters(*WITH_BATCH_NORM)
  def test_frozen_statistics_serve_in_training_too(self, name):
    images, variables = random_images(4, 32, 32, 3), variables_of(name)
    module = SMALL[name](frozen_batch_norm=True)
    expected, _ = apply(SMALL[name](), variables, images)
    maps, updates = apply(module, variables, images, train=True)
    for got, want in zip(maps, expected, strict=True):
      np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
    jax.tree.map(
      np.testing.assert_array_equal,
      updates['batch_stats'],
      variables['batch_stats'],
    )
    maps, updates = apply(SMALL[name](), variables, images, train=True)
    self.assertGreater(np.abs(maps[1] - expected[1]).max(), 0.01)
    for new, old in zip(
      jax.tree.leaves(updates['batch_stats']),
      jax.tree.leaves(variables['batch_stats']),
      strict=True,
    ):
      self.assertGreater(np.abs(new - old).max(), 1e-4)

  def test_four_devices_have_the_statistics_of_one(self):
    self.check_devices('tiny')

  @pytest.mark.slow
  def test_four_devices_have_the_statistics_of_one_in_a_resnet(self):
    self.check_devices('resnet')

  def check_devices(self, name):
    # Rows of a device differ from those of the next.
    scale = np.repeat([1, 2, 3, 4], 2).astype(np.float32)
    images = random_images(8, 32, 32, 3) * scale[:, None, None, None]
    variables = variables_of(name)
    expected, expected_updates = apply(
      ALL[name](), variables, images, train=True
    )
    module = ALL[name](axis_name='devices')
    features, updates = jax.pmap(
      functools.partial(module.apply, train=True, mutable=['batch_stats']),
      axis_name='devices',
      in_axes=(None, 0),
    )(variables, images.reshape(4, 2, 32, 32, 3))
    for got, want in zip(features.maps, expected, strict=True):
      got = np.asarray(got).reshape(want.shape)
      np.testing.assert_allclose(got, want, atol=2e-3 * np.std(want), rtol=1e-3)
    for got, want in zip(
      jax.tree.leaves(updates), jax.tree.leaves(expected_updates), strict=True
    ):
      for device in np.asarray(got):
        np.testing.assert_allclose(device, want, rtol=1e-3, atol=1e-4)

  @parameterized.parameters(*SMALL)
  def test_branches_are_skipped_more_often_the_deeper_they_are(self, name):
    rates = []

    def record(call, arguments, keywords, context):
      if isinstance(context.module, nn.Dropout):
        rates.append(context.module.rate)
      return call(*arguments, **keywords)

    with nn.intercept_methods(record):
      shapes_of(SMALL[name](stochastic_depth=0.4), 1, 32, 32, 3)
    # Of EfficientNet's six blocks two have an input that can be skipped to.
    want = {
      'resnet': [0, 0.1, 0.2, 0.3, 0.4],
      'efficientnet': [0, 0.4],
      'convnext': [0, 0.1, 0.2, 0.3, 0.4],
    }
    np.testing.assert_allclose(rates, want[name], atol=1e-9)

  @parameterized.parameters(*SMALL)
  def test_branches_are_skipped_in_training_only(self, name):
    images, variables = random_images(4, 32, 32, 3), variables_of(name)
    frozen = {'frozen_batch_norm': True} if name in WITH_BATCH_NORM else {}
    module = SMALL[name](stochastic_depth=0.5, **frozen)
    # Without a key: nothing is drawn, and the maps are those of no skipping.
    jax.eval_shape(
      functools.partial(module.apply, train=False), variables, images
    )
    rest, _ = apply(SMALL[name](), variables, images)
    one, _ = apply(module, variables, images, train=True, seed=1)
    same, _ = apply(module, variables, images, train=True, seed=1)
    other, _ = apply(module, variables, images, train=True, seed=2)
    np.testing.assert_array_equal(one[1], same[1])
    self.assertGreater(np.abs(one[1] - other[1]).max(), 1e-3)
    self.assertGreater(np.abs(one[1] - rest[1]).max(), 1e-3)

  def test_an_image_is_skipped_whole_and_the_mean_stays(self):
    class Skip(nn.Module):
      @nn.compact
      def __call__(self, x, train):
        return common.skip_images(x, 0.75, train)

    x = 1 + np.random.default_rng(0).random((4000, 2, 1, 3), np.float32)
    rngs = {'dropout': jax.random.key(0)}
    skip = jax.jit(functools.partial(Skip().apply, {}, train=True, rngs=rngs))
    y = np.asarray(skip(x))
    kept = y[:, 0, 0, 0] > 0
    np.testing.assert_allclose(y[kept], 4 * x[kept], rtol=1e-6)
    np.testing.assert_array_equal(y[~kept], 0)
    self.assertAlmostEqual(kept.mean(), 0.25, delta=0.03)
    np.testing.assert_array_equal(Skip().apply({}, x, False), x)

  def test_the_last_scale_of_a_residual_block_starts_at_zero(self):
    at_zero = {}

    def record(call, arguments, keywords, context):
      if isinstance(context.module, nn.BatchNorm):
        is_zero = context.module.scale_init is nn.initializers.zeros
        at_zero['/'.join(context.module.path)] = is_zero
      return call(*arguments, **keywords)

    with nn.intercept_methods(record):
      shapes_of(RESNET(), 1, 32, 32, 3)
    self.assertLen(at_zero, 1 + 2 * 5 + 3)
    for name, is_zero in at_zero.items():
      self.assertEqual(is_zero, name.endswith('norm_1'), name)

  @parameterized.parameters(
    ('efficientnet_b0', 16, 1280, 320),
    ('efficientnet_b4', 32, 1792, 448),
    ('efficientnet_b7', 55, 2560, 640),
    ('efficientnetv2_m', 57, 1280, 512),
    ('tf_efficientnet_lite2', 21, 1280, 352),
    ('mobilenetv2_050', 17, 1280, 160),
    ('mobilenetv2_140', 17, 1792, 448),
  )
  def test_scaling(self, name, blocks, head, last):
    options = (efficientnet.VARIANTS | mobilenet.VARIANTS)[name]
    stages = options['stages']
    self.assertEqual(sum(stage.repeats for stage in stages), blocks)
    self.assertEqual(options['head_features'], head)
    self.assertEqual(stages[-1].features, last)
