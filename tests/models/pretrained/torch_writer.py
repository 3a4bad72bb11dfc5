"""Writes files of torch.save by hand, also such as torch would not write."""

import io
import pickle
import struct
import zipfile

from retrieval_jax.models.pretrained import torch_files


class Global:
  """Pickled as a name to import."""

  def __init__(self, module, name):
    self.module, self.name = module, name


class Call:
  """Pickled as a call of a name, and what is put into the result."""

  def __init__(self, function, *args, state=None):
    self.function, self.args, self.state = function, args, state


class Pickler(pickle._Pickler):
  """Writes what torch writes, without torch."""

  dispatch = pickle._Pickler.dispatch.copy()

  def persistent_id(self, obj):
    return obj.id if isinstance(obj, Storage) else None

  def save_global_name(self, obj):
    self.write(f'c{obj.module}\n{obj.name}\n'.encode())

  def save_call(self, obj):
    self.save(obj.function)
    self.save(obj.args)
    self.write(pickle.REDUCE)
    if obj.state is not None:
      self.save(obj.state)
      self.write(pickle.BUILD)

  dispatch[Global] = save_global_name
  dispatch[Call] = save_call


class Storage:
  def __init__(self, key, length, kind='FloatStorage', module='torch'):
    dtype = Global(module, kind)
    self.key, self.id = key, ('storage', dtype, key, 'cpu', length)


def dumps(data):
  file = io.BytesIO()
  Pickler(file, 2).dump(data)
  return file.getvalue()


def write_zip(path, data, storages=(), compression=zipfile.ZIP_STORED):
  with zipfile.ZipFile(path, 'w', compression) as archive:
    archive.writestr('archive/data.pkl', dumps(data))
    for key, content in dict(storages).items():
      archive.writestr(f'archive/data/{key}', content)


def write_old(path, data, storages=()):
  storages = dict(storages)
  parts = (
    torch_files._MAGIC_NUMBER,
    1001,
    {'protocol_version': 1001, 'little_endian': True},
    data,
    list(storages),
  )
  content = b''.join(map(dumps, parts))
  for numbers in storages.values():
    content += struct.pack('<q', len(numbers) // 4) + numbers
  path.write_bytes(content)


WRITERS = {'zip': write_zip, 'old': write_old}
REBUILD = Global('torch._utils', '_rebuild_tensor_v2')


def tensor_of(storage, offset, shape, strides):
  return Call(REBUILD, storage, offset, shape, strides, False, None)
