import concurrent.futures
import functools
import io
import os
import struct
import tempfile
import time
import zlib

import cv2
import numpy as np
import PIL.Image
import PIL.ImageOps
import simplejpeg
from absl.testing import absltest, parameterized

from retrieval_jax.data import decoding

_LOSSLESS = {
  'PNG': {},
  'WEBP': {'lossless': True, 'exact': True},
  'BMP': {},
  'TIFF': {},
  'PPM': {},
  'JPEG2000': {},
}


def _colours(height=40, width=60):
  """A smooth picture, so that JPEG keeps it within a few levels."""
  y, x = np.mgrid[:height, :width] / (height + width)
  image = np.stack([x, y, (x + y) / 2], -1)
  return (40 + 300 * image).clip(0, 255).astype(np.uint8)


def _picture(*shape):
  return PIL.Image.fromarray(_colours(*shape))


def _file(picture, kind, **options):
  file = io.BytesIO()
  picture.save(file, kind, **options)
  return file.getvalue()


def _by_pillow(content, mode='RGB'):
  picture = PIL.ImageOps.exif_transpose(PIL.Image.open(io.BytesIO(content)))
  array = np.asarray(picture.convert(mode))
  return array if mode == 'RGB' else array[..., None]


def _chunk(kind, data):
  crc = zlib.crc32(kind + data)
  return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', crc)


def _png_of_size(width, height):
  header = struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0)
  return (
    b'\x89PNG\r\n\x1a\n'
    + _chunk(b'IHDR', header)
    + _chunk(b'IDAT', zlib.compress(b'\0' * 100))
    + _chunk(b'IEND', b'')
  )


def _jpeg_of_size(width, height):
  content = bytearray(_file(_picture(), 'JPEG'))
  place = content.index(b'\xff\xc0')
  content[place + 5 : place + 9] = struct.pack('>HH', height, width)
  return bytes(content)


