"""How the tensors of vision transformers are called, and where they belong.

Four ways of naming are known, by the file's own names and not by a setting:

  * timm's (ViT, DINOv2, CLIP, SigLIP), and DINOv2's own, which is nearly it;
  * of transformers: DINOv2, with and without registers;
  * of transformers: CLIP, alone or inside the model of images and texts;
  * of transformers: SigLIP, likewise.

`prepare` joins or splits what they keep in other pieces than `ViT`; `flax_path`
names the leaf of what it gives.
"""

import math
import re
from collections.abc import Mapping

import numpy as np

# Ends of names, for each kind of layer. A layer's `weight` is a kernel, LN's a
# scale; a parameter of its own ends with its name.
_DENSE = {'weight': 'kernel', 'bias': 'bias'}
_NORM = {'weight': 'scale', 'bias': 'bias'}

# Of a block: {name: (path, kind)}, by what stands behind `blocks.0.`,
# `encoder.layer.0.` or `encoder.layers.0.`
_IN_BLOCK = {
  # timm
  'norm1': (('norm_1',), _NORM),
  'norm2': (('norm_2',), _NORM),
  'attn.qkv': (('attention', 'qkv'), _DENSE),
  'attn.proj': (('attention', 'out'), _DENSE),
  'mlp.fc1': (('mlp', 'fc_1'), _DENSE),
  'mlp.fc2': (('mlp', 'fc_2'), _DENSE),
  'ls1': ((), {'gamma': 'scale_1'}),
  'ls2': ((), {'gamma': 'scale_2'}),
  # DINOv2 of transformers, where it differs from timm. Files have the first
  # names of the attention's layers; in memory, later versions have the second.
  'attention.attention.qkv': (('attention', 'qkv'), _DENSE),
  'attention.qkv': (('attention', 'qkv'), _DENSE),
  'attention.output.dense': (('attention', 'out'), _DENSE),
  'attention.o_proj': (('attention', 'out'), _DENSE),
  'layer_scale1': ((), {'lambda1': 'scale_1'}),
  'layer_scale2': ((), {'lambda1': 'scale_2'}),
  # CLIP and SigLIP of transformers
  'layer_norm1': (('norm_1',), _NORM),
  'layer_norm2': (('norm_2',), _NORM),
  'self_attn.qkv': (('attention', 'qkv'), _DENSE),
  'self_attn.out_proj': (('attention', 'out'), _DENSE),
}

_OUTSIDE = {
  # timm, DINOv2
  '': (
    (),
    {
      'cls_token': 'class_token',
      'reg_token': 'registers',
      'register_tokens': 'registers',
      'pos_embed': 'positions',
    },
  ),
  'patch_embed.proj': (('patch_embed',), _DENSE),
  'norm_pre': (('pre_norm',), _NORM),
  'norm': (('norm',), _NORM),
  'attn_pool': (('pool',), {'latent': 'query'}),
  'attn_pool.q': (('pool', 'q'), _DENSE),
  'attn_pool.kv': (('pool', 'kv'), _DENSE),
  'attn_pool.proj': (('pool', 'out'), _DENSE),
  'attn_pool.norm': (('pool', 'norm'), _NORM),
  'attn_pool.mlp.fc1': (('pool', 'mlp', 'fc_1'), _DENSE),
  'attn_pool.mlp.fc2': (('pool', 'mlp', 'fc_2'), _DENSE),
  # DINOv2 of transformers
  'embeddings': (
    (),
    {
      'cls_token': 'class_token',
      'register_tokens': 'registers',
      'position_embeddings': 'positions',
      'class_embedding': 'class_token',
    },
  ),
  'embeddings.patch_embeddings.projection': (('patch_embed',), _DENSE),
  'layernorm': (('norm',), _NORM),
  # CLIP and SigLIP of transformers
  'embeddings.patch_embedding': (('patch_embed',), _DENSE),
  'embeddings.position_embedding': ((), {'weight': 'positions'}),
  'pre_layrnorm': (('pre_norm',), _NORM),
  'post_layernorm': (('norm',), _NORM),
  'head': (('pool',), {'probe': 'query'}),
  'head.attention.q': (('pool', 'q'), _DENSE),
  'head.attention.kv': (('pool', 'kv'), _DENSE),
  'head.attention.out_proj': (('pool', 'out'), _DENSE),
  'head.layernorm': (('pool', 'norm'), _NORM),
  'head.mlp.fc1': (('pool', 'mlp', 'fc_1'), _DENSE),
  'head.mlp.fc2': (('pool', 'mlp', 'fc_2'), _DENSE),
}

