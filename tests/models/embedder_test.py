import functools
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized

from retrieval_jax import models
from retrieval_jax.core.errors import InputError

# name, options, parameters at 28x28x1 and dimension 50
CASES = [
  ('convnet', {}, 406_322),
  ('convnet', {'normalization': 'batch'}, 406_546),
  ('convnet', {'dropout': 0.5}, 406_322),
  (
    'convnet',
    {'pooling': 'gem', 'neck': 'dense_batch_norm_prelu'},
    92_672 + 1 + 50 * 128 + 2 * 50 + 1,
  ),
  (
    'convnet',
    {
      'pooling': 'dolg',
      'dolg': {'features': 8, 'branch_features': 4, 'dilations': [1, 2]},
    },
    # Convolutions of 64 and 128 channels, BatchNorm, the power.
    92_672
    + 2 * 4 * (9 * 64 + 1)
    + 8 * 9
    + 64
    + 9
    + 8 * 128
    + 33
    + 16 * 50
    + 50,
  ),
]


def random_images(*shape, seed=0):
  values = np.random.default_rng(seed).uniform(-1, 1, size=shape)
  return values.astype(np.float32)


# With the embeddings, of which tests that need no more take these.
@functools.partial(jax.jit, static_argnums=0)
def initialise_and_embed(embedder, images):
  return embedder.init_with_output(jax.random.key(0), images, train=False)


def initialise(embedder, images):
  _, variables = initialise_and_embed(embedder, images)
  return variables


@functools.partial(jax.jit, static_argnums=0)
def embed(embedder, variables, images):
  return embedder.apply(variables, images, train=False)


@functools.partial(jax.jit, static_argnums=0)
def gradients_and_updates(embedder, variables, images, weights, seed=0):
  """Returns the gradient of mean(weights * e), and (e, new statistics)."""

  def loss(params):
    embeddings, updates = embedder.apply(
      variables | {'params': params},
      images,
      train=True,
      mutable=['batch_stats'],
      rngs={'dropout': jax.random.key(seed)},
    )
    return jnp.mean(embeddings * weights), (embeddings, updates)

  return jax.grad(loss, has_aux=True)(variables['params'])


