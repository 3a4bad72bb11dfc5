"""A run small enough for a test: 8 x 8 digits, ten classes, two steps."""

import functools
import pathlib

import numpy as np
import pytest

from retrieval_jax import data
from retrieval_jax.data.collection import TEST, TRAIN
from retrieval_jax.training import config as config_lib

CONFIGS = pathlib.Path(__file__).parents[2] / 'configs'


@functools.cache
def _tiny_collection() -> data.Collection:
  """Ten noisy prototypes: 8 images of each to train on, 4 to ask for."""
  rng = np.random.default_rng(0)
  prototypes = rng.uniform(0, 255, (10, 8, 8, 1))
  labels = np.tile(np.arange(10, dtype=np.int32), 12)
  noise = rng.normal(0, 60, (len(labels), 8, 8, 1))
  images = np.clip(prototypes[labels] + noise, 0, 255).astype(np.uint8)
  split = np.repeat([TRAIN, TEST], [80, 40]).astype(np.int8)
  return data.Collection(
    name='tiny',
    images=data.ImageArray(images),
    labels=labels,
    class_names=tuple(map(str, range(10))),
    split=split,
    is_query=split == TEST,
    is_gallery=split == TRAIN,
    image_shape=(8, 8, 1),
  )


@pytest.fixture(autouse=True)
def tiny_dataset(monkeypatch):
  """Registers the data set `tiny`, which takes no options."""
  monkeypatch.setitem(data.DATASETS, 'tiny', _tiny_collection)
  return data.load_dataset('tiny')


@pytest.fixture
def make_config():
  """Returns a function from a config's name and overrides to a tiny config."""

  def make(name='circle', **overrides):
    file, _, argument = name.partition(':')
    config = config_lib.load(
      f'{CONFIGS / file}.py{argument and f":{argument}"}'
    )
    values = {
      'data.name': 'tiny',
      'data.classes_per_batch': 4 if config.data.classes_per_batch else 0,
      'data.batch_size': 16,
      'num_train_steps': 6,
      'eval_every_steps': 3,
      'checkpoint_every_steps': 2,
      'log_every_steps': 2,
      'optimizer.warmup_steps': 1,
      'eval.batch_size': 16,
      'gradient_cache.chunk_size': config.gradient_cache.chunk_size and 4,
    } | {key.replace('__', '.'): value for key, value in overrides.items()}
    for key, value in values.items():
      config_lib.override(config, key, str(value))
    return config

  return make
