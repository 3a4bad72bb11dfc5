"""The files of an index: a manifest, and three arrays that only grow.

An index is a folder:

  manifest.json           says what the others hold; written last, by a rename
  embeddings-<g>.f32      [N, D] float32, row after row
  paths-<g>.bytes         the N paths, as the disk has them, one after the other
  offsets-<g>.i64         [N + 1] int64, where each path begins and ends
  skipped.csv             images that could not be read, with the reason
  duplicates.csv          images whose file is equal to that of another
  lock                    held by the process that writes

Numbers are little-endian. What lies behind the N rows of the manifest was
written by a process that was killed before it could say so, and does not count.
Rows are added by appending and then replacing the manifest. All else (removal,
another model) writes the three files anew under the next generation g and then
replaces the manifest. So at any moment the manifest names a whole index: the
one before a change, or the one after.
"""

import dataclasses
import json
import math
import os
import re
import zlib
from collections.abc import Mapping
from typing import Any

from retrieval_jax.core import files
from retrieval_jax.core.errors import InputError

MANIFEST = 'manifest.json'
SKIPPED = 'skipped.csv'
DUPLICATES = 'duplicates.csv'
LOCK = 'lock'
FORMAT = 'retrieval_jax index'
VERSION = 1
# Array -> the ending of its file.
ARRAYS = {'embeddings': 'f32', 'paths': 'bytes', 'offsets': 'i64'}
ARRAY_FILE = re.compile(
  '(?:' + '|'.join(rf'{n}-\d+\.{e}' for n, e in ARRAYS.items()) + ')'
)
_BLOCK_BYTES = 1 << 20
_CURE = 'restore it from a copy, or embed the images again with --overwrite'


@dataclasses.dataclass(frozen=True)
class Stored:
  """What counts of an array's file: its first bytes, and their CRC-32."""

  num_bytes: int = 0
  crc32: int = 0

  def extended(self, content: bytes | memoryview) -> 'Stored':
    """Returns what it is once some bytes are appended."""
    return Stored(
      self.num_bytes + memoryview(content).nbytes,
      zlib.crc32(content, self.crc32),
    )


@dataclasses.dataclass(frozen=True)
class Manifest:
  """What an index says of itself.

  Attributes:
    embedding_dim: D.
    model: what its embeddings were made by: `config_sha256` and
      `weights_sha256`, both of which a query's model must share, and for
      people `run`, `workdir`, `step` and `preprocessing`.
    num_images: N.
    generation: the number in the names of the files.
    arrays: what counts of each file.
    complete: whether all images that were to be embedded are.
    sources: the folders and lists that the images are from.
    threshold: `value`, the least similarity of an answer, and how it was
      chosen; None: every query has an answer.
    distance: what neighbours are ranked by.
  """

  embedding_dim: int
  model: Mapping[str, Any]
  num_images: int = 0
  generation: int = 0
  arrays: Mapping[str, Stored] = dataclasses.field(
    default_factory=lambda: {name: Stored() for name in ARRAYS}
  )
  complete: bool = False
  sources: tuple[str, ...] = ()
  threshold: Mapping[str, Any] | None = None
  distance: str = 'cosine'

  @property
  def is_new(self) -> bool:
    """Whether no index has it yet: then there is not even an offset of 0."""
    return not self.arrays['offsets'].num_bytes

  def emptied(self) -> 'Manifest':
    """Returns a new one that says the same of no images."""
    new = {name: Stored() for name in ARRAYS}
    return dataclasses.replace(self, num_images=0, arrays=new)

  def file(self, folder: str, array: str) -> str:
    """Returns the path of an array's file."""
    name = f'{array}-{self.generation}.{ARRAYS[array]}'
    return os.path.join(folder, name)

  def to_json(self) -> str:
    """Returns the text of the manifest's file."""
    fields = {'format': FORMAT, 'version': VERSION} | dataclasses.asdict(self)
    return json.dumps(fields, indent=2) + '\n'


def write_manifest(folder: str, manifest: Manifest) -> None:
  """Replaces the manifest, with which all that it says comes into force."""
  files.write_text(os.path.join(folder, MANIFEST), manifest.to_json())


