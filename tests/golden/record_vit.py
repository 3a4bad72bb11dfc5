"""Records features of timm's and transformers' vision transformers.

It needs `pip install torch timm transformers`; the tests need none of them,
they read `vit.json`. Weights and images are functions of names and shapes
(`made_weights.py`), so that only a few numbers of each result are kept.

    python tests/golden/record_vit.py
"""

import dataclasses
import json
import pathlib
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import made_weights
import numpy as np
import safetensors.numpy
import timm
import torch
import transformers
from timm.models.vision_transformer import VisionTransformer
from torch import nn

# The features kept: of the token, and of each place of the map.
NUM_TOKEN, NUM_MAP = 8, 2
NATIVE, OTHER = (32, 32), (24, 56)

TINY = {'width': 24, 'depth': 2, 'num_heads': 3, 'patch_size': 8}
_TINY_TIMM = {'embed_dim': 24, 'depth': 2, 'num_heads': 3, 'patch_size': 8}
_TINY_HUB = {
  'hidden_size': 24,
  'num_hidden_layers': 2,
  'num_attention_heads': 3,
  'patch_size': 8,
  'image_size': 32,
}
_SMALL_HUB = {
  'hidden_size': 384,
  'num_attention_heads': 6,
  'patch_size': 14,
  'image_size': 518,
}
# Attributes of ours.
_OURS = {**TINY, 'native_size': 32}
_SCALED = {**_OURS, 'layer_scale': 1.0}
_CLIP = {
  **_OURS,
  'pre_norm': True,
  'activation': 'quick_gelu',
  'epsilon': 1e-5,
}
_SIGLIP = {**_OURS, 'class_token': False, 'activation': 'gelu_tanh'}


@dataclasses.dataclass
class Case:
  """A model of theirs and the same of ours.

  Attributes:
    model: builds it.
    features: (model, images) -> (token, tokens of the patches).
    attributes: of our `ViT`, or its name in `VIT_VARIANTS`.
    sizes: of the images.
    from_hub: whether the model is of transformers, whose files have other names
      than its modules.
  """

  model: Callable[[], nn.Module]
  features: Callable[[nn.Module, torch.Tensor], tuple[torch.Tensor, ...]]
  attributes: dict[str, Any] | str
  sizes: Sequence[tuple[int, int]] = (OTHER,)
  from_hub: bool = True


def timm_features(model, images):
  x = model.forward_features(images)
  return model.pool(x), x[:, model.num_prefix_tokens :]


def dinov2_features(model, images):
  output = model(images)
  skipped = 1 + getattr(model.config, 'num_register_tokens', 0)
  return output.pooler_output, output.last_hidden_state[:, skipped:]


def clip_features(model, images):
  """The tower alone; its patches are normalised as its class token is."""
  tower = getattr(model, 'vision_model', model)
  output = tower(images, interpolate_pos_encoding=True)
  patches = tower.post_layernorm(output.last_hidden_state[:, 1:])
  return output.pooler_output, patches


def siglip_features(model, images):
  output = model(images, interpolate_pos_encoding=True)
  return output.pooler_output, output.last_hidden_state


