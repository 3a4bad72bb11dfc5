"""`glyphs`: characters drawn in many fonts, a zero-shot set without a download.

A class is a Unicode code point, an image its drawing in one face. The default
are the 16 faces of DejaVu Sans, Sans Mono and Serif and of STIX General that
come with matplotlib: 26,715 images of 2,216 classes. Any folder of fonts makes
another set. Half of the classes are trained on and the other half asked.

A cmap can lie, and many characters look alike (Latin A, Greek Alpha, Cyrillic
A), so labels are decided by the drawings:

1. A drawing that is blank, or the face's box for missing characters, is none;
   nor is one of a private-use code point, which means what a font makes of it.
2. In the order of code points, one that shares a drawing, pixel by pixel, with
   one taken before it is left out altogether: no drawing stands for two
   classes. Latin A stays, Greek Alpha and Cyrillic A go; Cyrillic te, which is
   an m in italics, goes for m.
3. A drawing that several faces have of a code point is taken once, from the
   first face: finding a copy of the query is no retrieval.
4. A class needs 8 drawings, or half as many as there are faces if that is less,
   and 2 at least.
"""

import functools
import hashlib
import logging
import os
import pathlib
import unicodedata

import numpy as np

from retrieval_jax.core.errors import InputError
from retrieval_jax.data import font_faces
from retrieval_jax.data.cache import cached_arrays
from retrieval_jax.data.collection import TEST, TRAIN, Collection
from retrieval_jax.data.sources import ImageArray

_log = logging.getLogger(__name__)

_FACES = tuple(
  f'{family}{style}.ttf'
  for family, styles in (
    ('DejaVuSans', ('', '-Bold', '-Oblique', '-BoldOblique')),
    ('DejaVuSansMono', ('', '-Bold', '-Oblique', '-BoldOblique')),
    ('DejaVuSerif', ('', '-Bold', '-Italic', '-BoldItalic')),
    ('STIXGeneral', ('', 'Bol', 'Italic', 'BolIta')),
  )
  for style in styles
)
_SUFFIXES = ('.ttf', '.otf', '.ttc')

_MIN_IMAGES = 8
_MIN_CLASSES = 4

# Of the rules above; another number makes all caches anew.
_VERSION = 1


def glyphs(*, fonts: str | os.PathLike | None = None) -> Collection:
  """Draws characters in many fonts; classes are code points.

  Args:
    fonts: a folder, searched with its subfolders for .ttf, .otf and .ttc, each
      face of a .ttc; None: 16 faces that come with matplotlib.

  Returns:
    (32, 32, 1) images, white on black, anti-aliased, sorted by code point. The
    domain is the face, the category the general category of Unicode ('Lu'). The
    halves of the classes are drawn by a hash of the code point: another version
    of a font leaves all but a few characters in their half.

  Raises:
    InputError: if the folder does not exist, or its fonts have too little in
      common.

  Example:
    >>> collection = glyphs()
    >>> collection.image_shape, len(collection.domain_names)
    ((32, 32, 1), 16)
    >>> row = next(i for i, label in enumerate(collection.labels)
    ...            if collection.class_names[label] == 'Q U+0051')
    >>> collection.domain_names[collection.domain[row]]
    'DejaVu Sans Book'
  """
  if fonts:
    folder = os.path.expanduser(fonts)
    files = _font_files(folder)
    place = hashlib.sha256(os.fsencode(os.path.realpath(folder))).hexdigest()
    name = f'glyphs_{place[:12]}'
  else:
    files, name = _embedded_files(), 'glyphs'
  make = functools.partial(_make, files, fonts)
  arrays = cached_arrays(name, _fingerprint(files), make)
  _log_skipped(arrays['skipped_fonts'].tolist(), len(files))
  code_points, labels = np.unique(arrays['code_points'], return_inverse=True)
  categories = [unicodedata.category(chr(point)) for point in code_points]
  category_names, category = np.unique(categories, return_inverse=True)
  return Collection(
    name='glyphs',
    images=ImageArray(arrays['images'], 'glyph'),
    labels=labels.astype(np.int32),
    class_names=tuple(_class_name(point) for point in code_points.tolist()),
    split=_halves(code_points)[labels],
    domain=arrays['faces'],
    domain_names=tuple(arrays['face_names'].tolist()),
    category=category.astype(np.int32)[labels],
    category_names=tuple(category_names.tolist()),
    image_shape=(font_faces.SIDE, font_faces.SIDE, 1),
    num_skipped={
      'fonts that cannot be drawn': len(arrays['skipped_fonts']),
      'drawings of characters that look like another': int(arrays['alike']),
      'drawings that another face has too': int(arrays['copies']),
      'drawings of characters in too few faces': int(arrays['rare']),
    },
  )


