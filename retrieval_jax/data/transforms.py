"""From what people have (arrays, files, PIL images) to what a model takes."""

import os
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import PIL.ImageOps

from retrieval_jax.core.errors import InputError

_MODES = {1: 'L', 3: 'RGB'}


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
  mean = np.asarray(mean, np.float64)
  std = np.asarray(std, np.float64)
  scale = np.asarray(1 / (255 * std), np.float32)
  shift = np.asarray(-mean / std, np.float32)
  # One value a channel is given all four axes: no silent broadcasting of ranks.
  scale, shift = (x.reshape(1, 1, 1, -1) for x in (scale, shift))
  return images.astype(jnp.float32) * scale + shift


def read_images(
  images: Any, image_shape: tuple[int, int, int], name: str = 'images'
) -> np.ndarray:
  """Reads images of any kind and size as a model was trained on them.

  Colour is converted to the channels of `image_shape`, and another size is
  resized to it by Pillow (bilinear, antialiased, without keeping the aspect
  ratio). A file's EXIF orientation is applied.

  Args:
    images: a list of images, or one image. An image is a uint8 array [H, W] or
      [H, W, C] with C of 1, 3 (RGB) or 4 (RGBA, the alpha is dropped), the path
      of a file, or a PIL image. A uint8 array [n, H, W, C] is n images, and so
      is [n, H, W] unless its last axis is 1, 3 or 4.
    image_shape: (H, W, C) to return, C of 1 or 3.
    name: how messages call the images.

  Returns:
    [n, H, W, C] uint8; n is 1 for one image.

  Raises:
    InputError: naming the image that cannot be read, or has another dtype or
      shape.

  Example:
    >>> read_images([np.zeros((2, 2), np.uint8)], (28, 28, 3)).shape
    (1, 28, 28, 3)
  """
  height, width, channels = image_shape
  if channels not in _MODES:
    raise InputError(
      f'image_shape is {tuple(image_shape)}; allowed are 1 or 3 channels'
    )
  if isinstance(images, np.ndarray | jax.Array):
    images = _stack(np.asarray(images), name)
    if images.shape[1:] == (height, width, channels):
      return images
  elif isinstance(images, str | os.PathLike | PIL.Image.Image):
    images = [images]
  elif not isinstance(images, Iterable):
    raise InputError(
      f'{name} has type {type(images).__name__}; allowed are uint8 arrays, '
      'paths of files, PIL images, and lists of these'
    )
  converted = [
    _convert(image, image_shape, f'{name}[{i}]')
    for i, image in enumerate(images)
  ]
  return np.array(converted, np.uint8).reshape(-1, *image_shape)


def _stack(array: np.ndarray, name: str) -> np.ndarray:
  """Returns one array of images as [n, H, W, C]."""
  _check_array(array, name, (2, 3, 4))
  if array.ndim == 4:
    return array
  if array.ndim == 3 and array.shape[-1] in (1, 3, 4):
    return array[None]
  return array[None, :, :, None] if array.ndim == 2 else array[..., None]


def _convert(
  image: Any, image_shape: tuple[int, int, int], name: str
) -> np.ndarray:
  """Returns one image as [H, W, C] uint8."""
  height, width, channels = image_shape
  if isinstance(image, np.ndarray | jax.Array):
    image = np.asarray(image)
    _check_array(image, name, (2, 3))
    if image.shape == tuple(image_shape):
      return image
    if image.ndim == 3 and image.shape[-1] == 1:
      image = image[..., 0]
    if image.ndim == 3 and image.shape[-1] not in (3, 4):
      raise InputError(
        f'{name} has shape {image.shape}; allowed are (H, W) and (H, W, C) '
        'with C of 1, 3 or 4: move the channels to the last axis'
      )
    picture = PIL.Image.fromarray(image)
  elif isinstance(image, str | os.PathLike):
    picture = _open(os.fspath(image), name)
  elif isinstance(image, PIL.Image.Image):
    picture = image
  else:
    raise InputError(
      f'{name} has type {type(image).__name__}; allowed are uint8 arrays, '
      'paths of files and PIL images'
    )
  if picture.mode.startswith(('I', 'F')):
    # Pillow would clip these to 255 and return a white image.
    raise InputError(
      f'{name} has more than 8 bits a channel (PIL mode {picture.mode!r}); '
      'allowed are 8: scale it to 0 .. 255 first'
    )
  mode = _MODES[channels]
  if picture.mode != mode:
    picture = picture.convert(mode)
  if picture.size != (width, height):
    picture = picture.resize((width, height), PIL.Image.Resampling.BILINEAR)
  return np.asarray(picture).reshape(image_shape)


def _open(path: str, name: str) -> PIL.Image.Image:
  """Reads a file, upright."""
  try:
    with PIL.Image.open(path) as file:
      return PIL.ImageOps.exif_transpose(file)
  except FileNotFoundError as error:
    raise InputError(
      f'{name} is {path!r}, which does not exist: correct the path'
    ) from error
  # Damaged files make Pillow raise OSError, SyntaxError, ValueError,
  # struct.error and others.
  except Exception as error:
    reason = str(error).splitlines()[0] if str(error) else repr(error)
    raise InputError(
      f'{name} is {path!r}, which cannot be read as an image ({reason}): '
      'replace the file or leave it out'
    ) from error


def _check_array(array: np.ndarray, name: str, ranks: tuple[int, ...]) -> None:
  """Raises unless an array is uint8 of one of some ranks, and not empty."""
  if array.dtype != np.uint8:
    raise InputError(
      f'{name} has dtype {array.dtype}; allowed is uint8, 0 to 255: pass '
      '(images * 255).round().astype(np.uint8) if they are in [0, 1], '
      'images.astype(np.uint8) if in [0, 255]'
    )
  if array.ndim not in ranks or 0 in array.shape[-2:]:
    raise InputError(
      f'{name} has shape {array.shape}; allowed are (H, W), (H, W, C)'
      + (', (n, H, W) and (n, H, W, C)' if 4 in ranks else '')
    )