def original_features(model, images):
  """DINOv2's own way with positions, in timm's model of it."""
  size, stride = model.patch_embed.grid_size[0], model.patch_embed.patch_size[0]
  first, rest = model.pos_embed[:, :1], model.pos_embed[:, 1:]
  scales = [(length // stride + 0.1) / size for length in images.shape[2:]]
  rest = nn.functional.interpolate(
    rest.reshape(1, size, size, -1).permute(0, 3, 1, 2),
    scale_factor=scales,
    mode='bicubic',
    antialias=False,
  )
  rest = rest.permute(0, 2, 3, 1).flatten(1, 2)
  x = model.patch_embed(images).flatten(1, 2)
  x = torch.cat([model.cls_token.expand(len(x), -1, -1), x], dim=1)
  x = model.norm(model.blocks(x + torch.cat([first, rest], dim=1)))
  return x[:, 0], x[:, 1:]


def tiny_timm(**options):
  return VisionTransformer(
    **_TINY_TIMM, img_size=32, num_classes=5, dynamic_img_size=True, **options
  )


def tiny_clip():
  config = transformers.CLIPVisionConfig(**_TINY_HUB, intermediate_size=96)
  return transformers.CLIPVisionModelWithProjection(config)


def tiny_siglip():
  config = transformers.SiglipVisionConfig(**_TINY_HUB, intermediate_size=96)
  return transformers.SiglipVisionModel(config)


def full_timm(name):
  return timm.create_model(name, dynamic_img_size=True)


CASES = {
  'timm_vit': Case(
    tiny_timm, timm_features, _OURS, (NATIVE, OTHER), from_hub=False
  ),
  'timm_dinov2': Case(
    lambda: tiny_timm(init_values=1.0), timm_features, _SCALED, from_hub=False
  ),
  'timm_dinov2_reg': Case(
    lambda: tiny_timm(init_values=1.0, reg_tokens=4, no_embed_class=True),
    timm_features,
    {**_SCALED, 'registers': 4},
    from_hub=False,
  ),
  'timm_clip': Case(
    lambda: tiny_timm(
      pre_norm=True,
      act_layer='quick_gelu',
      norm_layer=lambda width, **rest: nn.LayerNorm(width, eps=1e-5, **rest),
    ),
    timm_features,
    _CLIP,
    (NATIVE,),
    from_hub=False,
  ),
  'timm_siglip': Case(
    lambda: tiny_timm(
      class_token=False, global_pool='map', act_layer='gelu_tanh'
    ),
    timm_features,
    _SIGLIP,
    (NATIVE,),
    from_hub=False,
  ),
  'dinov2_own': Case(
    lambda: tiny_timm(init_values=1.0),
    original_features,
    {**_SCALED, 'antialias': False, 'position_offset': 0.1},
    from_hub=False,
  ),
  'dinov2': Case(
    lambda: transformers.Dinov2Model(transformers.Dinov2Config(**_TINY_HUB)),
    dinov2_features,
    {**_SCALED, 'antialias': False},
  ),
  'dinov2_reg': Case(
    lambda: transformers.Dinov2WithRegistersModel(
      transformers.Dinov2WithRegistersConfig(**_TINY_HUB)
    ),
    dinov2_features,
    {**_SCALED, 'registers': 4},
  ),
  'clip': Case(tiny_clip, clip_features, {**_CLIP, 'antialias': False}),
  'siglip': Case(tiny_siglip, siglip_features, {**_SIGLIP, 'antialias': False}),
}

FULL_CASES = {
  'vit_small_patch16': Case(
    lambda: full_timm('vit_small_patch16_224'),
    timm_features,
    'vit_small_patch16',
    ((64, 96),),
    from_hub=False,
  ),
  'vit_base_patch32': Case(
    lambda: full_timm('vit_base_patch32_224'),
    timm_features,
    'vit_base_patch32',
    ((96, 64),),
    from_hub=False,
  ),
  'dinov2_small': Case(
    lambda: full_timm('vit_small_patch14_dinov2'),
    original_features,
    'dinov2_small',
    ((56, 84),),
    from_hub=False,
  ),
  'dinov2_small_reg': Case(
    lambda: transformers.Dinov2WithRegistersModel(
      transformers.Dinov2WithRegistersConfig(**_SMALL_HUB)
    ),
    dinov2_features,
    'dinov2_small_reg',
    ((56, 84),),
  ),
  'clip_vit_base_patch32': Case(
    lambda: transformers.CLIPVisionModel(transformers.CLIPVisionConfig()),
    clip_features,
    'clip_vit_base_patch32',
    ((96, 64),),
  ),
  'siglip_base_patch16': Case(
    lambda: transformers.SiglipVisionModel(transformers.SiglipVisionConfig()),
    siglip_features,
    'siglip_base_patch16',
    ((64, 96),),
  ),
}

# timm's name of each variant that it has.
TIMM_NAMES = {
  'vit_small_patch16': 'vit_small_patch16_224',
  'vit_small_patch32': 'vit_small_patch32_224',
  'vit_base_patch16': 'vit_base_patch16_224',
  'vit_base_patch32': 'vit_base_patch32_224',
  'vit_large_patch14': 'vit_large_patch14_224',
  'vit_large_patch16': 'vit_large_patch16_224',
  'vit_large_patch32': 'vit_large_patch32_224',
  'dinov2_small': 'vit_small_patch14_dinov2',
  'dinov2_base': 'vit_base_patch14_dinov2',
  'dinov2_large': 'vit_large_patch14_dinov2',
  'dinov2_small_reg': 'vit_small_patch14_reg4_dinov2',
  'dinov2_base_reg': 'vit_base_patch14_reg4_dinov2',
  'dinov2_large_reg': 'vit_large_patch14_reg4_dinov2',
  'clip_vit_base_patch32': 'vit_base_patch32_clip_quickgelu_224',
  'clip_vit_base_patch16': 'vit_base_patch16_clip_quickgelu_224',
  'clip_vit_large_patch14': 'vit_large_patch14_clip_quickgelu_224',
  'siglip_base_patch16': 'vit_base_patch16_siglip_224',
  'siglip_large_patch16': 'vit_large_patch16_siglip_256',
  'siglip_so400m_patch14': 'vit_so400m_patch14_siglip_378',
}

# (n, grid wanted, smoothed, offset); transformers' and DINOv2's ways.
RESIZES = (
  (4, (3, 7), True, 0.0),
  (4, (3, 7), False, 0.0),
  (5, (2, 5), False, 0.1),
  (3, (3, 11), False, 0.1),
  (7, (1, 3), True, 0.0),
)


def with_known_weights(case: Case) -> tuple[nn.Module, dict[str, list[int]]]:
  """Returns the model in float64, and the names and shapes of its file."""
  torch.manual_seed(0)
  model = case.model()
  if not case.from_hub:
    shapes = {k: list(v.shape) for k, v in model.state_dict().items()}
    known = made_weights.tensors(shapes)
    model.load_state_dict({k: torch.tensor(v) for k, v in known.items()})
    return model.double().eval(), shapes
  with tempfile.TemporaryDirectory() as folder:
    model.save_pretrained(folder)
    path = f'{folder}/model.safetensors'
    stored = safetensors.numpy.load_file(path)
    shapes = {name: list(stored[name].shape) for name in sorted(stored)}
    known = made_weights.tensors(shapes)
    safetensors.numpy.save_file(known, path, metadata={'format': 'pt'})
    model = type(model).from_pretrained(folder)
  return model.double().eval(), shapes


def run(case: Case) -> dict[str, Any]:
  """Returns the recorded row of a case."""
  model, shapes = with_known_weights(case)
  results = []
  for height, width in case.sizes:
    images = torch.tensor(made_weights.images(height, width)).double()
    with torch.no_grad():
      token, patches = case.features(model, images.permute(0, 3, 1, 2))
    results.append(
      {
        'image': [height, width],
        'token': rounded(token[:, :NUM_TOKEN]),
        'map': rounded(patches[..., :NUM_MAP]),
      }
    )
  ours = case.attributes
  return {'vit': ours, 'shapes': shapes, 'results': results}


def rounded(values: torch.Tensor) -> list:
  return np.round(values.double().numpy(), 6).tolist()


def outline(name: str) -> dict[str, Any]:
  """Returns what timm's model has outside its blocks and in the first."""
  with torch.device('meta'):
    model = timm.create_model(name)
  shapes = {k: list(v.shape) for k, v in model.state_dict().items()}
  return {
    'depth': len(model.blocks),
    'num_heads': model.blocks[0].attn.num_heads,
    'epsilon': model.norm.eps,
    'activation': type(model.blocks[0].mlp.act).__name__,
    'shapes': {
      k: v
      for k, v in shapes.items()
      if not k.startswith('blocks.') or k.startswith('blocks.0.')
    },
  }


def resize(size, grid, antialias, offset) -> dict[str, Any]:
  positions = torch.tensor(
    made_weights.tensors({'pos': [size * size, 2]})['pos']
  )
  square = positions.double().reshape(1, size, size, -1).permute(0, 3, 1, 2)
  how = (
    {'scale_factor': [(length + offset) / size for length in grid]}
    if offset
    else {'size': grid}
  )
  resized = nn.functional.interpolate(
    square, mode='bicubic', antialias=antialias, **how
  )
  return {
    'size': size,
    'grid': grid,
    'antialias': antialias,
    'offset': offset,
    'positions': rounded(resized[0].permute(1, 2, 0).flatten(0, 1)),
  }


def main() -> None:
  """Writes `vit.json`."""
  recorded = {
    'versions': {
      m.__name__: m.__version__ for m in (torch, timm, transformers)
    },
    'cases': {name: run(case) for name, case in CASES.items()},
    'full_cases': {name: run(case) for name, case in FULL_CASES.items()},
    'variants': {ours: outline(name) for ours, name in TIMM_NAMES.items()},
    'resizes': [resize(*row) for row in RESIZES],
  }
  path = pathlib.Path(__file__).with_name('vit.json')
  path.write_text(lines(recorded) + '\n')


def lines(value: Any, indent: str = '') -> str:
  """Returns JSON, of which nothing below the third level breaks the line."""
  if isinstance(value, dict) and len(indent) < 3:
    inner = indent + ' '
    rows = (
      f'{inner}{json.dumps(k)}: {lines(v, inner)}' for k, v in value.items()
    )
    return '{\n' + ',\n'.join(rows) + f'\n{indent}}}'
  return json.dumps(value)


if __name__ == '__main__':
  main()
