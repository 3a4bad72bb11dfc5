"""Image files to arrays: JPEG by simplejpeg, all else by Pillow.

simplejpeg (libjpeg-turbo) takes half to four fifths of Pillow's time to decode
a JPEG of 500 x 375, depending on the processor, and tells of damage within it,
where Pillow says nothing and OpenCV writes to the terminal what libjpeg finds,
without the name of the file. That holds for CMYK and YCCK too. A JPEG with
channels of sizes that simplejpeg has no name for is left to Pillow. Both let
other threads run meanwhile.

What a picture means is the same for both: upright (EXIF), the first frame,
transparent parts over white, more than 8 bits a channel shifted to 8, CMYK
converted without a colour profile.
"""

import io
import re
import struct
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import PIL.Image
import simplejpeg

# Above that Pillow warns of a decompression bomb: 268 MB as RGB.
MAX_PIXELS = 89_478_485
# Named, since Pillow runs programs for some others (PostScript).
FORMATS = ('BMP', 'GIF', 'JPEG', 'JPEG2000', 'PNG', 'PPM', 'TIFF', 'WEBP')
_MODES = {1: 'L', 3: 'RGB'}
_ORIENTATION_TAG = 0x0112
_TURNS = {
  2: PIL.Image.Transpose.FLIP_LEFT_RIGHT,
  3: PIL.Image.Transpose.ROTATE_180,
  4: PIL.Image.Transpose.FLIP_TOP_BOTTOM,
  5: PIL.Image.Transpose.TRANSPOSE,
  6: PIL.Image.Transpose.ROTATE_270,
  7: PIL.Image.Transpose.TRANSVERSE,
  8: PIL.Image.Transpose.ROTATE_90,
}
_COLOUR_SPACES = {1: 'GRAY', 3: 'RGB'}
# What libjpeg says of damage within, and of bytes that belong to nothing.
_DAMAGE = 'Corrupt JPEG data: '
_EXTRANEOUS = re.compile(rf'{_DAMAGE}(\d+) extraneous bytes before marker 0xd9')


class UnreadableImageError(Exception):
  """A picture that cannot be decoded; the message is the reason, one line."""


def decode(
  content: bytes | np.ndarray, channels: int, min_side: int = 0
) -> np.ndarray:
  """Decodes a picture, upright.

  Args:
    content: the bytes of an image file; or [h, w] or [h, w, C] uint8 with C of
      1, 3 (RGB) or 4 (RGBA), of which the channels alone are converted.
    channels: 1 (grey, ITU-R 601 luma) or 3 (RGB).
    min_side: if positive, a JPEG may be decoded at 1/2, 1/4 or 1/8 of its size
      as long as its shorter side keeps that many pixels, in a fraction of the
      time; 0: at its own size.

  Returns:
    [h, w, channels] uint8.

  Raises:
    UnreadableImageError: not an image, damaged, or of too many pixels.

  Example:
    >>> file = io.BytesIO()
    >>> PIL.Image.new('RGB', (500, 375), 'red').save(file, 'JPEG')
    >>> decode(file.getvalue(), channels=3).shape
    (375, 500, 3)
    >>> decode(file.getvalue(), channels=1, min_side=128).shape
    (188, 250, 1)
  """
  if isinstance(content, np.ndarray):
    return _convert_array(content, channels)
  header = _read_jpeg_header(content)
  if header is not None:
    _check_size(header.width, header.height)
    image = _decode_jpeg(content, header, channels, min_side)
    if image is not None:
      return image
  # A JPEG that is not taken comes here too: for its reason, at least.
  with _open(content) as picture:
    return from_pillow(picture, channels)


def read_size(content: bytes | np.ndarray) -> tuple[int, int]:
  """Returns (height, width) of a picture, upright, from the file's header.

  Args:
    content: as `decode` takes it.

  Raises:
    UnreadableImageError: not an image, or of too many pixels.

  Example:
    >>> file = io.BytesIO()
    >>> PIL.Image.new('L', (20, 10)).save(file, 'PNG')
    >>> read_size(file.getvalue())
    (10, 20)
  """
  if isinstance(content, np.ndarray):
    return content.shape[0], content.shape[1]
  header = _read_jpeg_header(content)
  if header is not None:
    _check_size(header.width, header.height)
    height, width = header.height, header.width
    orientation = _orientation(lambda: _parse_exif(header.exif))
  else:
    with _open(content) as picture:
      width, height = picture.size
      # Pillow gives the size of a TIFF upright, and turns it itself.
      orientation = 1
      if picture.format != 'TIFF':
        orientation = _orientation(picture.getexif)
  return (width, height) if orientation >= 5 else (height, width)


