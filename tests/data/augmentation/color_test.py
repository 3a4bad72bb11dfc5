import colorsys
import math

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from retrieval_jax.data.augmentation import color

# Compiled, since one by one its operations take longer.
_adjust_hue = jax.jit(color.adjust_hue)
_gaussian_blur = jax.jit(color.gaussian_blur, static_argnames='max_sigma')
_LUMA = np.array([0.2989, 0.587, 0.114])


def _random(*shape):
  image = np.random.default_rng(0).integers(0, 256, shape).astype(np.float32)
  # Black, white, grey, and colours of which two channels are the same.
  special = [(0, 0, 0), (255, 255, 255), (9, 9, 9), (7, 7, 80), (80, 7, 80)]
  special = np.float32(special)[:, : shape[2]]
  image.reshape(-1, shape[2])[: len(special)] = special
  return image


def _gray(image):
  if image.shape[-1] == 1:
    return image.astype(float)
  return (image * _LUMA).sum(-1, keepdims=True)


class AdjustTest(parameterized.TestCase):
  @parameterized.product(channels=(1, 3), factor=(0.0, 0.3, 1.0, 1.7))
  def test_brightness(self, channels, factor):
    image = _random(6, 5, channels)
    expected = np.clip(image * factor, 0, 255)
    got = color.adjust_brightness(image, factor)
    np.testing.assert_allclose(got, expected, rtol=1e-5)

  @parameterized.product(channels=(1, 3), factor=(0.0, 0.3, 1.0, 1.7))
  def test_contrast(self, channels, factor):
    image = _random(6, 5, channels)
    mean = _gray(image).mean()
    expected = np.clip(mean + factor * (image - mean), 0, 255)
    got = color.adjust_contrast(jnp.asarray(image), factor)
    np.testing.assert_allclose(got, expected, atol=1e-3)

  @parameterized.product(factor=(0.0, 0.3, 1.0, 1.7))
  def test_saturation(self, factor):
    image = _random(6, 5, 3)
    gray = _gray(image)
    expected = np.clip(gray + factor * (image - gray), 0, 255)
    got = color.adjust_saturation(jnp.asarray(image), factor)
    np.testing.assert_allclose(got, expected, atol=1e-3)

  @parameterized.parameters(-0.5, -0.21, 0.0, 0.1, 1 / 3, 0.5)
  def test_hue(self, turns):
    image = _random(8, 9, 3)
    expected = np.empty_like(image)
    for place in np.ndindex(8, 9):
      hue, saturation, value = colorsys.rgb_to_hsv(*(image[place] / 255.0))
      turned = colorsys.hsv_to_rgb((hue + turns) % 1, saturation, value)
      expected[place] = np.array(turned) * 255
    got = _adjust_hue(image, turns)
    np.testing.assert_allclose(got, expected, atol=2e-3)
    self.assertGreaterEqual(got.min(), 0)
    self.assertLessEqual(got.max(), 255)

  def test_gray_images_have_neither_saturation_nor_hue(self):
    image = jnp.asarray(_random(6, 5, 1))
    self.assertIs(color.adjust_saturation(image, 0.0), image)
    self.assertIs(color.adjust_hue(image, 0.3), image)

  @parameterized.parameters((0.4, 0.6, 1.4), (1.5, 0.0, 2.5))
  def test_factors_fill_their_range(self, strength, low, high):
    numbers = jax.random.uniform(jax.random.key(0), (5000,))
    factors = np.array(color.draw_factor(numbers, strength))
    self.assertBetween(factors.min(), low, low + 0.01)
    self.assertBetween(factors.max(), high - 0.01, high)
    self.assertAlmostEqual(factors.mean(), (low + high) / 2, delta=0.03)


class GaussianBlurTest(parameterized.TestCase):
  @parameterized.product(
    shape=((12, 7, 1), (3, 20, 3)),
    sigma=(0.1, 0.8, 1.5),
  )
  def test_is_a_convolution_with_mirrored_borders(self, shape, sigma):
    max_sigma = 1.5
    image = _random(*shape)
    expected = image.astype(float)
    for axis in (0, 1):
      size = shape[axis]
      radius = min(math.ceil(3 * max_sigma), size - 1)
      kernel = [
        math.exp(-(d**2) / (2 * sigma**2)) for d in range(-radius, radius + 1)
      ]
      rows = np.moveaxis(expected, axis, 0)
      total = np.zeros_like(rows)
      for row in range(size):
        for weight, d in zip(kernel, range(-radius, radius + 1), strict=True):
          source = abs(row + d)
          source = min(source, 2 * (size - 1) - source)
          total[row] += weight * rows[source] / sum(kernel)
      expected = np.moveaxis(total, 0, axis)
    got = _gaussian_blur(image, sigma, True, max_sigma=max_sigma)
    np.testing.assert_allclose(got, expected, atol=2e-3)

  def test_leaves_others_as_they_are(self):
    image = _random(9, 9, 3)
    got = _gaussian_blur(image, 1.0, False, max_sigma=2.0)
    np.testing.assert_array_equal(got, image)

  def test_images_of_one_row(self):
    image = _random(1, 9, 1)
    got = _gaussian_blur(image, 1.0, True, max_sigma=2.0)
    self.assertTrue(np.isfinite(got).all())


if __name__ == '__main__':
  absltest.main()
