"""The divergence doctor names what was made to go wrong."""

import glob
import os

import jax.numpy as jnp
import numpy as np
import pytest

from retrieval_jax.core.errors import InputError
from retrieval_jax.data import transforms
from retrieval_jax.training import loop, step_inputs
from retrieval_jax.training.experiment import BuiltStage


def diverge(config, workdir):
  """Returns the one line that a run ends with."""
  with pytest.raises(InputError) as error:
    loop.train_and_evaluate(config, str(workdir))
  assert '\n' not in str(error.value)
  return str(error.value)


def saved_batch(workdir):
  (path,) = glob.glob(os.path.join(workdir, 'divergence', '*.npz'))
  with np.load(path) as content:
    return dict(content)


def test_a_learning_rate_that_is_too_high(make_config, tmp_path):
  config = make_config(
    'arcface',
    optimizer__name='sgd',
    optimizer__learning_rate=1e12,
    optimizer__warmup_steps=0,
    num_train_steps=20,
  )
  message = diverge(config, tmp_path / 'run')
  assert 'optimizer.learning_rate, 1e+12' in message or 'e+11' in message
  assert 'clip_norm' in message
  batch = saved_batch(tmp_path / 'run')
  assert batch['images'].shape == (16, 8, 8, 1)
  assert batch['labels'].shape == batch['rows'].shape == (16,)


def test_the_line_names_step_image_class_and_cosine(make_config, tmp_path):
  # 1e38 times a cosine overflows in the first step already.
  config = make_config('cosface', loss__scale=3e38, num_train_steps=4)
  message = diverge(config, tmp_path / 'run')
  assert 'step 1 is not finite' in message
  assert 'at cosine' in message
  assert 'loss.scale=3e+38' in message
  assert 'tiny' in message or 'image' in message
  assert 'class ' in message
  batch = saved_batch(tmp_path / 'run')
  assert np.isfinite(batch['cosines']).all()
  text = (tmp_path / 'run' / 'divergence' / 'step_1.txt').read_text()
  assert 'cosines with the own class' in text


def test_a_picture_that_becomes_nan(make_config, tmp_path, monkeypatch):
  normalize = transforms.normalize

  def broken(images, mean, std):
    # The brightest pictures become NaN on their way to the net.
    images = normalize(images, mean, std)
    means = images.mean(axis=(1, 2, 3), keepdims=True)
    return jnp.where(means > 38.0, jnp.nan, images)

  monkeypatch.setattr(step_inputs.transforms, 'normalize', broken)
  config = make_config('circle', data__std=(0.01,), num_train_steps=20)
  message = diverge(config, tmp_path / 'run')
  assert 'the pixels of' in message
  assert 'check_data' in message


def test_the_layer_that_overflows_is_named(make_config, tmp_path, monkeypatch):
  make = BuiltStage.initial_state

  def huge(self, **options):
    state = make(self, **options)
    weights = state.params['embedder']['projection']
    weights['kernel'] = np.full_like(weights['kernel'], 3e38)
    return state

  monkeypatch.setattr(BuiltStage, 'initial_state', huge)
  message = diverge(make_config('circle'), tmp_path / 'run')
  assert 'the output of layer projection' in message
  assert 'overflows' in message


def test_the_state_stays_as_it_was_before(make_config, tmp_path):
  config = make_config(
    'circle',
    optimizer__name='sgd',
    optimizer__learning_rate=1e15,
    optimizer__warmup_steps=0,
    log_every_steps=6,
    eval_every_steps=6,
    checkpoint_every_steps=6,
  )
  message = diverge(config, tmp_path / 'run')
  # Noticed at step 6; named is the first that went wrong.
  step = int(message.split('; step ')[1].split()[0])
  assert 1 <= step <= 4
  assert not list((tmp_path / 'run' / 'checkpoints').iterdir())
