"""The tensors of timm's and torchvision's ResNets, which share their names."""

import re

from retrieval_jax.models.pretrained.conversion import BATCH_NORM_LEAVES

_NAME = re.compile(
  r'(?:layer(?P<stage>[1-4])\.(?P<block>\d+)\.)?'
  r'(?:(?P<layer>conv|bn)(?P<number>[1-3])|downsample\.(?P<shortcut>[01]))'
  r'\.(?P<leaf>weight|bias|running_mean|running_var)'
)
_UNUSED = re.compile(r'fc\.(weight|bias)|.*\.num_batches_tracked')


def flax_path(name: str) -> tuple[str, tuple[str, ...]] | None:
  """Says where a tensor goes in `backbones.resnet.ResNet`.

  Args:
    name: of the tensor in the file.

  Returns:
    (collection, path), the collection 'params' or 'batch_stats'; None for what
    the backbone has no use for: the classifier and counts of batches. A name of
    another architecture gives a path that the backbone does not have.

  Example:
    >>> flax_path('layer2.0.downsample.1.running_mean')
    ('batch_stats', ('stage_1_block_0', 'shortcut_norm', 'mean'))
    >>> flax_path('conv1.weight')
    ('params', ('stem_conv', 'kernel'))
    >>> flax_path('fc.bias')
  """
  if _UNUSED.fullmatch(name):
    return None
  match = _NAME.fullmatch(name)
  if match is None:
    return 'params', (name,)
  is_norm = match['layer'] == 'bn' or match['shortcut'] == '1'
  kind = 'norm' if is_norm else 'conv'
  if match['shortcut']:
    path = (f'shortcut_{kind}',)
  elif match['stage']:
    path = (f'{kind}_{int(match["number"]) - 1}',)
  else:
    path = (f'stem_{kind}',)
  if match['stage']:
    stage = int(match['stage']) - 1
    path = (f'stage_{stage}_block_{match["block"]}', *path)
  collection, leaf = BATCH_NORM_LEAVES[match['leaf']]
  return collection, (*path, leaf if is_norm else 'kernel')
