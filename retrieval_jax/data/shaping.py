"""Which size the pictures of a collection are brought to."""

import math

from retrieval_jax.core.errors import InputError
from retrieval_jax.data.collection import Collection
from retrieval_jax.data.preprocessing import Preprocessing


def choose_preprocessing(
  collection: Collection,
  *,
  image_size: int | None = None,
  resize_size: int | None = None,
  channels: int | None = None,
  canvas_size: int | None = None,
) -> Preprocessing:
  """Returns how the pictures of a collection become arrays of one size.

  Args:
    collection: whose pictures they are.
    image_size: height and width that the model sees; None: those of the
      pictures, if they are alike.
    resize_size: what the shorter side is resized to before the centre crop;
      None: image_size, which crops nothing of the shorter side.
    channels: 1 (grey) or 3 (RGB); None: those of the pictures, else 3.
    canvas_size: side of the square that holds the whole picture when crops are
      drawn on the device; None: the pictures' own side if they are square and
      alike, else half as much again as image_size.

  Raises:
    InputError: pictures of any size without an image_size, or a size that does
      not fit.
  """
  own = collection.image_shape
  if image_size is None and own is None:
    raise InputError(
      f'data.image_size is None, but the pictures of {collection.name} have '
      'any size; allowed is the side of the square that the model sees: set '
      '--config.data.image_size=224'
    )
  height, width = own[:2] if image_size is None else (image_size, image_size)
  if channels is None:
    channels = 3 if own is None else own[2]
  if resize_size is None:
    resize_size = min(height, width)
  if resize_size < max(height, width) and (height, width) != (own or ())[:2]:
    raise InputError(
      f'data.resize_size is {resize_size}; allowed is at least '
      f'{max(height, width)}, data.image_size, which is cut out of it'
    )
  if canvas_size is None:
    is_square = own is not None and own[0] == own[1]
    canvas_size = own[0] if is_square else math.ceil(1.5 * max(height, width))
  return Preprocessing((height, width, channels), resize_size, canvas_size)
