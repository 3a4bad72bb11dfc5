"""The counts are those of hand-worked programs, and near a compiler's."""

import functools

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from retrieval_jax import models
from retrieval_jax.training import program_cost


def cost(function, *shapes, dtype='float32'):
  arguments = [jax.ShapeDtypeStruct(shape, dtype) for shape in shapes]
  return program_cost.of(jax.make_jaxpr(function)(*arguments))


def convolve(x, k, **options):
  return lax.conv_general_dilated(
    x, k, padding='SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC'), **options
  )


def test_batched_product_of_matrices():
  found = cost(
    lambda a, b: jnp.einsum('bij,bjk->bik', a, b), (3, 4, 5), (3, 5, 6)
  )
  assert found.flops == 2 * 3 * 4 * 5 * 6


@pytest.mark.parametrize('stride', [1, 2])
def test_each_gradient_of_a_convolution_costs_what_it_does(stride):
  images, kernel = (2, 8, 8, 3), (3, 3, 3, 5)
  forward = functools.partial(convolve, window_strides=(stride, stride))
  expected = 2 * (2 * (8 // stride) ** 2 * 5) * (3 * 3 * 3)
  assert cost(forward, images, kernel).flops == expected

  def both(x, k):
    return jax.grad(lambda x, k: forward(x, k).sum(), argnums=(0, 1))(x, k)

  # The value itself is not computed: nobody reads it but the sum.
  found = cost(both, images, kernel).flops
  assert found == pytest.approx(3 * expected, rel=0.0)


def test_depthwise_convolution():
  found = cost(
    functools.partial(convolve, window_strides=(1, 1), feature_group_count=6),
    (1, 4, 4, 6),
    (3, 3, 1, 6),
  )
  assert found.flops == 2 * 16 * 6 * 9


def test_loops_count_their_turns_and_branches_the_dearest():
  def loop(a):
    return lax.scan(lambda c, _: (c @ a, None), a, length=7)[0]

  assert cost(loop, (4, 4)).flops == 7 * 2 * 4**3

  def branch(a):
    return lax.cond(a[0, 0] > 0, lambda a: a @ a @ a, lambda a: a @ a, a)

  assert cost(branch, (4, 4)).flops == 2 * 2 * 4**3


def test_element_wise_operations_have_no_array_of_their_own():
  def chain(a, b):
    return jnp.sum(jnp.exp(jnp.tanh(a @ b) * 2) + 1)

  # The product, and the sum that is the result.
  assert cost(chain, (16, 8), (8, 16)).peak_bytes == 4 * (16 * 16 + 1)


def test_an_array_lives_until_its_last_reader():
  def layers(x, *kernels):
    for kernel in kernels:
      x = jnp.maximum(x @ kernel, 0)
    return x

  def gradient(function):
    return jax.grad(
      lambda *arguments: function(*arguments).sum(), argnums=(1, 2, 3, 4)
    )

  shapes = [(32, 8)] + 4 * [(8, 8)]
  rows = 4 * 32 * 8
  assert cost(layers, *shapes).peak_bytes <= 3 * rows
  kept = cost(gradient(layers), *shapes)
  # Of each layer the product, and what goes on from it.
  assert 4 * rows <= kept.peak_bytes <= 11 * rows
  again = cost(gradient(jax.checkpoint(layers)), *shapes)
  # The last layer's product is needed by the first gradient alone.
  assert again.flops > kept.flops


def test_resnet50_is_as_published():
  # 4.1 G multiplications and additions of an image of 224 x 224; He et al.
  # count 3.8 G for the stride in the first convolution of a block.
  network = models.build_embedder('resnet50', 1000)
  image = jax.ShapeDtypeStruct((1, 224, 224, 3), 'float32')
  variables = jax.eval_shape(
    lambda x: network.init(jax.random.key(0), x, train=False), image
  )
  program = jax.make_jaxpr(functools.partial(network.apply, train=False))(
    variables, image
  )
  found = program_cost.of(program).flops / 2e9
  assert found == pytest.approx(4.09, abs=0.01)
  assert program_cost.bytes_of(variables['params']) == 4 * 25_557_032
