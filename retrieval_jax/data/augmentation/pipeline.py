"""What is done to the images of a training step, on the device.

The changes of an image are drawn from fold_in(fold_in(key(seed), step), row),
row being its place in the global batch: a run that is resumed, or that goes on
with another number of devices, sees the same pixels. Turning one operation on
or off leaves what the others draw as it was.

The order is: crop, flip, rotation, brightness, contrast, saturation, hue, blur,
erasing, and then mixup or CutMix between images. (torchvision shuffles the four
of color for each image; compiled for a batch, that would cost each of them four
times.) What is off is not in the compiled step.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from retrieval_jax.core import backend
from retrieval_jax.core.errors import InputError
from retrieval_jax.data.augmentation import color, geometry, occlusion
from retrieval_jax.data.augmentation.options import Augmentation

# Where the numbers of each operation lie among those that are drawn for a row.
_FLIP, _ROTATION, _BRIGHTNESS, _CONTRAST, _SATURATION, _HUE = range(6)
_BLUR, _SIGMA, _ERASE = range(6, 9)
_CROP_BOX = slice(9, 9 + geometry.NUM_DRAWS)
_ERASE_BOX = slice(_CROP_BOX.stop, _CROP_BOX.stop + geometry.NUM_DRAWS)
_NUM_DRAWS = _ERASE_BOX.stop
# What has keys of its own.
_NOISE, _MIX = 1, 2


class _Changes(NamedTuple):
  """What was drawn for one image; None is not done."""

  crop: geometry.Box | None = None
  flip: jax.Array | None = None
  degrees: jax.Array | None = None
  brightness: jax.Array | None = None
  contrast: jax.Array | None = None
  saturation: jax.Array | None = None
  turns: jax.Array | None = None
  blur: jax.Array | None = None
  sigma: jax.Array | None = None
  erased: occlusion.Rectangle | None = None
  noise: jax.Array | None = None


def augment(
  images: jax.Array,
  aspect_ratios: jax.Array | None,
  key: jax.Array,
  row_ids: jax.Array,
  image_shape: tuple[int, int, int],
  options: Augmentation,
  mean: float | Sequence[float] = 0.5,
) -> jax.Array:
  """Changes each image at random, to be called in the compiled step.

  Args:
    images: [B, Hc, Wc, C] uint8 or float32 in [0, 255]. If `needs_canvas`, each
      is a whole picture resized to this size, else [Hc, Wc, C] is image_shape.
    aspect_ratios: [B] float32, width / height of the pictures before that; only
      if `needs_canvas`.
    key: of the step, equal on all devices.
    row_ids: [B] int32, the rows of the images in the global batch; image i is
      changed by fold_in(key, row_ids[i]).
    image_shape: (H, W, C) to return.
    options: what is done.
    mean: of the pixels in [0, 1], a number or one a channel, for erasing.

  Returns:
    [B, H, W, C] float32 in [0, 255], not rounded; the images themselves if
    nothing is done to single images.

  Raises:
    ValueError: for shapes that do not fit.

  Example:
    >>> images = jnp.arange(4, dtype=jnp.uint8).reshape(1, 2, 2, 1)
    >>> options = Augmentation(flip=1.0)
    >>> changed = augment(
    ...   images, None, jax.random.key(0), jnp.arange(1), (2, 2, 1), options)
    >>> changed[0, :, :, 0]
    Array([[1., 0.],
           [3., 2.]], dtype=float32)
  """
  if options.needs_canvas:
    if aspect_ratios is None or images.shape[3:] != image_shape[2:]:
      raise ValueError(
        f'images {images.shape} to be cropped to {image_shape} need '
        'aspect_ratios, and the same channels'
      )
  elif images.shape[1:] != tuple(image_shape):
    raise ValueError(f'images are {images.shape}, not {image_shape} each')
  if not options.changes_images:
    return images
  if aspect_ratios is None:
    aspect_ratios = jnp.ones(len(images), jnp.float32)
  channels = image_shape[-1]
  fill = np.broadcast_to(np.asarray(mean, np.float32), (channels,)) * 255

  def draw(row_id, aspect_ratio):
    row_key = jax.random.fold_in(key, row_id)
    # At once, since each call of the generator takes long to compile.
    numbers = jax.random.uniform(row_key, (_NUM_DRAWS,))
    noise_key = jax.random.fold_in(row_key, _NOISE)
    return numbers, _changes(
      numbers, noise_key, aspect_ratio, image_shape, options
    )

  numbers, changes = jax.vmap(draw)(row_ids, aspect_ratios)
  for i, stage in enumerate(_stages(image_shape, options, fill)):
    if i > 0:
      images = _materialized(images, numbers)
    images = jax.vmap(stage)(images, changes)
  return images


def mix(
  images: jax.Array,
  labels: jax.Array,
  key: jax.Array,
  row_ids: jax.Array,
  options: Augmentation,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Mixes each image with its neighbour: row i of the batch with row i ^ 1.

  In a batch that is drawn at random that is any other image, and it lies on the
  same device. (In a batch of P classes x K images, it mostly is one of the same
  class.) Each row draws a weight and a rectangle of its own, so the two of a
  pair are not each other's complement. Use losses against proxies:

    loss = weight loss(first label) + (1 - weight) loss(second label)

  Args:
    images: [B, H, W, C] uint8 or float32 in [0, 255], B even.
    labels: [B] int.
    key: of the step; see `augment`.
    row_ids: [B] int32, the first of them even; see `augment`.
    options: `mixup` and `cutmix` of it.

  Returns:
    (images [B, H, W, C] float32, second labels [B] of the dtype of labels,
    weights of the first labels [B] float32 in [0, 1]).

  Raises:
    InputError: for an odd number of images.

  Example:
    >>> images = jnp.array([0.0, 8.0]).reshape(2, 1, 1, 1)
    >>> mixed, second_labels, weights = mix(
    ...   images, jnp.array([5, 6]), jax.random.key(0), jnp.arange(2),
    ...   Augmentation(mixup=1.0))
    >>> second_labels.tolist()
    [6, 5]
    >>> jnp.allclose(mixed.ravel(), 8 * jnp.array([1 - weights[0], weights[1]]))
    Array(True, dtype=bool)
  """
  if len(images) % 2:
    raise InputError(
      f'data.batch_size is {len(images)} on each device; allowed is an even '
      'number with augment.mixup or augment.cutmix, which mix neighbours: set '
      '--config.data.batch_size'
    )
  images = images.astype(jnp.float32)
  if not options.mixes_labels:
    return images, labels, jnp.ones(len(labels), jnp.float32)

  def draw(row_id):
    row_key = jax.random.fold_in(key, row_id)
    return _mixture(row_key, images.shape[1:3], options)

  def change(image, partner, numbers, weight, rectangle):
    if not options.cutmix:
      return occlusion.mixup(image, partner, weight), weight
    pasted, share = occlusion.cutmix(image, partner, rectangle)
    if not options.mixup:
      return pasted, share
    averaged = occlusion.mixup(image, partner, weight)
    coin = numbers[2] < 0.5
    return jnp.where(coin, averaged, pasted), jnp.where(coin, weight, share)

  drawn = jax.vmap(draw)(row_ids)
  images = _materialized(images, drawn[0])
  mixed, weights = jax.vmap(change)(images, _partners(images), *drawn)
  return mixed, _partners(labels), weights


