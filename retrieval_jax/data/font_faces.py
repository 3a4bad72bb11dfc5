"""Characters of a font as images: one face, all that it can draw."""

import hashlib
import io
from typing import NamedTuple

import numpy as np

# One size and one baseline for all: a comma differs from an apostrophe, and o
# from O, by nothing else. Few drawings reach the frame, which cuts them.
SIDE = 32
_FONT_SIZE = 20
_ORIGIN = (16, 22)


class FaceDrawings(NamedTuple):
  """What a face can draw.

  Attributes:
    name: of the face, 'DejaVu Sans Bold'.
    code_points: [n] int32, ascending.
    images: [n, SIDE, SIDE] uint8, white on black, anti-aliased.
    digests: [n] uint64, equal for equal images.
  """

  name: str
  code_points: np.ndarray
  images: np.ndarray
  digests: np.ndarray


def count_faces(content: bytes) -> int:
  """Returns how many faces a font file of some content has."""
  from fontTools import ttLib

  if content[:4] != b'ttcf':
    return 1
  return len(ttLib.TTCollection(io.BytesIO(content), lazy=True))


def draw_face(content: bytes, index: int) -> FaceDrawings:
  """Draws the characters of a face that it can draw.

  Left out are drawings that are blank, or the box for missing characters, and
  code points for private use.

  Args:
    content: of a .ttf, .otf or .ttc file.
    index: of the face in the file.

  Raises:
    ValueError: if there is nothing to draw.
    Exception: whatever the libraries raise for a damaged font.

  Example:
    >>> import matplotlib, pathlib
    >>> folder = pathlib.Path(matplotlib.get_data_path(), 'fonts', 'ttf')
    >>> face = draw_face((folder / 'STIXGeneral.ttf').read_bytes(), index=0)
    >>> face.name, face.images.shape[1:], int(face.code_points[0])
    ('STIXGeneral Regular', (32, 32), 33)
  """
  from fontTools import ttLib
  from PIL import Image, ImageDraw, ImageFont

  # Without shaping, which turns some characters into others, and is not in
  # every build of Pillow.
  font = ImageFont.truetype(
    io.BytesIO(content),
    _FONT_SIZE,
    index=index,
    layout_engine=ImageFont.Layout.BASIC,
  )

  def draw(code_point: int) -> bytes:
    image = Image.new('L', (SIDE, SIDE))
    ImageDraw.Draw(image).text(
      _ORIGIN, chr(code_point), fill=255, font=font, anchor='ms'
    )
    return image.tobytes()

  tables = ttLib.TTFont(io.BytesIO(content), fontNumber=index, lazy=True)
  mapped = tables.getBestCmap()
  if not mapped:
    raise ValueError('no Unicode characters')
  unmapped = next((c for c in range(0x10FFFF, 0, -1) if c not in mapped), None)
  if unmapped is None:
    raise ValueError('a font of last resort, which draws no character')
  nothing = {bytes(SIDE * SIDE), draw(unmapped)}
  code_points, images, digests = [], [], []
  for code_point in sorted(mapped):
    if _is_no_character(code_point):
      continue
    try:
      image = draw(code_point)
    # FreeType's for one bad outline: the others are good.
    except OSError:
      continue
    if image in nothing:
      continue
    code_points.append(code_point)
    images.append(image)
    digests.append(hashlib.blake2b(image, digest_size=8).digest())
  if not images:
    raise ValueError('no outlines, or for private use only')
  name = ' '.join(part for part in font.getname() if part) or 'unnamed'
  return FaceDrawings(
    name,
    np.array(code_points, np.int32),
    np.frombuffer(b''.join(images), np.uint8).reshape(-1, SIDE, SIDE),
    np.frombuffer(b''.join(digests), np.uint64),
  )


def _is_no_character(code_point: int) -> bool:
  """Returns whether it is a surrogate or for private use."""
  return 0xD800 <= code_point < 0xF900 or code_point >= 0xF0000