def from_pillow(picture: PIL.Image.Image, channels: int) -> np.ndarray:
  """Returns a PIL image, turned upright, as [h, w, channels] uint8.

  Args:
    picture: of any mode of up to 16 bits a channel.
    channels: 1 or 3.

  Raises:
    UnreadableImageError: if its data are damaged, or have more bits.
  """
  mode = _MODES[channels]
  # That of the file is lost by turning it. Pillow makes 16 bits of a PGM file
  # the mode of 32.
  is_deep = picture.format == 'PPM' and picture.mode == 'I'
  try:
    # Pillow turns a TIFF while it loads it, so orientation is asked after that.
    picture.load()
    turn = _TURNS.get(_orientation(picture.getexif))
    if turn is not None:
      picture = picture.transpose(turn)
    if picture.mode.startswith('I;16') or is_deep:
      # Pillow's own conversion clips at 255.
      high_bytes = (np.asarray(picture) >> 8).astype(np.uint8)
      picture = PIL.Image.fromarray(high_bytes)
    elif picture.mode in ('I', 'F'):
      raise UnreadableImageError(
        f'it has 32 bits a channel (PIL mode {picture.mode!r}); 8 and 16 are '
        'read: scale it to 0 .. 255'
      )
    if picture.has_transparency_data:
      picture = _over_white(picture.convert('RGBA'))
    if picture.mode != mode:
      picture = picture.convert(mode)
    return np.array(picture).reshape(picture.height, picture.width, channels)
  except UnreadableImageError:
    raise
  # Damaged files make Pillow raise OSError, SyntaxError, ValueError,
  # struct.error and others.
  except Exception as error:
    raise UnreadableImageError(_damaged(error)) from error


class _JpegHeader(NamedTuple):
  """What a JPEG says of itself before its data; not yet upright."""

  height: int
  width: int
  exif: bytes


def _read_jpeg_header(content: bytes) -> _JpegHeader | None:
  """Returns the header of a JPEG; None for anything else, or a broken one."""
  if content[:3] != b'\xff\xd8\xff':
    return None
  place, exif = 2, b''
  while place + 9 <= len(content):
    if content[place] != 0xFF:
      return None
    marker = content[place + 1]
    if marker == 0xFF:  # Fill bytes may precede a marker.
      place += 1
      continue
    if marker == 0x01 or 0xD0 <= marker <= 0xD8:  # These have no length.
      place += 2
      continue
    length = content[place + 2] << 8 | content[place + 3]
    # Start of frame; C4, C8 and CC, in the midst of them, are tables.
    if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
      height, width = struct.unpack('>HH', content[place + 5 : place + 9])
      return _JpegHeader(height, width, exif) if height and width else None
    if marker == 0xE1 and content[place + 4 : place + 10] == b'Exif\0\0':
      exif = exif or content[place + 4 : place + 2 + length]
    place += 2 + length
  return None


