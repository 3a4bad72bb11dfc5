"""Reads the tensors in a file of `torch.save`, without torch.

Such a file is a pickle, and the bytes of the storages that its tensors are
views of: in a zip archive since torch 1.6, one after the other before. The
pickle is read with stand-ins (`core.safe_pickle`), so nothing in it is run.
"""

import io
import math
import os
import zipfile
from typing import IO, Any

import ml_dtypes
import numpy as np

from retrieval_jax.core import safe_pickle
from retrieval_jax.core.errors import InputError

_STORAGES = {
  'DoubleStorage': np.float64,
  'FloatStorage': np.float32,
  'HalfStorage': np.float16,
  'BFloat16Storage': ml_dtypes.bfloat16,
  'LongStorage': np.int64,
  'IntStorage': np.int32,
  'ShortStorage': np.int16,
  'CharStorage': np.int8,
  'ByteStorage': np.uint8,
  'BoolStorage': np.bool_,
}

# The first pickle of the older format is this number.
_MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
_PROTOCOL_VERSION = 1001
OLD_START = b'\x80\x02\x8a\x0a' + _MAGIC_NUMBER.to_bytes(10, 'little')
ZIP_START = b'PK\x03\x04'


def read(path: str) -> Any:
  """Returns what was saved, with numpy arrays in the place of tensors.

  Args:
    path: of a file of `torch.save`, of either format.

  Returns:
    Dictionaries, lists, numbers, strings and arrays; bfloat16 comes as the type
    of `ml_dtypes`.

  Raises:
    InputError: a file that cannot be read, is damaged, or holds more than that:
      a whole module, code, or anything that would have to be imported.
  """
  with safe_pickle.reading(path, 'file of torch.save'), open(path, 'rb') as f:
    start = f.read(len(OLD_START))
    f.seek(0)
    if start.startswith(ZIP_START):
      return _read_zip(f, path)
    return _read_old(f, path)


def _read_zip(file: IO[bytes], path: str) -> Any:
  """Reads the format of today: an archive of data.pkl and of data/<key>."""
  with zipfile.ZipFile(file) as archive:
    names = archive.namelist()
    roots = [
      name.removesuffix('data.pkl')
      for name in names
      if name.endswith('/data.pkl') and name.count('/') == 1
    ]
    if len(roots) != 1:
      raise ValueError('the archive has no data.pkl')
    (root,) = roots
    if f'{root}constants.pkl' in names:
      raise InputError(
        f'{os.fspath(path)!r} is a TorchScript program; allowed are weights '
        'alone: load it with torch.jit.load and save its state_dict()'
      )

    def content(name: str) -> bytes:
      entry = archive.getinfo(root + name)
      if entry.compress_type != zipfile.ZIP_STORED:
        raise ValueError(f'{name} is compressed')
      return archive.read(entry)

    if f'{root}byteorder' in names and content('byteorder') != b'little':
      raise ValueError('its numbers are big-endian')
    found = _Unpickler(io.BytesIO(content('data.pkl')), path)
    loaded = found.load()
    for storage in found.storages.values():
      storage.fill(content(f'data/{storage.key}'))
    return safe_pickle.plain(loaded)


def _read_old(file: IO[bytes], path: str) -> Any:
  """Reads the older format: pickles, then each storage behind its length."""
  size = os.fstat(file.fileno()).st_size
  if _Unpickler(file, path).load() != _MAGIC_NUMBER:
    raise ValueError('it begins otherwise')
  if _Unpickler(file, path).load() != _PROTOCOL_VERSION:
    raise ValueError('it has another version')
  if not _Unpickler(file, path).load()['little_endian']:
    raise ValueError('its numbers are big-endian')
  found = _Unpickler(file, path)
  loaded = found.load()
  for key in _Unpickler(file, path).load():
    storage = found.storages[key]
    if int.from_bytes(file.read(8), 'little') != storage.length:
      raise ValueError(f'storage {key} has another length')
    # Before the memory for it is taken.
    if storage.num_bytes > size - file.tell():
      raise ValueError('it ends too early')
    storage.fill(file.read(storage.num_bytes))
  return safe_pickle.plain(loaded)