def _changes(numbers, noise_key, aspect_ratio, image_shape, options):
  """Returns the `_Changes` of one image."""

  def factor(place, strength):
    if not strength:
      return None
    return color.draw_factor(numbers[place], strength)

  def angle(place, largest):
    return largest * (2 * numbers[place] - 1) if largest else None

  def coin(place, probability):
    return numbers[place] < probability if probability else None

  crop = sigma = erased = noise = None
  if options.needs_canvas:
    crop = geometry.draw_crop(
      numbers[_CROP_BOX], aspect_ratio, options.crop_scale, options.crop_ratio
    )
  if options.blur:
    low, high = options.blur_sigma
    sigma = low + numbers[_SIGMA] * (high - low)
  if options.erase:
    erased = occlusion.draw_erased(
      numbers[_ERASE_BOX],
      image_shape[:2],
      options.erase_scale,
      options.erase_ratio,
    ).only_if(coin(_ERASE, options.erase))
    if options.erase_fill == 'noise':
      noise = occlusion.draw_noise(noise_key, image_shape)
  return _Changes(
    crop=crop,
    flip=coin(_FLIP, options.flip),
    degrees=angle(_ROTATION, options.rotation),
    brightness=factor(_BRIGHTNESS, options.brightness),
    contrast=factor(_CONTRAST, options.contrast),
    saturation=factor(_SATURATION, options.saturation),
    turns=angle(_HUE, options.hue),
    blur=coin(_BLUR, options.blur),
    sigma=sigma,
    erased=erased,
    noise=noise,
  )