def _decode_jpeg(
  content: bytes, header: _JpegHeader, channels: int, min_side: int
) -> np.ndarray | None:
  """Returns [h, w, channels] uint8, or None for what Pillow is to try."""
  side, reduction = min(header.height, header.width), 1
  if min_side > 0:
    while reduction < 8 and -(-side // (2 * reduction)) >= min_side:
      reduction *= 2
  try:
    image = simplejpeg.decode_jpeg(
      content,
      _COLOUR_SPACES[channels],
      min_height=-(-header.height // reduction),
      min_width=-(-header.width // reduction),
    )
  except ValueError as error:
    reason = _one_line(error)
    if reason.startswith(_DAMAGE) and not _is_harmless(reason, content):
      raise UnreadableImageError(_damaged(error)) from error
    return None
  return _upright(image, _orientation(lambda: _parse_exif(header.exif)))


def _is_harmless(reason: str, content: bytes) -> bool:
  """Returns whether what libjpeg calls damage leaves the picture as it was.

  Some programs fill the space before the end marker. Where the picture is
  damaged, its end is left over too, but that is not one byte repeated.
  """
  match = _EXTRANEOUS.fullmatch(reason)
  if not match:
    return reason == f'{_DAMAGE}bad ICC marker'
  end = content.rfind(b'\xff\xd9')
  return len(set(content[end - int(match[1]) : end])) == 1


def _upright(image: np.ndarray, orientation: int) -> np.ndarray:
  """Returns [h, w, C], turned as EXIF data tell."""
  if orientation in (3, 4, 6, 7):
    image = image[::-1]
  if orientation in (2, 3, 7, 8):
    image = image[:, ::-1]
  if orientation >= 5:
    image = image.transpose(1, 0, 2)
  return np.ascontiguousarray(image)


def _open(content: bytes) -> PIL.Image.Image:
  """Opens a file, of which Pillow reads the header."""
  if not content:
    raise UnreadableImageError('it is empty')
  if content[:4] == b'RIFF' and content[8:12] == b'WEBP':
    # Of which Pillow says no more than that it has no decoder.
    size = 8 + int.from_bytes(content[4:8], 'little')
    if size > len(content):
      raise UnreadableImageError(
        f'it is truncated, {len(content):,} bytes of {size:,}'
      )
  try:
    picture = PIL.Image.open(io.BytesIO(content), formats=FORMATS)
  except PIL.UnidentifiedImageError as error:
    raise UnreadableImageError(
      f'it is damaged, or not an image of a known format ({", ".join(FORMATS)})'
    ) from error
  except (
    PIL.Image.DecompressionBombError,
    PIL.Image.DecompressionBombWarning,  # Where warnings are errors.
  ) as error:
    raise UnreadableImageError(
      f'it has too many pixels; at most {MAX_PIXELS:,} are decoded'
    ) from error
  except Exception as error:
    raise UnreadableImageError(_damaged(error)) from error
  _check_size(*picture.size)
  return picture


def _check_size(width: int, height: int) -> None:
  """Raises for what would take the memory of the machine."""
  if width * height > MAX_PIXELS:
    raise UnreadableImageError(
      f'it has {width} x {height} pixels; at most {MAX_PIXELS:,} are decoded'
    )


def _orientation(read_exif: Callable[[], PIL.Image.Exif]) -> int:
  """Returns the orientation that EXIF data tell, 1 to 8."""
  try:
    orientation = read_exif().get(_ORIENTATION_TAG, 1)
  except Exception:
    # A picture whose EXIF is broken is a picture still.
    return 1
  return orientation if orientation in _TURNS else 1


def _parse_exif(data: bytes) -> PIL.Image.Exif:
  """Returns the tags of the EXIF segment of a JPEG, which may be empty."""
  exif = PIL.Image.Exif()
  if data:
    exif.load(data)
  return exif


def _over_white(picture: PIL.Image.Image) -> PIL.Image.Image:
  """Lays an RGBA image over white, as pages show it.

  To drop the alpha, as `convert('RGB')` does, would show the colours under the
  transparent parts, which nobody chose.
  """
  white = PIL.Image.new('RGBA', picture.size, 'white')
  return PIL.Image.alpha_composite(white, picture).convert('RGB')


def _convert_array(image: np.ndarray, channels: int) -> np.ndarray:
  """Returns [h, w], or [h, w, C] with C of 1, 3 or 4, with other channels."""
  if image.ndim == 2:
    image = image[..., None]
  if image.shape[-1] == channels:
    return image
  if image.shape[-1] == 1:
    return np.repeat(image, channels, axis=-1)
  return from_pillow(PIL.Image.fromarray(image), channels)


def _damaged(error: BaseException) -> str:
  """Returns the reason for a picture that a decoder gave up on."""
  return f'it is damaged ({_one_line(error)})'


def _one_line(error: BaseException) -> str:
  """Returns the first line of what an exception says."""
  return str(error).splitlines()[0] if str(error) else repr(error)
