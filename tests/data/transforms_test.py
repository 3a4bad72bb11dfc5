import pathlib
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
from absl.testing import absltest, parameterized

from retrieval_jax.core.errors import InputError
from retrieval_jax.data import transforms


def _random(*shape):
  return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


class ToModelInputTest(parameterized.TestCase):
  @parameterized.parameters(
    (0.0, 1.0), (0.1307, 0.3081), ([0.5, 0.4, 0.3], [0.2, 0.3, 0.4])
  )
  def test_is_the_formula(self, mean, std):
    images = _random(2, 4, 5, 3)
    got = jax.jit(lambda x: transforms.to_model_input(x, mean, std))(images)
    expected = (images / 255.0 - np.array(mean)) / np.array(std)
    self.assertEqual(got.dtype, jnp.float32)
    np.testing.assert_allclose(got, expected, atol=2e-6)

  def test_refuses_floats(self):
    with self.assertRaisesRegex(InputError, 'dtype float32; allowed is uint8'):
      transforms.to_model_input(jnp.zeros((1, 2, 2, 1)), 0.5, 0.5)


class ReadImagesTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))

  @parameterized.parameters(
    ((4, 5), 1),
    ((4, 5, 1), 1),
    ((2, 4, 5), 2),
    ((2, 4, 5, 1), 2),
  )
  def test_arrays_of_the_right_size_are_unchanged(self, shape, n):
    images = _random(*shape)
    got = transforms.read_images(images, (4, 5, 1))
    self.assertEqual(got.shape, (n, 4, 5, 1))
    np.testing.assert_array_equal(got.ravel(), images.ravel())
    np.testing.assert_array_equal(
      transforms.read_images(jnp.asarray(images), (4, 5, 1)), got
    )

  def test_all_kinds_agree(self):
    image = _random(6, 7, 3)
    picture = PIL.Image.fromarray(image)
    picture.save(self.folder / 'a.png')
    path = self.folder / 'a.png'
    got = transforms.read_images(
      [image, picture, path, str(path), jnp.asarray(image)], (6, 7, 3)
    )
    self.assertEqual(got.shape, (5, 6, 7, 3))
    for row in got:
      np.testing.assert_array_equal(row, image)
    for single in (image, picture, path, str(path)):
      got = transforms.read_images(single, (6, 7, 3))
      np.testing.assert_array_equal(got, image[None])

  @parameterized.parameters(((9, 8),), ((9, 8, 1),), ((9, 8, 3),), ((9, 8, 4),))
  def test_colour_and_size_are_converted_as_by_pillow(self, shape):
    image = _random(*shape)
    picture = PIL.Image.fromarray(image.squeeze())
    for channels, mode in ((1, 'L'), (3, 'RGB')):
      got = transforms.read_images([image], (4, 5, channels))
      expected = picture.convert(mode).resize(
        (5, 4), PIL.Image.Resampling.BILINEAR
      )
      np.testing.assert_array_equal(
        got[0], np.asarray(expected).reshape(4, 5, channels)
      )

  def test_resizing_antialiases(self):
    checkerboard = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)
    got = transforms.read_images([checkerboard], (16, 16, 1)).astype(int)
    self.assertLess(np.abs(got - 127).max(), 10)

  def test_a_file_is_turned_upright(self):
    image = _random(4, 6)
    picture = PIL.Image.fromarray(image)
    exif = picture.getexif()
    exif[0x0112] = 6  # Turn by 90 degrees clockwise to view.
    picture.save(self.folder / 'a.png', exif=exif)
    got = transforms.read_images(self.folder / 'a.png', (6, 4, 1))
    np.testing.assert_array_equal(got[0, ..., 0], np.rot90(image, -1))

  def test_palette_and_bilevel_pictures(self):
    grey = PIL.Image.fromarray(_random(4, 5))
    for mode in ('P', '1', 'LA', 'RGBA', 'CMYK'):
      got = transforms.read_images([grey.convert(mode)], (4, 5, 1))
      self.assertEqual(got.shape, (1, 4, 5, 1))

  def test_no_images(self):
    got = transforms.read_images([], (4, 5, 1))
    self.assertEqual((got.shape, got.dtype), ((0, 4, 5, 1), np.uint8))

  @parameterized.parameters(
    (np.zeros((4, 5)), 'images has dtype float64; allowed is uint8'),
    ([np.zeros((4, 5), np.float32)], r'images\[0\] has dtype float32'),
    (np.zeros((2, 4, 5), np.int64), r'astype\(np.uint8\)'),
    (np.zeros(4, np.uint8), r'images has shape \(4,\)'),
    ([np.zeros((2, 4, 5, 1), np.uint8)], r'images\[0\] has shape \(2, 4, 5'),
    ([np.zeros((3, 4, 5), np.uint8)], 'move the channels to the last axis'),
    (np.zeros((2, 3, 8, 8), np.uint8), 'move the channels to the last axis'),
    (np.zeros((0, 5), np.uint8), r'shape \(0, 5\)'),
    (7, 'images has type int'),
    ([7], r'images\[0\] has type int'),
    ('no_such.png', r"images\[0\] is 'no_such.png', which does not exist"),
  )
  def test_refuses(self, images, message):
    with self.assertRaisesRegex(InputError, message) as caught:
      transforms.read_images(images, (4, 5, 1))
    self.assertNotIn('\n', str(caught.exception))

  @parameterized.parameters('text', 'truncated', 'empty', 'folder', 'broken')
  def test_a_damaged_file_is_named(self, damage):
    path = self.folder / 'damaged.png'
    PIL.Image.fromarray(_random(64, 64)).save(path)
    content = path.read_bytes()
    if damage == 'folder':
      path.unlink()
      path.mkdir()
    else:
      path.write_bytes(
        {
          'text': b'hello\n',
          'truncated': content[: len(content) // 2],
          'empty': b'',
          'broken': content[:30] + b'\0' * 40 + content[70:],
        }[damage]
      )
    with self.assertRaisesRegex(InputError, 'damaged.png') as caught:
      transforms.read_images([path], (4, 5, 1))
    self.assertNotIn('\n', str(caught.exception))

  @parameterized.parameters(np.uint16, np.int32, np.float32)
  def test_more_than_eight_bits_are_refused(self, dtype):
    picture = PIL.Image.fromarray(np.full((4, 5), 1000, dtype))
    with self.assertRaisesRegex(InputError, 'more than 8 bits'):
      transforms.read_images([picture], (4, 5, 1))

  def test_image_shape_of_two_channels_is_refused(self):
    with self.assertRaisesRegex(InputError, '1 or 3 channels'):
      transforms.read_images([], (4, 5, 2))


if __name__ == '__main__':
  absltest.main()