def _embedded_files() -> dict[str, str]:
  """Returns {name: path} of the fonts of matplotlib."""
  import matplotlib

  folder = os.path.join(matplotlib.get_data_path(), 'fonts', 'ttf')
  files = {name: os.path.join(folder, name) for name in _FACES}
  missing = [name for name, path in files.items() if not os.path.exists(path)]
  if missing:
    raise InputError(
      f"data.name is 'glyphs', but this matplotlib comes without {missing[0]}: "
      'install the one from PyPI, or set data.fonts to a folder of fonts'
    )
  return files


def _font_files(folder: str) -> dict[str, str]:
  """Returns {path in the folder: path} of the fonts of a folder, sorted."""
  if not os.path.isdir(folder):
    what = 'is a file' if os.path.exists(folder) else 'does not exist'
    raise InputError(
      f'data.fonts is {folder!r}, which {what}; allowed is a folder with '
      f'{", ".join(_SUFFIXES)} files'
    )
  paths = (
    os.path.join(parent, name)
    for parent, _, names in os.walk(folder)
    for name in names
    if name.lower().endswith(_SUFFIXES)
  )
  # In messages and names; a path need not be valid text.
  files = {
    os.fsencode(os.path.relpath(path, folder)).decode(errors='replace'): path
    for path in sorted(paths)
  }
  if not files:
    raise InputError(
      f'data.fonts is {folder!r}, which has no font; allowed is a folder with '
      f'{", ".join(_SUFFIXES)} files'
    )
  return files


def _fingerprint(files: dict[str, str]) -> str:
  """Returns a hash of all that the drawings are made from."""
  import PIL
  from PIL import features

  parts = [_VERSION, PIL.__version__, features.version('freetype2')]
  for name, path in files.items():
    try:
      with open(path, 'rb') as file:
        parts += [name, hashlib.file_digest(file, 'sha256').hexdigest()]
    except OSError as error:
      parts += [name, error.errno]
  return hashlib.sha256(repr(parts).encode()).hexdigest()


def _make(
  files: dict[str, str], fonts: str | os.PathLike | None
) -> dict[str, np.ndarray]:
  """Draws all faces and chooses what is kept."""
  drawings, names, skipped = [], [], []
  seen = {}
  for file, path in files.items():
    try:
      content = pathlib.Path(path).read_bytes()
      digest = hashlib.sha256(content).digest()
      if digest in seen:
        raise ValueError(f'the same as {seen[digest]}')
      seen[digest] = file
      num_faces = font_faces.count_faces(content)
    # Whatever a damaged font makes a library raise (struct.error, KeyError,
    # AssertionError, ...), the font is left out and this is said.
    except Exception as error:
      skipped.append(f'{file} ({_reason(error)})')
      continue
    for index in range(num_faces):
      shown = f'{file}, face {index}' if num_faces > 1 else file
      try:
        drawn = font_faces.draw_face(content, index)
      except Exception as error:
        skipped.append(f'{shown} ({_reason(error)})')
        continue
      drawings.append(drawn)
      is_new = drawn.name not in names
      names.append(drawn.name if is_new else f'{drawn.name} ({shown})')
  if len(drawings) < 2:
    _log_skipped(skipped, len(files))
    raise InputError(
      f'data.fonts is {str(fonts)!r}, where {len(drawings)} of {len(files)} '
      'fonts can be drawn; allowed are at least 2 faces, of the same characters'
    )
  faces = np.repeat(
    np.arange(len(drawings), dtype=np.int32),
    [len(drawn.digests) for drawn in drawings],
  )
  code_points = np.concatenate([drawn.code_points for drawn in drawings])
  digests = np.concatenate([drawn.digests for drawn in drawings])
  rows, counts = _choose(code_points, digests, len(drawings))
  num_classes = len(np.unique(code_points[rows]))
  if num_classes < _MIN_CLASSES:
    raise InputError(
      f'data.fonts is {str(fonts)!r}, whose {len(drawings)} faces have '
      f'{num_classes} characters in common that look like no other; allowed '
      f'are at least {_MIN_CLASSES}: add fonts of the same script'
    )
  images = np.empty((len(rows), font_faces.SIDE, font_faces.SIDE, 1), np.uint8)
  first = 0
  for face, drawn in enumerate(drawings):
    places = np.flatnonzero(faces[rows] == face)
    images[places, :, :, 0] = drawn.images[rows[places] - first]
    first += len(drawn.digests)
  return {
    'images': images,
    'code_points': code_points[rows],
    'faces': faces[rows],
    'face_names': np.array(names),
    'skipped_fonts': np.array(skipped, dtype=np.str_),
    **{name: np.array(count) for name, count in counts.items()},
  }


