"""Finds the file of weights that `model.pretrained` names.

A source is one of

  * a file, or a folder with one of the names in `WEIGHTS_FILES`, such as a
    snapshot of the Hugging Face hub;
  * `owner/name`, a repository of the hub, with `@revision` for another than its
    main branch. What is in the hub's cache on this machine is used as it is, so
    that a run does not change under its name, and needs no network;
  * the name of an installed Python package that holds weights. Its code is not
    run.

The hub's client, huggingface_hub, is an extra, imported when it is asked for.
"""

import base64
import contextlib
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import re
from types import ModuleType
from typing import Any, NamedTuple

from retrieval_jax.core.errors import InputError
from retrieval_jax.models.pretrained import tensor_files

# In the order in which they are looked for.
WEIGHTS_FILES = (
  'model.safetensors',
  'open_clip_model.safetensors',
  'pytorch_model.bin',
  'open_clip_pytorch_model.bin',
)
# What timm, transformers and `retrieval_jax.export_model` write beside them.
_SETTINGS_FILES = ('config.json', 'preprocessor_config.json', 'model.json')

_HUB_ID = re.compile(r'\w[\w.-]*/\w[\w.-]*(@[\w./-]+)?')
_PACKAGE = re.compile(r'[A-Za-z0-9]([\w.-]*[A-Za-z0-9])?')
_INSTALL_HUB = 'pip install huggingface_hub'
_CHUNK_BYTES = 2**20


class Normalization(NamedTuple):
  """What is taken off the pixels in [0, 1], and what they are divided by."""

  mean: tuple[float, ...]
  std: tuple[float, ...]


class Found(NamedTuple):
  """A file of weights.

  Attributes:
    path: of the file.
    origin: where it comes from, in words.
    normalization: that the files beside it say the weights were trained with;
      None if they say nothing.
  """

  path: str
  origin: str
  normalization: Normalization | None = None


def find(source: str, sha256: str | None = None) -> Found:
  """Returns the file that a source names, downloaded if it has to be.

  Args:
    source: see above.
    sha256: that the file has to have, in hexadecimal; None: the one that the
      hub or the package gives for it, if any.

  Returns:
    A file that is there and of a known format.

  Raises:
    InputError: no such file, package or repository, the hub cannot be reached
      and its cache does not have it, or a checksum is not the one expected.
  """
  if os.path.isdir(source):
    found = _in_folder(source)
  elif os.path.isfile(source):
    found = Found(source, source, _normalization_beside(source))
  elif source.endswith(tensor_files.ENDINGS):
    raise InputError(
      f'model.pretrained is {source!r}, but there is no such file; allowed is '
      'a file of weights: correct the path'
    )
  elif _HUB_ID.fullmatch(source):
    found = _on_hub(source)
  elif _PACKAGE.fullmatch(source):
    found = _in_package(source)
  else:
    raise InputError(
      f'model.pretrained is {source!r}; allowed is a file of weights, '
      'owner/name of the Hugging Face hub, or the name of an installed package'
    )
  tensor_files.format_of(found.path)
  if sha256 is not None:
    _check(found.path, 'sha256', sha256.lower(), 'model.pretrained_sha256')
  return found


def _in_folder(folder: str) -> Found:
  for name in WEIGHTS_FILES:
    path = os.path.join(folder, name)
    if os.path.isfile(path):
      return Found(path, path, _normalization_beside(path))
  if os.path.isdir(os.path.join(folder, 'checkpoints')):
    raise InputError(
      f'model.pretrained is {folder!r}, the workdir of a run; allowed are '
      'weights of other programs: set model.init_from to it'
    )
  raise InputError(
    f'model.pretrained is {folder!r}, a folder with none of '
    f'{", ".join(WEIGHTS_FILES)}; allowed is a file of weights: name it'
  )


def _in_package(name: str) -> Found:
  try:
    distribution = importlib.metadata.distribution(name)
  except importlib.metadata.PackageNotFoundError:
    raise InputError(
      f'model.pretrained is {name!r}, which is no file and no installed '
      'package; allowed is also owner/name of the Hugging Face hub: correct '
      f'it, or pip install {name}'
    ) from None
  files = [
    file
    for file in distribution.files or ()
    if str(file).endswith(tensor_files.ENDINGS)
  ]
  if len(files) != 1:
    raise InputError(
      f'model.pretrained is {name!r}, a package with {len(files)} files of '
      f'weights; allowed is a package with one'
      + (
        f': name the file, one of {", ".join(map(str, files))}' if files else ''
      )
    )
  (file,) = files
  path = str(distribution.locate_file(file))
  if file.hash is not None and file.hash.mode == 'sha256':
    padded = file.hash.value + '=' * (-len(file.hash.value) % 4)
    expected = base64.urlsafe_b64decode(padded).hex()
    _check(path, 'sha256', expected, f'its package: install {name} again')
  origin = f'{file.name} of {name} {distribution.version}'
  return Found(path, origin, _normalization_beside(path))


