"""A step takes as long as its arithmetic or its memory."""

import pytest

from retrieval_jax.training import devices


def test_time_is_that_of_arithmetic_or_of_memory():
  step = 6e12, 1e11
  fast = devices.Speed(20e12, 1e12)
  assert devices.seconds(*step, fast, 0.3) == pytest.approx(1.0)
  slow = fast._replace(bandwidth=5e10)
  assert devices.seconds(*step, slow, 0.3) == pytest.approx(2.0)
  unknown = fast._replace(bandwidth=None)
  assert devices.seconds(*step, unknown, 0.5) == pytest.approx(0.6)
