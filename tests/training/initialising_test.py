"""Pretrained weights as the first weights of a run."""

import logging
import os
import pathlib
import pickle
import types

import numpy as np
import pytest
import safetensors.numpy

from retrieval_jax import main
from retrieval_jax.core.errors import InputError
from retrieval_jax.models import pretrained
from retrieval_jax.training import checkpoint, initialising, loop

pytestmark = pytest.mark.usefixtures('no_drawings')

CONFIGS = pathlib.Path(__file__).parents[2] / 'configs'
NORMALIZATION = pretrained.Normalization((0.4, 0.5, 0.6), (0.2, 0.3, 0.4))


def _flax_path(name):
  layer, number, kind = name.split('.')
  if layer != 'features' or kind == 'count':
    return None
  leaf = {'weight': 'kernel', 'bias': 'bias'}[kind]
  return 'params', (f'conv_{number}', leaf)


@pytest.fixture(autouse=True)
def family(monkeypatch):
  """A family of published weights for the small network of the tests."""
  row = pretrained.Family(
    types.SimpleNamespace(flax_path=_flax_path), NORMALIZATION
  )
  monkeypatch.setitem(pretrained.FAMILIES, 'convnet', row)


def make_tensors(channels=1):
  random = np.random.default_rng(0)
  widths = (channels, 32, 64, 128)
  tensors = {}
  for i, (before, after) in enumerate(zip(widths, widths[1:], strict=False)):
    shape = (after, before, 3, 3)
    tensors[f'features.{i}.weight'] = random.normal(0, 0.1, shape)
    tensors[f'features.{i}.bias'] = random.normal(size=after)
    tensors[f'features.{i}.count'] = np.array(7)
  for i in range(4):
    tensors[f'head.{i}.count'] = np.array(7)
  tensors['head.0.weight'] = random.normal(size=(10, 128))
  return {k: np.asarray(v, np.float32) for k, v in tensors.items()}


def write(path, tensors):
  safetensors.numpy.save_file(tensors, path)
  return str(path)


def assert_is_backbone(params, tensors):
  backbone = params['embedder']['backbone']
  for i in range(3):
    kernel = tensors[f'features.{i}.weight'].transpose(2, 3, 1, 0)
    if i == 0:
      kernel = kernel.sum(axis=2, keepdims=True)
    layer = backbone[f'conv_{i}']
    np.testing.assert_allclose(layer['kernel'], kernel, atol=1e-6)
    np.testing.assert_allclose(
      layer['bias'], tensors[f'features.{i}.bias'], atol=1e-6
    )


@pytest.fixture
def no_training(monkeypatch):
  """Has a run save the state that it starts from, and end."""
  starts = []

  def save(experiment, workdir, checkpoints, reporter, state):
    del experiment, workdir, reporter
    starts.append(int(state.step))
    checkpoints.save(state.replace(step=np.array(1)))
    return {}

  monkeypatch.setattr(loop, '_train', save)
  return starts


def test_a_run_starts_from_the_weights_once(
  make_config, tmp_path, caplog, no_training
):
  caplog.set_level(logging.INFO, logger='retrieval_jax')
  tensors = make_tensors(channels=3)
  path = write(tmp_path / 'w.safetensors', tensors)
  config = make_config(model__pretrained=path)
  workdir = str(tmp_path / 'run')
  loop.train_and_evaluate(config, workdir)
  assert_is_backbone(checkpoint.restore_params(workdir), tensors)
  assert (
    f'backbone from {path}: 6 tensors used, 8 skipped (7 of *.count, '
    'head.0.weight)'
  ) in caplog.text
  assert 'features.0.weight is summed over its 3' in caplog.text
  assert 'data.mean is (0.1307,)' in caplog.text
  # The run has a checkpoint now, and needs the file no more.
  os.remove(path)
  caplog.clear()
  loop.train_and_evaluate(config, workdir)
  assert no_training == [0, 1]
  assert 'the run goes on: step 1 of 6' in caplog.text
  assert 'backbone from' not in caplog.text
  other = make_config(model__pretrained='elsewhere')
  with pytest.raises(InputError, match='model.pretrained .* -> .elsewhere'):
    loop.train_and_evaluate(other, workdir)


