"""Turns the tensors of another program into the variables of a backbone."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import flax
import numpy as np

from retrieval_jax.core.errors import InputError

# That a message lists before it stops.
_NUM_NAMED = 3

# torch's tensors of a BatchNorm, and the (collection, leaf) of ours.
BATCH_NORM_LEAVES = {
  'weight': ('params', 'scale'),
  'bias': ('params', 'bias'),
  'running_mean': ('batch_stats', 'mean'),
  'running_var': ('batch_stats', 'var'),
}

# Of the images that published weights are for.
_COLOR_CHANNELS = 3


class Names(Protocol):
  """How one family's tensors are called, as a module of its own says it.

  `flax_path(name)` gives (collection, path) of the leaf that the tensor `name`
  belongs to, such as ('params', ('stem', 'conv', 'kernel')), and None for a
  tensor that the backbone has no use for (a classifier, a counter). It does not
  look at the backbone: a path that this one lacks is an error of the weights.

  `prepare(tensors)`, if the module has it, comes first, for what is more than
  names: it joins, splits, or reorders tensors, and returns all of them.
  """

  flax_path: Callable[[str], tuple[str, Sequence[str]] | None]


class Conversion(NamedTuple):
  """The variables of a backbone, and what became of each tensor.

  Attributes:
    variables: {'params': ..., 'batch_stats': ...} of the backbone, float32.
    used: the names of the tensors that are in it.
    skipped: the names of those that are not.
    notes: what was done to fit them, one line each.
  """

  variables: dict[str, Any]
  used: tuple[str, ...]
  skipped: tuple[str, ...]
  notes: tuple[str, ...] = ()


def convert(
  tensors: Mapping[str, np.ndarray],
  variables: Mapping[str, Any],
  names: Names,
  *,
  origin: str,
  model: str,
  layout: Callable[[np.ndarray, Sequence[str]], np.ndarray] | None = None,
) -> Conversion:
  """Fills the variables of a backbone with tensors.

  In torch's layout, a tensor of rank 4, [Cout, Cin, kh, kw], becomes [kh, kw,
  Cin, Cout]; one of rank 2 whose leaf is a `kernel` is transposed; others stay
  as they are. All of them become float32. Where the backbone takes grey images
  and the weights are for three channels, the first kernel is summed over them,
  which gives what it gives for three equal channels.

  Args:
    tensors: by their names.
    variables: {'params': ..., 'batch_stats': ...} of the backbone, of arrays or
      of their shapes; a collection may be missing or empty.
    names: how the tensors of this family are called.
    origin: where they come from, for messages.
    model: what the backbone is called, for messages.
    layout: (tensor, path of the leaf) -> array in Flax's layout; None: torch's
      is turned, as above.

  Returns:
    All leaves filled, and each tensor named as used or as skipped.

  Raises:
    InputError: a leaf without a tensor, a tensor whose leaf the backbone does
      not have, two for the same leaf, or one of another shape.

  Example:
    >>> import types
    >>> names = types.SimpleNamespace(
    ...   flax_path=lambda name: ('params', ('fc', 'kernel'))
    ... )
    >>> shapes = {'params': {'fc': {'kernel': np.zeros((3, 2))}}}
    >>> tensors = {'fc.weight': np.ones((2, 3))}
    >>> convert(tensors, shapes, names, origin='w.pth', model='tiny').used
    ('fc.weight',)
  """
  layout = layout or _from_torch_layout
  prepare = getattr(names, 'prepare', None)
  if prepare is not None:
    try:
      tensors = prepare(dict(tensors))
    except Exception as error:  # Whatever tensors of other shapes lead to.
      reason = ' '.join(str(error).split())[:200] or type(error).__name__
      raise InputError(
        f'model.pretrained: {origin} does not fit {model}: its tensors '
        f'({_some(list(tensors))}) cannot be joined or split as those of '
        f'{model} ({reason}); allowed are weights of the same architecture: '
        'correct model.pretrained or model.name'
      ) from error
  leaves = {
    (collection, *path): leaf
    for collection, tree in variables.items()
    for path, leaf in flax.traverse_util.flatten_dict(tree).items()
  }
  found: dict[tuple[str, ...], str] = {}
  skipped, homeless = [], []
  for name in tensors:
    place = names.flax_path(name)
    if place is None:
      skipped.append(name)
      continue
    path = (place[0], *place[1])
    if path not in leaves:
      homeless.append(name)
    elif path in found:
      raise InputError(
        f'model.pretrained: {origin} has two tensors, {found[path]} and '
        f'{name}, for {"/".join(path)} of {model}; allowed is one for each '
        'leaf: choose other weights'
      )
    else:
      found[path] = name
  missing = [path for path in leaves if path not in found]
  if missing or homeless:
    raise _other_model(origin, model, tensors, homeless, missing)
  notes = []
  filled = {}
  for path, name in found.items():
    array = np.asarray(layout(tensors[name], path), np.float32, order='C')
    shape = tuple(leaves[path].shape)
    if _is_for_color(array.shape, shape):
      notes.append(
        f'{name} is summed over its {_COLOR_CHANNELS} input channels, since '
        'the images are grey'
      )
      array = array.sum(axis=2, keepdims=True)
    if array.shape != shape:
      tensor = (
        f'{name} is {list(tensors[name].shape)}, which makes {array.shape}'
      )
      problem = f'tensor {tensor}, and {"/".join(path)} is {shape}'
      raise InputError(
        f'model.pretrained: {origin} does not fit {model}: {problem}; '
        f'{_cure_of_shape(array.shape, shape)}'
      )
    filled[path] = array
  return Conversion(
    variables={
      collection: flax.traverse_util.unflatten_dict(
        {path[1:]: filled[path] for path in filled if path[0] == collection}
      )
      for collection in variables
    },
    used=tuple(found.values()),
    skipped=tuple(skipped),
    notes=tuple(notes),
  )


def _from_torch_layout(tensor: np.ndarray, path: Sequence[str]) -> np.ndarray:
  if tensor.ndim == 4:
    return tensor.transpose(2, 3, 1, 0)
  if tensor.ndim == 2 and path[-1] == 'kernel':
    return tensor.transpose(1, 0)
  return tensor


def _is_for_color(shape: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
  """Returns whether a kernel takes three channels where one is wanted."""
  return (
    len(shape) == 4
    and shape[2] == _COLOR_CHANNELS
    and wanted == (*shape[:2], 1, shape[3])
  )


def _other_model(
  origin: str,
  model: str,
  tensors: Mapping[str, np.ndarray],
  homeless: Sequence[str],
  missing: Sequence[tuple[str, ...]],
) -> InputError:
  """Returns the error for tensors and leaves that do not belong together."""
  problems = []
  if homeless:
    problems.append(
      f'{len(homeless)} of its {len(tensors)} tensors have no place there '
      f'({_some(homeless)})'
    )
  if missing:
    problems.append(
      f'{len(missing)} leaves of it get no tensor '
      f'({_some(["/".join(path) for path in missing])})'
    )
  return InputError(
    f'model.pretrained: {origin} does not fit {model}: '
    f'{" and ".join(problems)}; its tensors are called {_some(list(tensors))}; '
    'allowed are weights of the same architecture: correct model.pretrained or '
    'model.name'
  )


def _some(names: Sequence[str]) -> str:
  more = len(names) - _NUM_NAMED
  return ', '.join(names[:_NUM_NAMED]) + (
    f', and {more} more' if more > 0 else ''
  )


def _cure_of_shape(shape: tuple[int, ...], wanted: tuple[int, ...]) -> str:
  """Returns what to do about a leaf of another shape."""
  if (
    len(shape) == len(wanted) == 4
    and shape[2] == _COLOR_CHANNELS
    and (*shape[:2], *shape[3:]) == (*wanted[:2], *wanted[3:])
  ):
    return (
      f'the images have {wanted[2]} channels, and the weights are for '
      f'{shape[2]}: set --config.data.channels={shape[2]}'
    )
  return (
    'allowed are weights of the same architecture and options: correct '
    'model.pretrained, or model.*'
  )
