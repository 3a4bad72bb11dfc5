"""A model that ends with a whitening has it wherever it is used."""

import json

import numpy as np
import pytest

import retrieval_jax
from retrieval_jax import neighbors
from retrieval_jax.core.errors import InputError
from retrieval_jax.neighbors import index as index_lib
from retrieval_jax.training import (
  benchmarking,
  config_checks,
  loop,
  report,
  whitening,
)

DIM = 12


def _unit(x):
  return x / np.linalg.norm(x, axis=1, keepdims=True)


def _reference(train, x, dim, power=0.5):
  """PCA whitening of unit rows in float64, by the SVD of the centred rows."""
  mean = train.mean(axis=0)
  _, scales, axes = np.linalg.svd(train - mean, full_matrices=False)
  deviations = scales[:dim] / np.sqrt(len(train))
  return _unit((x - mean) @ (axes[:dim].T * deviations ** (-2 * power)))


@pytest.fixture
def run(make_config, tmp_path, monkeypatch):
  """Returns the workdir of a run that ends with a whitening."""
  monkeypatch.setattr(report, 'write_report', lambda path, shown: None)
  config = make_config(
    'arcface',
    num_train_steps=2,
    eval__whiten=True,
    eval__pca_whitening__dim=DIM,
    eval__projector_images=0,
  )
  loop.train_and_evaluate(config, str(tmp_path / 'run'))
  return str(tmp_path / 'run')


def test_all_uses_have_it(make_config, run, tiny_dataset, tmp_path):
  workdir = run
  found = json.loads((tmp_path / 'run/results.json').read_text())
  model = retrieval_jax.load(workdir)
  images = tiny_dataset.tests['test'].query.images_at(np.arange(40))
  embeddings = model.embed(images)
  assert embeddings.shape == (40, DIM) and model.embedding_dim == DIM
  assert model.embed(images[:0]).shape == (0, DIM)
  # Other data are measured with it too.
  elsewhere = benchmarking.evaluate_on(workdir, [], name='again')
  metrics = found['evaluations']['test']['metrics']
  assert elsewhere['test'] == pytest.approx(metrics)
  exported = model.export(platforms=['cpu'])
  np.testing.assert_allclose(exported.call(images), embeddings, atol=1e-6)

  # Measured again without, the model is the one that was trained.
  plain = make_config('arcface', num_train_steps=2, eval__projector_images=0)
  assert loop.evaluate(plain, workdir) != metrics
  trained = retrieval_jax.load(workdir)
  train = trained.embed(tiny_dataset.train.images_at(np.arange(80)))
  expected = _reference(
    train.astype(np.float64), trained.embed(images).astype(np.float64), DIM
  )
  # The sign of a direction is free.
  signs = np.sign(np.sum(embeddings * expected, axis=0))
  np.testing.assert_allclose(embeddings, expected * signs, atol=1e-4)
  manifest = neighbors.Manifest(DIM, model.description)
  with pytest.raises(InputError, match='which has other weights'):
    index_lib.check_same_model('index', manifest, trained.description)
  # It is still there for whoever asks for it, but of one step.
  with pytest.raises(InputError, match='of step 2, not of step 1; allowed is'):
    whitening.load(workdir, 1)
  (tmp_path / 'run/whitening.npz').unlink()
  with pytest.raises(InputError, match='--mode=evaluate with --config.eval.wh'):
    whitening.load(workdir, 2)


@pytest.mark.parametrize(
  'options, words',
  [
    ({'eval__pca_whitening__dim': 51}, 'at most 50, model.embedding_dim'),
    ({'eval__postprocessing': ('pca_whitening',)}, 'allowed is one of them'),
  ],
)
def test_what_it_cannot_be(make_config, options, words):
  config = make_config('arcface', eval__whiten=True, **options)
  with pytest.raises(InputError, match=words):
    config_checks.validate(config)


def test_more_directions_than_images(make_config, tmp_path):
  config = make_config(
    'arcface',
    model__embedding_dim=90,
    eval__whiten=True,
    eval__pca_whitening__dim=80,
  )
  with pytest.raises(InputError, match='is 80; allowed is less than the 80'):
    loop.train_and_evaluate(config, str(tmp_path / 'run'))
  assert not (tmp_path / 'run').exists()
