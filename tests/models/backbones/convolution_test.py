import functools

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import parameterized

from retrieval_jax.models.backbones import convolution

# kernel size, stride, padding, height and width; odd and even, with and without
# pixels left over.
CASES = [
  (1, 1, 'symmetric', (4, 5)),
  (1, 2, 'same', (5, 4)),
  (2, 2, 'valid', (7, 4)),
  (2, 1, 'same', (4, 5)),
  (3, 1, 'symmetric', (4, 7)),
  (3, 2, 'symmetric', (7, 8)),
  (3, 2, 'same', (7, 8)),
  (5, 2, 'same', (8, 9)),
]
CHANNELS, FEATURES = 3, 2


def random(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def pads(size, kernel_size, stride, padding):
  """Returns the pads of one axis, by the words of the docstring."""
  if padding == 'symmetric':
    return kernel_size // 2, kernel_size // 2
  if padding == 'valid':
    return 0, 0
  total = max((-(-size // stride) - 1) * stride + kernel_size - size, 0)
  return total // 2, total - total // 2


def slow_convolution(images, kernel, stride, padding, depthwise):
  """Returns the convolution, window by window, in float64."""
  size = len(kernel)
  images = np.pad(
    np.asarray(images, np.float64),
    (
      (0, 0),
      *(pads(n, size, stride, padding) for n in images.shape[1:3]),
      (0, 0),
    ),
  )
  height, width = ((n - size) // stride + 1 for n in images.shape[1:3])
  result = np.zeros((len(images), height, width, kernel.shape[-1]))
  for y in range(height):
    for x in range(width):
      window = images[
        :, y * stride : y * stride + size, x * stride : x * stride + size
      ]
      formula = 'bijc,ijc->bc' if depthwise else 'bijc,ijco->bo'
      weights = kernel[:, :, 0] if depthwise else kernel
      result[:, y, x] = np.einsum(formula, window, weights)
  return result


def slow_gradients(images, kernel, weights, *options):
  """Returns those of sum(weights * y), which is linear in each entry."""
  gradients = []
  for position in (0, 1):
    arguments = [images, kernel]
    zeros = np.zeros(arguments[position].shape)
    gradient = np.zeros_like(zeros)
    for index in np.ndindex(*zeros.shape):
      arguments[position] = zeros.copy()
      arguments[position][index] = 1
      gradient[index] = np.sum(weights * slow_convolution(*arguments, *options))
    gradients.append(gradient)
  return gradients


class ConvolutionTest(parameterized.TestCase):
  @parameterized.product(case=CASES, depthwise=[False, True])
  def test_values_and_gradients(self, case, depthwise):
    size, stride, padding, shape = case
    images = random(2, *shape, CHANNELS)
    kernel = random(
      size,
      size,
      1 if depthwise else CHANNELS,
      CHANNELS if depthwise else FEATURES,
      seed=1,
    )
    function = (
      convolution.convolve_depthwise if depthwise else convolution.convolve
    )
    expected = slow_convolution(images, kernel, stride, padding, depthwise)
    weights = random(*expected.shape, seed=2)

    @jax.jit
    def value_and_gradients(images, kernel, weights):
      y, pull = jax.vjp(
        functools.partial(function, stride=stride, padding=padding),
        images,
        kernel,
      )
      return y, pull(weights)

    y, gradients = value_and_gradients(images, kernel, weights)
    np.testing.assert_allclose(y, expected, atol=1e-5)
    for gradient, expected in zip(
      gradients,
      slow_gradients(images, kernel, weights, stride, padding, depthwise),
      strict=True,
    ):
      np.testing.assert_allclose(gradient, expected, atol=2e-5)

  def test_depthwise_in_bfloat16_sums_in_float32(self):
    # In bfloat16, 1 + 2^-9 is 1, so the sum over 25 entries would be too small.
    images = jnp.ones((1, 5, 5, 1), jnp.bfloat16)
    kernel = jnp.full((5, 5, 1, 1), 2**-9, jnp.bfloat16).at[0, 0].set(1)
    y = convolution.convolve_depthwise(images, kernel, 1, 'valid')
    self.assertEqual(y.dtype, jnp.bfloat16)
    self.assertAlmostEqual(float(y[0, 0, 0, 0]), 1 + 24 * 2**-9, delta=2**-8)

  def test_other_devices_use_the_compilers_depthwise_convolution(self):
    images, kernel = random(2, 7, 8, 3), random(3, 3, 1, 3, seed=1)
    ours = convolution.convolve_depthwise(images, kernel, 2, 'same')
    with self.subTest('gpu'):
      original = jax.default_backend
      try:
        jax.default_backend = lambda: 'gpu'
        other = convolution.convolve_depthwise(images, kernel, 2, 'same')
      finally:
        jax.default_backend = original
    np.testing.assert_allclose(ours, other, atol=1e-5)

  @parameterized.parameters(False, True)
  def test_kernel_starts_with_variance_two_by_fan_out(self, depthwise):
    module = convolution.Convolution(64, kernel_size=3, depthwise=depthwise)
    params = module.init(jax.random.key(0), jnp.zeros((1, 4, 4, 64)))['params']
    fan_out = 9 if depthwise else 9 * 64
    deviation = np.std(params['kernel'])
    self.assertAlmostEqual(
      deviation / np.sqrt(2 / fan_out), 1, delta=0.1 if depthwise else 0.02
    )
