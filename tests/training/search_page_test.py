"""The page of a search."""

import html.parser
import re

import PIL.Image
import pytest

from retrieval_jax.training import search_page
from retrieval_jax.training.search_page import Answer

EVIL = '<script>alert("1")</script>&\n\udcff.png'


class _Tags(html.parser.HTMLParser):
  def __init__(self, page):
    super().__init__()
    self.tags = []
    self.feed(page)

  def handle_starttag(self, tag, attrs):
    self.tags.append((tag, dict(attrs)))


@pytest.fixture
def page(tmp_path):
  PIL.Image.new('RGB', (300, 200), 'red').save(tmp_path / 'a.jpg')
  PIL.Image.new('L', (28, 28), 128).save(tmp_path / 'b.png')
  a, b = str(tmp_path / 'a.jpg'), str(tmp_path / 'b.png')
  return search_page.render_page(
    [
      Answer(a, [(b, 0.91234), (EVIL, 0.5)], 2),
      Answer(EVIL, [(a, 0.25)], 0),
    ],
    num_images=1234,
    threshold=0.4,
    facts={'Run': EVIL, 'Step': 7},
  )


def test_shows_queries_and_what_was_found(page):
  assert '2 queries against 1,234 images' in page
  assert '<b>1</b> &nbsp;0.9123' in page and '<b>2</b> &nbsp;0.5000' in page
  assert 'No match: the most similar image has 0.2500, below the' in page
  assert page.count('data:image/jpeg') == 1  # Of the two queries one is there.
  assert page.count('data:image/png') == 1
  assert page.count('cannot be read any more') == 2


def test_needs_nothing_and_escapes_names(page):
  tags = _Tags(page).tags
  assert not {'script', 'link', 'iframe'} & {tag for tag, _ in tags}
  for _, attributes in tags:
    assert not {'onerror', 'onload', 'href'} & set(attributes)
    assert attributes.get('src', 'data:').startswith('data:')
  assert not re.search(r'https?://', page)
  assert '&lt;script&gt;alert(&quot;1&quot;)' in page
  page.encode()  # Surrogates are spelt out.
