"""The tensors of timm's and torchvision's MobileNetV2."""

import re
from collections.abc import Mapping

import numpy as np

from retrieval_jax.models.pretrained.names_efficientnet import (
  flax_path,
  stages_of,
)

__all__ = ['flax_path', 'prepare']

# torchvision's layers in timm's names, for the first block and the others.
_LAYERS = {
  'conv.0.0': 'conv_pw',
  'conv.0.1': 'bn1',
  'conv.1.0': 'conv_dw',
  'conv.1.1': 'bn2',
  'conv.2': 'conv_pwl',
  'conv.3': 'bn3',
}
_FIRST_LAYERS = {
  'conv.0.0': 'conv_dw',
  'conv.0.1': 'bn1',
  'conv.1': 'conv_pw',
  'conv.2': 'bn2',
}
_NAME = re.compile(r'features\.(\d+)\.(.+)\.(\w+)')


def prepare(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Gives the tensors of torchvision the names of timm.

  torchvision counts stem, blocks and head through, timm the blocks of each
  stage.

  Args:
    tensors: by their names; those of timm stay as they are.

  Returns:
    All of them, in the same order.

  Example:
    >>> list(prepare({'features.0.0.weight': np.zeros((32, 3, 3, 3))}))
    ['conv_stem.weight']
    >>> list(prepare({'blocks.1.0.conv_pw.weight': np.zeros((96, 16, 1, 1))}))
    ['blocks.1.0.conv_pw.weight']
  """
  # The projection of the first block is its second layer: it expands nothing.
  widths, name = [], 'features.1.conv.1.weight'
  while name in tensors:
    widths.append(len(tensors[name]))
    name = f'features.{len(widths) + 1}.conv.2.weight'
  places = stages_of(widths)
  renamed = {}
  for name, tensor in tensors.items():
    match = _NAME.fullmatch(name)
    if match:
      index, layer, leaf = int(match[1]), match[2], match[3]
      if index == 0:
        layer = {'0': 'conv_stem', '1': 'bn1'}.get(layer, layer)
      elif index > len(widths):
        layer = {'0': 'conv_head', '1': 'bn2'}.get(layer, layer)
      else:
        stage, place = places[index - 1]
        layers = _LAYERS if stage else _FIRST_LAYERS
        layer = f'blocks.{stage}.{place}.{layers.get(layer, layer)}'
      name = f'{layer}.{leaf}'
    renamed[name] = tensor
  return renamed
