"""Files of torch.save: what torch recorded, and what must be refused."""

import json
import os
import pathlib
import struct
import zipfile

import ml_dtypes
import numpy as np
import pytest

from retrieval_jax.core.errors import InputError
from retrieval_jax.models.pretrained import torch_files
from tests.models.pretrained.torch_writer import (
  REBUILD,
  WRITERS,
  Call,
  Global,
  Storage,
  dumps,
  tensor_of,
  write_zip,
)

GOLDEN = pathlib.Path(__file__).parents[2] / 'golden' / 'torch_files'
FORMATS = ('zip', 'old')
_DTYPES = {
  'double': np.float64,
  'half': np.float16,
  'bfloat16': ml_dtypes.bfloat16,
  'long': np.int64,
  'int': np.int32,
  'short': np.int16,
  'char': np.int8,
  'byte': np.uint8,
  'bool': np.bool_,
  '1.num_batches_tracked': np.int64,
}


@pytest.mark.parametrize('name', FORMATS)
def test_tensors_are_those_of_torch(name):
  saved = torch_files.read(GOLDEN / f'{name}.pth')
  assert saved['epoch'] == 3
  assert saved['lr'] == [0.1]
  assert saved['shape'] == (2, 3)
  values = json.loads((GOLDEN / 'values.json').read_text())
  assert list(saved['state_dict']) == list(values)
  for key, array in saved['state_dict'].items():
    assert array.dtype == _DTYPES.get(key, np.float32), key
    assert list(array.shape) == values[key]['shape'], key
    exact = array if array.dtype == np.int64 else array.astype(np.float64)
    assert exact.flatten().tolist() == values[key]['values'], key


def test_modules_and_programs_are_refused():
  with pytest.raises(InputError, match='import torch.nn.modules.linear.Linear'):
    torch_files.read(GOLDEN / 'module.pth')
  with pytest.raises(InputError, match='TorchScript program'):
    torch_files.read(GOLDEN / 'script.pt')


@pytest.mark.parametrize('name', FORMATS)
def test_a_file_cut_anywhere_is_damaged(tmp_path, name):
  content = (GOLDEN / f'{name}.pth').read_bytes()
  path = tmp_path / 'cut.pth'
  for size in (0, 1, 14, 100, *range(200, len(content), 331), len(content) - 1):
    path.write_bytes(content[:size])
    with pytest.raises(InputError, match='or a damaged one') as caught:
      torch_files.read(path)
    assert '\n' not in str(caught.value)


def test_changed_content_is_noticed_by_the_archive(tmp_path):
  content = (GOLDEN / 'zip.pth').read_bytes()
  place = content.index(struct.pack('<2f', 0.0, 1.0))  # Of `base`.
  path = tmp_path / 'changed.pth'
  path.write_bytes(content[:place] + b'\xff' + content[place + 1 :])
  with pytest.raises(InputError, match='damaged one .*CRC'):
    torch_files.read(path)


@pytest.mark.parametrize('name', FORMATS)
def test_a_file_written_by_hand(tmp_path, name):
  numbers = np.arange(6, dtype=np.float32)
  path = tmp_path / 'w.pth'
  data = {'w': tensor_of(Storage('0', 6), 1, (2, 2), (1, 2))}
  WRITERS[name](path, data, {'0': numbers.tobytes()})
  assert torch_files.read(path)['w'].tolist() == [[1, 3], [2, 4]]


@pytest.mark.parametrize('name', FORMATS)
@pytest.mark.parametrize(
  'module, function, argument',
  [
    ('os', 'system', 'touch {}'),
    ('posix', 'system', 'touch {}'),
    ('builtins', 'eval', 'open({!r}, "w")'),
    ('builtins', 'getattr', '{}'),
    ('builtins', 'open', '{}'),
    ('numpy', 'load', '{}'),
    ('torch', 'load', '{}'),
    ('torch.storage', '_load_from_bytes', '{}'),
    ('collections', 'OrderedDict.__init__', '{}'),
  ],
)
def test_planted_code_is_not_run(tmp_path, name, module, function, argument):
  target = tmp_path / 'it_ran'
  payload = Call(Global(module, function), argument.format(str(target)))
  path = tmp_path / 'w.pth'
  storages = {'0': bytes(4)}
  for data in (
    payload,
    {'w': tensor_of(Storage('0', 1), 0, (1,), (1,)), 'extra': payload},
    {'w': tensor_of(payload, 0, (1,), (1,))},
  ):
    WRITERS[name](path, data, storages)
    with pytest.raises(InputError, match='asks to import .*run code'):
      torch_files.read(path)
    assert not target.exists()


