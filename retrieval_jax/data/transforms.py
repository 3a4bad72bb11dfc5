"""From bytes of pixels to what a model takes."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from retrieval_jax.core.errors import InputError


def to_model_input(
  images: jax.Array,
  mean: float | Sequence[float] = 0.5,
  std: float | Sequence[float] = 0.5,
) -> jax.Array:
  """Returns (images / 255 - mean) / std, to be called in the compiled step.

  So images travel to the device as bytes, a quarter of their size as floats.

  Args:
    images: [B, H, W, C] uint8.
    mean: of the pixels in [0, 1], a number or one a channel.
    std: of the same, positive.

  Returns:
    [B, H, W, C] float32.

  Example:
    >>> images = jnp.full((1, 1, 1, 1), 255, jnp.uint8)
    >>> to_model_input(images, mean=0.5, std=0.25).item()
    2.0
  """
  if images.dtype != jnp.uint8:
    raise InputError(f'images have dtype {images.dtype}; allowed is uint8')
  return normalize(images.astype(jnp.float32), mean, std)


def normalize(
  images: jax.Array,
  mean: float | Sequence[float] = 0.5,
  std: float | Sequence[float] = 0.5,
) -> jax.Array:
  """Returns (images / 255 - mean) / std, of images that were augmented.

  Args:
    images: [B, H, W, C] float32 in [0, 255].
    mean: of the pixels in [0, 1], a number or one a channel.
    std: of the same, positive.

  Returns:
    [B, H, W, C] float32.

  Example:
    >>> normalize(jnp.full((1, 1, 1, 1), 127.5), mean=0.5, std=0.25).item()
    0.0
  """
  mean = np.asarray(mean, np.float64)
  std = np.asarray(std, np.float64)
  scale = np.asarray(1 / (255 * std), np.float32)
  shift = np.asarray(-mean / std, np.float32)
  # One value a channel is given all four axes: no silent broadcasting of ranks.
  scale, shift = (x.reshape(1, 1, 1, -1) for x in (scale, shift))
  return images * scale + shift