class _Unpickler(safe_pickle.Unpickler):
  """Knows tensors, and keeps the storages that they are views of.

  Attributes:
    storages: by their keys, still without content.
  """

  def __init__(self, file: IO[bytes], path: str):
    super().__init__(
      file, path, _STAND_INS, 'dictionaries of tensors (a state_dict)'
    )
    self.storages: dict[str, _Storage] = {}

  def find_class(self, module, name):
    """Returns the stand-in for a name, or raises."""
    if module == 'torch' and name in _STORAGES:
      return _StorageType(np.dtype(_STORAGES[name]))
    return super().find_class(module, name)

  def persistent_load(self, pid):
    """Returns the storage that a tensor is a view of."""
    kind, storage_type, key, _, length, *view = pid
    if kind != 'storage' or not isinstance(storage_type, _StorageType):
      raise ValueError(f'it refers to {kind!r}')
    if any(view):
      raise ValueError('it has storages within storages')
    if key not in self.storages:
      self.storages[key] = _Storage(key, storage_type.dtype, length)
    return self.storages[key]


class _StorageType(safe_pickle.Placeholder):
  """The type of a storage. (A dtype itself could be written to.)"""

  __slots__ = ('dtype',)

  def __init__(self, dtype):
    self.dtype = dtype

  def value(self):
    raise ValueError('it holds a type where data are expected')


class _Storage:
  """The numbers that tensors are views of."""

  __slots__ = ('array', 'dtype', 'key', 'length')
  __setstate__ = safe_pickle.refuse_state

  def __init__(self, key, dtype, length):
    if not _is_natural(length):
      raise ValueError(f'a storage has length {length!r}')
    self.key, self.dtype, self.length = key, dtype, length
    self.array = None

  @property
  def num_bytes(self) -> int:
    return self.length * self.dtype.itemsize

  def fill(self, content: bytes):
    if len(content) != self.num_bytes:
      raise ValueError(
        f'storage {self.key} has {len(content)} bytes, not {self.num_bytes}'
      )
    self.array = np.frombuffer(content, self.dtype)


class _Tensor(safe_pickle.Placeholder):
  """A view of a storage, which is filled later."""

  __slots__ = ('_layout', '_storage')

  def __init__(self, storage, offset, shape, strides, *_):
    if not isinstance(storage, _Storage):
      raise ValueError('a tensor has no storage')
    numbers = (offset, *shape, *strides)
    if len(shape) != len(strides) or not all(map(_is_natural, numbers)):
      raise ValueError('a tensor has no shape')
    size = math.prod(shape)
    last = offset + sum(
      (n - 1) * stride for n, stride in zip(shape, strides, strict=True)
    )
    # A view may repeat numbers, and so take any amount of memory.
    if size and (size > storage.length or last >= storage.length):
      raise ValueError('a tensor reaches beyond its storage')
    self._storage, self._layout = storage, (offset, shape, strides)

  def value(self):
    storage, (offset, shape, strides) = self._storage, self._layout
    if storage.array is None:
      raise ValueError(f'storage {storage.key} is missing')
    if not math.prod(shape):
      return np.zeros(shape, storage.dtype)
    return np.lib.stride_tricks.as_strided(
      storage.array[offset:],
      shape,
      [stride * storage.dtype.itemsize for stride in strides],
      writeable=False,
    )


class _Dict(dict):
  """An OrderedDict, without the attributes that torch hangs on it."""

  __slots__ = ()

  def __setstate__(self, state):
    pass


def _is_natural(value: Any) -> bool:
  return type(value) is int and value >= 0


def _parameter(data, *_):
  return data


_STAND_INS = {
  'collections.OrderedDict': _Dict,
  'torch._utils._rebuild_tensor_v2': _Tensor,
  'torch._utils._rebuild_parameter': _parameter,
  'torch.Size': tuple,
}