def test_planted_code_in_every_pickle_of_the_old_format(tmp_path):
  target = tmp_path / 'it_ran'
  payload = dumps(Call(Global('os', 'system'), f'touch {target}'))
  parts = [
    *map(dumps, (torch_files._MAGIC_NUMBER, 1001, {'little_endian': True})),
    dumps({}),
  ]
  path = tmp_path / 'w.pth'
  for place in range(len(parts) + 1):
    path.write_bytes(b''.join(parts[:place]) + payload)
    with pytest.raises(InputError, match='asks to import os.system'):
      torch_files.read(path)
    assert not target.exists()


@pytest.mark.parametrize('name', FORMATS)
@pytest.mark.parametrize(
  'tensor',
  [
    # Beyond the storage, before it, and more numbers than there are.
    tensor_of(Storage('0', 6), 0, (7,), (1,)),
    tensor_of(Storage('0', 6), 4, (2, 2), (2, 1)),
    tensor_of(Storage('0', 6), -1, (2,), (1,)),
    tensor_of(Storage('0', 6), 3, (2,), (-1,)),
    tensor_of(Storage('0', 6), 0, (2**40, 2**40), (0, 0)),
    tensor_of(Storage('0', 6), 0, (2, 3), (3,)),
    tensor_of(Storage('0', 6), 0, (2.0,), (1,)),
    tensor_of(Storage('0', 6), True, (2,), (1,)),
    # Storages of other lengths than their content.
    tensor_of(Storage('0', 2**60), 0, (2,), (1,)),
    tensor_of(Storage('0', 5), 0, (2,), (1,)),
    tensor_of(Storage('0', -6), 0, (0,), (1,)),
    tensor_of(Storage('0', 6, 'DoubleStorage'), 0, (2,), (1,)),
    # Of no numbers, not there, or no storage at all.
    tensor_of(Storage('0', 6, 'OrderedDict', 'collections'), 0, (2,), (1,)),
    tensor_of(Storage('gone', 6), 0, (2,), (1,)),
    tensor_of('0', 0, (2,), (1,)),
    # What is there is not to be changed.
    Call(Global('torch', 'FloatStorage'), state={'dtype': 1}),
    tensor_of(Call(Global('torch', 'FloatStorage')), 0, (2,), (1,)),
    Call(
      REBUILD,
      Storage('0', 6),
      0,
      (2,),
      (1,),
      state={'_layout': (0, (9,), (1,))},
    ),
    Global('torch', 'FloatStorage'),
  ],
)
def test_impossible_tensors_are_damage(tmp_path, name, tensor):
  path = tmp_path / 'w.pth'
  WRITERS[name](path, {'w': tensor}, {'0': bytes(24)})
  with pytest.raises(InputError, match='or a damaged one'):
    torch_files.read(path)


def test_archives_that_torch_does_not_write(tmp_path):
  path = tmp_path / 'w.pth'
  data = {'w': tensor_of(Storage('0', 6), 0, (6,), (1,))}
  write_zip(path, data, {'0': bytes(24)}, zipfile.ZIP_DEFLATED)
  with pytest.raises(InputError, match='is compressed'):
    torch_files.read(path)
  write_zip(path, data)
  with pytest.raises(InputError, match='damaged'):
    torch_files.read(path)
  with zipfile.ZipFile(path, 'w') as archive:
    archive.writestr('other.txt', 'text')
  with pytest.raises(InputError, match='no data.pkl'):
    torch_files.read(path)
  big = {'0': bytes(24)}
  write_zip(path, data, big)
  with zipfile.ZipFile(path, 'a') as archive:
    archive.writestr('archive/byteorder', b'big')
  with pytest.raises(InputError, match='big-endian'):
    torch_files.read(path)


def test_attributes_of_dictionaries_are_dropped(tmp_path):
  path = tmp_path / 'w.pth'
  ordered = Global('collections', 'OrderedDict')
  metadata = {'_metadata': {'': {'version': 1}}, '__setstate__': ordered}
  write_zip(path, Call(ordered, state=metadata))
  assert torch_files.read(path) == {}


def test_unreadable_files(tmp_path):
  with pytest.raises(InputError, match='cannot be read: No such file'):
    torch_files.read(tmp_path / 'gone.pth')
  with pytest.raises(InputError, match='cannot be read: Is a directory'):
    torch_files.read(os.fspath(tmp_path))
