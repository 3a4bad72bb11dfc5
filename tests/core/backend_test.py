"""What is traced for other devices is, and nothing stays behind."""

import jax
import jax.numpy as jnp
import pytest

from retrieval_jax.core import backend
from retrieval_jax.models.backbones import convolution


def primitives():
  images, kernel = jnp.ones((1, 8, 8, 4)), jnp.ones((3, 3, 1, 4))
  program = jax.make_jaxpr(
    lambda x, k: convolution.convolve_depthwise(x, k, 1, 'symmetric')
  )(images, kernel)
  return {equation.primitive.name for equation in program.eqns}


def test_the_program_is_that_of_the_assumed_backend():
  assert 'conv_general_dilated' not in primitives()
  with backend.assume('gpu'):
    assert 'conv_general_dilated' in primitives()
  assert 'conv_general_dilated' not in primitives()


def test_it_ends_with_an_error_too():
  with pytest.raises(ZeroDivisionError), backend.assume('tpu'):
    raise ZeroDivisionError
  assert backend.name() == 'cpu'
