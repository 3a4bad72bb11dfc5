import io
import json
import pathlib
import tempfile

import jax.numpy as jnp
import numpy as np
import PIL.Image
from absl.testing import absltest, parameterized

from retrieval_jax.core.errors import InputError
from retrieval_jax.data import decoding, preprocessing
from retrieval_jax.data.preprocessing import Preprocessing


def _random(*shape):
  return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def _smooth(height, width):
  y, x = np.mgrid[:height, :width]
  waves = [np.sin(x / 9) + np.cos(y / 7), np.sin(y / 5), np.cos(x / 11)]
  return (127 + 60 * np.stack(waves, -1)).astype(np.uint8)


def _jpeg(image, **options):
  file = io.BytesIO()
  PIL.Image.fromarray(image).save(file, 'JPEG', quality=95, **options)
  return file.getvalue()


def _by_torchvision(image, resize_size, height, width):
  """Resize(resize_size) and CenterCrop((height, width)), by Pillow."""
  h, w = image.shape[:2]
  short, long = resize_size, int(resize_size * max(h, w) / min(h, w))
  h, w = (short, long) if h <= w else (long, short)
  picture = PIL.Image.fromarray(image).resize(
    (w, h), PIL.Image.Resampling.BILINEAR
  )
  top, left = int(round((h - height) / 2.0)), int(round((w - width) / 2.0))
  return np.asarray(picture)[top : top + height, left : left + width]


class ViewTest(parameterized.TestCase):
  @parameterized.product(
    shape=((375, 500), (500, 375), (256, 256), (300, 301), (100, 180)),
    sizes=((256, 224, 224), (224, 224, 224), (128, 128, 96), (97, 96, 96)),
  )
  def test_is_torchvisions(self, shape, sizes):
    resize_size, height, width = sizes
    image = _smooth(*shape)
    subject = Preprocessing((height, width, 3), resize_size)
    got = subject.view(image).astype(int)
    expected = _by_torchvision(image, *sizes)
    self.assertEqual(got.shape, (height, width, 3))
    self.assertLessEqual(np.abs(got - expected).max(), 6)
    self.assertLess(np.abs(got - expected).mean(), 0.8)

  @parameterized.parameters(((4, 5, 1), 4), ((6, 3, 3), 3), ((7, 7, 3), 7))
  def test_images_of_the_right_size_are_unchanged(self, shape, resize_size):
    image = _random(*shape)
    subject = Preprocessing(shape, resize_size)
    self.assertTrue(subject.is_identity(shape))
    self.assertIs(subject.view(image), image)

  def test_images_of_the_right_size_are_zoomed_if_asked_for(self):
    subject = Preprocessing((8, 8, 3), 16)
    self.assertFalse(subject.is_identity((8, 8, 3)))
    image = np.zeros((8, 8, 3), np.uint8)
    image[2:6, 2:6] = 200
    self.assertGreater(subject.view(image).mean(), 2 * image.mean())

  @parameterized.parameters(
    ((20, 10), (20, 10)), ((10, 20), (20, 40)), ((1, 50), (20, 1000))
  )
  def test_what_would_not_fit_is_enlarged(self, shape, resized):
    subject = Preprocessing((20, 10, 3), 10)
    image = _smooth(*shape)
    picture = PIL.Image.fromarray(image)
    whole = picture.resize(resized[::-1], PIL.Image.Resampling.BILINEAR)
    left = round((resized[1] - 10) / 2)
    expected = np.asarray(whole)[:, left : left + 10].astype(int)
    self.assertLessEqual(np.abs(subject.view(image) - expected).max(), 2)

  def test_the_canvas_holds_the_whole(self):
    image = np.zeros((30, 60, 3), np.uint8)
    image[:, :30, 0], image[:15, :, 1] = 100, 100
    got = Preprocessing((8, 8, 3), 8, canvas_size=12).canvas(image)
    expected = np.zeros((12, 12, 3), np.uint8)
    expected[:, :6, 0], expected[:6, :, 1] = 100, 100
    inside = [0, 1, 2, 3, 8, 9, 10, 11]
    np.testing.assert_array_equal(
      got[np.ix_(inside, inside)], expected[np.ix_(inside, inside)]
    )

  def test_goes_through_json(self):
    subject = Preprocessing((224, 192, 3), 256, canvas_size=288)
    text = json.dumps(subject.to_dict())
    self.assertEqual(Preprocessing.from_dict(json.loads(text)), subject)
    subject = Preprocessing([8, 8, 1], 8)
    self.assertEqual(subject.image_shape, (8, 8, 1))

  @parameterized.parameters(
    ((8, 8, 2), 8, 0, '1 or 3 channels'),
    ((8, 8), 8, 0, '1 or 3 channels'),
    ((8, 0, 3), 8, 0, 'positive'),
    ((8, 8, 3), 0, 0, 'positive'),
    ((8, 8, 3), 8, -1, 'positive'),
  )
  def test_refuses(self, shape, resize_size, canvas_size, message):
    with self.assertRaisesRegex(InputError, message):
      Preprocessing(shape, resize_size, canvas_size)