class EmbedderTest(parameterized.TestCase):
  @parameterized.parameters(CASES)
  def test_parameter_count(self, name, options, count):
    embedder = models.build_embedder(name, 50, **options)
    variables = jax.eval_shape(
      functools.partial(embedder.init, train=False),
      jax.random.key(0),
      jnp.zeros((1, 28, 28, 1)),
    )
    leaves = jax.tree.leaves(variables['params'])
    self.assertEqual(sum(leaf.size for leaf in leaves), count)

  @parameterized.product(
    case=CASES,
    dtype_and_shape=[('float32', (12, 8, 8, 1)), ('bfloat16', (2, 13, 13, 3))],
  )
  def test_embeddings_are_float32_and_keep_their_length(
    self, case, dtype_and_shape
  ):
    (name, options, _), (dtype, shape) = case, dtype_and_shape
    embedder = models.build_embedder(name, 5, dtype=dtype, **options)
    images = random_images(*shape)
    embeddings, variables = initialise_and_embed(embedder, images)
    for leaf in jax.tree.leaves(variables):
      self.assertEqual(leaf.dtype, jnp.float32)
    self.assertEqual(embeddings.dtype, jnp.float32)
    self.assertEqual(embeddings.shape, (shape[0], 5))
    lengths = np.linalg.norm(np.asarray(embeddings), axis=-1)
    self.assertTrue((np.abs(lengths - 1) > 1e-3).all(), lengths)

  @parameterized.parameters(CASES)
  def test_gradients_reach_every_parameter(self, name, options, _):
    embedder = models.build_embedder(name, 5, **options)
    images, weights = random_images(12, 8, 8, 1), random_images(12, 5, seed=1)
    variables = initialise(embedder, images)
    gradients, _ = gradients_and_updates(embedder, variables, images, weights)
    for leaf in jax.tree.leaves(gradients):
      self.assertTrue(np.isfinite(leaf).all())
      self.assertGreater(np.abs(leaf).max(), 0)

  def test_a_row_does_not_depend_on_the_others_in_evaluation(self):
    embedder = models.build_embedder('convnet', 5, normalization='batch')
    images = random_images(12, 8, 8, 1)
    whole, variables = jax.device_get(initialise_and_embed(embedder, images))
    reverse = np.asarray(embed(embedder, variables, images[::-1].copy()))
    # Not in place: what is still computed reads the array it was given.
    others_zero = np.concatenate([images[:1], np.zeros_like(images[1:])])
    alone = np.asarray(embed(embedder, variables, others_zero))
    np.testing.assert_allclose(whole, reverse[::-1], atol=1e-6)
    np.testing.assert_allclose(whole[0], alone[0], atol=1e-6)

  def test_dropout_drops_in_training_only(self):
    embedder = models.build_embedder('convnet', 5, dropout=0.5)
    images, weights = random_images(12, 8, 8, 1), random_images(12, 5, seed=1)
    variables = initialise(embedder, images)

    def embeddings(seed):
      _, (e, _) = gradients_and_updates(
        embedder, variables, images, weights, seed
      )
      return np.asarray(e)

    np.testing.assert_array_equal(embeddings(1), embeddings(1))
    self.assertGreater(np.abs(embeddings(1) - embeddings(2)).max(), 1e-3)
    plain = models.build_embedder('convnet', 5)
    np.testing.assert_array_equal(
      embed(embedder, variables, images), embed(plain, variables, images)
    )

  def test_batch_statistics_move_towards_those_of_the_batch(self):
    embedder = models.build_embedder('convnet', 5, normalization='batch')
    images, weights = random_images(12, 8, 8, 1), random_images(12, 5, seed=1)
    variables = initialise(embedder, images)
    _, (_, updates) = gradients_and_updates(
      embedder, variables, images, weights
    )
    kernel = variables['params']['backbone']['conv_0']['kernel']

    @jax.jit
    def pool(images, kernel):
      return models.max_pool(models.conv2d(images, kernel))

    pooled = np.asarray(pool(images, kernel))
    statistics = updates['batch_stats']['backbone']['norm_0']
    np.testing.assert_allclose(
      statistics['mean'], 0.1 * pooled.mean((0, 1, 2)), rtol=1e-4, atol=1e-6
    )
    np.testing.assert_allclose(
      statistics['var'], 0.9 + 0.1 * pooled.var((0, 1, 2)), rtol=1e-4
    )

  @parameterized.parameters(
    {'normalization': 'none'},
    {'normalization': 'batch'},
    {'pooling': 'gem', 'neck': 'dense_batch_norm'},
  )
  def test_four_devices_equal_one(self, **options):
    build = functools.partial(models.build_embedder, 'convnet', 5, **options)
    # Rows of a device differ from those of the next, so that statistics of a
    # device are not those of the batch.
    scale = np.repeat([1.0, 2.0, 3.0, 4.0], 3).astype(np.float32)
    images = random_images(12, 8, 8, 1) * scale[:, None, None, None]
    weights = random_images(12, 5, seed=1)
    variables = initialise(build(), images)

    def device_step(variables, images, weights):
      gradients, auxiliary = gradients_and_updates(
        build(axis_name='batch'), variables, images, weights
      )
      return jax.lax.pmean(gradients, 'batch'), auxiliary

    def split(x):
      return x.reshape(4, 3, *x.shape[1:])

    expected_gradients, (expected_embeddings, expected_updates) = (
      gradients_and_updates(build(), variables, images, weights)
    )
    gradients, (embeddings, updates) = jax.device_get(
      jax.pmap(device_step, 'batch', in_axes=(None, 0, 0))(
        variables, split(images), split(weights)
      )
    )
    for leaf in jax.tree.leaves((gradients, updates)):
      for replica in leaf[1:]:
        np.testing.assert_array_equal(replica, leaf[0])
    gradients, updates = jax.tree.map(lambda x: x[0], (gradients, updates))
    jax.tree.map(
      lambda a, e: np.testing.assert_allclose(
        a, e, rtol=0, atol=1e-5 * np.abs(e).max()
      ),
      (gradients, updates, embeddings.reshape(12, 5)),
      (expected_gradients, expected_updates, expected_embeddings),
    )

  def test_pooling_before_the_neck_is_the_embedder_in_two(self):
    embedder = models.build_embedder('convnet', 5, pooling='gem')
    images = random_images(12, 8, 8, 1)
    expected, variables = initialise_and_embed(embedder, images)

    @jax.jit
    def in_two(variables, images):
      pooled = embedder.apply(variables, images, False, method='pool')
      return pooled, embedder.apply(variables, pooled, False, method='project')

    pooled, embeddings = in_two(variables, images)
    self.assertEqual(pooled.shape, (12, 128))
    np.testing.assert_allclose(embeddings, expected, rtol=1e-5, atol=1e-6)

  def test_frozen_batch_norm_is_that_of_evaluation(self):
    options = {'normalization': 'batch', 'frozen_batch_norm': True}
    embedder = models.build_embedder('convnet', 5, **options)
    images, weights = random_images(12, 8, 8, 1), random_images(12, 5, seed=1)
    expected, variables = initialise_and_embed(embedder, images)
    gradients, (embeddings, updates) = gradients_and_updates(
      embedder, variables, images, weights
    )
    np.testing.assert_allclose(embeddings, expected, atol=1e-6)
    jax.tree.map(
      np.testing.assert_array_equal,
      updates['batch_stats'],
      variables['batch_stats'],
    )
    scale = gradients['backbone']['norm_0']['scale']
    self.assertGreater(np.abs(scale).max(), 0)

  @parameterized.parameters((2, 28, 28), (2, 7, 28, 1), (2, 28, 4, 1))
  def test_refuses_images_of_a_wrong_shape(self, *shape):
    embedder = models.build_embedder('convnet', 5)
    with self.assertRaisesRegex(InputError, r'images have shape \(2, '):
      embedder.init(jax.random.key(0), np.zeros(shape, np.float32), False)