def _on_hub(source: str) -> Found:
  repository, _, revision = source.partition('@')
  revision = revision or 'main'
  hub = _hub(source)
  path = _fetch(hub, source, repository, revision)
  # The name of what the snapshot links to is the hub's checksum.
  if os.path.islink(path):
    name = os.path.basename(os.readlink(path))
    algorithm = {64: 'sha256', 40: 'git'}.get(len(name))
    if algorithm is not None and re.fullmatch('[0-9a-f]+', name):
      _check(path, algorithm, name, 'the hub: remove it to download it again')
  commit = os.path.basename(os.path.dirname(path))
  origin = f'{os.path.basename(path)} of {source} on the hub ({commit[:12]})'
  return Found(path, origin, _normalization_beside(path))


def _hub(source: str) -> ModuleType:
  if importlib.util.find_spec('huggingface_hub') is None:
    raise InputError(
      f'model.pretrained is {source!r}, on the Hugging Face hub, which needs '
      f'huggingface_hub: {_INSTALL_HUB}; or name a file of weights'
    )
  import huggingface_hub
  import huggingface_hub.constants
  import huggingface_hub.errors

  return huggingface_hub


def _fetch(hub: ModuleType, source: str, repository: str, revision: str) -> str:
  """Returns the file in the hub's cache, put there if it has to be."""
  try:
    for name in WEIGHTS_FILES:
      path = hub.try_to_load_from_cache(repository, name, revision=revision)
      if isinstance(path, str):  # Not what says that it is known to be absent.
        return path
    for name in (*_SETTINGS_FILES, *WEIGHTS_FILES):
      # A repository has some of them.
      with contextlib.suppress(hub.errors.RemoteEntryNotFoundError):
        path = hub.hf_hub_download(repository, name, revision=revision)
        if name in WEIGHTS_FILES:
          return path
  except (
    hub.errors.HFValidationError,
    hub.errors.RepositoryNotFoundError,
    hub.errors.RevisionNotFoundError,
  ) as error:
    raise InputError(
      f'model.pretrained is {source!r}, but the Hugging Face hub has no such '
      'repository or revision, or does not show it to you; allowed is '
      'owner/name or owner/name@revision: correct it, or log in with '
      '`hf auth login`'
    ) from error
  except Exception as error:  # Whatever a network leads to.
    reason = (' '.join(str(error).split()) or type(error).__name__)[:200]
    raise InputError(
      f'model.pretrained is {source!r}, which is not in the cache '
      f'{hub.constants.HF_HUB_CACHE}, and the Hugging Face hub cannot be '
      f'reached ({reason}); allowed is also a file of weights: download it '
      'where there is a network and name it, or copy the cache here'
    ) from error
  raise InputError(
    f'model.pretrained is {source!r}, a repository with none of '
    f'{", ".join(WEIGHTS_FILES)}; allowed is one with weights: download '
    'them yourself, and name the file'
  )


def _check(path: str, algorithm: str, expected: str, origin: str) -> None:
  """Raises unless a file has a checksum.

  Args:
    path: of the file.
    algorithm: 'sha256', or 'git' for the SHA-1 that git knows the file by.
    expected: in hexadecimal.
    origin: who says so, and what cures it.
  """
  if algorithm == 'git':
    digest = hashlib.sha1(b'blob %d\0' % os.path.getsize(path))
  else:
    digest = hashlib.sha256()
  with open(path, 'rb') as file:
    while chunk := file.read(_CHUNK_BYTES):
      digest.update(chunk)
  if digest.hexdigest() != expected:
    raise InputError(
      f'{path!r} is damaged or another file: its checksum is '
      f'{digest.hexdigest()}; allowed is {expected}, as said by {origin}'
    )


def _normalization_beside(path: str) -> Normalization | None:
  """Returns what the settings beside the weights say, None if nothing."""
  for name in _SETTINGS_FILES:
    settings = _read_json(os.path.join(os.path.dirname(path), name))
    timm = settings.get('pretrained_cfg')
    settings = timm if isinstance(timm, dict) else settings
    for prefix in ('', 'image_'):
      mean, std = settings.get(f'{prefix}mean'), settings.get(f'{prefix}std')
      if isinstance(mean, list) and isinstance(std, list):
        return Normalization(tuple(mean), tuple(std))
  return None


def _read_json(path: str) -> dict[str, Any]:
  """Returns the object in a JSON file, {} if there is none."""
  try:
    with open(path, encoding='utf-8') as file:
      content = json.load(file)
  except (OSError, ValueError):
    return {}  # Nothing is known then; the weights do not need it.
  return content if isinstance(content, dict) else {}
