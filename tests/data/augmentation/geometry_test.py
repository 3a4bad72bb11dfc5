import math

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
from absl.testing import absltest, parameterized

from retrieval_jax.data.augmentation import geometry

_NUM_CROPS = 8000

# Compiled, since one by one its operations take longer.
_resample = jax.jit(geometry.resample, static_argnames='size')
_rotate = jax.jit(geometry.rotate)


def _random(*shape):
  return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def _torchvision_crop(rng, width, height, scale, ratio):
  """torchvision's RandomResizedCrop: (top, left, height, width) in [0, 1]."""
  for _ in range(10):
    area = height * width * rng.uniform(*scale)
    aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
    w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
    if 0 < w <= width and 0 < h <= height:
      top, left = rng.integers(height - h + 1), rng.integers(width - w + 1)
      return top / height, left / width, h / height, w / width
  w, h = width, height
  if width / height < ratio[0]:
    h = round(w / ratio[0])
  elif width / height > ratio[1]:
    w = round(h * ratio[1])
  top, left = (height - h) // 2, (width - w) // 2
  return top / height, left / width, h / height, w / width


def _draw_crops(aspect_ratio, scale, ratio):
  numbers = jax.random.uniform(
    jax.random.key(1), (_NUM_CROPS, geometry.NUM_DRAWS)
  )
  draw = jax.vmap(
    lambda n: geometry.draw_crop(n, jnp.float32(aspect_ratio), scale, ratio)
  )
  return np.array(jax.jit(draw)(numbers)).T


class DrawCropTest(parameterized.TestCase):
  @parameterized.parameters(
    # Pictures of 2000 x 2000, wide and tall ones; the last two often or always
    # have no draw that fits.
    (2000, 2000, (0.08, 1.0), (3 / 4, 4 / 3)),
    (3000, 2000, (0.2, 1.0), (3 / 4, 4 / 3)),
    (1000, 2500, (0.3, 0.5), (0.5, 2.0)),
    (4000, 1000, (0.25, 0.9), (0.8, 1.25)),
    (4000, 1000, (0.9, 1.0), (0.8, 1.25)),
  )
  def test_is_distributed_as_in_torchvision(self, width, height, scale, ratio):
    rng = np.random.default_rng(0)
    expected = np.array(
      [
        _torchvision_crop(rng, width, height, scale, ratio)
        for _ in range(_NUM_CROPS)
      ]
    )
    got = _draw_crops(width / height, scale, ratio)
    levels = np.linspace(0.02, 0.98, 25)

    def quantities(boxes):
      top, left, h, w = boxes.T
      aspect = np.log(w / h * width / height)
      return {'area': h * w, 'aspect': aspect, 'top': top, 'left': left}

    for name, values in quantities(expected).items():
      np.testing.assert_allclose(
        np.quantile(quantities(got)[name], levels),
        np.quantile(values, levels),
        atol=0.03,
        err_msg=name,
      )

  def test_lies_within_the_picture(self):
    top, left, height, width = _draw_crops(1.5, (0.08, 1.0), (0.5, 2.0)).T
    self.assertGreaterEqual(min(top.min(), left.min()), 0)
    self.assertGreater(min(height.min(), width.min()), 0)
    self.assertLessEqual((top + height).max(), 1 + 1e-6)
    self.assertLessEqual((left + width).max(), 1 + 1e-6)

  def test_takes_the_first_that_fits(self):
    numbers = np.full(geometry.NUM_DRAWS, 0.5, np.float32)
    # The first is four times as wide as high and covers the square's area.
    numbers[0], numbers[10] = 0.99, 0.99
    # The second covers a quarter and is a square.
    numbers[1] = 0.25
    numbers[2] = 0.75
    numbers[-2:] = 0.5, 0.0
    box = geometry.draw_crop(numbers, jnp.float32(1), (1e-6, 1.0), (1 / 4, 4.0))
    np.testing.assert_allclose(box, (0.25, 0.0, 0.5, 0.5), atol=1e-4)

  @parameterized.parameters(
    (2.0, (0.0, 0.25, 1.0, 0.5)), (0.25, (0.375, 0.0, 0.25, 1.0))
  )
  def test_falls_back_to_the_centre(self, aspect_ratio, expected):
    boxes = _draw_crops(aspect_ratio, (1.0, 1.0), (1.0, 1.0))
    np.testing.assert_allclose(boxes, np.tile(expected, (_NUM_CROPS, 1)))


