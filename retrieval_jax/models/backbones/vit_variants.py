"""The vision transformers there are, by name, as attributes of `ViT`."""

from collections.abc import Mapping
from typing import Any

_SIZES = {
  'small': {'width': 384, 'depth': 12, 'num_heads': 6},
  'base': {'width': 768, 'depth': 12, 'num_heads': 12},
  'large': {'width': 1024, 'depth': 24, 'num_heads': 16},
  'so400m': {'width': 1152, 'depth': 27, 'num_heads': 16, 'mlp_dim': 4304},
}

# DINOv2's own code interpolates the positions of its first models with an
# offset and unsmoothed, those of the models with registers without and
# smoothed. Its port in transformers leaves the offset out; timm always smooths.
_DINOV2 = {'patch_size': 14, 'native_size': 518, 'layer_scale': 1e-5}
_DINOV2_PLAIN = {**_DINOV2, 'antialias': False, 'position_offset': 0.1}
_DINOV2_REGISTERS = {**_DINOV2, 'registers': 4}

# OpenAI's towers took images of one size; transformers interpolates both
# families unsmoothed.
_CLIP = {
  'pre_norm': True,
  'activation': 'quick_gelu',
  'epsilon': 1e-5,
  'antialias': False,
}
_SIGLIP = {'class_token': False, 'activation': 'gelu_tanh', 'antialias': False}


def _variant(size: str, patch_size: int, **others: Any) -> dict[str, Any]:
  return {**_SIZES[size], 'patch_size': patch_size, **others}


# Called as on the Hugging Face hub, or in timm. Weights for images of another
# size (`siglip_base_patch16` comes for 224, 256, 384 and 512 pixels) want
# another `native_size`.
VIT_VARIANTS: Mapping[str, Mapping[str, Any]] = {
  **{
    f'vit_{size}_patch{patch}': _variant(size, patch)
    for size in ('small', 'base', 'large')
    for patch in (14, 16, 32)
  },
  **{
    f'dinov2_{size}{suffix}': {**_SIZES[size], **others}
    for size in ('small', 'base', 'large')
    for suffix, others in (('', _DINOV2_PLAIN), ('_reg', _DINOV2_REGISTERS))
  },
  'clip_vit_base_patch32': _variant('base', 32, **_CLIP),
  'clip_vit_base_patch16': _variant('base', 16, **_CLIP),
  'clip_vit_large_patch14': _variant('large', 14, **_CLIP),
  'siglip_base_patch16': _variant('base', 16, **_SIGLIP),
  'siglip_large_patch16': _variant('large', 16, native_size=256, **_SIGLIP),
  'siglip_so400m_patch14': _variant('so400m', 14, native_size=378, **_SIGLIP),
}
