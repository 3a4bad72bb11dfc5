"""Features equal to those that timm and transformers give, and the options."""

import dataclasses
import functools
import json
import pathlib

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized

from retrieval_jax.core.errors import InputError
from retrieval_jax.models.backbones.vit import ViT
from retrieval_jax.models.backbones.vit_variants import VIT_VARIANTS
from retrieval_jax.models.pretrained import names_vit
from tests.golden import made_weights

GOLDEN = json.loads(
  (pathlib.Path(__file__).parents[2] / 'golden' / 'vit.json').read_text()
)
TINY = ViT(width=12, depth=2, num_heads=3, patch_size=4, native_size=12)
IMAGES, IMAGES_8 = made_weights.images(8, 12), made_weights.images(8, 8)


def to_variables(tensors):
  """Returns the variables of a `ViT` from tensors in torch's layout."""
  flat = {}
  for name, tensor in names_vit.prepare(tensors).items():
    place = names_vit.flax_path(name)
    if place is None:
      continue
    collection, path = place
    if tensor.ndim == 4:
      tensor = tensor.transpose(2, 3, 1, 0)
    elif tensor.ndim == 2 and path[-1] == 'kernel':
      tensor = tensor.T
    flat[(collection, *path)] = tensor
  return flax.traverse_util.unflatten_dict(flat)


def shapes_of(variables):
  flat = flax.traverse_util.flatten_dict(variables, sep='/')
  return {path: tuple(leaf.shape) for path, leaf in flat.items()}


@functools.partial(jax.jit, static_argnums=(0, 3))
def apply(vit, variables, images, train=False, key=None):
  rngs = {} if key is None else {'dropout': key}
  return vit.apply(variables, images, train, rngs=rngs)


def initial_shapes(vit, images):
  return jax.eval_shape(lambda: vit.init(jax.random.key(0), images, False))


@functools.cache
def known_variables(vit):
  # Compiling `init` would take longer than the tests.
  shapes = shapes_of(initial_shapes(vit, IMAGES))
  flat = made_weights.tensors(
    {k.replace('/', '.'): s for k, s in shapes.items()}
  )
  return flax.traverse_util.unflatten_dict(flat, sep='.')


def check_case(case, vit):
  variables = to_variables(made_weights.tensors(case['shapes']))
  for result in case['results']:
    images = made_weights.images(*result['image'])
    features = apply(vit, variables, images)
    token, tokens = np.array(result['token']), np.array(result['map'])
    (found,) = map(np.asarray, features.maps)
    assert found.shape[1:3] == tuple(
      n // vit.patch_size for n in images.shape[1:3]
    )
    found = found[..., : tokens.shape[-1]].reshape(tokens.shape)
    np.testing.assert_allclose(
      np.asarray(features.token)[:, : token.shape[-1]],
      token,
      atol=1e-4,
      rtol=0,
    )
    np.testing.assert_allclose(found, tokens, atol=1e-4, rtol=0)


class ParityTest(parameterized.TestCase):
  @parameterized.parameters(*GOLDEN['cases'])
  def test_equals_theirs(self, name):
    case = GOLDEN['cases'][name]
    vit = ViT(**case['vit'])
    variables = to_variables(made_weights.tensors(case['shapes']))
    shapes = initial_shapes(vit, IMAGES_8)
    self.assertEqual(shapes_of(variables), shapes_of(shapes))
    check_case(case, vit)

  @parameterized.parameters(*GOLDEN['full_cases'])
  @pytest.mark.slow
  def test_full_size_equals_theirs(self, name):
    case = GOLDEN['full_cases'][name]
    check_case(case, ViT(**VIT_VARIANTS[case['vit']]))

  @parameterized.parameters(*VIT_VARIANTS)
  def test_variant_is_theirs(self, name):
    if name not in GOLDEN['variants']:
      self.assertIn(name, ('vit_small_patch14', 'vit_base_patch14'))
      return
    theirs, ours = GOLDEN['variants'][name], dict(VIT_VARIANTS[name])
    self.assertEqual(ours['depth'], theirs['depth'])
    self.assertEqual(ours['num_heads'], theirs['num_heads'])
    vit = ViT(**{**ours, 'depth': 1})
    self.assertEqual(vit.epsilon, theirs['epsilon'])
    activation = {'gelu': 'GELU', 'quick_gelu': 'QuickGELU'}
    # timm takes the exact GELU for SigLIP, which was trained with the other.
    activation['gelu_tanh'] = 'GELU'
    self.assertEqual(activation[vit.activation], theirs['activation'])
    image = np.zeros((1, ours['patch_size'], ours['patch_size'], 3), np.float32)
    shapes = initial_shapes(vit, image)
    tensors = {
      name: np.broadcast_to(np.float32(0), shape)
      for name, shape in theirs['shapes'].items()
    }
    self.assertEqual(shapes_of(to_variables(tensors)), shapes_of(shapes))


