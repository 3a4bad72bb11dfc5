"""Weights and images that a script and a test make alike, and neither stores.

A tensor is a function of its name, its shape and the gain of the network, for
which maps neither vanish nor explode.
"""

import zlib
from collections.abc import Mapping, Sequence

import numpy as np

# Of tokens and positions, which are of the size of what they are added to.
_ADDED = ('token', 'pos', 'embedding', 'probe', 'latent')


def tensors(
  shapes: Mapping[str, Sequence[int]], gain: float = 1.0
) -> dict[str, np.ndarray]:
  """Returns the tensor of each name, in torch's layout.

  Args:
    shapes: of the tensors, by their names.
    gain: see `tensor`.
  """
  return {name: tensor(name, shape, gain) for name, shape in shapes.items()}


def tensor(name: str, shape: Sequence[int], gain: float = 1.0) -> np.ndarray:
  """Returns the float32 tensor of a name, in torch's layout.

  Args:
    name: of the tensor.
    shape: of the tensor; of rank 2 and more it has the variance gain / fan-in,
      or 1 / 4 if it is of tokens or positions.
    gain: of the network.
  """
  uniform = np.random.default_rng(zlib.crc32(name.encode())).random(
    shape, dtype=np.float32
  )
  is_added = any(word in name for word in _ADDED) and 'mlp' not in name
  if is_added and len(shape) < 4 and not name.endswith('bias'):
    return (2 * uniform - 1) * np.float32(np.sqrt(3) / 2)
  if len(shape) > 1:
    bound = np.sqrt(3 * gain / np.prod(shape[1:]), dtype=np.float32)
    return (2 * uniform - 1) * bound
  if name.endswith(('weight', 'gamma', 'lambda1', 'scale', 'running_var')):
    return 0.5 + uniform
  return 0.3 * (2 * uniform - 1)


def images(height: int = 64, width: int = 79) -> np.ndarray:
  """Returns two float32 images that are unlike, [2, H, W, 3]."""
  noise = np.random.default_rng(0).random(
    (2, height, width, 3), dtype=np.float32
  )
  slope = np.linspace(-2, 2, width, dtype=np.float32)[:, None]
  contrast = np.array([2, -1], np.float32)[:, None, None, None]
  return contrast * (2 * noise - 1 + slope)
