"""Proxies start as the means of their classes."""

import numpy as np
import pytest

from retrieval_jax.training import loop, proxy_init
from retrieval_jax.training.config import Classes
from retrieval_jax.training.tasks import make_task


def _unit(x):
  return x / np.linalg.norm(x, axis=-1, keepdims=True)


def test_class_means_equal_a_loop():
  rng = np.random.default_rng(0)
  labels = np.array([2, 0, 2, 2, 0, 2, 3])
  embeddings = _unit(rng.normal(size=(7, 5)))
  proxies = rng.normal(size=(8, 5)).astype(np.float32)
  found = proxy_init.class_means(embeddings, labels, proxies, sub_centers=2)
  assert found.dtype == np.float32
  for c in range(4):
    own = embeddings[labels == c]
    for k in range(2):
      row = 2 * c + k
      expected = proxies[row]
      if len(own[k::2]):
        mean = own[k::2].mean(axis=0)
        expected = _unit(mean) * np.linalg.norm(proxies[row])
      np.testing.assert_allclose(found[row], expected, rtol=1e-5)


@pytest.mark.parametrize('neck', ['dense', 'dense_batch_norm'])
def test_a_run_starts_with_them(make_config, tiny_dataset, neck):
  config = make_config(
    'arcface',
    model__neck=neck,
    head__init='class_mean',
    head__init_images=3,
    eval__flip=True,
    # More than there are images, for a batch that is filled up evenly.
    eval__batch_size=60,
  )
  (stage,) = loop.make_experiment(config).stages
  state = proxy_init.with_class_means(
    stage.initial_state(), config, stage.task, tiny_dataset.train
  )
  # The labels of the tiny set go round: the first thirty are three of each.
  x = tiny_dataset.train.images_at(np.arange(30)).astype(np.float32) / 255
  # The averages of one device are those of four.
  one = make_task(config, Classes.of(tiny_dataset), (8, 8, 1), axis_name=None)
  rows, _ = one.networks.embedder.apply(
    {'params': state.params['embedder'], 'batch_stats': state.batch_stats},
    (x - 0.1307) / 0.3081,
    True,
    mutable=['batch_stats'],
  )
  means = _unit(np.asarray(rows)).reshape(3, 10, 50).mean(axis=0)
  np.testing.assert_allclose(
    _unit(state.params['head']['proxies']), _unit(means), atol=1e-5
  )
