"""The section `augment` of a config: what there is, and what it may be."""

import dataclasses
import math
import numbers
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from retrieval_jax.core.errors import InputError, unknown_name

ERASE_FILLS = ('mean', 'noise')


class _Rule(NamedTuple):
  """What one option may be: in words, and as a test."""

  allowed: str
  holds: Callable[[Any], bool]


def _is_number(value: object) -> bool:
  return (
    isinstance(value, numbers.Real)
    # A bool is an int to Python, and never meant as one here.
    and not isinstance(value, bool)
    and math.isfinite(value)
  )


def _is_range(value: object, largest: float = math.inf) -> bool:
  return (
    isinstance(value, Sequence)
    and len(value) == 2
    and all(map(_is_number, value))
    and 0 < value[0] <= value[1] <= largest
  )


_SHARE = _Rule('a number in [0, 1]', lambda v: _is_number(v) and 0 <= v <= 1)
_STRENGTH = _Rule(
  'a finite number of at least 0', lambda v: _is_number(v) and v >= 0
)
_RANGE = _Rule('two numbers (low, high), 0 < low <= high', _is_range)
_AREA = _Rule(
  'two numbers (low, high), 0 < low <= high <= 1', lambda v: _is_range(v, 1)
)

_RULES = {
  'crop_scale': _Rule(
    f'{_AREA.allowed}, or None', lambda v: v is None or _AREA.holds(v)
  ),
  'crop_ratio': _RANGE,
  'flip': _SHARE,
  'rotation': _Rule(
    'a number of degrees in [0, 180]',
    lambda v: _is_number(v) and 0 <= v <= 180,
  ),
  'brightness': _STRENGTH,
  'contrast': _STRENGTH,
  'saturation': _STRENGTH,
  'hue': _Rule(
    'a number in [0, 0.5]', lambda v: _is_number(v) and 0 <= v <= 1 / 2
  ),
  'blur': _SHARE,
  'blur_sigma': _RANGE,
  'erase': _SHARE,
  'erase_scale': _AREA,
  'erase_ratio': _RANGE,
  'erase_fill': _Rule(
    f'one of {", ".join(ERASE_FILLS)}', lambda v: v in ERASE_FILLS
  ),
  'mixup': _STRENGTH,
  'cutmix': _STRENGTH,
}


@dataclasses.dataclass(frozen=True)
class Augmentation:
  """What is done to images in training; nothing, unless something is set.

  Attributes:
    crop_scale: least and largest share of the picture's area in a random
      resized crop, or None for no crop.
    crop_ratio: least and largest width / height of the crop.
    flip: probability of mirroring from left to right.
    rotation: largest angle in degrees, to either side.
    brightness: b of a factor uniform in [max(0, 1 - b), 1 + b].
    contrast: likewise.
    saturation: likewise; grey images have none.
    hue: h of a turn uniform in [-h, h], 0.5 being half the circle of hues.
    blur: probability of a Gaussian blur.
    blur_sigma: least and largest of its standard deviations, in pixels.
    erase: probability of erasing a rectangle.
    erase_scale: least and largest share of the area in it.
    erase_ratio: least and largest width / height of it.
    erase_fill: what is there then: 'mean', of the pixels of the data set (which
      is 0 to the network), or 'noise', uniform, another at each pixel.
    mixup: alpha of the weight of an image, Beta(alpha, alpha), in its average
      with another; 0 for none.
    cutmix: alpha of the share of an image that is not covered by a rectangle of
      another; 0 for none. With mixup too, a coin decides for each image.

  Raises:
    InputError: for a value that is not allowed.

  Example:
    >>> Augmentation(flip=0.5).is_off
    False
  """

  crop_scale: tuple[float, float] | None = None
  crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
  flip: float = 0.0
  rotation: float = 0.0
  brightness: float = 0.0
  contrast: float = 0.0
  saturation: float = 0.0
  hue: float = 0.0
  blur: float = 0.0
  blur_sigma: tuple[float, float] = (0.1, 2.0)
  erase: float = 0.0
  erase_scale: tuple[float, float] = (0.02, 0.33)
  erase_ratio: tuple[float, float] = (0.3, 3.3)
  erase_fill: str = 'mean'
  mixup: float = 0.0
  cutmix: float = 0.0

  def __post_init__(self):
    """Checks each value."""
    for key, rule in _RULES.items():
      value = getattr(self, key)
      if not rule.holds(value):
        raise InputError(
          f'augment.{key} is {value!r}; allowed is {rule.allowed}: '
          f'set --config.augment.{key}'
        )
      if isinstance(value, Sequence) and not isinstance(value, str):
        # Lists come from JSON; a tuple can be hashed.
        object.__setattr__(self, key, tuple(value))

  @classmethod
  def from_options(cls, options: Mapping[str, Any]) -> 'Augmentation':
    """Returns the augmentation of the section `augment` of a config.

    Args:
      options: some of the attributes.

    Raises:
      InputError: for an unknown key, or a value that is not allowed.

    Example:
      >>> Augmentation.from_options({'crop_scale': [0.2, 1]}).crop_scale
      (0.2, 1)
      >>> Augmentation.from_options({'flipp': 0.5})
      Traceback (most recent call last):
      ...
      retrieval_jax.core.errors.InputError: config key is 'augment.flipp'; did \
you mean 'augment.flip'? Known: augment.blur, augment.blur_sigma, \
augment.brightness, augment.contrast, augment.crop_ratio, augment.crop_scale, \
augment.cutmix, augment.erase, augment.erase_fill, augment.erase_ratio, \
augment.erase_scale, augment.flip, augment.hue, augment.mixup, \
augment.rotation, augment.saturation
    """
    for key in options:
      if key not in _RULES:
        known = [f'augment.{name}' for name in _RULES]
        raise unknown_name('config key', f'augment.{key}', known)
    return cls(**options)

  @property
  def changes_images(self) -> bool:
    """Whether anything is done to single images."""
    others = (self.flip, self.rotation, self.blur, self.erase)
    return self.needs_canvas or self.recolors or any(others)

  @property
  def recolors(self) -> bool:
    """Whether brightness, contrast, saturation or hue is changed."""
    return any((self.brightness, self.contrast, self.saturation, self.hue))

  @property
  def mixes_labels(self) -> bool:
    """Whether images are mixed, and so have two labels."""
    return self.mixup > 0 or self.cutmix > 0

  @property
  def is_off(self) -> bool:
    """Whether nothing is done at all."""
    return not (self.changes_images or self.mixes_labels)

  @property
  def needs_canvas(self) -> bool:
    """Whether crops are drawn, so that whole pictures have to come."""
    return self.crop_scale is not None
