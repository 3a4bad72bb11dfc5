"""Parameters are named, chosen and slowed down by their paths."""

import itertools

import jax
import numpy as np
import pytest

from retrieval_jax import models
from retrieval_jax.core.errors import InputError
from retrieval_jax.training import parameter_groups
from retrieval_jax.training import state as state_lib


def _params(*backbone):
  return {
    'embedder': {
      'backbone': {name: {'kernel': np.zeros((2, 3))} for name in backbone},
      'pooling': {'p': np.zeros(())},
    },
    'head': {'proxies': np.zeros((4, 2))},
  }


@pytest.mark.parametrize(
  'layers',
  [
    # How ResNet, ConvNeXt and EfficientNet call theirs, first layer to last.
    [
      ('stem_conv', 'stem_norm'),
      ('stage_0_block_0',),
      ('stage_0_block_1',),
      ('stage_1_conv', 'stage_1_norm'),
      ('stage_1_block_0',),
      ('stage_1_block_2',),
      ('stage_1_block_10',),
      ('head_conv', 'head_norm'),
    ],
    [
      ('patch_embed', 'positions', 'class_token', 'registers'),
      *((f'block_{i}',) for i in range(12)),
      ('norm', 'pool'),
    ],
    [('conv_0', 'norm_0'), ('conv_1', 'norm_1'), ('conv_2', 'norm_2')],
  ],
)
def test_layers_decay_from_the_last_to_the_first(layers):
  params = _params(*itertools.chain(*layers))
  rates = parameter_groups.learning_rates(
    params, models.Backbone(None, {}).layers, decay=0.5, backbone=0.1, head=8.0
  )
  found = rates['embedder']['backbone']
  for depth, names in enumerate(layers):
    for name in names:
      expected = 0.1 * 0.5 ** (len(layers) - depth)
      np.testing.assert_allclose(found[name]['kernel'], expected, err_msg=name)
  assert rates['embedder']['pooling']['p'] == 1.0
  assert rates['head']['proxies'] == 8.0


@pytest.mark.parametrize(
  'name',
  [
    'convnet',
    'resnet18',
    'efficientnet_b0',
    'mobilenetv2_050',
    'convnext_tiny',
    'vit_small_patch32',
  ],
)
def test_every_backbone_has_several_layers(name):
  row = models.BACKBONES[name]
  size = max(row.min_size, row.stride)
  embedder = models.build_embedder(name, 5)
  shapes = state_lib.parameter_shapes(
    state_lib.Networks(embedder, embedder, None),
    _NoLoss(),
    (size, size, row.channels or 3),
  )
  rates = parameter_groups.learning_rates(shapes, row.layers, decay=0.5)
  found = set(jax.tree.leaves(rates['embedder']['backbone']))
  assert len(found) >= 3


class _NoLoss:
  def init_params(self, key):
    del key
    return {}


def test_patterns_match_whole_paths():
  params = _params('conv_0', 'conv_10')
  found = parameter_groups.matches(params, ('backbone/conv_1', 'pooling/.*'))
  assert not found['embedder']['backbone']['conv_10']['kernel']
  assert found['embedder']['pooling']['p']


@pytest.mark.parametrize(
  'patterns, words',
  [
    (('backbone/conv_0',), 'matches no parameter; .*backbone/conv_0, head'),
    (('.*',), 'leaves nothing to train'),
  ],
)
def test_what_cannot_be_frozen(patterns, words):
  with pytest.raises(InputError, match=words) as caught:
    parameter_groups.check_frozen(_params('conv_0'), patterns)
  assert '\n' not in str(caught.value)


def test_the_log_says_what_trains():
  config = {'frozen': ('backbone/conv_0/.*',), 'head_only_steps': 1000}
  text = parameter_groups.describe(_params('conv_0', 'conv_1'), config)
  assert text == (
    '15 of 21 parameters train; frozen: backbone/conv_0; '
    '9 in the first 1,000 steps'
  )
