"""Weights and images that the recording and the test both can compute."""

import zlib

import numpy as np

# Of tokens and positions, which are of the size of what they are added to.
_LARGE = ('token', 'pos', 'embedding', 'probe', 'latent')


def weights(shapes: dict[str, list[int]]) -> dict[str, np.ndarray]:
  """Returns a tensor for each name, a function of name and shape alone."""
  return {name: _weight(name, shape) for name, shape in shapes.items()}


def images(height: int, width: int) -> np.ndarray:
  """Returns two images [2, H, W, 3]."""
  random = np.random.default_rng(height * 1000 + width)
  return random.normal(size=(2, height, width, 3)).astype(np.float32)


def _weight(name: str, shape: list[int]) -> np.ndarray:
  random = np.random.default_rng(zlib.crc32(name.encode()))
  values = random.standard_normal(shape, np.float32)
  layer, _, leaf = name.rpartition('.')
  if leaf.endswith('bias'):
    return 0.1 * values
  if leaf in ('gamma', 'lambda1') or (leaf == 'weight' and len(shape) == 1):
    return 1 + 0.1 * values
  if (
    len(shape) < 4
    and 'mlp' not in name
    and any(word in name for word in _LARGE)
  ):
    return 0.5 * values
  return values * np.float32(np.prod(shape[1:]) ** -0.5)
