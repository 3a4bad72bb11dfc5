"""The one way in which a picture becomes the array that a model sees.

Training, evaluation and `embed` take it alike, so that a file has one embedding
wherever it is read.
"""

import dataclasses
import math
import os
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np
import PIL.Image

from retrieval_jax.core import files
from retrieval_jax.core.errors import InputError
from retrieval_jax.data import decoding
from retrieval_jax.data.resizing import resize


@dataclasses.dataclass(frozen=True)
class Preprocessing:
  """From a picture of any size to an array of one size.

  Attributes:
    image_shape: (H, W, C) that a model sees, C of 1 (grey) or 3 (RGB).
    resize_size: what the shorter side is resized to, in pixels, before H x W
      are cut out of the centre.
    canvas_size: S of the square that holds the whole picture where crops are
      drawn on the device; 0: there is none.

  Example:
    >>> preprocessing = Preprocessing((224, 224, 3), resize_size=256)
    >>> preprocessing.view(np.zeros((375, 500, 3), np.uint8)).shape
    (224, 224, 3)
  """

  image_shape: tuple[int, int, int]
  resize_size: int
  canvas_size: int = 0

  def __post_init__(self):
    """Checks the sizes.

    Raises:
      InputError: for a size that is not positive, or other channels.
    """
    shape = tuple(int(size) for size in self.image_shape)
    object.__setattr__(self, 'image_shape', shape)
    if len(shape) != 3 or shape[2] not in (1, 3):
      raise InputError(
        f'image_shape is {shape}; allowed is (H, W, C) with 1 or 3 channels'
      )
    if min(shape) < 1 or self.resize_size < 1 or self.canvas_size < 0:
      raise InputError(
        f'image_shape is {shape}, resize_size is {self.resize_size} and '
        f'canvas_size is {self.canvas_size}; allowed are positive sizes'
      )

  def to_dict(self) -> dict[str, Any]:
    """Returns the fields as JSON holds them."""
    return dataclasses.asdict(self) | {'image_shape': list(self.image_shape)}

  @classmethod
  def from_dict(cls, fields: Mapping[str, Any]) -> 'Preprocessing':
    """Returns what `to_dict` was called of."""
    return cls(**{**fields, 'image_shape': tuple(fields['image_shape'])})

  def scaled_to(self, side: int) -> 'Preprocessing':
    """Returns what shows the same of a picture in fewer or more pixels.

    Args:
      side: height and width that a model sees, in pixels; the other sizes are
        in proportion.

    Example:
      >>> Preprocessing((512, 512, 3), 576, canvas_size=768).scaled_to(224)
      Preprocessing(image_shape=(224, 224, 3), resize_size=252, canvas_size=336)
    """
    ratio = side / min(self.image_shape[:2])
    return Preprocessing(
      (side, side, self.image_shape[2]),
      max(side, round(ratio * self.resize_size)),
      math.ceil(ratio * self.canvas_size),
    )

  def view(self, image: np.ndarray) -> np.ndarray:
    """Returns what is evaluated: resized, then cut out of the centre.

    As torchvision's Resize(resize_size) and CenterCrop, rounding included: the
    aspect ratio is kept and the shorter side becomes resize_size. If H x W do
    not fit into that, as they may if H and W differ, the picture is resized to
    just hold them.

    Args:
      image: [h, w, C] uint8.

    Returns:
      [H, W, C] uint8; `image` itself if nothing has to be done.
    """
    height, width, _ = self.image_shape
    shape = self._resized_shape(*image.shape[:2])
    top = round((shape[0] - height) / 2)
    left = round((shape[1] - width) / 2)
    return resize(image, shape, (top, left, top + height, left + width))

  def canvas(self, image: np.ndarray) -> np.ndarray:
    """Returns the whole picture on a square, the aspect ratio not kept.

    Args:
      image: [h, w, C] uint8.

    Returns:
      [S, S, C] uint8; `image` itself if it has that size.
    """
    return resize(image, (self.canvas_size, self.canvas_size))

  def prepare(
    self,
    content: bytes | np.ndarray,
    box: np.ndarray | None = None,
    *,
    canvas: bool = False,
  ) -> tuple[np.ndarray, float]:
    """Decodes a picture, cuts out a box, and makes a view or a canvas of it.

    A JPEG without a box is decoded at 1/2, 1/4 or 1/8 of its size where no
    pixel is lost by that which the result could hold.

    Args:
      content: the bytes of an image file, or [h, w, C] uint8.
      box: (x_1, y_1, x_2, y_2) in pixels of the upright picture, x_2 and y_2
        exclusive; None or NaN: the whole.
      canvas: whether to return a canvas.

    Returns:
      (array, aspect_ratio): [H, W, C] or [S, S, C] uint8, and width / height of
      the picture (of its box) before it was resized.

    Raises:
      decoding.UnreadableImageError: not an image, or a box without pixels.
    """
    channels = self.image_shape[2]
    if box is None or np.isnan(box).all():
      min_side = self.canvas_size if canvas else self._shorter_side()
      height, width = decoding.read_size(content)
      image = decoding.decode(content, channels, min_side)
    else:
      image = crop(decoding.decode(content, channels), box)
      height, width = image.shape[:2]
    array = self.canvas(image) if canvas else self.view(image)
    return array, width / height

  def is_identity(
    self, image_shape: tuple[int, ...], *, canvas: bool = False
  ) -> bool:
    """Returns whether decoded images of a shape are left as they are.

    Args:
      image_shape: (h, w, C) of the images.
      canvas: whether canvases are asked for.
    """
    if canvas:
      return image_shape == (
        self.canvas_size,
        self.canvas_size,
        self.image_shape[2],
      )
    return image_shape == self.image_shape and (
      self._resized_shape(*image_shape[:2]) == image_shape[:2]
    )

  def _shorter_side(self):
    """Returns what the shorter side becomes at most."""
    return max(self.resize_size, *self.image_shape[:2])

  def _resized_shape(self, height, width):
    """Returns what a picture is resized to before the crop."""
    shorter, longer = sorted((height, width))
    long = int(self.resize_size * longer / shorter)
    shape = (self.resize_size, long)
    if height > width:
      shape = (long, self.resize_size)
    if shape[0] >= self.image_shape[0] and shape[1] >= self.image_shape[1]:
      return shape
    ratio = max(self.image_shape[0] / height, self.image_shape[1] / width)
    return (
      max(self.image_shape[0], round(height * ratio)),
      max(self.image_shape[1], round(width * ratio)),
    )


