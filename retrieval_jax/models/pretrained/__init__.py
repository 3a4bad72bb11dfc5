"""Weights of other programs, as the first weights of a backbone.

`read` finds and reads them (`sources`, `tensor_files`), `initialise` puts them
into a backbone (`conversion`), by the names of its family (`FAMILIES`).
"""

import dataclasses
import types
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from retrieval_jax.core.errors import InputError
from retrieval_jax.models.backbones import (
  convnext,
  efficientnet,
  mobilenet,
  resnet,
)
from retrieval_jax.models.backbones.vit_variants import VIT_VARIANTS
from retrieval_jax.models.pretrained import (
  names_convnext,
  names_efficientnet,
  names_mobilenet,
  names_resnet,
  names_vit,
  sources,
  tensor_files,
)
from retrieval_jax.models.pretrained.conversion import (
  Conversion,
  Names,
  convert,
)
from retrieval_jax.models.pretrained.sources import Normalization

__all__ = [
  'FAMILIES',
  'Conversion',
  'Family',
  'Names',
  'Normalization',
  'Weights',
  'flat_names',
  'initialise',
  'read',
]

# That published weights were trained with: ImageNet's own, most of timm and
# torchvision, DINOv2; TensorFlow's, such as SigLIP's; OpenAI's CLIP.
IMAGENET = Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = Normalization((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
CLIP = Normalization(
  (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
)

# In the metadata of a safetensors file: its names are ours (`flat_names`).
OWN_FORMAT = {'format': 'retrieval_jax'}


@dataclasses.dataclass(frozen=True)
class Family:
  """A row of `FAMILIES`.

  Attributes:
    names: the module that knows the tensors' names; see `conversion.Names`.
    normalization: that its weights are usually trained with. What is published
      beside the weights wins.
  """

  names: Names
  normalization: Normalization


# By how the name of a backbone begins; the first counts.
_EFFICIENTNETS = {
  'tf_efficientnet_lite': HALF,
  'tf_efficientnetv2': HALF,
  '': IMAGENET,
}
_VITS = {'vit': HALF, 'dinov2': IMAGENET, 'clip': CLIP, 'siglip': HALF}


def _by_beginning(name, normalizations):
  return next(v for k, v in normalizations.items() if name.startswith(k))


# By the name of the backbone, as in `models.BACKBONES`; one without a row takes
# weights that `retrieval_jax.export_model` has written, and no others.
FAMILIES: dict[str, Family] = {
  **dict.fromkeys(resnet.VARIANTS, Family(names_resnet, IMAGENET)),
  **dict.fromkeys(mobilenet.VARIANTS, Family(names_mobilenet, IMAGENET)),
  **dict.fromkeys(convnext.VARIANTS, Family(names_convnext, IMAGENET)),
  **{
    name: Family(names_efficientnet, _by_beginning(name, _EFFICIENTNETS))
    for name in efficientnet.VARIANTS
  },
  **{
    name: Family(names_vit, _by_beginning(name, _VITS)) for name in VIT_VARIANTS
  },
}


class Weights(NamedTuple):
  """Weights that were read, for a backbone that is still to be built.

  Attributes:
    tensors: by their names, as they are stored.
    origin: where they come from, in words.
    names: how they are called.
    is_own: whether they have our names and layout.
    normalization: that they were trained with; None: unknown.
  """

  tensors: Mapping[str, np.ndarray]
  origin: str
  names: Names
  is_own: bool
  normalization: Normalization | None


def read(source: str, model: str, sha256: str | None = None) -> Weights:
  """Reads the weights that a source names.

  Args:
    source: a file, a folder, a package or a repository; see `sources`.
    model: the name of the backbone that they are for.
    sha256: that the file has to have; None: what its publisher says, if he
      does.

  Raises:
    InputError: they are not there, not readable, damaged or hostile, or nothing
      is known about the names of such a backbone's tensors.
  """
  found = sources.find(source, sha256)
  family = FAMILIES.get(model)
  tensors, metadata = tensor_files.read(found.path)
  is_own = metadata.get('format') == OWN_FORMAT['format']
  if is_own:
    names, usual = types.SimpleNamespace(flax_path=_own_path), None
  elif family is not None:
    names, usual = family.names, family.normalization
  else:
    raise InputError(
      f'model.pretrained is {source!r}, and model.name is {model!r}, which '
      'takes the weights alone that export_model has written; models that take '
      f'published ones: {", ".join(sorted(FAMILIES)) or "none"}'
    )
  return Weights(
    tensors, found.origin, names, is_own, found.normalization or usual
  )


def initialise(
  variables: Mapping[str, Any], weights: Weights, model: str
) -> Conversion:
  """Returns the variables of a backbone, from weights that were read.

  Args:
    variables: {'params': ..., 'batch_stats': ...} of the backbone.
    weights: for it.
    model: its name.

  Raises:
    InputError: they are not of this architecture; see `conversion.convert`.
  """
  return convert(
    weights.tensors,
    variables,
    weights.names,
    origin=weights.origin,
    model=model,
    layout=(lambda tensor, _: tensor) if weights.is_own else None,
  )


def flat_names(variables: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the leaves of an embedder by names such as `params.backbone.w`.

  Args:
    variables: nested dictionaries.

  Example:
    >>> flat_names({'params': {'backbone': {'w': 1}}, 'batch_stats': {}})
    {'params.backbone.w': 1}
  """
  flat = {}
  for name, value in variables.items():
    if isinstance(value, Mapping):
      flat |= {f'{name}.{k}': v for k, v in flat_names(value).items()}
    else:
      flat[name] = value
  return flat


def _own_path(name: str) -> tuple[str, Sequence[str]] | None:
  """Returns the leaf of the backbone that a name of `flat_names` is of."""
  collection, *path = name.split('.')
  return (collection, path[1:]) if path[:1] == ['backbone'] else None