class PrepareTest(parameterized.TestCase):
  def test_a_large_jpeg_is_decoded_smaller_and_looks_the_same(self):
    image = _smooth(1500, 2000)
    content = _jpeg(image)
    subject = Preprocessing((224, 224, 3), 256, canvas_size=300)
    small = decoding.decode(content, 3, min_side=256)
    self.assertEqual(small.shape, (375, 500, 3))
    got, ratio = subject.prepare(content)
    np.testing.assert_array_equal(got, subject.view(small))
    whole = subject.view(decoding.decode(content, 3)).astype(int)
    self.assertLess(np.abs(got - whole).mean(), 1)
    self.assertEqual(ratio, 2000 / 1500)
    got, _ = subject.prepare(content, canvas=True)
    np.testing.assert_array_equal(got, subject.canvas(small))

  def test_the_aspect_ratio_is_of_the_upright_picture(self):
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    content = _jpeg(_smooth(375, 501), exif=exif)
    _, ratio = Preprocessing((16, 16, 3), 16).prepare(content)
    self.assertEqual(ratio, 375 / 501)

  @parameterized.parameters(
    ((10, 20, 110, 70), (10, 20, 110, 70)),
    ((10.6, 20.2, 109.1, 69.5), (10, 20, 110, 70)),
    ((-50, -1, 30, 40), (0, 0, 30, 40)),
    ((450, 300, 9000, np.inf), (450, 300, 500, 375)),
    ((499.2, 374.2, 500, 375), (499, 374, 500, 375)),
  )
  def test_a_box_is_cut_out_of_the_full_size(self, box, expected):
    content = _jpeg(_smooth(375, 500))
    left, top, right, bottom = expected
    part = decoding.decode(content, 3)[top:bottom, left:right]
    subject = Preprocessing((8, 8, 3), 8)
    got, ratio = subject.prepare(content, np.float32(box))
    np.testing.assert_array_equal(got, subject.view(part))
    self.assertEqual(ratio, (right - left) / (bottom - top))

  def test_a_box_is_in_pixels_of_the_upright_picture(self):
    image = np.zeros((40, 80, 3), np.uint8)
    image[:, 40:] = 255
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # The left of the file is the top of the picture.
    content = _jpeg(image, exif=exif)
    subject = Preprocessing((8, 8, 3), 8)
    got, _ = subject.prepare(content, np.array([0, 48, 40, 80]))
    self.assertGreater(got.min(), 250)
    got, _ = subject.prepare(content, np.array([0, 0, 40, 32]))
    self.assertLess(got.max(), 5)

  def test_a_box_of_nan_is_the_whole(self):
    image = _random(30, 20, 3)
    subject = Preprocessing((8, 8, 3), 8)
    got, ratio = subject.prepare(image, np.full(4, np.nan))
    np.testing.assert_array_equal(got, subject.view(image))
    self.assertEqual(ratio, 20 / 30)

  @parameterized.parameters(
    ((5, 5, 5, 9),),
    ((9, 5, 5, 9),),
    ((20, 0, 25, 10),),
    ((-5, 0, 0, 10),),
    ((0, 30, 10, 31),),
    ((np.nan, 0, 10, 10),),
    ((0, 0, np.nan, 10),),
    ((0, 0, 10, np.nan),),
  )
  def test_a_box_without_pixels_is_refused(self, box):
    with self.assertRaisesRegex(
      decoding.UnreadableImageError, r'box .* has no pixels .* 20 wide'
    ):
      Preprocessing((8, 8, 3), 8).prepare(_random(30, 20, 3), np.array(box))


class ReadImagesTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    self.subject = Preprocessing((4, 5, 1), 4)

  @parameterized.parameters(
    ((4, 5), 1),
    ((4, 5, 1), 1),
    ((2, 4, 5), 2),
    ((2, 4, 5, 1), 2),
  )
  def test_arrays_of_the_right_size_are_unchanged(self, shape, n):
    images = _random(*shape)
    got = preprocessing.read_images(images, self.subject)
    self.assertEqual(got.shape, (n, 4, 5, 1))
    np.testing.assert_array_equal(got.ravel(), images.ravel())
    np.testing.assert_array_equal(
      preprocessing.read_images(jnp.asarray(images), self.subject), got
    )

  @parameterized.parameters(6, 13)
  def test_all_kinds_agree(self, resize_size):
    image = _random(6, 7, 3)
    picture = PIL.Image.fromarray(image)
    path = self.folder / 'a.png'
    picture.save(path)
    subject = Preprocessing((6, 7, 3), resize_size)
    expected = subject.view(image)
    got = preprocessing.read_images(
      [image, picture, path, str(path), jnp.asarray(image)], subject
    )
    self.assertEqual(got.shape, (5, 6, 7, 3))
    for row in got:
      np.testing.assert_array_equal(row, expected)
    for single in (image, picture, path, str(path)):
      got = preprocessing.read_images(single, subject)
      np.testing.assert_array_equal(got, expected[None])

  def test_a_file_is_what_the_evaluation_sees(self):
    path = self.folder / 'a.jpg'
    path.write_bytes(_jpeg(_smooth(1200, 900)))
    subject = Preprocessing((224, 224, 3), 256)
    got = preprocessing.read_images([path], subject)
    np.testing.assert_array_equal(got[0], subject.prepare(path.read_bytes())[0])

  @parameterized.parameters(((9, 8),), ((9, 8, 1),), ((9, 8, 3),))
  def test_channels_are_converted_as_by_pillow(self, shape):
    image = _random(*shape)
    picture = PIL.Image.fromarray(image.squeeze())
    for channels, mode in ((1, 'L'), (3, 'RGB')):
      subject = Preprocessing((9, 8, channels), 8)
      got = preprocessing.read_images([image], subject)
      expected = np.asarray(picture.convert(mode)).reshape(9, 8, channels)
      np.testing.assert_array_equal(got[0], expected)

  def test_modes_of_pillow(self):
    grey = PIL.Image.fromarray(_random(4, 5))
    for mode in ('P', '1', 'LA', 'RGBA', 'CMYK', 'I;16'):
      got = preprocessing.read_images([grey.convert(mode)], self.subject)
      self.assertEqual(got.shape, (1, 4, 5, 1))

  def test_sixteen_bits_are_shifted_as_in_a_file(self):
    deep = (np.arange(20, dtype=np.uint16) * 3000).reshape(4, 5)
    picture = PIL.Image.fromarray(deep)
    picture.save(self.folder / 'a.png')
    got = preprocessing.read_images(
      [picture, self.folder / 'a.png'], self.subject
    )
    for row in got:
      np.testing.assert_array_equal(row[..., 0], deep >> 8)

  def test_no_images(self):
    got = preprocessing.read_images([], self.subject)
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
    ([np.zeros((0, 5, 3), np.uint8)], r'shape \(0, 5, 3\)'),
    (7, 'images has type int'),
    ([7], r'images\[0\] has type int'),
    ('no_such.png', r"images\[0\] is 'no_such.png', which does not exist"),
  )
  def test_refuses(self, images, message):
    with self.assertRaisesRegex(InputError, message) as caught:
      preprocessing.read_images(images, self.subject)
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
      preprocessing.read_images([path], self.subject)
    self.assertNotIn('\n', str(caught.exception))

  @parameterized.parameters(np.int32, np.float32)
  def test_more_than_sixteen_bits_are_refused(self, dtype):
    picture = PIL.Image.fromarray(np.full((4, 5), 1000, dtype))
    with self.assertRaisesRegex(InputError, r'images\[0\] .* 32 bits'):
      preprocessing.read_images([picture], self.subject)


if __name__ == '__main__':
  absltest.main()
