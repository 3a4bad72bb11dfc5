import cv2
import numpy as np
import PIL.Image
from absl.testing import absltest, parameterized

from retrieval_jax.data import resizing

_NOISE = np.random.default_rng(0).integers(0, 256, (96, 128, 3), np.uint8)
# Noise without its finest waves: about as hard as a photograph.
_IMAGE = cv2.GaussianBlur(_NOISE, (5, 5), 1)


def _by_pillow(image, shape):
  picture = PIL.Image.fromarray(image.squeeze())
  resized = picture.resize(shape[::-1], PIL.Image.Resampling.BILINEAR)
  return np.asarray(resized).reshape(*shape, -1).astype(int)


class ResizeTest(parameterized.TestCase):
  @parameterized.parameters(
    (96, 128), (192, 256), (150, 130), (48, 64), (32, 64), (24, 32)
  )
  def test_whole_ratios_and_enlarging_are_as_by_pillow(self, *shape):
    for image in (_IMAGE, _IMAGE[..., :1]):
      got = resizing.resize(image, shape)
      self.assertEqual(got.shape, (*shape, image.shape[-1]))
      expected = _by_pillow(image, shape)
      inner = np.abs(got - expected)[2:-2, 2:-2]
      self.assertLessEqual(inner.max(), 2)

  @parameterized.parameters(
    (90, 120), (70, 100), (50, 70), (37, 45), (30, 90), (200, 50)
  )
  def test_other_ratios_are_near_pillow(self, *shape):
    got = resizing.resize(_IMAGE, shape)
    expected = _by_pillow(_IMAGE, shape)
    error = np.abs(got - expected)
    self.assertLess(error.mean(), 3)
    contrast = np.abs(expected - expected.mean((0, 1))).mean()
    self.assertLess(error.mean() / contrast, 0.12)

  @parameterized.parameters((13, 17), (96, 20), (20, 128), (3, 5), (1, 1))
  def test_large_ratios_are_near_pillow(self, *shape):
    got = resizing.resize(_IMAGE, shape)
    self.assertLess(np.abs(got - _by_pillow(_IMAGE, shape)).mean(), 2)

  @parameterized.parameters(0, 1, 128, 254, 255)
  def test_a_plain_image_stays_plain(self, level):
    for side in (1, 3, 7, 16, 23, 31, 45, 63, 64, 65, 100):
      image = np.full((64, 64, 3), level, np.uint8)
      got = resizing.resize(image, (side, side + 1))
      self.assertEqual(np.unique(got).tolist(), [level], side)

  @parameterized.parameters(10, 16, 21, 30, 32)
  def test_a_checkerboard_becomes_grey(self, side):
    checkerboard = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)
    got = resizing.resize(checkerboard[..., None], (side, side)).astype(int)
    self.assertLess(np.abs(got - 127)[1:-1, 1:-1].max(), 10)

  def test_nothing_is_shifted(self):
    ramp = np.arange(128, dtype=np.uint8)[None, :, None].repeat(64, 0)
    for width in (100, 77, 64, 43, 32, 20):
      got = resizing.resize(ramp, (64, width))[0, :, 0]
      expected = (np.arange(width) + 0.5) * 128 / width - 0.5
      np.testing.assert_allclose(got[3:-3], expected[3:-3], atol=1)

  @parameterized.parameters(
    (96, 128), (95, 127), (70, 90), (48, 64), (30, 40), (20, 30), (200, 300)
  )
  def test_a_window_is_cut_out_of_the_whole(self, height, width):
    whole = resizing.resize(_NOISE, (height, width))
    for window in (
      (0, 0, height, width),
      (3, 5, height - 4, width - 2),
      (0, width - 9, 7, width),
      (height // 2, 1, height // 2 + 1, 2),
    ):
      top, left, bottom, right = window
      got = resizing.resize(_NOISE, (height, width), window)
      expected = whole[top:bottom, left:right].astype(int)
      # OpenCV rounds halves one way or the other, as vectors happen to fall.
      self.assertLessEqual(np.abs(got - expected).max(), 1)
      self.assertTrue(got.flags.c_contiguous)

  def test_the_image_is_not_written_to(self):
    image = _NOISE.copy()
    image.setflags(write=False)
    for shape in ((96, 128), (50, 60), (10, 10), (200, 200)):
      resizing.resize(image, shape)
    np.testing.assert_array_equal(image, _NOISE)
    self.assertIs(resizing.resize(image, (96, 128)), image)


if __name__ == '__main__':
  absltest.main()
