"""Files of weights: which format they have, and where their tensors are."""

import struct

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from retrieval_jax.core.errors import InputError
from retrieval_jax.models.pretrained import tensor_files
from tests.models.pretrained.torch_writer import Storage, tensor_of, write_zip

_CONTENT = {'0': struct.pack('<2f', 1, 2)}


def _tensor():
  return tensor_of(Storage('0', 2), 0, (2,), (1,))


@pytest.mark.parametrize(
  'wrap, names',
  [
    (lambda w: w, ['a', 'b']),
    (lambda w: {'state_dict': w, 'epoch': 3}, ['a', 'b']),
    (lambda w: {'model': w, 'optimizer': {'state': {}}}, ['a', 'b']),
    (lambda w: {'state_dict_ema': w, 'state_dict': {'c': 1}}, ['a', 'b']),
    (lambda w: {'model': {'state_dict': w}}, ['a', 'b']),
    (lambda w: {f'module.{k}': v for k, v in w.items()}, ['a', 'b']),
    (lambda w: {'module.a': w['a'], 'b': w['b']}, ['module.a', 'b']),
    (lambda w: {**w, 'model': {}, 'epoch': 3}, ['a', 'b']),
  ],
)
def test_the_state_dict_in_a_torch_file(tmp_path, wrap, names):
  path = tmp_path / 'w.bin'
  write_zip(path, wrap({'a': _tensor(), 'b': _tensor()}), _CONTENT)
  tensors, metadata = tensor_files.read(path)
  assert list(tensors) == names
  assert metadata == {}
  for tensor in tensors.values():
    assert tensor.tolist() == [1, 2]


@pytest.mark.parametrize(
  'data, there',
  [({'epoch': 3, 'lr': 0.1}, 'epoch, lr'), ({}, 'nothing'), ([1], 'list')],
)
def test_a_torch_file_without_tensors(tmp_path, data, there):
  path = tmp_path / 'w.pth'
  write_zip(path, data)
  with pytest.raises(InputError, match=f'it holds: {there}.*state_dict'):
    tensor_files.read(path)


def test_safetensors(tmp_path):
  path = tmp_path / 'w.safetensors'
  tensors = {
    'a': np.arange(6, dtype=np.float32).reshape(2, 3),
    'half': np.array([0.1], np.float16),
    'brain': np.array([0.1, 3e38], ml_dtypes.bfloat16),
    'count': np.array(7),
  }
  safetensors.numpy.save_file(tensors, path, metadata={'format': 'pt'})
  found, metadata = tensor_files.read(path)
  assert metadata == {'format': 'pt'}
  assert found.keys() == tensors.keys()
  for name, tensor in tensors.items():
    assert found[name].dtype == tensor.dtype
    np.testing.assert_array_equal(found[name], tensor)


def test_damaged_safetensors(tmp_path):
  path = tmp_path / 'w.safetensors'
  safetensors.numpy.save_file({'a': np.ones((9, 9), np.float32)}, path)
  content = path.read_bytes()
  for size in (0, 7, 8, 9, 40, 80, len(content) - 1):
    path.write_bytes(content[:size])
    with pytest.raises(InputError, match='damaged one') as caught:
      tensor_files.read(path)
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize(
  'content, message',
  [
    (b'\x89HDF\r\n\x1a\n' + bytes(64), 'no file of weights that is known'),
    (b'<html>not found</html>', 'no file of weights that is known'),
    (b'\xff' * 64, 'no file of weights that is known'),
    (b'version https://git-lfs.github.com/spec/v1\noid', 'git lfs pull'),
  ],
)
def test_other_files(tmp_path, content, message):
  path = tmp_path / 'w.bin'
  path.write_bytes(content)
  with pytest.raises(InputError, match=message):
    tensor_files.read(path)
