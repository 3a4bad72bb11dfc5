import html.parser
import re

import numpy as np
from absl.testing import absltest, parameterized

from retrieval_jax.data import decoding
from retrieval_jax.data.checks import contact_sheet, inspection
from retrieval_jax.data.collection import TEST, TRAIN, Collection

_EVIL = '<script>alert("1")</script>&\x1b[2J\udcff'


class _Store:
  """Noise, called by an evil name; some rows cannot be read."""

  def __init__(self, num_rows, num_pictures, broken=()):
    generator = np.random.default_rng(0)
    shape = (num_pictures, 80, 100, 3)
    self._pictures = generator.integers(0, 256, shape, dtype=np.uint8)
    self._num_rows, self._broken = num_rows, broken

  def __len__(self):
    return self._num_rows

  def read(self, row):
    if row in self._broken:
      raise decoding.UnreadableImageError(_EVIL)
    return self._pictures[row % len(self._pictures)]

  def describe(self, row):
    return f'{_EVIL}/{row}.png'


class _Tags(html.parser.HTMLParser):
  def __init__(self, page):
    super().__init__()
    self.tags, self.open = [], []
    self.feed(page)

  def handle_starttag(self, tag, attrs):
    self.tags.append((tag, dict(attrs)))
    if tag not in ('img', 'meta', 'br'):
      self.open.append(tag)

  def handle_startendtag(self, tag, attrs):
    self.tags.append((tag, dict(attrs)))

  def handle_endtag(self, tag):
    assert self.open.pop() == tag, tag


def _render(num_rows, num_pictures, broken=(), num_classes=10):
  rows = np.arange(num_rows)
  collection = Collection(
    _EVIL,
    _Store(num_rows, num_pictures, broken),
    (rows % num_classes).astype(np.int32),
    tuple(f'{_EVIL}{c}' for c in range(num_classes)),
    split=np.where(rows < num_rows // 2, TRAIN, TEST).astype(np.int8),
    num_skipped={_EVIL: 3},
  )
  found = inspection.inspect_collection(collection)
  return found, contact_sheet.render_page(found, collection)


class ContactSheetTest(parameterized.TestCase):
  def test_the_page_shows_every_finding_and_asks_for_nothing(self):
    found, page = _render(60, 23, broken=(4, 5))
    names = [f.name for f in found.listed]
    self.assertIn('train_test_leak', names)
    self.assertIn('unreadable_image', names)
    tags = _Tags(page)
    self.assertEqual(tags.open, [])
    anchors = [a['id'] for _, a in tags.tags if 'id' in a]
    self.assertEqual(anchors, names)
    links = [a['href'] for tag, a in tags.tags if tag == 'a']
    self.assertEqual(links, [f'#{name}' for name in names])
    sources = [a['src'] for tag, a in tags.tags if tag == 'img']
    self.assertNotEmpty(sources)
    for source in sources:
      self.assertStartsWith(source, 'data:image/')
    self.assertIn("default-src 'none'", page)
    self.assertIsNone(re.search(r'(src|href)="(?!data:|#)', page))
    self.assertEqual(page.count('cannot be read</div>'), 4)

  def test_names_are_escaped(self):
    _, page = _render(60, 23, broken=(4,))
    self.assertNotIn('script', {tag for tag, _ in _Tags(page).tags})
    self.assertNotIn('<script', page)
    self.assertNotIn('\x1b', page)
    self.assertIn('&lt;script&gt;', page)
    page.encode('utf-8')  # A name that is not UTF-8 is spelt out.

  def test_the_page_does_not_grow_with_the_data(self):
    _, small = _render(600, 7, num_classes=300)
    _, large = _render(2400, 7, num_classes=1200)
    self.assertLess(len(large), 1.2 * len(small))
    self.assertLess(len(large), 4e6)
    self.assertIn('... and', large)

  @parameterized.parameters(
    ([3, 3, 3], ['3']),
    ([1, 2, 4], ['1', '2', '3', '4']),
    ([1] * 50 + [100_000], None),
  )
  def test_the_histogram_counts_every_class(self, counts, ticks):
    drawn = contact_sheet._histogram(np.array(counts + [0]))
    heights = re.findall(r'<title>([\d,]+) classes', drawn)
    total = sum(int(height.replace(',', '')) for height in heights)
    self.assertEqual(total, len(counts))
    self.assertLessEqual(len(heights), 40)
    if ticks:
      found = re.findall(r'text-anchor="middle">([\d,]+)', drawn)
      self.assertEqual(found, ticks)

  def test_no_rows(self):
    _, page = _render(0, 1)
    self.assertEqual(_Tags(page).open, [])


if __name__ == '__main__':
  absltest.main()
