"""The tensors of timm's ConvNeXt."""

import re

_LAYERS = {
  'stem.0': ('stem_conv', 'kernel'),
  'stem.1': ('stem_norm', 'scale'),
  'downsample.0': ('norm', 'scale'),
  'downsample.1': ('conv', 'kernel'),
  'conv_dw': ('depthwise', 'kernel'),
  'norm': ('norm', 'scale'),
  'mlp.fc1': ('expand', 'kernel'),
  'mlp.fc2': ('project', 'kernel'),
}
_NAME = re.compile(
  r'(?:stages\.(?P<stage>\d+)\.(?:blocks\.(?P<block>\d+)\.)?)?'
  r'(?P<layer>[a-z_.0-9]+)\.(?P<leaf>weight|bias)'
)
_SCALE = re.compile(r'stages\.(\d+)\.blocks\.(\d+)\.gamma')


def flax_path(name: str) -> tuple[str, tuple[str, ...]] | None:
  """Says where a tensor goes in `backbones.convnext.ConvNeXt`.

  Args:
    name: of the tensor in the file.

  Returns:
    (collection, path), the collection always 'params'; None for what the
    backbone has no use for: the head, with its norm and classifier. A name of
    another architecture gives a path that the backbone does not have.

  Example:
    >>> flax_path('stages.1.downsample.1.weight')
    ('params', ('stage_1_conv', 'kernel'))
    >>> flax_path('stages.2.blocks.8.gamma')
    ('params', ('stage_2_block_8', 'scale'))
    >>> flax_path('head.norm.weight')
  """
  if name.startswith('head.'):
    return None
  match = _SCALE.fullmatch(name)
  if match:
    return 'params', (f'stage_{match[1]}_block_{match[2]}', 'scale')
  match = _NAME.fullmatch(name)
  if match is None or match['layer'] not in _LAYERS:
    return 'params', (name,)
  layer, leaf = _LAYERS[match['layer']]
  leaf = leaf if match['leaf'] == 'weight' else 'bias'
  if match['block']:
    return 'params', (
      f'stage_{match["stage"]}_block_{match["block"]}',
      layer,
      leaf,
    )
  if match['stage']:
    return 'params', (f'stage_{match["stage"]}_{layer}', leaf)
  return 'params', (layer, leaf)
