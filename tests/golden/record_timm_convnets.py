"""Records feature maps of timm's and torchvision's convolutional networks.

It needs `pip install timm torchvision`; the tests need neither, they read what
was written beside it: the names and shapes of the tensors, and a few numbers of
C4 and C5 for the weights and images of `made_weights`, computed in float64.
"""

import dataclasses
import gzip
import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import made_weights
import numpy as np
import timm
import torch
import torchvision

NUM_VALUES = 24
# The largest is taken that keeps the maps in bounds: where they grow from block
# to block, they are nearly all rounding in the end.
GAINS = (2.0, 1.7, 1.4, 1.2, 1.0)
LARGEST_STD = 5


def stride_1(network: torch.nn.Module, *names: str) -> None:
  """Sets the stride of convolutions to 1."""
  for name in names:
    network.get_submodule(name).stride = (1, 1)


def resnet_stride_1(network: torch.nn.Module) -> None:
  """Takes the last stride of a ResNet out."""
  stride_1(network, 'layer4.0.conv2', 'layer4.0.downsample.0')


def efficientnet_stride_1(network: torch.nn.Module) -> None:
  """Takes the first and the last stride of an EfficientNet out."""
  stride_1(network, 'conv_stem', 'blocks.5.0.conv_dw')


def convnext_stride_1(network: torch.nn.Module) -> None:
  """Takes the last stride of a ConvNeXt out, padding as TensorFlow would."""
  name = 'stages.3.downsample.1'
  stride_1(network, name)
  network.get_submodule(name).register_forward_pre_hook(
    lambda _, inputs: torch.nn.functional.pad(inputs[0], (0, 1, 0, 1))
  )


RESNET = ('layer3', 'layer4')
EFFICIENTNET = ('blocks.4', 'bn2')
CONVNEXT = ('stages.2', 'stages.3')
B = tuple(f'efficientnet_b{i}' for i in range(8))
V2 = ('efficientnetv2_s', 'efficientnetv2_m')
LITE = tuple(f'efficientnet_lite{i}' for i in range(3))


@dataclasses.dataclass
class Case:
  """A network.

  Attributes:
    variant: our name.
    modules: of the network, which give C4 and C5.
    options: ours, besides those of the variant.
    scale: factors of width and depth besides those of the variant.
    change: makes the options in the network.
    build: gives the network; None: timm's of that name.
  """

  variant: str
  modules: tuple[str, str]
  options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  change: Callable[[torch.nn.Module], None] = lambda network: None
  build: Callable[[], torch.nn.Module] | None = None
  scale: tuple[float, float] | None = None


CASES = {
  name: Case(name, RESNET)
  for name in ('resnet18', 'resnet34', 'resnet50', 'resnet101')
}
CASES |= {
  name: Case(name, EFFICIENTNET)
  for name in (
    *B,
    *V2,
    *LITE,
    'tf_efficientnet_b0',
    'tf_efficientnetv2_s',
    'tf_efficientnet_lite0',
    'tf_efficientnet_lite2',
    'mobilenetv2_050',
    'mobilenetv2_100',
    'mobilenetv2_140',
    'mobilenetv2_120d',
  )
}
CASES |= {
  name: Case(name, CONVNEXT)
  for name in ('convnext_tiny', 'convnext_small', 'convnext_base')
}
CASES |= {
  'convnext_tiny, smaller': Case(
    'convnext_tiny',
    CONVNEXT,
    {'depths': (1, 1, 2, 1), 'widths': (16, 24, 32, 40)},
    build=lambda: timm.create_model(
      'convnext_tiny', depths=(1, 1, 2, 1), dims=(16, 24, 32, 40)
    ),
  ),
  'efficientnetv2_s, smaller': Case(
    'efficientnetv2_s',
    EFFICIENTNET,
    scale=(0.25, 0.1),
    build=lambda: timm.create_model(
      'efficientnetv2_s', channel_multiplier=0.25, depth_multiplier=0.1
    ),
  ),
  'mobilenet_v2 of torchvision': Case(
    'mobilenetv2_100',
    ('features.13', 'features.18'),
    build=torchvision.models.mobilenet_v2,
  ),
  'resnet50 of stride 16': Case(
    'resnet50', RESNET, {'last_stage_stride': 1}, resnet_stride_1
  ),
  'tf_efficientnet_b0 of stride 8': Case(
    'tf_efficientnet_b0',
    EFFICIENTNET,
    {'stem_stride': 1, 'last_stage_stride': 1},
    efficientnet_stride_1,
  ),
  'convnext_tiny of stride 16': Case(
    'convnext_tiny',
    CONVNEXT,
    {'last_stage_stride': 1},
    convnext_stride_1,
  ),
}


def summary(features: torch.Tensor) -> dict:
  """Returns shape, spread and some values of an NCHW map, as NHWC."""
  array = features.permute(0, 2, 3, 1).numpy()
  # Places differ from each other, and so do images and channels.
  spreads = [float(array.std(axis=axis).mean()) for axis in range(4)]
  assert min(spreads) > 0.002 * array.std(), (spreads, array.std())
  places = np.linspace(0, array.size - 1, NUM_VALUES).astype(int)
  return {
    'shape': list(array.shape),
    'std': float(array.std()),
    'values': [float(f'{v:.8g}') for v in array.reshape(-1)[places]],
  }


def load(network: torch.nn.Module, shapes: dict, gain: float) -> None:
  """Gives a network the weights that are made."""
  network.load_state_dict(
    {
      name: torch.from_numpy(made_weights.tensor(name, tuple(shape), gain))
      if shape
      else torch.tensor(0)
      for name, shape in shapes.items()
    }
  )


def record(case: Case) -> dict:
  """Returns what a network gives."""
  build = case.build or (lambda: timm.create_model(case.variant))
  network = build().eval()
  names = {name: list(t.shape) for name, t in network.state_dict().items()}
  case.change(network)
  maps = []
  for module in case.modules:
    network.get_submodule(module).register_forward_hook(
      lambda _, inputs, output: maps.append(output)
    )
  images = torch.from_numpy(made_weights.images()).permute(0, 3, 1, 2)
  for gain in GAINS:
    maps.clear()
    load(network.float(), names, gain)
    with torch.no_grad():
      network(images)
    if max(x.std() for x in maps) < LARGEST_STD:
      break
  maps.clear()
  with torch.no_grad():
    network.double()(images.double())
  c4, c5 = (summary(x) for x in maps)
  return {
    'variant': case.variant,
    'gain': gain,
    'options': dict(case.options),
    'scale': case.scale,
    'C4': c4,
    'C5': c5,
    'tensors': names,
  }


def main() -> None:
  """Writes `timm_convnets.json.gz`."""
  recorded = {
    'versions': {
      module.__name__: module.__version__
      for module in (timm, torch, torchvision, np)
    },
    'cases': {},
  }
  for name, case in CASES.items():
    recorded['cases'][name] = record(case)
    case = recorded['cases'][name]
    print(name, case['gain'], case['C5']['std'], flush=True)
  path = pathlib.Path(__file__).with_name('timm_convnets.json.gz')
  text = json.dumps(recorded, separators=(',', ':')).encode()
  path.write_bytes(gzip.compress(text, mtime=0))


if __name__ == '__main__':
  main()
