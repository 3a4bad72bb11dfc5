"""Tensors into variables: each used or named, each leaf filled."""

import types

import ml_dtypes
import numpy as np
import pytest

from retrieval_jax.core.errors import InputError
from retrieval_jax.models.pretrained import conversion

_PATHS = {
  'stem.weight': ('params', ('stem', 'kernel')),
  'norm.weight': ('params', ('norm', 'scale')),
  'norm.running_mean': ('batch_stats', ('norm', 'mean')),
  'block.weight': ('params', ('block', 'kernel')),
  'tokens': ('params', ('tokens',)),
  'power': ('params', ('power',)),
}
NAMES = types.SimpleNamespace(flax_path=_PATHS.get)


def make_tensors(channels=3):
  random = np.random.default_rng(0)
  shapes = {
    'stem.weight': (5, channels, 2, 4),
    'norm.weight': (5,),
    'norm.running_mean': (5,),
    'block.weight': (7, 5),
    'tokens': (6, 5),
    'power': (),
    'fc.weight': (10, 7),
  }
  return {
    name: np.float32(random.normal(size=shape))
    for name, shape in shapes.items()
  }


def make_variables(channels=3):
  return {
    'params': {
      'stem': {'kernel': np.zeros((2, 4, channels, 5))},
      'norm': {'scale': np.zeros(5)},
      'block': {'kernel': np.zeros((5, 7))},
      'tokens': np.zeros((6, 5)),
      'power': np.zeros(()),
    },
    'batch_stats': {'norm': {'mean': np.zeros(5)}},
  }


def convert(tensors, variables=None, names=NAMES, **kwargs):
  variables = make_variables() if variables is None else variables
  return conversion.convert(
    tensors, variables, names, origin='w.pth', model='tiny', **kwargs
  )


def test_layouts_and_names():
  tensors = make_tensors()
  found = convert(tensors)
  assert set(found.used) == set(_PATHS)
  assert found.skipped == ('fc.weight',)
  assert found.notes == ()
  params = found.variables['params']
  for index in np.ndindex(5, 3, 2, 4):
    out, into, row, column = index
    expected = tensors['stem.weight'][index]
    assert params['stem']['kernel'][row, column, into, out] == expected
  np.testing.assert_array_equal(
    params['block']['kernel'], tensors['block.weight'].T
  )
  for name in ('tokens', 'power'):
    assert params[name].shape == np.shape(tensors[name])
    np.testing.assert_array_equal(params[name], tensors[name])
  np.testing.assert_array_equal(params['norm']['scale'], tensors['norm.weight'])
  np.testing.assert_array_equal(
    found.variables['batch_stats']['norm']['mean'], tensors['norm.running_mean']
  )


@pytest.mark.parametrize('dtype', [np.float16, ml_dtypes.bfloat16, np.float64])
def test_all_becomes_float32(dtype):
  tensors = {k: v.astype(dtype) for k, v in make_tensors().items()}
  kernel = convert(tensors).variables['params']['block']['kernel']
  assert kernel.dtype == np.float32
  expected = tensors['block.weight'].astype(np.float32).T
  np.testing.assert_array_equal(kernel, expected)


def test_prepare_comes_first():
  tensors = make_tensors()
  block = tensors.pop('block.weight')
  tensors |= {'block.top': block[:3], 'block.rest': block[3:]}

  def prepare(tensors):
    parts = [tensors.pop(name) for name in ('block.top', 'block.rest')]
    return {**tensors, 'block.weight': np.concatenate(parts)}

  names = types.SimpleNamespace(flax_path=_PATHS.get, prepare=prepare)
  found = convert(tensors, names=names)
  np.testing.assert_array_equal(
    found.variables['params']['block']['kernel'], block.T
  )
  assert set(tensors) == set(make_tensors()) - {'block.weight'} | {
    'block.top',
    'block.rest',
  }


def test_what_cannot_be_prepared():
  names = types.SimpleNamespace(
    flax_path=_PATHS.get,
    prepare=lambda tensors: {'a': np.concatenate(list(tensors.values()))},
  )
  with pytest.raises(InputError, match='cannot be joined.*dimension') as caught:
    convert(make_tensors(), names=names)
  assert '\n' not in str(caught.value)


def test_grey_images_take_the_sum():
  tensors = make_tensors()
  found = convert(tensors, make_variables(channels=1))
  kernel = found.variables['params']['stem']['kernel']
  colour = convert(tensors).variables['params']['stem']['kernel']
  grey = np.random.default_rng(1).normal(size=(2, 4, 1))
  np.testing.assert_allclose(
    np.einsum('hwc,hwco->o', grey, kernel),
    np.einsum('hwc,hwco->o', np.repeat(grey, 3, axis=2), colour),
    rtol=1e-5,
  )
  (note,) = found.notes
  assert note.startswith('stem.weight is summed over its 3 input channels')


def test_other_channels():
  with pytest.raises(InputError, match='have 4 channels.*data.channels=3'):
    convert(make_tensors(), make_variables(channels=4))
  with pytest.raises(InputError, match=r'stem.weight is \[5, 1, 2, 4\], which'):
    convert(make_tensors(channels=1))


def test_another_shape_names_both():
  tensors = make_tensors() | {'block.weight': np.zeros((8, 5))}
  with pytest.raises(InputError) as caught:
    convert(tensors)
  assert (
    'w.pth does not fit tiny: tensor block.weight is [8, 5], which makes '
    '(5, 8), and params/block/kernel is (5, 7)'
  ) in str(caught.value)


def test_a_leaf_without_a_tensor():
  tensors = make_tensors()
  del tensors['norm.running_mean']
  with pytest.raises(InputError, match=r'1 leaves .*\(batch_stats/norm/mean\)'):
    convert(tensors)


def test_a_tensor_without_a_leaf():
  variables = make_variables()
  del variables['params']['tokens']
  with pytest.raises(InputError, match=r'1 of its 7 tensors .*\(tokens\)'):
    convert(make_tensors(), variables)


def test_two_tensors_for_a_leaf():
  names = types.SimpleNamespace(
    flax_path=lambda name: _PATHS.get(name.replace('fc', 'block'))
  )
  with pytest.raises(
    InputError, match='block.weight and fc.weight, for params'
  ):
    convert(make_tensors(), names=names)


def test_weights_of_another_architecture():
  tensors = {f'layer{i}.attn.weight': np.zeros(3) for i in range(9)}
  with pytest.raises(InputError) as caught:
    convert(tensors)
  message = str(caught.value)
  assert '\n' not in message
  for part in (
    '6 leaves of it get no tensor',
    'layer0.attn.weight, layer1.attn.weight, layer2.attn.weight, and 6 more',
    'correct model.pretrained or model.name',
  ):
    assert part in message


def test_another_layout():
  tensors = make_tensors()
  tensors['stem.weight'] = tensors['stem.weight'].transpose(2, 3, 1, 0)
  tensors['block.weight'] = tensors['block.weight'].T
  found = convert(tensors, layout=lambda tensor, path: tensor)
  np.testing.assert_array_equal(
    found.variables['params']['stem']['kernel'], tensors['stem.weight']
  )