def crop(image: np.ndarray, box: np.ndarray) -> np.ndarray:
  """Returns the part of an image in a box.

  Args:
    image: [h, w, C].
    box: (x_1, y_1, x_2, y_2) in pixels, x_2 and y_2 exclusive. Fractions of
      pixels count as whole ones, and what is outside of the image is left out.

  Raises:
    decoding.UnreadableImageError: if nothing remains.

  Example:
    >>> crop(np.arange(12).reshape(3, 4, 1), np.array([1, 0, 9, 2]))[..., 0]
    array([[1, 2, 3],
           [5, 6, 7]])
  """
  height, width = image.shape[:2]
  x_1, y_1, x_2, y_2 = np.asarray(box, np.float64).tolist()
  # Written so that a NaN among them fails too.
  if not (max(x_1, 0) < min(x_2, width) and max(y_1, 0) < min(y_2, height)):
    raise decoding.UnreadableImageError(
      f'its box ({x_1:g}, {y_1:g}, {x_2:g}, {y_2:g}) has no pixels of the '
      f'picture, {width} wide and {height} high'
    )
  left, top = math.floor(max(x_1, 0)), math.floor(max(y_1, 0))
  right, bottom = math.ceil(min(x_2, width)), math.ceil(min(y_2, height))
  return image[top:bottom, left:right]