def _mixture(row_key, size, options):
  """Returns (numbers [3], weight of mixup, rectangle of CutMix) of an image."""
  key, weight_key = jax.random.split(jax.random.fold_in(row_key, _MIX))
  numbers = jax.random.uniform(key, (3,))
  weight, rectangle = None, None
  if options.mixup:
    weight = _beta(weight_key, options.mixup)
  if options.cutmix:
    share = _beta(weight_key, options.cutmix)
    rectangle = occlusion.draw_pasted(numbers[:2], size, share)
  return numbers, weight, rectangle


def _stages(image_shape, options, fill):
  """Returns functions (image, `_Changes`) -> image, to be called in order."""

  def crop_and_flip(image, changes):
    flip = False if changes.flip is None else changes.flip
    if changes.crop is None:
      return geometry.flip(image, flip).astype(jnp.float32)
    return geometry.resample(image, changes.crop, image_shape[:2], flip)

  def rotate(image, changes):
    return geometry.rotate(image, changes.degrees)

  def recolor(image, changes):
    image = image.astype(jnp.float32)
    for adjust, amount in (
      (color.adjust_brightness, changes.brightness),
      (color.adjust_contrast, changes.contrast),
      (color.adjust_saturation, changes.saturation),
      (color.adjust_hue, changes.turns),
    ):
      if amount is not None:
        image = adjust(image, amount)
    return image

  def blur(image, changes):
    largest = options.blur_sigma[1]
    return color.gaussian_blur(image, changes.sigma, changes.blur, largest)

  def erase(image, changes):
    filling = changes.noise
    if filling is None:
      filling = jnp.asarray(fill)[None, None]
    return occlusion.erase(image, changes.erased, filling)

  stages = (
    (crop_and_flip, options.needs_canvas or options.flip),
    (rotate, options.rotation),
    (recolor, options.recolors),
    (blur, options.blur),
    (erase, options.erase),
  )
  return [stage for stage, is_on in stages if is_on]


def _materialized(images, numbers):
  """Returns the images, computed before what follows is.

  XLA would else fuse one stage into the next and compute it anew for each of
  the pixels that the next one reads: three times as long for all stages on a
  CPU, where it drops optimization barriers before it fuses. Nothing is fused
  across a loop, though, and this one is never entered.
  """
  if backend.name() != 'cpu':
    return jax.lax.optimization_barrier(images)
  entered = jnp.isnan(numbers[0, 0]).astype(jnp.int32)
  return jax.lax.while_loop(
    lambda state: state[0] > 0,
    lambda state: (state[0] - 1, state[1] + 1),
    (entered, images),
  )[1]


def _beta(key, alpha):
  # Beta(1, 1) needs no rejection sampling.
  if alpha == 1:
    return jax.random.uniform(key)
  return jax.random.beta(key, alpha, alpha, dtype=jnp.float32)


def _partners(x):
  """Returns row i ^ 1 of [B, ...] at i."""
  return x.reshape(-1, 2, *x.shape[1:])[:, ::-1].reshape(x.shape)