class CheckModelTest(parameterized.TestCase):
  @parameterized.parameters(
    ('convnt', {}, "model.name is 'convnt'; did you mean 'convnet'"),
    ('resnet', {}, "model.name is 'resnet'.*known: convnet|convnet"),
    (None, {}, 'model.name is None'),
    (
      'convnet',
      {'dropuot': 0.1},
      "model.dropuot is not an option of 'convnet'; did you mean 'dropout'",
    ),
    ('convnet', {'embedding_dim': 0}, 'model.embedding_dim is 0; allowed'),
    ('convnet', {'embedding_dim': -5}, 'model.embedding_dim is -5; allowed'),
    ('convnet', {'embedding_dim': 50.0}, 'model.embedding_dim is 50.0'),
    ('convnet', {'embedding_dim': '50'}, "model.embedding_dim is '50'"),
    ('convnet', {'embedding_dim': True}, 'model.embedding_dim is True'),
    ('convnet', {'embedding_dim': None}, 'model.embedding_dim is None'),
    ('convnet', {'dtype': 'float16'}, "model.dtype is 'float16'; allowed"),
    ('convnet', {'dtype': jnp.float32}, 'model.dtype is .*; allowed'),
    ('convnet', {'dropout': 1.0}, 'model.dropout is 1.0; allowed'),
    ('convnet', {'dropout': -0.1}, 'model.dropout is -0.1; allowed'),
    ('convnet', {'dropout': float('nan')}, 'model.dropout is nan; allowed'),
    ('convnet', {'dropout': '0'}, "model.dropout is '0'; allowed"),
    ('convnet', {'pooling': 'gen'}, "model.pooling is 'gen'; allowed is one"),
    ('convnet', {'neck': 'bneck'}, "model.neck is 'bneck'; allowed is one of"),
    ('convnet', {'pooling': 'class_token'}, "'convnet' has no class token; al"),
    ('convnet', {'gem': {'p': 0.9}}, 'model.gem.p is 0.9; allowed is a number'),
    ('convnet', {'gem': {'p': 11}}, 'model.gem.p is 11; allowed .* at most 10'),
    ('convnet', {'gem': {'q': 3.0}}, "model.gem.q is not an option of 'gem'"),
    ('convnet', {'gem': 3.0}, 'model.gem is 3.0; allowed are the options of'),
    ('convnet', {'average': {'p': 3}}, 'model.average.p is not an option'),
    (
      'convnet',
      {'dolg': {'dilations': ()}},
      r'model.dolg.dilations is \(\); al',
    ),
    ('convnet', {'rmac': {'levels': 0}}, 'model.rmac.levels is 0; allowed is'),
    ('convnet', {'remat': True}, "model.remat is not an option of 'convnet'"),
    ('convnet', {'normalization': 'layer'}, "is 'layer'; allowed is one of"),
    ('convnet', {'normalization': None}, 'is None; allowed is one of none'),
  )
  def test_one_line_with_key_and_value(self, name, options, message):
    with self.assertRaisesRegex(InputError, message) as caught:
      models.check_model(name, options)
    self.assertNotIn('\n', str(caught.exception))

  def test_prefix_names_the_key(self):
    with self.assertRaisesRegex(InputError, 'student.embedding_dim is 0'):
      models.check_model('convnet', {'embedding_dim': 0}, prefix='student')

  # Parameters of the published networks, without what classifies or masks.
  @parameterized.parameters(
    ('resnet50', {'frozen_batch_norm': True}, 64, 23_508_032, 2048),
    ('mobilenetv2_100', {'last_stage_stride': 1}, 64, 2_223_872, 1280),
    ('convnext_tiny', {'neck': 'layer_norm_dense'}, 64, 27_818_592, 768),
    ('dinov2_small', {'dtype': 'bfloat16'}, 28, 22_056_192, 384),
  )
  def test_published_backbones_build(self, *case):
    self.check_published(*case)

  @parameterized.parameters(
    ('efficientnet_b0', {'pooling': 'gem'}, 64, 4_007_548, 1280),
    ('siglip_base_patch16', {'pooling': 'attention'}, 32, None, 768),
  )
  @pytest.mark.slow
  def test_more_published_backbones_build(self, *case):
    self.check_published(*case)

  def check_published(self, name, options, size, count, width):
    embedder = models.build_embedder(name, 16, **options)
    embeddings, variables = jax.eval_shape(
      functools.partial(embedder.init_with_output, train=False),
      jax.random.key(0),
      jnp.zeros((2, size, size, 3)),
    )
    self.assertEqual(embeddings.shape, (2, 16))
    self.assertEqual(embeddings.dtype, jnp.float32)
    params = variables['params']
    self.assertEqual(params['projection']['kernel'].shape, (width, 16))
    if count is not None:
      leaves = jax.tree.leaves(params['backbone'])
      self.assertEqual(sum(leaf.size for leaf in leaves), count)

  def test_images_are_multiples_of_a_patch(self):
    models.check_images('dinov2_small', (28, 42, 3))
    with self.assertRaisesRegex(InputError, 'multiples of 14 .*size=252'):
      models.check_images('dinov2_small', (256, 256, 3))

  def test_images_that_a_backbone_does_not_take(self):
    row = models.Backbone(models.ConvNet, {}, min_size=32, channels=3)
    with mock.patch.dict(models.BACKBONES, {'net': row}):
      models.check_images('net', (32, 40, 3))
      with self.assertRaisesRegex(InputError, 'are 32 x 31 pixels; .*size=32'):
        models.check_images('net', (32, 31, 3))
      with self.assertRaisesRegex(InputError, 'have 1 channels; .*channels=3'):
        models.check_images('net', (32, 32, 1))
      # Of one map.
      with self.assertRaisesRegex(InputError, "'net' gives 1; .*average"):
        models.check_model('net', {'pooling': 'dolg'})

  @parameterized.parameters(CASES)
  def test_accepts_what_builds(self, name, options, _):
    models.check_model(
      name, {'embedding_dim': 1, 'dtype': 'bfloat16', **options}
    )

  def test_build_checks_too(self):
    with self.assertRaisesRegex(InputError, 'model.embedding_dim is 0'):
      models.build_embedder('convnet', 0)
    with self.assertRaisesRegex(InputError, 'model.width is not an option'):
      models.build_embedder('convnet', 5, width=3)