_BLOCK = re.compile(r'(?:blocks|encoder\.layers?)\.(\d+)\.(.+)')

# The models that a tower is inside.
_PREFIX = re.compile(r'(?:vision_model|dinov2|dinov2_with_registers)\.')

# Classifiers and projections, the token of hidden patches, the other tower.
_UNUSED = re.compile(
  r'head\.(?:weight|bias)|classifier\.(?:weight|bias)'
  r'|(?:embeddings\.)?mask_token|embeddings\.position_ids'
  r'|(?:visual|text)_projection\.weight|logit_scale|logit_bias|text_model\..+'
)

_QUERY = re.compile(
  r'(?P<layer>.*(?:attention|self_attn))\.(?P<query>query|q_proj)\.'
  r'(?P<leaf>weight|bias)'
)
_OF_QUERY = {
  'query': ('query', 'key', 'value'),
  'q_proj': ('q_proj', 'k_proj', 'v_proj'),
}


def flax_path(name: str) -> tuple[str, tuple[str, ...]] | None:
  """Returns the leaf of `ViT` that a tensor belongs to.

  Args:
    name: of a tensor, after `prepare`.

  Returns:
    (collection, path); None for a tensor that there is no use for. A name that
    nobody knows gives a path that `ViT` does not have.

  Example:
    >>> flax_path('blocks.3.norm1.weight')
    ('params', ('block_3', 'norm_1', 'scale'))
    >>> flax_path('encoder.layer.3.layer_scale2.lambda1')
    ('params', ('block_3', 'scale_2'))
    >>> flax_path('head.bias')
  """
  inner = _inner(name)
  if _UNUSED.fullmatch(inner):
    return None
  found = _BLOCK.fullmatch(inner)
  start = (f'block_{found[1]}',) if found else ()
  layer, _, leaf = (found[2] if found else inner).rpartition('.')
  path, leaves = (_IN_BLOCK if found else _OUTSIDE).get(layer, ((), {}))
  if leaf not in leaves:
    return 'params', tuple(name.split('.'))
  return 'params', (*start, *path, leaves[leaf])


def prepare(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Returns the tensors in the pieces that `ViT` has.

  Queries, keys and values are joined, where they are three layers; those of
  SigLIP's pooling, which are one, become two. Tokens and positions get the axis
  of the batch. Where no position is kept for the class token, it becomes zero:
  timm adds it to the token, in DINOv2 with registers.

  Args:
    tensors: by their names, of any of the four kinds. They are not changed.

  Example:
    >>> row = np.zeros((1, 2))
    >>> tensors = {f'attention.{n}.weight': row + i
    ...            for i, n in enumerate(('query', 'key', 'value'))}
    >>> prepare(tensors)['attention.qkv.weight']
    array([[0., 0.],
           [1., 1.],
           [2., 2.]])
  """
  found = dict(tensors)
  for name, tensor in tensors.items():
    inner = _inner(name)
    if _UNUSED.fullmatch(inner):
      continue
    if query := _QUERY.fullmatch(name):
      _join(found, query)
    elif inner.startswith('head.attention.in_proj_'):
      layer, leaf = name.rsplit('.in_proj_', 1)
      width = len(tensor) // 3
      found[f'{layer}.q.{leaf}'] = tensor[:width]
      found[f'{layer}.kv.{leaf}'] = tensor[width:]
      del found[name]
    elif inner == 'embeddings.class_embedding':
      found[name] = tensor.reshape(1, 1, -1)
    elif inner == 'embeddings.position_embedding.weight':
      found[name] = tensor[None]
    elif name == 'pos_embed' and 'cls_token' in tensors:
      found[name] = _with_class_position(tensor)
  return found


def _inner(name: str) -> str:
  prefix = _PREFIX.match(name)
  return name[prefix.end() :] if prefix else name


def _join(tensors: dict[str, np.ndarray], query: re.Match[str]) -> None:
  """Puts one tensor in the place of a layer's queries, keys and values."""
  layer, leaf = query['layer'], query['leaf']
  names = [f'{layer}.{word}.{leaf}' for word in _OF_QUERY[query['query']]]
  # If one is missing, the others have no place, which is said of them then.
  if all(name in tensors for name in names):
    parts = [tensors.pop(name) for name in names]
    tensors[f'{layer}.qkv.{leaf}'] = np.concatenate(parts)


def _with_class_position(positions: np.ndarray) -> np.ndarray:
  count = positions.shape[1]
  if math.isqrt(count) ** 2 != count:
    return positions
  # A square number of positions is one for each patch, and none is left over.
  zero = np.zeros_like(positions[:, :1])
  return np.concatenate([zero, positions], axis=1)