def read_images(
  images: Any, preprocessing: Preprocessing, name: str = 'images'
) -> np.ndarray:
  """Reads images of any kind and size as a model is evaluated on them.

  A file gives the very array that the evaluation saw of it.

  Args:
    images: a list of images, or one image. An image is a uint8 array [H, W] or
      [H, W, C] with C of 1, 3 (RGB) or 4 (RGBA), the path of a file, or a PIL
      image. A uint8 array [n, H, W, C] is n images, and so is [n, H, W] unless
      its last axis is 1, 3 or 4.
    preprocessing: of the model.
    name: how messages call the images.

  Returns:
    [n, H, W, C] uint8; n is 1 for one image.

  Raises:
    InputError: naming the image that cannot be read, or has another dtype or
      shape.

  Example:
    >>> preprocessing = Preprocessing((28, 28, 3), resize_size=28)
    >>> read_images([np.zeros((2, 2), np.uint8)], preprocessing).shape
    (1, 28, 28, 3)
  """
  if isinstance(images, np.ndarray | jax.Array):
    images = _stack(np.asarray(images), name)
    if preprocessing.is_identity(images.shape[1:]):
      return images
  elif isinstance(images, str | os.PathLike | PIL.Image.Image):
    images = [images]
  elif not isinstance(images, Iterable):
    raise InputError(
      f'{name} has type {type(images).__name__}; allowed are uint8 arrays, '
      'paths of files, PIL images, and lists of these'
    )
  arrays = [
    _read_image(image, preprocessing, f'{name}[{i}]')
    for i, image in enumerate(images)
  ]
  return np.array(arrays, np.uint8).reshape(-1, *preprocessing.image_shape)


def _read_image(
  image: Any, preprocessing: Preprocessing, name: str
) -> np.ndarray:
  """Returns one image as [H, W, C] uint8."""
  if isinstance(image, str | os.PathLike):
    path = os.fspath(image)
    content, title = _read_file(path, name), f'{name} is {path!r}, which'
  elif isinstance(image, np.ndarray | jax.Array):
    content, title = np.asarray(image), name
    _check_array(content, name, (2, 3))
    if content.ndim == 3 and content.shape[-1] not in (1, 3, 4):
      raise InputError(
        f'{name} has shape {content.shape}; allowed are (H, W) and (H, W, C) '
        'with C of 1, 3 or 4: move the channels to the last axis'
      )
  elif isinstance(image, PIL.Image.Image):
    content, title = image, name
  else:
    raise InputError(
      f'{name} has type {type(image).__name__}; allowed are uint8 arrays, '
      'paths of files and PIL images'
    )
  try:
    if isinstance(content, PIL.Image.Image):
      content = decoding.from_pillow(content, preprocessing.image_shape[2])
    return preprocessing.prepare(content)[0]
  except decoding.UnreadableImageError as error:
    raise InputError(
      f'{title} cannot be read as an image: {error}. Replace it or leave it out'
    ) from error


def _read_file(path: str, name: str) -> bytes:
  """Returns the bytes of a file."""
  try:
    return files.read_bytes(path)
  except FileNotFoundError as error:
    raise InputError(
      f'{name} is {path!r}, which does not exist: correct the path'
    ) from error
  except OSError as error:
    raise InputError(
      f'{name} is {path!r}, which cannot be read ({error.strerror}): correct '
      'the path'
    ) from error


def _stack(array: np.ndarray, name: str) -> np.ndarray:
  """Returns one array of images as [n, H, W, C]."""
  _check_array(array, name, (2, 3, 4))
  if array.ndim == 4:
    return array
  if array.ndim == 2:
    return array[None, :, :, None]
  is_one = array.shape[-1] in (1, 3, 4)
  return array[None] if is_one else array[..., None]


def _check_array(array: np.ndarray, name: str, ranks: tuple[int, ...]) -> None:
  """Raises unless an array is uint8 of one of some ranks, and not empty."""
  if array.dtype != np.uint8:
    raise InputError(
      f'{name} has dtype {array.dtype}; allowed is uint8, 0 to 255: pass '
      '(images * 255).round().astype(np.uint8) if they are in [0, 1], '
      'images.astype(np.uint8) if in [0, 255]'
    )
  # Only the first axis of four may be 0: no images.
  if array.ndim not in ranks or 0 in array.shape[array.ndim == 4 :]:
    raise InputError(
      f'{name} has shape {array.shape}; allowed are (H, W), (H, W, C)'
      + (', (n, H, W) and (n, H, W, C)' if 4 in ranks else '')
    )
