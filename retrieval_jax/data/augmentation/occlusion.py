"""Rectangles that are erased, or taken from another image.

For `jax.vmap` over a batch. Images are float32 in [0, 255].
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from retrieval_jax.data.augmentation import geometry


class Rectangle(NamedTuple):
  """The pixels of rows [top, bottom) and columns [left, right).

  Attributes:
    top: float32 scalar, a whole number, as the others.
    bottom: not above the top; it may lie beyond the image.
    left: see above.
    right: see above.
  """

  top: jax.Array
  bottom: jax.Array
  left: jax.Array
  right: jax.Array

  def contains(self, size: tuple[int, int]) -> jax.Array:
    """Returns [H, W, 1] bool, True inside, for an image of size (H, W)."""
    y = jnp.arange(size[0])[:, None, None]
    x = jnp.arange(size[1])[None, :, None]
    in_rows = (y >= self.top) & (y < self.bottom)
    return in_rows & (x >= self.left) & (x < self.right)

  def only_if(self, chosen: jax.Array) -> 'Rectangle':
    """Returns it, or an empty one if a bool scalar is False."""
    return self._replace(bottom=jnp.where(chosen, self.bottom, self.top))


def draw_erased(
  numbers: jax.Array,
  size: tuple[int, int],
  area: tuple[float, float] = (0.02, 0.33),
  ratio: tuple[float, float] = (0.3, 3.3),
) -> Rectangle:
  """Draws the rectangle of Random Erasing, in whole pixels.

  Its share of the area is uniform and the logarithm of its width / height is
  uniform; of ten draws the first that is lower and narrower than the image
  counts, anywhere within it. If none is, the rectangle is empty.

  Args:
    numbers: [geometry.NUM_DRAWS] float32, uniform in [0, 1).
    size: (H, W) of the image.
    area: least and largest share of its area, in (0, 1].
    ratio: least and largest width / height, positive.

  Returns:
    The rectangle, within the image.

  Example:
    >>> numbers = jax.random.uniform(jax.random.key(0), (geometry.NUM_DRAWS,))
    >>> erased = draw_erased(numbers, (8, 8), (0.25, 0.25), (1, 1))
    >>> erased.contains((8, 8)).sum().item()
    16

  References:
    Zhong et al., Random erasing data augmentation, AAAI 2020.
  """
  heights, widths = geometry.draw_sizes(numbers[:-2], area, ratio)
  root = (size[0] * size[1]) ** 0.5
  heights, widths = jnp.round(heights * root), jnp.round(widths * root)
  fits = (heights < size[0]) & (widths < size[1])
  first = jnp.argmax(fits)
  height = jnp.where(jnp.any(fits), heights[first], 0.0)
  width = widths[first]
  # The last row that it can begin at is as likely as the others.
  top = jnp.floor(numbers[-2] * (size[0] - height + 1))
  left = jnp.floor(numbers[-1] * (size[1] - width + 1))
  return Rectangle(top, top + height, left, left + width)


def draw_noise(key: jax.Array, shape: tuple[int, int, int]) -> jax.Array:
  """Draws an image whose values are each uniform over 0, 1, .. 255.

  Args:
    key: of this draw.
    shape: (H, W, C) with C of at most 4.

  Returns:
    [H, W, C] float32.
  """
  height, width, channels = shape
  # One number holds the bytes of all channels: a third of the time.
  bits = jax.random.bits(key, (height, width), jnp.uint32)
  planes = [(bits >> (8 * channel)) & 255 for channel in range(channels)]
  return jnp.stack(planes, axis=-1).astype(jnp.float32)


def erase(image: jax.Array, erased: Rectangle, fill: jax.Array) -> jax.Array:
  """Returns the image with `fill` within a rectangle.

  Args:
    image: [H, W, C] float32.
    erased: the rectangle.
    fill: [H, W, C] or [1, 1, C] float32.
  """
  return jnp.where(erased.contains(image.shape[:2]), fill, image)


def mixup(
  image: jax.Array, partner: jax.Array, weight: jax.Array | float
) -> jax.Array:
  """Returns weight x + (1 - weight) x'.

  Args:
    image: x, [H, W, C] float32.
    partner: x', likewise.
    weight: float32 scalar in [0, 1]; also the share of the first label.

  Example:
    >>> image, partner = jnp.full((1, 1, 1), 8.0), jnp.zeros((1, 1, 1))
    >>> mixup(image, partner, 0.75).item()
    6.0

  References:
    Zhang et al., mixup: Beyond empirical risk minimization, ICLR 2018.
  """
  return weight * image + (1 - weight) * partner


def draw_pasted(
  numbers: jax.Array, size: tuple[int, int], weight: jax.Array | float
) -> Rectangle:
  """Draws the rectangle of CutMix, in whole pixels.

  It has the shape of the image, a share of 1 - weight of its area, and its
  centre anywhere in the image, so that it may reach beyond the edges.

  Args:
    numbers: [2] float32, uniform in [0, 1).
    size: (H, W) of the image.
    weight: float32 scalar in [0, 1].

  References:
    Yun et al., CutMix: Regularization strategy to train strong classifiers with
    localizable features, ICCV 2019.
  """
  side = jnp.sqrt(1 - weight)
  edges = []
  for place, length in zip(numbers, size, strict=True):
    center, extent = jnp.floor(place * length), jnp.floor(side * length)
    start = center - jnp.floor(extent / 2)
    edges += [start, start + extent]
  return Rectangle(*edges)


def cutmix(
  image: jax.Array, partner: jax.Array, pasted: Rectangle
) -> tuple[jax.Array, jax.Array]:
  """Pastes a rectangle of another image at the same place.

  Args:
    image: [H, W, C] float32.
    partner: likewise.
    pasted: the rectangle.

  Returns:
    (the image, the share of its pixels that are its own), the second a float32
    scalar, also the share of the first label.

  Example:
    >>> image, partner = jnp.ones((2, 2, 1)), jnp.zeros((2, 2, 1))
    >>> mixed, share = cutmix(image, partner, Rectangle(-1, 1, 0, 1))
    >>> mixed[..., 0].tolist(), share.item()
    ([[0.0, 1.0], [1.0, 1.0]], 0.75)
  """
  inside = pasted.contains(image.shape[:2])
  # Counted, since the edges of the image may have cut it.
  share = 1 - jnp.mean(inside.astype(jnp.float32))
  return jnp.where(inside, partner, image), share
