import hashlib
import os
import pathlib
import tempfile
from unittest import mock

import numpy as np
from absl.testing import absltest, parameterized
from fontTools import fontBuilder, ttLib
from fontTools.pens import ttGlyphPen

from retrieval_jax.core.errors import InputError
from retrieval_jax.data import font_faces, glyphs
from retrieval_jax.data.collection import TEST, TRAIN

# Of the files of matplotlib's 16 faces, unchanged for years, and of what is
# drawn of them; FreeType may change a pixel.
_FONTS = '3cd0a79bc53f6c07d09ed312f958bde083ca9d48e90ea03f744f970897158047'
_FREETYPE = '2.14.3'
_CONTENT = 'bdcbed63666e61edf30873c18ff79d716ccd490067865cbadae586840c3e2acb'

_BLANK, _MISSING = 'blank', 'missing'


def _box(x, y=0, side=6):
  """Returns a square outline, from pixels to thousandths of the font size."""
  return (50 * x, 50 * y, 50 * (x + side), 50 * (y + side))


def _boxes(characters, face):
  """Returns outlines of which none is like another, nor one of another face."""
  return {
    character: _box(x, face % 6, 6 + face // 6)
    for x, character in enumerate(characters)
  }


def _save_font(path, characters, style='Regular', missing=(0, 0, 300, 700)):
  """Writes a font.

  Args:
    path: of the file.
    characters: {character: (x_1, y_1, x_2, y_2), _BLANK or _MISSING}, boxes
      with a y that goes up from the baseline.
    style: of the name.
    missing: the box for missing characters.
  """
  outlines = {'.notdef': missing}
  cmap = {}
  for character, box in characters.items():
    name = f'g{ord(character):X}'
    cmap[ord(character)] = name
    # fontTools takes no note of what is mapped to .notdef itself.
    outlines[name] = {_BLANK: None, _MISSING: missing}.get(box, box)
  builder = fontBuilder.FontBuilder(1000, isTTF=True)
  builder.setupGlyphOrder(list(outlines))
  builder.setupCharacterMap(cmap)
  drawn = {}
  for name, box in outlines.items():
    pen = ttGlyphPen.TTGlyphPen(None)
    if box:
      x_1, y_1, x_2, y_2 = box
      pen.moveTo((x_1, y_1))
      for point in ((x_1, y_2), (x_2, y_2), (x_2, y_1)):
        pen.lineTo(point)
      pen.closePath()
    drawn[name] = pen.glyph()
  builder.setupGlyf(drawn)
  builder.setupHorizontalMetrics(
    {name: (600, box[0] if box else 0) for name, box in outlines.items()}
  )
  builder.setupHorizontalHeader(ascent=800, descent=-200)
  builder.setupNameTable({'familyName': 'Boxes', 'styleName': style})
  builder.setupOS2()
  builder.setupPost()
  path.parent.mkdir(parents=True, exist_ok=True)
  builder.save(path)
  return path


class GlyphsTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    parent = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    self.folder = parent / 'fonts'
    self.enterContext(
      mock.patch.dict(
        os.environ, {'RETRIEVAL_JAX_CACHE': str(parent / 'cache')}
      )
    )

  def save(self, name, characters, **kwargs):
    return _save_font(self.folder / name, characters, **kwargs)

  def save_two(self):
    """Saves two faces of six characters, none like another."""
    for face in range(2):
      self.save(f'{face}.ttf', _boxes('abcdef', face), style=f'Style {face}')

  def kept(self):
    """Returns {class name: the faces it is kept of}."""
    collection = glyphs.glyphs(fonts=self.folder)
    found = {}
    for label, face in zip(collection.labels, collection.domain, strict=True):
      found.setdefault(collection.class_names[label], []).append(int(face))
    return found

  def test_the_embedded_set_is_the_same_for_everyone(self):
    from PIL import features

    digest = hashlib.sha256()
    for path in glyphs._embedded_files().values():
      digest.update(pathlib.Path(path).read_bytes())
    if digest.hexdigest() != _FONTS:
      self.skipTest('matplotlib comes with other versions of its fonts')
    if features.version('freetype2') != _FREETYPE:
      self.skipTest('Pillow comes with another version of FreeType')
    collection = glyphs.glyphs()
    self.assertLen(collection, 26715)
    self.assertLen(collection.class_names, 2216)
    code_points = [int(n.split()[-1][2:], 16) for n in collection.class_names]
    content = (
      np.array(code_points, '<i4')[collection.labels].tobytes()
      + collection.domain.astype('<i4').tobytes()
      + collection.split.astype('<i1').tobytes()
    )
    self.assertEqual(hashlib.sha256(content).hexdigest(), _CONTENT)

  def test_the_embedded_set_holds_what_it_promises(self):
    collection = glyphs.glyphs()
    n, c = len(collection), len(collection.class_names)
    self.assertBetween(c, 2150, 2280)
    images = collection.images.images
    self.assertEqual(images.shape, (n, 32, 32, 1))
    self.assertEqual(images.dtype, np.uint8)
    self.assertEqual(collection.image_shape, (32, 32, 1))
    for array in collection.labels, collection.domain, collection.category:
      self.assertEqual(array.dtype, np.int32)
    self.assertLen(set(collection.domain_names), 16)
    # No image stands twice, so none stands for two classes.
    self.assertLen({image.tobytes() for image in images}, n)
    self.assertEqual(np.unique(collection.labels).tolist(), list(range(c)))
    self.assertGreaterEqual(np.bincount(collection.labels).min(), 8)
    self.assertLen(set(zip(collection.labels, collection.domain)), n)  # noqa: B905
    halves = [set(collection.labels[collection.split == h]) for h in (0, 2)]
    self.assertLen(halves[TRAIN], c - c // 2)
    self.assertEmpty(halves[0] & halves[1])
    for name, category in ('A U+0041', 'Lu'), ('5 U+0035', 'Nd'):
      label = collection.class_names.index(name)
      of_class = collection.category[collection.labels == label]
      self.assertEqual(
        {collection.category_names[i] for i in of_class}, {category}
      )
    # Greek Alpha and Cyrillic A, te.
    for code_point in 0x391, 0x410, 0x442:
      name = f'{chr(code_point)} U+{code_point:04X}'
      self.assertNotIn(name, collection.class_names)

  def test_a_drawing_stands_on_the_baseline_in_the_middle_of_its_advance(self):
    # At size 20 a box of 10 x 10 pixels; the advance of 12 begins at 10.
    path = self.save('a.ttf', {'a': _box(0, 0, 10), 'b': _box(2, 4, 10)})
    face = font_faces.draw_face(path.read_bytes(), 0)
    self.assertEqual(face.name, 'Boxes Regular')
    self.assertEqual(face.code_points.tolist(), [ord('a'), ord('b')])
    expected = np.zeros((2, 32, 32), np.uint8)
    expected[0, 12:22, 10:20] = 255
    expected[1, 8:18, 12:22] = 255
    np.testing.assert_array_equal(face.images, expected)

  def test_only_characters_that_are_drawn_count(self):
    for face in range(2):
      boxes = _boxes('abcd', face)
      boxes |= {'x': _BLANK, 'y': _MISSING, '\ue000': _box(8, face)}
      # Beyond the frame.
      boxes |= {'z': (5000, 0, 5100, 100)}
      self.save(f'{face}.ttf', boxes, missing=_box(0, 9 + face))
    self.assertEqual(
      self.kept(),
      {f'{c} U+{ord(c):04X}': [0, 1] for c in 'abcd'},
    )

  def test_the_lowest_of_the_lookalikes_stays(self):
    def save(face, **others):
      boxes = {k: _box(x, 6 + face) for k, x in others.items()}
      self.save(f'{face}.ttf', _boxes('abcd', face) | boxes)

    # p = q in the first face, q = r in the second: r is like none that stays.
    save(0, p=0, q=0, r=1)
    # s looks in one face as a does in the first.
    save(1, p=0, q=1, r=1)
    boxes = _boxes('abcd', 2) | {'s': _boxes('a', 0)['a']}
    self.save('2.ttf', boxes | {k: _box(x, 8) for x, k in enumerate('pqr')})
    self.save('3.ttf', _boxes('abcd', 3) | {'s': _box(9, 9)})
    found = self.kept()
    self.assertCountEqual(
      found,
      [f'{c} U+{ord(c):04X}' for c in 'abcdpr'],
    )
    self.assertEqual(found['r U+0072'], [0, 1, 2])
    skipped = glyphs.glyphs(fonts=self.folder).num_skipped
    self.assertEqual(
      skipped['drawings of characters that look like another'], 3 + 2
    )

  def test_a_drawing_of_several_faces_is_taken_once(self):
    for face in range(3):
      boxes = {'a': _box(8, 8 + (face == 2)), 'b': _box(9, 9)}
      self.save(f'{face}.ttf', boxes | _boxes('cdef', face))
    found = self.kept()
    self.assertEqual(found['a U+0061'], [0, 2])
    # One picture in three faces is none to search for.
    self.assertNotIn('b U+0062', found)
    skipped = glyphs.glyphs(fonts=self.folder).num_skipped
    self.assertEqual(skipped['drawings that another face has too'], 1 + 2)
    self.assertEqual(skipped['drawings of characters in too few faces'], 1)

  @parameterized.parameters((2, 2), (3, 2), (6, 3), (18, 8))
  def test_a_class_needs_half_of_the_faces_and_at_most_eight(self, n, least):
    for face in range(n):
      boxes = _boxes('abcdxy', face)
      if face >= least:
        del boxes['x']
      if face >= least - 1:
        del boxes['y']
      self.save(f'{face:02d}.ttf', boxes)
    found = self.kept()
    self.assertEqual(found['x U+0078'], list(range(least)))
    self.assertNotIn('y U+0079', found)

  def test_folders_are_searched_and_collections_opened(self):
    self.save_two()
    fonts = [ttLib.TTFont(self.folder / f'{i}.ttf') for i in range(2)]
    collection = ttLib.TTCollection()
    collection.fonts = fonts
    (self.folder / 'deep' / 'er').mkdir(parents=True)
    # Other bytes than the two files that it is made of.
    collection.save(self.folder / 'deep' / 'er' / 'both.TTC')
    self.save('deep/third.otf', _boxes('abcdef', 2), style='Third')
    (self.folder / 'notes.txt').write_text('no font')
    with self.assertNoLogs(level='WARNING'):
      found = glyphs.glyphs(fonts=str(self.folder))
    self.assertEqual(
      found.domain_names,
      (
        'Boxes Style 0',
        'Boxes Style 1',
        'Boxes Style 0 (deep/er/both.TTC, face 0)',
        'Boxes Style 1 (deep/er/both.TTC, face 1)',
        'Boxes Third',
      ),
    )
    # The faces of the collection are copies.
    self.assertEqual(np.bincount(found.domain).tolist(), [6, 6, 0, 0, 6])

  def test_fonts_that_cannot_be_drawn_are_named_and_left_out(self):
    self.save_two()
    content = (self.folder / '0.ttf').read_bytes()
    (self.folder / 'copy.ttf').write_bytes(content)
    (self.folder / 'short.ttf').write_bytes(content[: len(content) // 3])
    (self.folder / 'empty.otf').touch()
    (self.folder / 'text.ttc').write_text('hello')
    (self.folder / 'head.ttc').write_bytes(b'ttcf\x00\x01')
    (self.folder / 'gone.ttf').symlink_to(self.folder / 'nowhere.ttf')
    # As of a colour font, whose outlines are elsewhere.
    self.save('colour.ttf', {c: _BLANK for c in 'abcdef'})
    bad = ['copy.ttf', 'short.ttf', 'empty.otf', 'text.ttc', 'head.ttc']
    bad += ['gone.ttf', 'colour.ttf']
    for _ in range(2):  # The second comes from the cache.
      with self.assertLogs(level='WARNING') as logs:
        collection = glyphs.glyphs(fonts=self.folder)
      self.assertLen(logs.output, 1)
      self.assertNotIn('\n', logs.output[0])
      for name in bad:
        self.assertIn(name, logs.output[0])
      self.assertIn('the same as 0.ttf', logs.output[0])
      self.assertEqual(collection.num_skipped['fonts that cannot be drawn'], 7)
      self.assertLen(collection.domain_names, 2)
      self.assertLen(collection, 12)

  def test_the_drawings_are_kept_until_a_font_changes(self):
    self.save_two()
    first = glyphs.glyphs(fonts=self.folder)
    with mock.patch.object(
      font_faces, 'draw_face', side_effect=RuntimeError('drawn again')
    ):
      again = glyphs.glyphs(fonts=self.folder)
    np.testing.assert_array_equal(again.images.images, first.images.images)
    for face in range(2):
      self.save(f'{face}.ttf', _boxes('abcdefg', face))
    self.assertIn('g U+0067', self.kept())

  @parameterized.parameters(
    ('nowhere', 'does not exist'),
    ('file.ttf', 'is a file'),
    ('empty', 'has no font'),
    ('one', '1 of 1 fonts can be drawn'),
    ('broken', '0 of 1 fonts can be drawn'),
    ('apart', '0 characters in common'),
  )
  def test_unusable_fonts_are_the_users_mistake(self, name, message):
    self.folder.mkdir()
    (self.folder / 'file.ttf').touch()
    (self.folder / 'empty').mkdir()
    (self.folder / 'broken').mkdir()
    (self.folder / 'broken' / 'a.ttf').touch()
    self.save('one/a.ttf', {'a': _box(0)})
    self.save('apart/a.ttf', _boxes('ab', 0))
    self.save('apart/b.ttf', _boxes('cd', 1))
    with self.assertRaisesRegex(InputError, message) as caught:
      glyphs.glyphs(fonts=self.folder / name)
    self.assertStartsWith(str(caught.exception), 'data.fonts is ')
    self.assertIn(name, str(caught.exception))
    self.assertNotIn('\n', str(caught.exception))

  def test_a_matplotlib_without_the_fonts_is_the_users_mistake(self):
    with (
      mock.patch('matplotlib.get_data_path', return_value=str(self.folder)),
      self.assertRaisesRegex(InputError, 'comes without DejaVuSans.ttf'),
    ):
      glyphs.glyphs()

  def test_a_character_keeps_its_half_when_others_come_and_go(self):
    everything = np.arange(33, 1033)
    fewer = np.delete(everything, slice(0, 1000, 100))
    halves = dict(zip(everything, glyphs._halves(everything), strict=True))
    again = dict(zip(fewer, glyphs._halves(fewer), strict=True))
    self.assertEqual(list(halves.values()).count(TEST), 500)
    moved = [point for point in fewer if halves[point] != again[point]]
    self.assertLess(len(moved), 10)

  def test_names_hold_one_line(self):
    self.assertEqual(glyphs._class_name(0x41), 'A U+0041')
    for code_point in 0x301, 0x2028, 0xA0, 0x200B:
      self.assertEqual(glyphs._class_name(code_point), f'U+{code_point:04X}')


if __name__ == '__main__':
  absltest.main()
