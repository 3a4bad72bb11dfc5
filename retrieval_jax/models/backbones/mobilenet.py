"""MobileNetV2: EfficientNet's blocks, without squeeze-and-excitation."""

from typing import Any

from retrieval_jax.models.backbones.efficientnet import Stage, scale

# Sandler et al., MobileNetV2, CVPR 2018, table 2.
_STAGES = (
  Stage(1, 3, 1, 1, 16),
  Stage(2, 3, 2, 6, 24),
  Stage(3, 3, 2, 6, 32),
  Stage(4, 3, 2, 6, 64),
  Stage(3, 3, 1, 6, 96),
  Stage(3, 3, 2, 6, 160),
  Stage(1, 3, 1, 6, 320),
)
_RELU6 = {'activation': 'relu6'}

# Attributes of `efficientnet.EfficientNet`, by timm's names; torchvision's
# `mobilenet_v2` is `mobilenetv2_100`.
VARIANTS: dict[str, dict[str, Any]] = {
  # A narrower network keeps the channels of its head.
  'mobilenetv2_050': scale(_STAGES, 0.5) | {'head_features': 1280} | _RELU6,
  'mobilenetv2_100': scale(_STAGES, 1.0) | _RELU6,
  'mobilenetv2_140': scale(_STAGES, 1.4) | _RELU6,
  'mobilenetv2_110d': scale(_STAGES, 1.1, 1.2, scale_ends=False) | _RELU6,
  'mobilenetv2_120d': scale(_STAGES, 1.2, 1.4, scale_ends=False) | _RELU6,
}
