"""Position embeddings of a square grid of patches, for another grid."""

import math

import jax
import jax.numpy as jnp
import numpy as np

# Of the cubic kernel: that of OpenCV and torch, and that of Keys, which torch
# takes when it smooths.
_SHARPNESS = -0.75
_KEYS_SHARPNESS = -0.5


def resize_positions(
  positions: jax.Array,
  grid: tuple[int, int],
  *,
  antialias: bool,
  offset: float = 0.0,
) -> jax.Array:
  """Interpolates position embeddings to another grid, bicubically.

  Along each axis, place i of m lies at (i + 1/2) n / (m + offset) - 1/2 of the
  n places there are; the values of `torch.nn.functional.interpolate`, which the
  published transformers are used with.

  Args:
    positions: [n * n, F], row by row.
    grid: (h, w), the rows and columns wanted.
    antialias: whether a smaller grid is smoothed, with a kernel as much wider
      as the grid is smaller. Without it, the kernel is the sharper one (-0.75
      and not -0.5), and places beyond the edge count as those on it.
    offset: added to the number of places wanted, in the scale alone: 0.1 in
      DINO and DINOv2.

  Returns:
    [h * w, F] of the same dtype; `positions` itself where the grid is theirs.

  Example:
    >>> positions = jnp.array([[0.0], [1.0], [0.0], [1.0]])
    >>> resize_positions(positions, (1, 3), antialias=False)[:, 0]
    Array([-0.08680555,  0.5       ,  1.0868056 ], dtype=float32)

  References:
    Keys, Cubic convolution interpolation for digital image processing, 1981,
    equation 15 (a = -1/2).
    Oquab et al., DINOv2, 2023, and its code, for the offset.
  """
  size = math.isqrt(len(positions))
  if grid == (size, size):
    return positions
  rows, columns = (
    _weights(size, length, size / (length + offset), antialias)
    for length in grid
  )
  square = positions.astype(jnp.float32).reshape(size, size, -1)
  resized = jnp.einsum(
    'hi,wj,ijf->hwf', rows, columns, square, precision='highest'
  )
  return resized.reshape(grid[0] * grid[1], -1).astype(positions.dtype)


def _weights(
  size: int, length: int, scale: float, antialias: bool
) -> np.ndarray:
  """Returns the weight [length, size] of each place there is for each wanted.

  Args:
    size: the number of places there are.
    length: the number of those wanted.
    scale: the distance of those wanted, in places that there are.
    antialias: see `resize_positions`.
  """
  centers = (np.arange(length) + 0.5) * scale - 0.5
  if antialias:
    width = max(scale, 1.0)
    distances = (np.arange(size)[None] - centers[:, None]) / width
    weights = _cubic(distances, _KEYS_SHARPNESS)
    weights /= weights.sum(axis=1, keepdims=True)
    return weights.astype(np.float32)
  weights = np.zeros((length, size))
  taps = np.floor(centers).astype(int)[:, None] + np.arange(-1, 3)[None]
  np.add.at(
    weights,
    (np.arange(length)[:, None], np.clip(taps, 0, size - 1)),
    _cubic(taps - centers[:, None], _SHARPNESS),
  )
  return weights.astype(np.float32)


def _cubic(distances: np.ndarray, a: float) -> np.ndarray:
  """Returns the cubic convolution kernel of parameter a (Keys, equation 4)."""
  x = np.abs(distances)
  near = ((a + 2) * x - (a + 3)) * x * x + 1
  far = (((x - 5) * x + 8) * x - 4) * a
  return np.where(x <= 1, near, np.where(x < 2, far, 0.0))