def read_manifest(folder: str, key: str = '--index') -> Manifest:
  """Reads and checks a manifest.

  Args:
    folder: of the index.
    key: that it was given for.

  Raises:
    InputError: not an index, of a later version, or damaged.
  """
  path = os.path.join(folder, MANIFEST)
  if not os.path.isdir(folder):
    state = 'is a file' if os.path.exists(folder) else 'does not exist'
    raise InputError(
      f'{key} is {folder!r}, which {state}; allowed is the folder of an index: '
      'make one by `python -m retrieval_jax.embed`'
    )
  try:
    with open(path, encoding='utf-8') as file:
      fields = json.load(file)
  except FileNotFoundError as error:
    raise InputError(
      f'{key} is {folder!r}, which is not an index: it has no {MANIFEST}; give '
      'the folder that was --output of `python -m retrieval_jax.embed`'
    ) from error
  except OSError as error:
    raise _unreadable(path, error) from error
  except ValueError as error:  # Of the encoding, too.
    raise _damaged(path, str(error)) from error
  if not isinstance(fields, dict) or fields.get('format') != FORMAT:
    raise InputError(
      f'{path} is not the manifest of an index (its "format" is not '
      f'{FORMAT!r}); allowed is an index: correct {key}'
    )
  if fields.get('version') != VERSION:
    raise InputError(
      f'{path} has version {fields.get("version")!r}; allowed is {VERSION}: '
      'update retrieval_jax, or embed the images again'
    )
  return _parse(path, fields)


def _parse(path: str, fields: dict[str, Any]) -> Manifest:
  """Returns the manifest of a JSON object."""
  expected = {field.name for field in dataclasses.fields(Manifest)}
  try:
    manifest = Manifest(**{name: fields[name] for name in expected})
    arrays = {n: Stored(**manifest.arrays[n]) for n in ARRAYS}
    sources = tuple(manifest.sources)
  except (KeyError, TypeError) as error:
    raise _damaged(path, f'missing or wrong: {error}') from error
  manifest = dataclasses.replace(manifest, arrays=arrays, sources=sources)
  n, dim = manifest.num_images, manifest.embedding_dim
  whole = [n, dim, manifest.generation]
  whole += [x for a in arrays.values() for x in (a.num_bytes, a.crc32)]
  if not all(type(x) is int and x >= 0 for x in whole) or dim < 1:
    raise _damaged(path, 'a size that is not a whole number')
  if (arrays['embeddings'].num_bytes, arrays['offsets'].num_bytes) != (
    4 * n * dim,
    8 * (n + 1),
  ):
    raise _damaged(path, f'sizes of files that are not those of {n} images')
  if not isinstance(manifest.model, dict):
    raise _damaged(path, 'no model')
  threshold = manifest.threshold
  if threshold is not None and not (
    isinstance(threshold, dict)
    and isinstance(threshold.get('value'), float)
    and math.isfinite(threshold['value'])
  ):
    raise _damaged(path, 'a threshold without a number as its value')
  return manifest


def check_files(folder: str, manifest: Manifest, verify: bool = True) -> None:
  """Raises unless the files hold what the manifest says.

  Args:
    folder: of the index.
    manifest: read from it.
    verify: whether checksums are compared too, for which every byte is read
      (in pieces of 1 MiB); else sizes alone.

  Raises:
    InputError: a file that is missing, truncated or damaged.
  """
  for name, stored in manifest.arrays.items():
    path = manifest.file(folder, name)
    try:
      size = os.path.getsize(path)
      if size < stored.num_bytes:
        raise InputError(
          f'{path} has {size:,} bytes where the index needs '
          f'{stored.num_bytes:,}: it is truncated; {_CURE}'
        )
      if verify and _checksum(path, stored.num_bytes) != stored.crc32:
        raise _damaged(path, 'its checksum is not that of the manifest')
    except FileNotFoundError as error:
      raise InputError(
        f'{path} is missing, which the index needs; {_CURE}'
      ) from error
    except OSError as error:
      raise _unreadable(path, error) from error


def _checksum(path: str, num_bytes: int) -> int:
  """Returns the CRC-32 of the first bytes of a file."""
  checksum, buffer = 0, memoryview(bytearray(_BLOCK_BYTES))
  with open(path, 'rb', buffering=0) as file:
    while num_bytes > 0:
      read = file.readinto(buffer[: min(num_bytes, _BLOCK_BYTES)])
      if not read:
        break
      checksum = zlib.crc32(buffer[:read], checksum)
      num_bytes -= read
  return checksum


def _damaged(path: str, reason: str) -> InputError:
  return InputError(f'{path} is damaged ({reason}); {_CURE}')


def _unreadable(path: str, error: OSError) -> InputError:
  return InputError(
    f'{path} cannot be read ({error.strerror}); allowed is a file that may be '
    'read: correct its permissions'
  )
