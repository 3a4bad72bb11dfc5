"""Samplers: which rows form the batch of a step, as functions of (seed, step).

To add one: a function of a `Request` in a module here, and a line in `SAMPLERS`
of `registry.py`.
"""

from retrieval_jax.data.samplers.coverage import Coverage, coverage
from retrieval_jax.data.samplers.registry import (
  MIXINGS,
  SAMPLERS,
  make_sampler,
)
from retrieval_jax.data.samplers.uniform import Sampler

__all__ = [
  'MIXINGS',
  'SAMPLERS',
  'Coverage',
  'Sampler',
  'coverage',
  'make_sampler',
]
