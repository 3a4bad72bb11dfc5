"""Which features of a TensorFlow Datasets builder are image and label."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from retrieval_jax.core.errors import InputError, unknown_name

# What the builders of TFDS call the super-class of a row.
_CATEGORIES = ('super_class_id', 'alphabet', 'coarse_label', 'species')


@dataclasses.dataclass(frozen=True)
class Keys:
  """Names of the features that are read.

  Attributes:
    image: of the picture.
    label: of the class.
    category: of the super-class; None: there is none.
    box: of the box of the object; None: there is none.
  """

  image: str
  label: str
  category: str | None = None
  box: str | None = None


def find_keys(
  name: str,
  features: Mapping[str, Any],
  supervised_keys: Sequence[Any] | None = None,
  *,
  image_feature: str | None = None,
  label_feature: str | None = None,
) -> Keys:
  """Finds the features of an image classification builder.

  The image is the feature that is named, else the first image of
  `supervised_keys`, else `image`, else the only image. The label is the feature
  that is named, else the first class label of `supervised_keys`, else `label`,
  else `class_id`, else the only class label. A text or a number is a label if
  it is called `label`, or named by `label_feature`.

  Args:
    name: of the builder, for messages.
    features: `builder.info.features`.
    supervised_keys: `builder.info.supervised_keys`.
    image_feature: name of the image feature; None: it is looked for.
    label_feature: likewise.

  Raises:
    InputError: if there is none or several, or if the named one is none.
  """
  import tensorflow_datasets as tfds

  scalars = tfds.features.Text, tfds.features.Tensor, tfds.features.Scalar

  def is_image(key: str) -> bool:
    # Subclasses are masks, with a class for each pixel.
    return type(features[key]) is tfds.features.Image

  def is_class(key: str) -> bool:
    return isinstance(features[key], tfds.features.ClassLabel)

  def is_scalar(key: str) -> bool:
    feature = features[key]
    return is_class(key) or (
      type(feature) in scalars
      and feature.shape == ()
      and (is_text(feature) or np.issubdtype(feature.np_dtype, np.integer))
    )

  def is_label(key: str) -> bool:
    return is_class(key) or (key == 'label' and is_scalar(key))

  supervised = [key for key in supervised_keys or () if key in list(features)]
  image = _find(
    'image', name, features, image_feature, is_image, is_image,
    [*supervised, 'image'],
  )  # fmt: skip
  feature = features[image]
  if feature.np_dtype != np.uint8:
    raise InputError(
      f'the images {image!r} of {name} are of {np.dtype(feature.np_dtype)}; '
      'allowed is uint8: choose another by data.image_feature'
    )
  label = _find(
    'label', name, features, label_feature, is_label, is_scalar,
    [*supervised, 'label', 'class_id'],
  )  # fmt: skip
  boxes = [
    key
    for key in features
    if isinstance(features[key], tfds.features.BBoxFeature)
  ]
  categories = [
    key
    for key in _CATEGORIES
    if key in features and is_class(key) and key != label
  ]
  return Keys(
    image=image,
    label=label,
    category=categories[0] if categories else None,
    box='bbox' if 'bbox' in boxes else boxes[0] if len(boxes) == 1 else None,
  )


def is_text(feature: Any) -> bool:
  """Returns whether a feature is a text."""
  return np.dtype(feature.np_dtype).kind in 'OSU'


def _find(
  kind: str,
  name: str,
  features: Mapping[str, Any],
  wanted: str | None,
  is_candidate: Callable[[str], bool],
  is_allowed: Callable[[str], bool],
  first: Sequence[str],
) -> str:
  """Returns the key of the image or label feature."""
  allowed = [key for key in features if is_allowed(key)]
  option = f'data.{kind}_feature'
  if wanted:
    if wanted not in list(features):
      raise unknown_name(option, wanted, allowed)
    if not is_allowed(wanted):
      raise InputError(
        f'{option} is {wanted!r}, a feature of {name} that is no {kind}; '
        f'allowed: {", ".join(allowed) or "none"}'
      )
    return wanted
  candidates = [key for key in features if is_candidate(key)]
  for key in first:
    if key in candidates:
      return key
  if len(candidates) == 1:
    return candidates[0]
  if candidates:
    raise InputError(
      f'{name} has several {kind} features ({", ".join(candidates)}); name one '
      f'by {option}'
    )
  raise InputError(
    f'{name} has no {kind} feature (its features: {", ".join(features)}), so '
    'it is no image classification data set'
    + (f'; {option} may be {" or ".join(allowed)}' if allowed else '')
  )
