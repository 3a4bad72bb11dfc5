"""Feature maps against those of timm and torchvision, with the same weights.

`tests/golden/record_timm_convnets.py` says how they were recorded.
"""

import functools
import gzip
import json
import pathlib

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized

from retrieval_jax.models.backbones import (
  convnext,
  efficientnet,
  mobilenet,
  resnet,
)
from retrieval_jax.models.pretrained import (
  names_convnext,
  names_efficientnet,
  names_mobilenet,
  names_resnet,
)
from tests.golden import made_weights

GOLDEN = pathlib.Path(__file__).parents[2] / 'golden/timm_convnets.json.gz'
CASES = json.loads(gzip.decompress(GOLDEN.read_bytes()))['cases']
FAMILIES = (
  (resnet.VARIANTS, resnet.ResNet, names_resnet),
  (efficientnet.VARIANTS, efficientnet.EfficientNet, names_efficientnet),
  (mobilenet.VARIANTS, efficientnet.EfficientNet, names_mobilenet),
  (convnext.VARIANTS, convnext.ConvNeXt, names_convnext),
)
# The others are slow.
FAST_NAMES = (
  'resnet50 of stride 16',
  'mobilenet_v2 of torchvision',
  'convnext_tiny',
  'efficientnetv2_s, smaller',
)
FAST_MAPS = (
  'resnet18',
  'tf_efficientnet_lite0',
  'convnext_tiny, smaller',
  'efficientnetv2_s, smaller',
)


def build(case):
  """Returns the module of a case, and the names of its tensors."""
  name, scale = case['variant'], case['scale']
  for variants, module, names in FAMILIES:
    if name in variants:
      attributes = variants[name] | case['options']
      if scale:
        attributes |= efficientnet.scale(
          attributes['stages'],
          *scale,
          stem=attributes['stem_features'],
          head=attributes['head_features'],
        )
      return module(**attributes), names
  raise AssertionError(f'{name} is in no family')


def leaves_of(module):
  """Returns {(collection, path): shape}."""
  variables = jax.eval_shape(
    functools.partial(module.init, train=False),
    jax.random.key(0),
    jnp.zeros((1, 64, 64, 3)),
  )
  return {
    (collection, path): leaf.shape
    for collection, tree in variables.items()
    for path, leaf in flax.traverse_util.flatten_dict(tree).items()
  }


def convert(tensors, names):
  """Returns {(collection, path): array} in Flax's layout."""
  prepare = getattr(names, 'prepare', lambda tensors: tensors)
  converted = {}
  for name, tensor in prepare(tensors).items():
    place = names.flax_path(name)
    if place is None:
      continue
    assert place not in converted, name
    if tensor.ndim == 4:
      tensor = tensor.transpose(2, 3, 1, 0)
    elif tensor.ndim == 2 and place[1][-1] == 'kernel':
      tensor = tensor.transpose()
    converted[place] = tensor
  return converted


def cases(names):
  return parameterized.parameters(*((name,) for name in names))


class ParityTest(parameterized.TestCase):
  @cases(FAST_NAMES)
  def test_each_tensor_has_its_leaf(self, name):
    self.check_names(name)

  @cases(name for name in CASES if name not in FAST_NAMES)
  @pytest.mark.slow
  def test_each_tensor_of_all_has_its_leaf(self, name):
    self.check_names(name)

  @cases(FAST_MAPS)
  def test_maps_are_those_of_the_original(self, name):
    self.check_maps(name)

  @cases(name for name in CASES if name not in FAST_MAPS)
  @pytest.mark.slow
  def test_maps_of_all_are_those_of_the_originals(self, name):
    self.check_maps(name)

  def check_names(self, name):
    module, names = build(CASES[name])
    tensors = {
      name: np.broadcast_to(np.float32(0), shape)
      for name, shape in CASES[name]['tensors'].items()
    }
    shapes = {
      place: array.shape for place, array in convert(tensors, names).items()
    }
    self.assertEqual(shapes, leaves_of(module))

  def check_maps(self, name):
    case = CASES[name]
    module, names = build(case)
    tensors = {
      name: made_weights.tensor(name, tuple(shape), case['gain'])
      for name, shape in case['tensors'].items()
    }
    flat = convert(tensors, names)
    variables = {
      collection: flax.traverse_util.unflatten_dict(
        {path: flat[kind, path] for kind, path in flat if kind == collection}
      )
      for collection in {place[0] for place in flat}
    }
    apply = jax.jit(functools.partial(module.apply, train=False))
    maps = apply(variables, made_weights.images()).maps
    for got, expected in zip(maps, (case['C4'], case['C5']), strict=True):
      self.assertEqual(list(got.shape), expected['shape'])
      places = np.linspace(0, got.size - 1, len(expected['values'])).astype(int)
      np.testing.assert_allclose(
        np.asarray(got).reshape(-1)[places],
        expected['values'],
        rtol=1e-4,
        atol=1e-4 * expected['std'],
      )

  def test_names_of_efficientnet_pytorch_are_those_of_timm(self):
    timm = CASES['tf_efficientnet_b0']['tensors']
    renamed = names_efficientnet.prepare(
      {
        flat_name(name): np.broadcast_to(np.float32(0), shape)
        for name, shape in timm.items()
      }
    )
    self.assertEqual({n: list(t.shape) for n, t in renamed.items()}, timm)

  def test_foreign_name_has_no_leaf_in_a_backbone(self):
    for _, _, names in FAMILIES:
      for name in ('visual.proj', 'layer9.x', 'blocks.0.attn.qkv.weight', 'x'):
        self.assertEqual(names.flax_path(name), ('params', (name,)))


def flat_name(name):
  """Returns what efficientnet_pytorch calls a tensor of timm's B0."""
  depths = (1, 2, 2, 3, 3, 4, 1)
  first = name.startswith('blocks.0.')
  if name.startswith('blocks.'):
    _, stage, block, rest = name.split('.', 3)
    index = sum(depths[: int(stage)]) + int(block)
    layer, leaf = rest.rsplit('.', 1)
    flat = {
      'bn1': '_bn1' if first else '_bn0',
      'bn2': '_bn2' if first else '_bn1',
      'bn3': '_bn2',
      'conv_pw': '_project_conv' if first else '_expand_conv',
      'conv_dw': '_depthwise_conv',
      'conv_pwl': '_project_conv',
      'se.conv_reduce': '_se_reduce',
      'se.conv_expand': '_se_expand',
    }[layer]
    return f'_blocks.{index}.{flat}.{leaf}'
  layer, leaf = name.rsplit('.', 1)
  flat = {
    'conv_stem': '_conv_stem',
    'bn1': '_bn0',
    'conv_head': '_conv_head',
    'bn2': '_bn1',
    'classifier': '_fc',
  }[layer]
  return f'{flat}.{leaf}'