def _choose(
  code_points: np.ndarray, digests: np.ndarray, num_faces: int
) -> tuple[np.ndarray, dict[str, int]]:
  """Applies rules 2 to 4.

  Args:
    code_points: [M], in the order of the faces.
    digests: [M], equal for equal drawings.
    num_faces: F.

  Returns:
    The rows that are kept, sorted by code point, then face; and how many each
    rule leaves out.
  """
  pairs = np.stack([digests, code_points.astype(np.uint64)], axis=1)
  pairs, first = np.unique(pairs, axis=0, return_index=True)
  _, group, num_meanings = np.unique(
    pairs[:, 0], return_inverse=True, return_counts=True
  )
  alike = _lookalikes(pairs[num_meanings[group] > 1])
  is_alike = np.isin(code_points, alike)
  rows = np.sort(first[~is_alike[first]])
  _, group, num_images = np.unique(
    code_points[rows], return_inverse=True, return_counts=True
  )
  least = min(_MIN_IMAGES, max(2, num_faces // 2))
  kept = rows[num_images[group] >= least]
  counts = {
    'alike': int(is_alike.sum()),
    'copies': int((~is_alike).sum()) - len(rows),
    'rare': len(rows) - len(kept),
  }
  return kept[np.argsort(code_points[kept], kind='stable')], counts


def _lookalikes(pairs: np.ndarray) -> list[int]:
  """Returns the code points that rule 2 leaves out.

  Args:
    pairs: [n, 2], (digest, code point) of drawings that several have.
  """
  drawings = {}
  for digest, code_point in pairs.tolist():
    drawings.setdefault(code_point, set()).add(digest)
  taken, alike = set(), []
  for code_point in sorted(drawings):
    if drawings[code_point].isdisjoint(taken):
      taken |= drawings[code_point]
    else:
      alike.append(code_point)
  return alike


def _halves(code_points: np.ndarray) -> np.ndarray:
  """Returns the [C] int8 half of each class, TRAIN the larger one."""
  order = sorted(
    range(len(code_points)),
    key=lambda i: hashlib.sha256(f'{code_points[i]}'.encode()).digest(),
  )
  halves = np.full(len(code_points), TRAIN, np.int8)
  halves[order[: len(code_points) // 2]] = TEST
  return halves


def _class_name(code_point: int) -> str:
  """Returns 'A U+0041', or 'U+0301' for what does not show alone."""
  character = chr(code_point)
  is_shown = character.isprintable() and not unicodedata.combining(character)
  return (f'{character} ' if is_shown else '') + f'U+{code_point:04X}'


def _reason(error: Exception) -> str:
  """Returns one line on why a font is left out."""
  return ' '.join(str(error).split()) or type(error).__name__


def _log_skipped(skipped: list[str], num_fonts: int) -> None:
  """Names the fonts that are left out in one line."""
  if skipped:
    shown = ', '.join(skipped[:10]) + (', ...' if len(skipped) > 10 else '')
    _log.warning(
      '%d of %d fonts or their faces are left out: %s',
      len(skipped),
      num_fonts,
      shown,
    )