def _ink(colours):
  """Returns cyan, magenta, yellow and some black, [h, w, 4]."""
  return np.concatenate([255 - colours, colours[..., :1] // 2], -1)


def _cmyk(ink, kind='JPEG', **options):
  # Pillow writes inverted CMYK with an Adobe marker, as Photoshop does.
  picture = PIL.Image.frombytes('CMYK', ink.shape[1::-1], ink.tobytes())
  return _file(picture, kind, **options)


def _plain_cmyk(ink):
  return _cmyk(ink, quality=95)


def _progressive_cmyk(ink):
  return _cmyk(ink, quality=95, progressive=True)


def _cmyk_without_a_marker(ink):
  content = _plain_cmyk(ink)
  place = content.index(b'\xff\xee')
  (length,) = struct.unpack('>H', content[place + 2 : place + 4])
  return content[:place] + content[place + 2 + length :]


def _ycck(ink):
  # Y, Cb and Cr are of the ink: their conversion to CMY inverts.
  luma = PIL.Image.fromarray(ink[..., :3]).convert('YCbCr')
  planes = np.concatenate([255 - np.asarray(luma), ink[..., 3:]], -1)
  content = bytearray(_plain_cmyk(planes))
  # Of the marker's transforms, 0 is CMYK and 2 is YCCK.
  content[content.index(b'Adobe') + 11] = 2
  return bytes(content)


def _subsampled_ycck(ink):
  light = np.ascontiguousarray(255 - ink)
  return simplejpeg.encode_jpeg(light, 95, 'CMYK', '420')


_CMYK = (
  _plain_cmyk,
  _progressive_cmyk,
  _cmyk_without_a_marker,
  _ycck,
  _subsampled_ycck,
)


class DecodeTest(parameterized.TestCase):
  @parameterized.parameters(*_LOSSLESS)
  def test_lossless_formats_are_exact(self, kind):
    content = _file(_picture(), kind, **_LOSSLESS[kind])
    got = decoding.decode(content, 3)
    self.assertEqual(got.dtype, np.uint8)
    np.testing.assert_array_equal(got, _colours())
    self.assertEqual(decoding.read_size(content), (40, 60))
    got = decoding.decode(content, 1)
    np.testing.assert_array_equal(got, _by_pillow(content, 'L'))

  @parameterized.product(
    options=(
      {'quality': 90, 'subsampling': '4:2:0'},
      {'quality': 95, 'subsampling': '4:4:4', 'progressive': True},
      {'quality': 80, 'optimize': True, 'restart_marker_blocks': 2},
    ),
    size=((375, 500), (37, 53), (1, 1), (8, 300)),
  )
  def test_jpeg_is_as_by_pillow(self, options, size):
    content = _file(_picture(*size), 'JPEG', **options)
    for channels, mode in ((3, 'RGB'), (1, 'L')):
      got = decoding.decode(content, channels).astype(int)
      self.assertEqual(got.shape, (*size, channels))
      self.assertLessEqual(np.abs(got - _by_pillow(content, mode)).max(), 2)
    self.assertEqual(decoding.read_size(content), size)

  def test_a_grey_jpeg_as_colour(self):
    content = _file(_picture().convert('L'), 'JPEG')
    got = decoding.decode(content, 3)
    np.testing.assert_array_equal(got, _by_pillow(content))

  @parameterized.product(
    kind=('JPEG', 'PNG', 'WEBP', 'TIFF'), orientation=tuple(range(10))
  )
  def test_exif_turns_upright(self, kind, orientation):
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    options = _LOSSLESS.get(kind, {'quality': 95})
    content = _file(_picture(), kind, exif=exif, **options)
    expected = _by_pillow(content)
    turned = (60, 40) if 5 <= orientation <= 8 else (40, 60)
    self.assertEqual(expected.shape[:2], turned)
    got = decoding.decode(content, 3)
    self.assertEqual(got.shape, expected.shape)
    self.assertLessEqual(np.abs(got.astype(int) - expected).max(), 2)
    self.assertEqual(decoding.read_size(content), turned)
    got = decoding.decode(content, 3, min_side=20)
    ratio = 2 if kind == 'JPEG' else 1
    self.assertEqual(got.shape[:2], tuple(side // ratio for side in turned))
    if ratio == 2:
      small = expected.reshape(turned[0] // 2, 2, turned[1] // 2, 2, 3)
      self.assertLess(np.abs(got - small.mean((1, 3))).max(), 6)

  def test_broken_exif_is_ignored(self):
    for kind in ('JPEG', 'PNG'):
      content = _file(_picture(), kind, exif=b'Exif\0\0MM\0*\0\0\xff\xff')
      self.assertEqual(decoding.read_size(content), (40, 60))
      self.assertEqual(decoding.decode(content, 3).shape, (40, 60, 3))

  @parameterized.parameters(
    (375, 500, 0, 1),
    (375, 500, 376, 1),
    (375, 500, 375, 1),
    (375, 500, 189, 1),
    (375, 500, 188, 2),
    (375, 500, 95, 2),
    (375, 500, 94, 4),
    (375, 500, 1, 8),
    (500, 375, 94, 4),
  )
  def test_min_side(self, height, width, min_side, ratio):
    content = _file(_picture(height, width), 'JPEG', quality=95)
    for channels in (1, 3):
      got = decoding.decode(content, channels, min_side)
      shape = (-(-height // ratio), -(-width // ratio), channels)
      self.assertEqual(got.shape, shape)
      mode = {1: 'L', 3: 'RGB'}[channels]
      whole = _by_pillow(content, mode)
      expected = cv2.resize(
        whole, shape[1::-1], interpolation=cv2.INTER_AREA
      ).reshape(shape)
      self.assertLess(np.abs(got.astype(int) - expected).max(), 8)

  @parameterized.parameters(*_CMYK, functools.partial(_cmyk, kind='TIFF'))
  def test_cmyk_is_as_by_pillow(self, make):
    ink = _ink(_colours())
    content = make(ink)
    for channels, mode in ((3, 'RGB'), (1, 'L')):
      got = decoding.decode(content, channels).astype(int)
      self.assertLessEqual(np.abs(got - _by_pillow(content, mode)).max(), 2)
    light = 255.0 - ink
    expected = light[..., :3] * light[..., 3:] / 255
    got = decoding.decode(content, 3)
    self.assertLess(np.abs(got - expected).max(), 8)
    if make in _CMYK:
      self.assertEqual(decoding.decode(content, 3, 20).shape, (20, 30, 3))

  @parameterized.product(kind=('PNG', 'TIFF'), channels=(1, 3))
  def test_sixteen_bits_are_shifted(self, kind, channels):
    grey = (np.arange(2400, dtype=np.uint16) * 27).reshape(40, 60)
    deep = np.stack([grey, grey[::-1], grey // 2], -1)
    ending = {'PNG': '.png', 'TIFF': '.tiff'}[kind]
    content = cv2.imencode(ending, grey)[1].tobytes()
    got = decoding.decode(content, channels)
    expected = np.repeat((grey >> 8)[..., None], channels, -1)
    np.testing.assert_array_equal(got, expected)
    content = cv2.imencode(ending, deep[..., ::-1])[1].tobytes()
    got = decoding.decode(content, 3).astype(int)
    np.testing.assert_array_equal(got, deep >> 8)

  @parameterized.parameters(65535, 1000)
  def test_sixteen_bits_of_a_pgm(self, largest):
    grey = np.uint16(np.arange(2400).reshape(40, 60) * largest // 2400)
    content = b'P5 60 40 %d\n' % largest + grey.astype('>u2').tobytes()
    got = decoding.decode(content, 1)[..., 0].astype(int)
    expected = (grey.astype(int) * 65535 // largest) >> 8
    self.assertLessEqual(np.abs(got - expected).max(), largest != 65535)

  @parameterized.parameters('I', 'F')
  def test_thirty_two_bits_are_refused(self, mode):
    content = _file(_picture().convert('L').convert(mode), 'TIFF')
    with self.assertRaisesRegex(decoding.UnreadableImageError, '32 bits'):
      decoding.decode(content, 1)

  @parameterized.parameters('PNG', 'WEBP', 'TIFF')
  def test_transparent_parts_are_over_white(self, kind):
    alpha = np.linspace(0, 255, 2400).reshape(40, 60, 1).astype(np.uint8)
    image = np.concatenate([_colours(), alpha], -1)
    options = _LOSSLESS[kind]
    content = _file(PIL.Image.fromarray(image), kind, **options)
    share = alpha / 255
    expected = share * _colours() + (1 - share) * 255
    got = decoding.decode(content, 3)
    self.assertLessEqual(np.abs(got - expected).max(), 1)
    self.assertEqual(got[0, 0].tolist(), [255, 255, 255])
    same = decoding.decode(image, 3)
    np.testing.assert_array_equal(same, got)
    luma = expected @ [0.299, 0.587, 0.114]
    got = decoding.decode(content, 1)[..., 0]
    self.assertLessEqual(np.abs(got - luma).max(), 2)

  def test_grey_with_alpha(self):
    grey = _colours()[..., :1]
    alpha = np.zeros_like(grey)
    alpha[:20] = 255
    picture = PIL.Image.fromarray(np.concatenate([grey, alpha], -1))
    got = decoding.decode(_file(picture, 'PNG'), 1)
    np.testing.assert_array_equal(got[:20], grey[:20])
    self.assertTrue((got[20:] == 255).all())

  @parameterized.parameters('PNG', 'GIF')
  def test_a_palette_with_a_transparent_colour(self, kind):
    palette = PIL.Image.fromarray(
      np.repeat(np.uint8([[0, 1], [2, 1]]), 8, 1)
    ).convert('P')
    palette.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    content = _file(palette, kind, transparency=1)
    got = decoding.decode(content, 3)
    self.assertEqual(got[0, 0].tolist(), [255, 0, 0])
    self.assertEqual(got[0, 15].tolist(), [255, 255, 255])
    self.assertEqual(got[1, 0].tolist(), [0, 0, 255])

  @parameterized.parameters('PNG', 'TIFF', 'BMP', 'GIF')
  def test_one_bit(self, kind):
    bits = _colours()[..., 0] > 100
    content = _file(PIL.Image.fromarray(bits), kind)
    got = decoding.decode(content, 1)
    np.testing.assert_array_equal(got[..., 0], bits * np.uint8(255))

  @parameterized.parameters('GIF', 'WEBP', 'PNG')
  def test_the_first_frame_of_an_animation(self, kind):
    frames = [
      PIL.Image.new('RGB', (8, 8), colour) for colour in ('red', 'blue')
    ]
    options = _LOSSLESS.get(kind, {})
    content = _file(
      frames[0], kind, save_all=True, append_images=frames[1:], **options
    )
    self.assertEqual(PIL.Image.open(io.BytesIO(content)).n_frames, 2)
    got = decoding.decode(content, 3)
    self.assertTrue((got == [255, 0, 0]).all())

  @parameterized.parameters((4, 5), (4, 5, 1), (4, 5, 3), (4, 5, 4))
  def test_arrays_get_their_channels(self, *shape):
    image = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    if shape[-1] == 4:
      image[..., 3] = 255
    self.assertEqual(decoding.read_size(image), (4, 5))
    colour = image.reshape(4, 5, -1)[..., :3]
    got = decoding.decode(image, 3)
    np.testing.assert_array_equal(got, np.broadcast_to(colour, (4, 5, 3)))
    got = decoding.decode(image, 1).astype(int)
    grey = colour @ [0.299, 0.587, 0.114] if colour.shape[-1] > 1 else colour
    self.assertLessEqual(np.abs(got - grey.reshape(4, 5, 1)).max(), 1)


class UnreadableTest(parameterized.TestCase):
  def _assert_refused(self, content, reason='', **options):
    for channels in (1, 3):
      with self.assertRaisesRegex(
        decoding.UnreadableImageError, reason
      ) as caught:
        decoding.decode(content, channels, **options)
      self.assertNotIn('\n', str(caught.exception))
      self.assertLess(len(str(caught.exception)), 200)

  @parameterized.product(
    kind=('JPEG', 'progressive', *_LOSSLESS, 'GIF'),
    share=(0.3, 0.6, 0.95),
    min_side=(0, 32),
  )
  def test_truncated(self, kind, share, min_side):
    noise = np.random.default_rng(0).integers(0, 256, (96, 128, 3), np.uint8)
    options = _LOSSLESS.get(kind, {})
    if kind == 'progressive':
      kind, options = 'JPEG', {'progressive': True}
    content = _file(PIL.Image.fromarray(noise), kind, **options)
    decoding.decode(content, 3)
    self._assert_refused(content[: int(share * len(content))])

  def test_a_truncated_jpeg_with_a_thumbnail_in_front(self):
    # The thumbnail has an end marker of its own.
    thumbnail = b'Exif\0\0' + _file(_picture(), 'JPEG')
    content = _file(_picture(375, 500), 'JPEG', exif=thumbnail)
    decoding.decode(content, 3)
    self._assert_refused(content[: len(content) * 2 // 3], 'truncated')

  @parameterized.parameters(
    (b'', 'it is empty'),
    (b'hello\n', 'not an image of a known format'),
    (b'<html>\n<body>404</body>\n</html>', 'not an image'),
    (b'\xff\xd8\xff', ''),
    (b'\xff\xd8\xff\xe0' + b'\0' * 30, ''),
    (b'\x89PNG\r\n\x1a\n' + b'\0' * 30, ''),
    (b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n', 'not an image'),
  )
  def test_no_image(self, content, reason):
    self._assert_refused(content, reason)
    with self.assertRaises(decoding.UnreadableImageError):
      decoding.read_size(content)

  @parameterized.parameters(
    (_png_of_size, 100_000, 100_000),
    (_png_of_size, 10_000, 10_000),
    (_jpeg_of_size, 65_000, 65_000),
    (_jpeg_of_size, 10_000, 10_000),
  )
  def test_a_decompression_bomb_is_refused_at_once(self, make, width, height):
    begin = time.perf_counter()
    content = make(width, height)
    self._assert_refused(content, 'pixels; at most 89,478,485 are decoded')
    with self.assertRaises(decoding.UnreadableImageError):
      decoding.read_size(content)
    self.assertLess(time.perf_counter() - begin, 1)

  def test_damage_that_viewers_forgive_is_forgiven(self):
    # ImageNet has such files: bytes after the end, and before its marker.
    content = _file(_picture(375, 500), 'JPEG')
    expected = decoding.decode(content, 3)
    for forgiven in (
      content + b'\0' * 100,
      content[:-2] + b'\0' * 100 + content[-2:],
    ):
      got = decoding.decode(forgiven, 3)
      np.testing.assert_array_equal(got, expected)

  @parameterized.product(progressive=(False, True), min_side=(0, 32))
  def test_a_jpeg_that_is_damaged_inside(self, progressive, min_side):
    noise = np.random.default_rng(0).integers(0, 256, (96, 128, 3), np.uint8)
    content = bytearray(
      _file(PIL.Image.fromarray(noise), 'JPEG', progressive=progressive)
    )
    place = len(content) // 2
    content[place : place + 40] = b'\x55' * 40
    self._assert_refused(
      bytes(content), 'it is damaged .Corrupt JPEG data: ', min_side=min_side
    )

  @parameterized.product(make=_CMYK, min_side=(0, 32))
  def test_a_cmyk_jpeg_that_is_damaged_inside(self, make, min_side):
    noise = np.random.default_rng(0).integers(0, 256, (96, 128, 4), np.uint8)
    content = bytearray(make(noise))
    decoding.decode(bytes(content), 3, min_side)
    place = len(content) // 2
    content[place : place + 40] = b'\x55' * 40
    self._assert_refused(
      bytes(content), 'it is damaged .Corrupt JPEG data: ', min_side=min_side
    )

  def test_what_libjpeg_finds_is_not_printed(self):
    content = bytearray(_file(_picture(375, 500), 'JPEG'))
    content[-1000:-900] = b'\x55' * 100
    with tempfile.TemporaryFile() as printed:
      stderr = os.dup(2)
      os.dup2(printed.fileno(), 2)
      try:
        self._assert_refused(bytes(content), 'Corrupt JPEG data')
      finally:
        os.dup2(stderr, 2)
        os.close(stderr)
      printed.seek(0)
      self.assertEqual(printed.read(), b'')

  @parameterized.parameters(0.1, 0.5, 0.99)
  def test_a_truncated_webp_is_said_to_be_that(self, share):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    content = _file(PIL.Image.fromarray(noise), 'WEBP')
    self._assert_refused(
      content[: int(share * len(content))],
      f'it is truncated, [0-9,]+ bytes of {len(content):,}',
    )

  def test_threads_may_decode_at_once(self):
    content = _file(_picture(), 'JPEG')
    expected = decoding.decode(content, 3)
    with concurrent.futures.ThreadPoolExecutor(4) as executor:
      for got in executor.map(
        lambda _: decoding.decode(content, 3), range(200)
      ):
        np.testing.assert_array_equal(got, expected)


if __name__ == '__main__':
  absltest.main()
