"""Reads a file of weights, whatever its format, as arrays by their names."""

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from retrieval_jax.core import safe_pickle
from retrieval_jax.core.errors import InputError
from retrieval_jax.models.pretrained import torch_files

# The endings that weights are published with.
ENDINGS = ('.safetensors', '.pth', '.pt', '.bin', '.tar')

# Where training programs put the weights among other things, the best first.
_SECTIONS = ('state_dict_ema', 'model_ema', 'state_dict', 'model', 'teacher')

_ALLOWED = 'a safetensors file, or a state_dict that torch.save has written'


def format_of(path: str) -> str:
  """Returns the format of a file of weights, by how it begins.

  Args:
    path: of the file.

  Returns:
    'safetensors' or 'torch'.

  Raises:
    InputError: it cannot be read, or is of another format.
  """
  path = os.fspath(path)
  with safe_pickle.reading(path, 'weights file'), open(path, 'rb') as file:
    start = file.read(64)
    size = os.fstat(file.fileno()).st_size
  if start.startswith((torch_files.ZIP_START, torch_files.OLD_START)):
    return 'torch'
  # A length, and the braces of a header in JSON that has room in the file.
  header = int.from_bytes(start[:8], 'little')
  if start[8:9] == b'{' and header <= size - 8:
    return 'safetensors'
  if start.startswith(b'version https://git-lfs'):
    raise InputError(
      f'{path!r} is a Git LFS pointer and not the weights; allowed is '
      f'{_ALLOWED}: fetch it with git lfs pull'
    )
  raise InputError(
    f'{path!r} is no file of weights that is known, or a damaged one; allowed '
    f'is {_ALLOWED}: download it again, or convert it'
  )


def read(path: str) -> tuple[dict[str, np.ndarray], dict[str, str]]:
  """Returns the tensors of a file, and what it says about itself.

  Args:
    path: of a safetensors file, or of one of `torch.save` that holds tensors by
      their names, on the top level or in one of the usual sections.

  Returns:
    (tensors, metadata): arrays by their names, as they are stored (that is, for
    torch, convolution kernels as [Cout, Cin, kh, kw]); and the metadata of a
    safetensors file.

  Raises:
    InputError: it cannot be read, is of another format, damaged or hostile.

  Example:
    >>> import tempfile
    >>> folder = tempfile.mkdtemp()
    >>> path = os.path.join(folder, 'w.safetensors')
    >>> safetensors.numpy.save_file({'fc.bias': np.ones(2)}, path)
    >>> read(path)
    ({'fc.bias': array([1., 1.])}, {})
  """
  if format_of(path) == 'torch':
    return _tensors_of(torch_files.read(path), path), {}
  with (
    safe_pickle.reading(path, 'safetensors file'),
    safetensors.safe_open(path, framework='np') as file,
  ):
    return file.get_tensors(), dict(file.metadata() or {})


def _tensors_of(saved: Any, path: str) -> dict[str, np.ndarray]:
  """Returns the tensors in what torch has saved."""
  found = saved
  while isinstance(found, Mapping):
    section = next((s for s in _SECTIONS if _is_section(found.get(s))), None)
    if section is None:
      break
    found = found[section]
  if not isinstance(found, Mapping) or not any(
    isinstance(value, np.ndarray) for value in found.values()
  ):
    there = (
      ', '.join(map(str, list(found)[:5]))
      if isinstance(found, Mapping)
      else type(found).__name__
    )
    raise InputError(
      f'{os.fspath(path)!r} has no tensors by their names (it holds: '
      f'{there or "nothing"}); allowed is {_ALLOWED}: save '
      "the model's state_dict()"
    )
  tensors = {
    str(name): value
    for name, value in found.items()
    if isinstance(value, np.ndarray)
  }
  # As DataParallel and DistributedDataParallel name all they hold.
  if all(name.startswith('module.') for name in tensors):
    tensors = {
      name.removeprefix('module.'): value for name, value in tensors.items()
    }
  return tensors


def _is_section(value: Any) -> bool:
  return isinstance(value, Mapping) and bool(value)
