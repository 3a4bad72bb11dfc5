"""Data that the tests of post-processing share."""

import numpy as np
import pytest


@pytest.fixture
def draw():
  """Returns a function to noisy rows around class centres, and their labels."""

  def make(rows=60, dim=8, classes=6, noise=0.5, seed=0):
    random = np.random.default_rng(seed)
    labels = random.permutation(np.arange(rows) % classes)
    # The same centres for every seed, so that queries and gallery match.
    centres = np.random.default_rng(99).normal(size=(classes, dim))
    x = centres[labels] + noise * random.normal(size=(rows, dim))
    return x.astype(np.float32), labels

  return make


@pytest.fixture
def unit():
  """Returns a function to unit rows in float64."""

  def make(x):
    x = np.asarray(x, np.float64)
    return x / np.linalg.norm(x, axis=1, keepdims=True)

  return make