class OptionsTest(parameterized.TestCase):
  def test_remat_changes_nothing_but_memory(self):
    vit = dataclasses.replace(TINY, depth=1)
    variables = known_variables(vit)

    def loss(variables, remat):
      module = dataclasses.replace(vit, remat=remat)
      return jnp.sum(jnp.sin(module.apply(variables, IMAGES, True).token))

    gradient = jax.jit(jax.grad(loss), static_argnums=1)
    plain, again = gradient(variables, False), gradient(variables, True)
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4),
      plain,
      again,
    )
    jaxpr = str(jax.make_jaxpr(lambda v: loss(v, True))(variables))
    self.assertEqual(jaxpr.count('remat2['), 1)

  def test_nothing_is_dropped_outside_training(self):
    vit = dataclasses.replace(TINY, layer_dropout=0.5, stochastic_depth=0.5)
    variables = known_variables(TINY)
    np.testing.assert_array_equal(
      apply(vit, variables, IMAGES).token, apply(TINY, variables, IMAGES).token
    )

  def test_stochastic_depth_skips_whole_images_the_last_block_most(self):
    vit = dataclasses.replace(TINY, depth=3, stochastic_depth=0.5)
    images = np.repeat(IMAGES[:1], 64, axis=0)
    variables = known_variables(vit)
    found = apply(vit, variables, images, True, jax.random.key(2)).token
    # Of blocks 0, 1, 2 the last two have two branches each, which are skipped
    # or doubled (block 1: kept in 3 of 4, times 4/3): at most 16 outcomes.
    outcomes, counts = np.unique(
      np.round(np.asarray(found), 4), axis=0, return_counts=True
    )
    self.assertBetween(len(outcomes), 8, 16)
    # The most likely ones keep both branches of block 1: 9/16 over 4 outcomes.
    self.assertBetween(np.sort(counts)[-4:].sum(), 24, 48)
    first = apply(
      dataclasses.replace(vit, depth=1),
      variables,
      images,
      True,
      jax.random.key(2),
    ).token
    first = np.asarray(first)
    np.testing.assert_allclose(first, first[:1].repeat(64, 0), atol=1e-6)

  def test_dropout_drops(self):
    vit = dataclasses.replace(TINY, depth=1, layer_dropout=0.5)
    variables = known_variables(vit)
    one, two = (
      apply(vit, variables, IMAGES, True, jax.random.key(i)).token
      for i in (0, 1)
    )
    self.assertGreater(np.abs(np.subtract(one, two)).max(), 0.1)

  def test_bfloat16_computes_in_it_and_stays_near(self):
    case = GOLDEN['cases']['dinov2_reg']
    vit = ViT(**case['vit'])
    variables = to_variables(made_weights.tensors(case['shapes']))
    images = made_weights.images(24, 56)
    exact = apply(vit, variables, images)
    rough = apply(
      dataclasses.replace(vit, dtype=jnp.bfloat16), variables, images
    )
    self.assertEqual(rough.token.dtype, jnp.bfloat16)
    self.assertEqual(rough.maps[0].dtype, jnp.bfloat16)
    np.testing.assert_allclose(
      np.asarray(rough.token, np.float32), exact.token, atol=0.1
    )

  def test_parameters_are_float32_whatever_the_dtype(self):
    vit = dataclasses.replace(
      TINY, dtype=jnp.bfloat16, registers=2, layer_scale=0.1
    )
    shapes = initial_shapes(vit, IMAGES)
    self.assertEqual(
      {leaf.dtype for leaf in jax.tree.leaves(shapes)}, {jnp.dtype('float32')}
    )

  @parameterized.parameters(True, False)
  def test_exports_for_any_batch(self, class_token):
    vit = dataclasses.replace(TINY, class_token=class_token, depth=1)
    variables = initial_shapes(vit, IMAGES)
    shape = jax.export.symbolic_shape('b, 8, 12, 3')
    images = jax.ShapeDtypeStruct(shape, jnp.float32)
    exported = jax.export.export(
      jax.jit(lambda variables, images: vit.apply(variables, images, False))
    )(variables, images)
    tokens, token = exported.out_avals
    self.assertEqual(tokens.shape[1:], (2, 3, 12))
    self.assertEqual(token.shape, (shape[0], 12))

  def test_grey_images_pass(self):
    shapes = initial_shapes(TINY, IMAGES[..., :1])
    kernel = shapes['params']['patch_embed']['kernel']
    self.assertEqual(kernel.shape, (4, 4, 1, 12))


class BadInputTest(parameterized.TestCase):
  @parameterized.parameters(
    ((2, 8, 10, 3), 'images are 8 x 10 pixels; .* patch size, 4: .* 8 x 8'),
    ((2, 3, 8, 3), 'images are 3 x 8 pixels; .* 4 x 8'),
    ((2, 0, 8, 3), 'images are 0 x 8 pixels'),
    ((8, 8, 3), r'images have shape \(8, 8, 3\); allowed is \(batch'),
  )
  def test_images_that_are_no_whole_patches(self, shape, message):
    with self.assertRaisesRegex(InputError, message):
      TINY.init(jax.random.key(0), np.zeros(shape, np.float32), False)

  def test_native_size_below_the_patch_size(self):
    with self.assertRaisesRegex(InputError, 'native_size is 3; .* size, 4'):
      dataclasses.replace(TINY, native_size=3).init(
        jax.random.key(0), IMAGES, False
      )
