"""Brightness, contrast, saturation, hue and sharpness of one image.

Images are float32 in [0, 255] and stay in it. The formulas are torchvision's,
which are Pillow's without the rounding to bytes. For `jax.vmap` over a batch.
"""

import math

import jax
import jax.numpy as jnp

# Of red, green and blue in the brightness that the eye sees (ITU-R BT.601).
_LUMA = (0.2989, 0.587, 0.114)
_WHITE = 255.0


def draw_factor(number: jax.Array, strength: float) -> jax.Array:
  """Returns a float32 scalar, uniform in [max(0, 1 - strength), 1 + strength].

  Args:
    number: float32 scalar, uniform in [0, 1).
    strength: at least 0.
  """
  low, high = max(0.0, 1.0 - strength), 1.0 + strength
  return low + number * (high - low)


def to_gray(image: jax.Array) -> jax.Array:
  """Returns [H, W], the brightness of each pixel of [H, W, 1 or 3]."""
  planes = _planes(image)
  if len(planes) == 1:
    return planes[0]
  return sum(share * plane for share, plane in zip(_LUMA, planes, strict=True))


def adjust_brightness(image: jax.Array, factor: jax.Array | float) -> jax.Array:
  """Returns clip(factor x).

  Args:
    image: [H, W, C] float32 in [0, 255].
    factor: float32 scalar, at least 0; 1 changes nothing.

  Returns:
    Likewise [H, W, C].

  Example:
    >>> adjust_brightness(jnp.array([[[100.0], [200.0]]]), 1.5).tolist()
    [[[150.0], [255.0]]]
  """
  return _clip(image * factor)


def adjust_contrast(image: jax.Array, factor: jax.Array | float) -> jax.Array:
  """Returns clip(m + factor (x - m)), m the mean brightness of the image.

  Args:
    image: [H, W, C] float32 in [0, 255], C of 1 or 3.
    factor: float32 scalar, at least 0; 1 changes nothing.

  Returns:
    Likewise [H, W, C].

  Example:
    >>> adjust_contrast(jnp.array([[[100.0], [200.0]]]), 0.5).tolist()
    [[[125.0], [175.0]]]
  """
  return _clip(factor * image + (1 - factor) * jnp.mean(to_gray(image)))


def adjust_saturation(image: jax.Array, factor: jax.Array | float) -> jax.Array:
  """Returns clip(g + factor (x - g)), g the brightness of each pixel.

  Args:
    image: [H, W, C] float32 in [0, 255]; with C of 1 it is returned as it is.
    factor: float32 scalar, at least 0; 0 is a grey image, 1 changes nothing.

  Returns:
    Likewise [H, W, C].

  Example:
    >>> red = jnp.array([[[255.0, 0.0, 0.0]]])
    >>> adjust_saturation(red, 0.0).round().tolist()
    [[[76.0, 76.0, 76.0]]]
  """
  if image.shape[-1] == 1:
    return image
  gray = (1 - factor) * to_gray(image)
  return _stack([_clip(factor * plane + gray) for plane in _planes(image)])


def adjust_hue(image: jax.Array, turns: jax.Array | float) -> jax.Array:
  """Turns the hue of each pixel; HSV value and saturation stay.

  Args:
    image: [H, W, C] float32 in [0, 255]; with C of 1 it is returned as it is.
    turns: float32 scalar in [-0.5, 0.5], of the circle of hues.

  Returns:
    Likewise [H, W, C].

  Example:
    >>> red = jnp.array([[[255.0, 0.0, 0.0]]])
    >>> adjust_hue(red, 1 / 3).round(2).tolist()
    [[[0.0, 255.0, 0.0]]]
  """
  if image.shape[-1] == 1:
    return image
  red, green, blue = _planes(image)
  value = jnp.maximum(jnp.maximum(red, green), blue)
  chroma = value - jnp.minimum(jnp.minimum(red, green), blue)
  scale = 1 / jnp.where(chroma > 0, chroma, 1.0)
  # In sixths of the circle, from red.
  hue = jnp.where(
    value == red,
    (green - blue) * scale,
    jnp.where(
      value == green,
      2.0 + (blue - red) * scale,
      4.0 + (red - green) * scale,
    ),
  )
  hue = hue + 6.0 * turns

  def channel(offset):
    place = (offset + hue) / 6.0
    place = 6.0 * (place - jnp.floor(place))
    fall = jnp.clip(jnp.minimum(place, 4.0 - place), 0.0, 1.0)
    return value - chroma * fall

  return _stack([channel(5.0), channel(3.0), channel(1.0)])


def gaussian_blur(
  image: jax.Array,
  sigma: jax.Array | float,
  chosen: jax.Array | bool,
  max_sigma: float,
) -> jax.Array:
  """Blurs an image if it is chosen; its border is mirrored.

  The kernel, exp(-d^2 / (2 sigma^2)) normalised, reaches 3 max_sigma pixels to
  each side whatever sigma is, or as far as the image does.

  Args:
    image: [H, W, C] any real dtype.
    sigma: float32 scalar, positive, in pixels.
    chosen: bool scalar.
    max_sigma: the largest that sigma can be.

  Returns:
    [H, W, C] float32, within the range of the image.

  Example:
    >>> image = jnp.zeros((1, 5, 1)).at[0, 2].set(100.0)
    >>> gaussian_blur(image, 0.5, True, 0.5).round().ravel().tolist()
    [0.0, 11.0, 79.0, 11.0, 0.0]
  """
  # XLA adds up shifted planes fast, interleaved channels slowly.
  x = image.transpose(2, 0, 1).astype(jnp.float32)
  for axis in (1, 2):
    size = x.shape[axis]
    radius = min(math.ceil(3 * max_sigma), size - 1)
    offsets = jnp.arange(-radius, radius + 1)
    kernel = jnp.exp(-0.5 * (offsets / sigma) ** 2)
    # Not blurred is blurred with a kernel of one pixel.
    kernel = jnp.where(chosen, kernel, (offsets == 0).astype(jnp.float32))
    kernel = kernel / jnp.sum(kernel)
    width = [(0, 0)] * 3
    width[axis] = (radius, radius)
    # Else each of the shifts would mirror the border anew.
    padded = jax.lax.optimization_barrier(jnp.pad(x, width, mode='reflect'))
    x = sum(
      kernel[i] * jax.lax.slice_in_dim(padded, i, i + size, axis=axis)
      for i in range(2 * radius + 1)
    )
  return x.transpose(1, 2, 0)


# On a CPU, XLA computes on planes some ten times as fast as on three channels
# side by side; transposes back and forth between operations cancel out.
def _planes(image):
  """Returns the channels of [H, W, C], each [H, W]."""
  return list(image.transpose(2, 0, 1))


def _stack(planes):
  """Returns [H, W, C] of its channels."""
  return jnp.stack(planes).transpose(1, 2, 0)


def _clip(image):
  return jnp.clip(image, 0.0, _WHITE)
