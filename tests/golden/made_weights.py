"""Weights and images that a script and a test make alike, and neither stores.

A tensor is a function of its name, its shape and the gain of the network, for
which maps neither vanish nor explode.
"""

import zlib

import numpy as np

SHAPE = (2, 64, 79, 3)


def tensor(name: str, shape: tuple[int, ...], gain: float) -> np.ndarray:
  """Returns the float32 tensor of a name, in torch's layout.

  Args:
    name: of the tensor.
    shape: of the tensor; of rank 2 and more it has the variance gain / fan-in.
    gain: of the network.
  """
  uniform = np.random.default_rng(zlib.crc32(name.encode())).random(
    shape, dtype=np.float32
  )
  if len(shape) > 1:
    bound = np.sqrt(3 * gain / np.prod(shape[1:]), dtype=np.float32)
    return (2 * uniform - 1) * bound
  if name.endswith(('weight', 'gamma', 'running_var')):
    return 0.5 + uniform
  return 0.3 * (2 * uniform - 1)


def images() -> np.ndarray:
  """Returns float32 images of SHAPE, of odd width and unlike; NHWC."""
  noise = np.random.default_rng(0).random(SHAPE, dtype=np.float32)
  slope = np.linspace(-2, 2, SHAPE[2], dtype=np.float32)[:, None]
  contrast = np.array([2, -1], np.float32)[:, None, None, None]
  return contrast * (2 * noise - 1 + slope)
