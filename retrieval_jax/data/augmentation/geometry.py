"""Crops, flips and rotations of one image, for `jax.vmap` over a batch.

Pixel (y, x) covers the square from (y, x) to (y + 1, x + 1), so its centre is
at (y + 0.5, x + 0.5), as Pillow and OpenCV have it. All sizes are known when
the step is compiled, and only positions and weights differ between images: one
program serves every batch.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

# Boxes that are drawn before one that fits is given up, as in torchvision.
_TRIES = 10

# The uniform numbers that a box takes: areas, ratios, and its place.
NUM_DRAWS = 2 * _TRIES + 2


class Box(NamedTuple):
  """A part of a picture, in fractions of its height and width.

  Attributes:
    top: float32 scalar in [0, 1 - height].
    left: float32 scalar in [0, 1 - width].
    height: float32 scalar in (0, 1].
    width: float32 scalar in (0, 1].
  """

  top: jax.Array
  left: jax.Array
  height: jax.Array
  width: jax.Array


def draw_sizes(
  numbers: jax.Array, area: tuple[float, float], ratio: tuple[float, float]
) -> tuple[jax.Array, jax.Array]:
  """Draws the sizes of ten boxes, of which the first that fits is to be taken.

  The area is uniform and the logarithm of width / height is uniform.

  Args:
    numbers: [20] float32, uniform in [0, 1).
    area: least and largest, positive.
    ratio: least and largest width / height, positive.

  Returns:
    (heights, widths), [10] float32 each, in units of the root of the area.
  """
  low, high = area
  areas = low + numbers[:_TRIES] * (high - low)
  low, high = np.log(ratio).tolist()
  logs = low + numbers[_TRIES : 2 * _TRIES] * (high - low)
  return jnp.sqrt(areas * jnp.exp(-logs)), jnp.sqrt(areas * jnp.exp(logs))


def draw_crop(
  numbers: jax.Array,
  aspect_ratio: jax.Array,
  scale: tuple[float, float] = (0.08, 1.0),
  ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> Box:
  """Draws a random resized crop in the geometry of the picture.

  Its share of the area is uniform and the logarithm of its width / height is
  uniform; of ten draws the first that lies within the picture counts. If none
  does, it is the largest centred crop of an allowed width / height. This is
  torchvision's RandomResizedCrop without the rounding to whole pixels: the ten
  draws are made at once, which changes the order of the random numbers and not
  their distribution.

  Args:
    numbers: [NUM_DRAWS] float32, uniform in [0, 1).
    aspect_ratio: float32 scalar, width / height of the picture, however it lies
      in its array now.
    scale: least and largest share of the picture's area, in (0, 1].
    ratio: least and largest width / height of the crop, positive.

  Returns:
    The crop.

  Example:
    >>> numbers = jax.random.uniform(jax.random.key(0), (NUM_DRAWS,))
    >>> box = draw_crop(numbers, jnp.float32(2), (0.5, 0.5), (1, 1))
    >>> round(float(box.width), 3), round(float(box.height), 3)
    (0.5, 1.0)

  References:
    Szegedy et al., Going deeper with convolutions, CVPR 2015.
  """
  heights, widths = draw_sizes(numbers[:-2], scale, ratio)
  # A picture of area 1 is sqrt(aspect_ratio) wide.
  root = jnp.sqrt(aspect_ratio)
  heights, widths = heights * root, widths / root
  fits = (heights <= 1) & (widths <= 1)
  first, any_fits = jnp.argmax(fits), jnp.any(fits)
  allowed = jnp.clip(aspect_ratio, *ratio)
  height = jnp.where(
    any_fits, heights[first], jnp.minimum(1.0, aspect_ratio / allowed)
  )
  width = jnp.where(
    any_fits, widths[first], jnp.minimum(1.0, allowed / aspect_ratio)
  )
  place = jnp.where(any_fits, numbers[-2:], 0.5)
  return Box(place[0] * (1 - height), place[1] * (1 - width), height, width)


def resample(
  image: jax.Array, box: Box, size: tuple[int, int], flip: jax.Array | bool
) -> jax.Array:
  """Resizes a part of an image, bilinear and antialiased.

  Separable; along each axis, with c_i the centre of output pixel i in the image
  and s the input pixels for an output pixel, at least 1,

    out_i = sum_q w_iq x_q / sum_q w_iq,  w_iq = max(0, 1 - |q + 0.5 - c_i| / s)

  which is Pillow's `resize(size, BILINEAR, box)` without its rounding. Pixels
  beside the box contribute where it cuts the picture, none beyond its edges.

  Args:
    image: [Hc, Wc, C] uint8 or float.
    box: what to take of it.
    size: (H, W) of the result.
    flip: bool scalar, whether to mirror the result from left to right.

  Returns:
    [H, W, C] float32, within the range of the image.

  Example:
    >>> image = jnp.arange(4.0).reshape(1, 4, 1)
    >>> resample(image, Box(0.0, 0.5, 1.0, 0.5), (1, 2), True).ravel()
    Array([3., 2.], dtype=float32)
  """
  canvas_height, canvas_width, _ = image.shape
  height, width = size
  rows, row_weights = _taps(box.top, box.height, canvas_height, height)
  columns, column_weights = _taps(
    box.left, box.width, canvas_width, width, flip
  )
  # Gathers: on a CPU, products with matrices of weights take eight times as
  # long for 224x224 pixels of 336x336. Columns first: in the other order XLA
  # turns the result round in memory.
  x = jnp.asarray(image)
  x = sum(
    weights[None, :, None] * x[:, indices].astype(jnp.float32)
    for indices, weights in zip(columns, column_weights, strict=True)
  )
  return sum(
    weights[:, None, None] * x[indices]
    for indices, weights in zip(rows, row_weights, strict=True)
  )


def _taps(start, length, canvas_size, size, flip=False):
  """Returns which pixels make up each output pixel along an axis.

  Args:
    start: of the box, as a fraction of the axis.
    length: likewise.
    canvas_size: pixels of the axis.
    size: pixels of the output.
    flip: whether they run backwards.

  Returns:
    (indices [taps, size] int32, weights [taps, size] float32 that sum to 1).
  """
  step = length * canvas_size / size
  places = jnp.arange(size) + 0.5
  places = jnp.where(flip, size - places, places)
  centers = start * canvas_size + places * step
  support = jnp.maximum(step, 1.0)
  # As many pixel centres as can lie nearer than the support of a whole axis.
  taps = math.ceil(2 * max(1.0, canvas_size / size))
  first = jnp.floor(centers - support + 0.5).astype(jnp.int32)
  indices = first[None] + jnp.arange(taps)[:, None]
  distances = jnp.abs(indices + 0.5 - centers[None])
  weights = jnp.maximum(0.0, 1 - distances / support)
  weights = jnp.where((indices >= 0) & (indices < canvas_size), weights, 0.0)
  weights = weights / jnp.sum(weights, axis=0, keepdims=True)
  return jnp.clip(indices, 0, canvas_size - 1), weights


def flip(image: jax.Array, chosen: jax.Array | bool) -> jax.Array:
  """Mirrors an image from left to right if it is chosen.

  Args:
    image: [H, W, C].
    chosen: bool scalar.

  Returns:
    [H, W, C] of the same dtype.

  Example:
    >>> flip(jnp.array([[[1], [2]]]), True).tolist()
    [[[2], [1]]]
  """
  return jnp.where(chosen, image[:, ::-1], image)


def rotate(image: jax.Array, degrees: jax.Array | float) -> jax.Array:
  """Rotates an image about its centre, counter-clockwise, bilinear.

  What comes from outside is the image mirrored at the centres of its outermost
  pixels, so that no corner turns black.

  Args:
    image: [H, W, C] any real dtype.
    degrees: float32 scalar.

  Returns:
    [H, W, C] float32, within the range of the image.

  Example:
    >>> image = jnp.array([[[1], [2]], [[3], [4]]])
    >>> rotate(image, 90.0).round()[..., 0].tolist()
    [[2.0, 4.0], [1.0, 3.0]]
  """
  height, width, channels = image.shape
  angle = jnp.deg2rad(jnp.asarray(degrees, jnp.float32))
  sine, cosine = jnp.sin(angle), jnp.cos(angle)
  y = (jnp.arange(height) - (height - 1) / 2)[:, None]
  x = (jnp.arange(width) - (width - 1) / 2)[None]
  from_y = sine * x + cosine * y + (height - 1) / 2
  from_x = cosine * x - sine * y + (width - 1) / 2
  top, left = jnp.floor(from_y), jnp.floor(from_x)
  down, right = (from_y - top)[..., None], (from_x - left)[..., None]
  top, left = top.astype(jnp.int32), left.astype(jnp.int32)
  flat = jnp.asarray(image, jnp.float32).reshape(height * width, channels)

  def pixels(dy, dx):
    rows = _reflect(top + dy, height)
    return flat[rows * width + _reflect(left + dx, width)]

  above = pixels(0, 0) * (1 - right) + pixels(0, 1) * right
  below = pixels(1, 0) * (1 - right) + pixels(1, 1) * right
  return above * (1 - down) + below * down


def _reflect(index: jax.Array, size: int) -> jax.Array:
  """Returns indices mirrored at 0 and size - 1 as often as needed."""
  last = size - 1
  if last == 0:
    return jnp.zeros_like(index)
  return jnp.abs((index + last) % (2 * last) - last)