class ResampleTest(parameterized.TestCase):
  @parameterized.product(size=((16, 20), (5, 31), (3, 2)), channels=(1, 3))
  def test_is_pillow_in_floating_point(self, size, channels):
    image = _random(16, 20, channels)
    planes = [
      PIL.Image.fromarray(image[..., channel].astype(np.float32))
      for channel in range(channels)
    ]
    for corners in (
      # (left, top, right, bottom) in pixels.
      (0, 0, 20, 16),
      (3, 2, 17, 9),
      (0.4, 1.3, 19.9, 15.1),
      (7.25, 3.5, 9.75, 5.25),
      (12.5, 0, 20, 16),
    ):
      left, top, right, bottom = corners
      height, width = (bottom - top) / 16, (right - left) / 20
      box = geometry.Box(*np.float32((top / 16, left / 20, height, width)))
      expected = np.stack(
        [
          plane.resize(size[::-1], PIL.Image.Resampling.BILINEAR, box=corners)
          for plane in planes
        ],
        axis=-1,
      )
      got = _resample(image, box, size=size, flip=False)
      self.assertEqual(got.dtype, jnp.float32)
      np.testing.assert_allclose(got, expected, atol=5e-3)
      got = _resample(image, box, size=size, flip=True)
      np.testing.assert_allclose(got, expected[:, ::-1], atol=5e-3)

  def test_the_whole_at_its_own_size_is_unchanged(self):
    image = _random(7, 9, 3)
    whole = geometry.Box(*np.float32((0, 0, 1, 1)))
    got = _resample(image, whole, size=(7, 9), flip=False)
    np.testing.assert_array_equal(got, image)
    got = _resample(image, whole, size=(7, 9), flip=True)
    np.testing.assert_array_equal(got, image[:, ::-1])

  def test_stays_in_range(self):
    image = jnp.full((12, 12, 1), 255, jnp.uint8)
    boxes = _draw_crops(1.0, (0.01, 1.0), (0.5, 2.0))[:200]
    resample = jax.jit(
      jax.vmap(
        lambda box: geometry.resample(image, geometry.Box(*box), (9, 5), False)
      )
    )
    np.testing.assert_allclose(resample(jnp.asarray(boxes)), 255.0, rtol=1e-6)


class RotateTest(parameterized.TestCase):
  @parameterized.parameters((5, 5, 1), (6, 6, 3), (4, 7, 3), (1, 5, 1))
  def test_by_zero_is_unchanged(self, *shape):
    image = _random(*shape)
    np.testing.assert_array_equal(_rotate(image, 0.0), image)

  @parameterized.product(size=(5, 6), turns=(-1, 1, 2, 3))
  def test_by_quarter_turns_is_numpy(self, size, turns):
    image = _random(size, size, 3)
    got = _rotate(image, 90.0 * turns)
    np.testing.assert_allclose(got, np.rot90(image, turns), atol=1e-2)

  @parameterized.product(
    shape=((6, 6, 1), (5, 9, 3)), degrees=(-33.0, 8.0, 130.0)
  )
  def test_is_bilinear_with_mirrored_borders(self, shape, degrees):
    image = _random(*shape)
    height, width, channels = shape
    padded = np.pad(
      image.astype(float), ((20, 20), (20, 20), (0, 0)), mode='reflect'
    )
    angle = math.radians(degrees)
    expected = np.zeros(shape)
    for row in range(height):
      for column in range(width):
        # Upwards and to the right from the centre, turned back.
        up, right = (height - 1) / 2 - row, column - (width - 1) / 2
        from_right = right * math.cos(angle) + up * math.sin(angle)
        from_up = -right * math.sin(angle) + up * math.cos(angle)
        y = (height - 1) / 2 - from_up + 20
        x = from_right + (width - 1) / 2 + 20
        top, left = math.floor(y), math.floor(x)
        for dy in (0, 1):
          for dx in (0, 1):
            share = (1 - abs(y - top - dy)) * (1 - abs(x - left - dx))
            expected[row, column] += share * padded[top + dy, left + dx]
    np.testing.assert_allclose(_rotate(image, degrees), expected, atol=1e-2)


class FlipTest(absltest.TestCase):
  def test_mirrors_if_chosen(self):
    image = _random(3, 4, 3)
    np.testing.assert_array_equal(geometry.flip(image, True), image[:, ::-1])
    np.testing.assert_array_equal(geometry.flip(image, False), image)


if __name__ == '__main__':
  absltest.main()