@pytest.mark.parametrize('dim', [8, 16])
def test_class_means_are_for_proxies_that_no_run_has_trained(
  make_config, tmp_path, no_training, dim
):
  first, second = str(tmp_path / 'first'), str(tmp_path / 'second')
  config = make_config('arcface', model__embedding_dim=8)
  loop.train_and_evaluate(config, first)
  config = make_config(
    'arcface',
    seed=1,
    model__embedding_dim=dim,
    model__init_from=first,
    head__init='class_mean',
  )
  loop.train_and_evaluate(config, second)
  one, two = (
    checkpoint.restore_params(run)['head']['proxies'] for run in (first, second)
  )
  if dim == 8:
    np.testing.assert_array_equal(one, two)
    return
  # Far from what is drawn, whose cosines are near zero.
  unit = two / np.linalg.norm(two, axis=1, keepdims=True)
  assert (unit @ unit.T).mean() > 0.5


@pytest.mark.parametrize(
  'mean, std, warnings',
  [
    ((0.5,), (0.3,), 0),
    ((0.4, 0.5, 0.6), (0.2, 0.3, 0.4), 0),
    ((0.6, 0.5, 0.4), (0.2, 0.3, 0.4), 1),
    ((0.5,), (0.5,), 1),
    ((0.1,), (0.1,), 2),
  ],
)
def test_another_normalization_is_said(
  make_config, tmp_path, caplog, mean, std, warnings
):
  path = write(tmp_path / 'w.safetensors', make_tensors())
  config = make_config(model__pretrained=path, data__mean=mean, data__std=std)
  initialising.read_pretrained(config)
  found = [r for r in caplog.records if r.levelno == logging.WARNING]
  assert len(found) == warnings
  assert all('set --config.data.' in r.getMessage() for r in found)


class _Planted:
  def __init__(self, path):
    self.path = path

  def __reduce__(self):
    return os.system, (f'touch {self.path}',)


def test_mistakes_are_one_line(tmp_path, capsys):
  """Each with its status, before anything is made."""
  hostile = tmp_path / 'hostile.pth'
  with open(hostile, 'wb') as file:
    pickle.dump(0x1950A86A20F9469CFC6C, file, protocol=2)
    pickle.dump(1001, file, protocol=2)
    pickle.dump(_Planted(tmp_path / 'it_ran'), file, protocol=2)
  good = write(tmp_path / 'good.safetensors', make_tensors())
  cut = tmp_path / 'cut.safetensors'
  cut.write_bytes((tmp_path / 'good.safetensors').read_bytes()[:-1])
  other = write(tmp_path / 'other.safetensors', {'blocks.0.attn': np.ones(3)})
  odd = make_tensors() | {'features.1.bias': np.ones(63, np.float32)}
  odd = write(tmp_path / 'odd.safetensors', odd)
  four = write(tmp_path / 'four.safetensors', make_tensors(channels=4))
  wrong = '0' * 64
  for flags, words in (
    ([f'pretrained={tmp_path}/gone.pth'], ['gone.pth', 'no such file']),
    (['pretrained=gone'], ["'gone'", 'pip install gone']),
    ([f'pretrained={hostile}'], ['hostile.pth', 'import posix.system']),
    ([f'pretrained={cut}'], ['cut.safetensors', 'damaged']),
    ([f'pretrained={other}'], ['does not fit convnet', 'blocks.0.attn']),
    (
      [f'pretrained={odd}'],
      ['features.1.bias', '(63,)', 'params/conv_1/bias', '(64,)'],
    ),
    ([f'pretrained={four}'], ['features.0.weight', '[32, 4, 3, 3]']),
    (
      [f'pretrained={good}', f'pretrained_sha256={wrong}'],
      ['checksum', wrong, 'model.pretrained_sha256'],
    ),
    (['pretrained_sha256=123'], ['64 hexadecimal digits']),
    ([f'pretrained_sha256={wrong}'], ['without model.pretrained']),
    (
      [f'pretrained={good}', 'init_from=run'],
      ['model.pretrained', 'model.init_from', 'one of them'],
    ),
  ):
    argv = [
      f'--config={CONFIGS / "circle.py"}',
      f'--workdir={tmp_path}/run',
      '--config.data.name=tiny',
      '--config.data.batch_size=16',
      '--config.eval.batch_size=16',
      *(f'--config.model.{flag}' for flag in flags),
    ]
    assert main.main(argv) == 2
    lines = capsys.readouterr().err.splitlines()
    (line,) = [line for line in lines if line.startswith('retrieval_jax: ')]
    assert line == lines[-1]
    for word in words:
      assert word in line
    assert not (tmp_path / 'it_ran').exists()


def test_a_model_without_published_weights(make_config, tmp_path, monkeypatch):
  monkeypatch.delitem(pretrained.FAMILIES, 'convnet')
  path = write(tmp_path / 'w.safetensors', make_tensors())
  config = make_config(model__pretrained=path)
  with pytest.raises(InputError, match="'convnet', which takes the weights al"):
    initialising.read_pretrained(config)
