"""The page of an inspection: findings with pictures, and a look at classes.

One HTML file of a few megabytes at most, whatever the size of the data: the
pictures are inside, there is no script, and its content policy forbids the
browser any request. Every name is escaped: a file may be called anything.
"""

import base64
import os
import string
from collections.abc import Iterable, Iterator
from html import escape

import cv2
import numpy as np

from retrieval_jax.core import pages
from retrieval_jax.core.strings import printable
from retrieval_jax.data import decoding
from retrieval_jax.data.checks import fingerprints
from retrieval_jax.data.checks.findings import (
  Finding,
  Findings,
  class_name,
  part_name,
)
from retrieval_jax.data.collection import Collection

_MAX_PAIRS = 12
_MAX_ROWS = 24
_MAX_CLASSES = 60
_SHEET_CLASSES = 12
_SHEET_IMAGES = 8
_THUMBNAIL_SIZE = 144
# Up to this size a picture is kept as it is, and shown enlarged.
_EXACT_SIZE = 48
_MAX_BARS = 40

_STYLE = """
:root {
  --tile: #eef0f2;
  --error: #c22f37; --warning: #956400; --note: #57606a; --bar: #4e79a7;
}
@media (prefers-color-scheme: dark) {
  :root {
    --tile: #22272e;
    --error: #f2777d; --warning: #dcab45; --note: #a0a9b4; --bar: #6f9bd1;
  }
}
h2 span { color: var(--soft); font-weight: 400; }
h3 { margin: 1.1rem 0 .4rem; font-size: .9rem; font-weight: 550;
  overflow-wrap: anywhere; }
header { margin-bottom: 1.5rem; }
header p { max-width: 46rem; }
section > p { margin: 0 0 1rem; color: var(--soft); max-width: 46rem; }
section > p.more { margin: 1rem 0 0; }
th, td { padding: .45rem .9rem .45rem 0; text-align: left; font-weight: 400;
  vertical-align: top; border-bottom: 1px solid var(--line); }
tr:last-child th, tr:last-child td { border-bottom: 0; }
.facts th { color: var(--soft); width: 12rem; }
.list .number { padding-right: 1.5rem; font-weight: 650; }
.list td:last-child { color: var(--soft); }
.error { color: var(--error); }
.warning { color: var(--warning); }
.note { color: var(--note); }
b.error, b.warning, b.note { font-weight: 600; }
.tiles { display: grid; gap: .9rem;
  grid-template-columns: repeat(auto-fill, minmax(7.5rem, 1fr)); }
.sheet { display: grid; gap: .45rem;
  grid-template-columns: repeat(8, minmax(0, 1fr)); }
.pairs { display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fill, minmax(17rem, 1fr)); }
.pair { display: grid; gap: .6rem; padding: .7rem; border-radius: .4rem;
  grid-template-columns: repeat(2, minmax(0, 1fr));
  border: 1px solid var(--line); }
.pair > p { grid-column: 1 / -1; margin: 0; font-size: .8rem;
  color: var(--soft); }
figure { min-width: 0; }
.picture { display: grid; place-items: center; aspect-ratio: 1;
  padding: 3px; background: var(--tile); border-radius: 4px;
  color: var(--soft); font-size: .75rem; text-align: center; }
.picture img { width: 100%; height: 100%; object-fit: contain; min-height: 0; }
.picture img.exact { image-rendering: pixelated; }
figcaption { margin-top: .3rem; font-size: .75rem; line-height: 1.4;
  color: var(--soft); overflow-wrap: anywhere; }
figcaption strong { display: block; color: var(--text); font-weight: 600; }
.names { margin: 0; padding: 0; list-style: none; display: flex;
  flex-wrap: wrap; gap: .2rem 1.2rem; overflow-wrap: anywhere; }
svg { display: block; width: 100%; height: auto; }
svg rect { fill: var(--bar); }
svg line { stroke: var(--line); }
svg text { fill: var(--soft); font-size: 13px; }
@media (max-width: 40rem) {
  .list tr { display: grid; grid-template-columns: 1fr auto;
    border-bottom: 1px solid var(--line); padding: .4rem 0; }
  .list td { border: 0; padding: 0; }
  .list td:first-child { grid-column: 1 / -1; font-size: .8rem; }
  .list td:last-child { grid-column: 1 / -1; }
  .sheet { grid-template-columns: repeat(4, minmax(0, 1fr)); }
  .facts th { width: 8rem; }
}
"""

_PAGE = string.Template(
  pages.frame(
    '$title: check of the data',
    _STYLE,
    """<header><h1>$title</h1><p>$verdict</p></header>
<main>
<section><h2>Findings</h2>$table<p class="more">$scope</p></section>
<section><h2>The data</h2>$facts</section>
<section><h2>Images per class</h2>$histogram</section>
$findings
<section><h2>Classes <span>drawn at random (seed 0)</span></h2>$sheet</section>
</main>
""",
  )
)


def render_page(
  findings: Findings, collection: Collection, num_threads: int = 0
) -> str:
  """Returns the page of an inspection, as HTML.

  Args:
    findings: of the collection.
    collection: that was inspected.
    num_threads: that read and decode; 0: as many as there are cores.
  """
  sheet = _draw_sheet(collection)
  rows = {
    int(row)
    for chosen in [
      *(_shown(finding) for finding in findings.listed if _has_rows(finding)),
      *(rows for _, rows in sheet),
    ]
    for row in np.ravel(chosen)
  }
  ordered = sorted(rows)
  pictures = dict(
    zip(
      ordered,
      fingerprints.map_in_threads(
        lambda row: _picture_tag(collection, row), ordered, num_threads
      ),
      strict=True,
    )
  )
  return _PAGE.substitute(
    title=_text(findings.name),
    verdict=_text(f'{findings.verdict}.'),
    table=_finding_table(findings.listed),
    scope=_text(findings.scope),
    facts=_fact_table(findings.facts),
    histogram=_histogram(findings.images_per_class),
    findings=''.join(
      _finding_section(finding, collection, pictures)
      for finding in findings.listed
    ),
    sheet=''.join(
      f'<h3>{_text(class_name(collection, label))}</h3><div class="sheet">'
      f'{"".join(_tile(collection, row, pictures, brief=True) for row in rows)}'
      '</div>'
      for label, rows in sheet
    ),
  )


def _text(text: str) -> str:
  """Returns text as HTML; what cannot be printed or encoded is spelt out."""
  return escape(printable(text))


def _has_rows(finding: Finding) -> bool:
  return finding.kind in ('rows', 'pairs')


def _shown(finding: Finding) -> np.ndarray:
  """Returns the items that the page has room for."""
  limits = {'rows': _MAX_ROWS, 'pairs': _MAX_PAIRS, 'classes': _MAX_CLASSES}
  return finding.items[: limits.get(finding.kind, 0)]


def _finding_table(listed: Iterable[Finding]) -> str:
  """Returns what was found, a line each, leading to its pictures."""
  lines = ''.join(
    f'<tr><td class="{f.severity}">{f.severity}</td>'
    f'<td><a href="#{f.name}">{f.name}</a></td>'
    f'<td class="number">{f.count:,}</td><td>{_text(f.explanation)}</td></tr>'
    for f in listed
  )
  return f'<table class="list">{lines}</table>' if lines else '<p>None.</p>'


def _fact_table(facts: Iterable[tuple[str, str]]) -> str:
  lines = ''.join(
    f'<tr><th scope="row">{_text(name)}</th><td>{_text(text)}</td></tr>'
    for name, text in facts
  )
  return f'<table class="facts">{lines}</table>'


def _finding_section(
  finding: Finding, collection: Collection, pictures: dict[int, str]
) -> str:
  """Returns a finding with the first of its items."""
  shown = _shown(finding)
  if finding.kind == 'pairs':
    content = ''.join(
      f'<div class="pair">{_tile(collection, first, pictures)}'
      f'{_tile(collection, second, pictures)}{_remark(finding, i)}</div>'
      for i, (first, second) in enumerate(shown.tolist())
    )
    content = f'<div class="pairs">{content}</div>'
  elif finding.kind == 'rows':
    content = ''.join(
      _tile(collection, row, pictures, finding.detail(i))
      for i, row in enumerate(shown.tolist())
    )
    content = f'<div class="tiles">{content}</div>'
  else:
    names = finding.details
    if finding.kind == 'classes':
      names = [class_name(collection, label) for label in shown.tolist()]
    content = ''.join(f'<li>{_text(name)}</li>' for name in names)
    content = f'<ul class="names">{content}</ul>'
  more = ''
  if finding.kind != 'whole' and finding.count > len(shown):
    more = f'<p class="more">... and {finding.count - len(shown):,} more</p>'
  return (
    f'<section id="{finding.name}"><h2><b class="{finding.severity}">'
    f'{finding.severity}</b> {finding.name} <span>{finding.count:,}</span></h2>'
    f'<p>{_text(finding.explanation)}</p>{content}{more}</section>\n'
  )


def _remark(finding: Finding, index: int) -> str:
  detail = finding.detail(index)
  return f'<p>{_text(detail)}</p>' if detail else ''


def _tile(
  collection: Collection,
  row: int,
  pictures: dict[int, str],
  detail: str = '',
  brief: bool = False,
) -> str:
  """Returns a picture, with its class, its part and its path below."""
  path = collection.images.describe(row)
  if brief:
    return f'<figure title="{_text(path)}">{pictures[row]}</figure>'
  name = class_name(collection, int(collection.labels[row]))
  # The last folders tell files apart; the whole path shows on hovering.
  place = '/'.join(path.split(os.sep)[-2:])
  about = [part_name(collection, row), place, detail]
  lines = '<br>'.join(_text(line) for line in about if line)
  return (
    f'<figure title="{_text(path)}">{pictures[row]}<figcaption>'
    f'<strong>{_text(name)}</strong>{lines}</figcaption></figure>'
  )


def _picture_tag(collection: Collection, row: int) -> str:
  """Returns a thumbnail, or why there is none."""
  try:
    picture = fingerprints.read_picture(collection, row, 3, _THUMBNAIL_SIZE)
  except decoding.UnreadableImageError:
    return '<div class="picture">cannot be read</div>'
  height, width = picture.shape[:2]
  kind, style = 'jpeg', ''
  if max(height, width) <= _EXACT_SIZE:
    kind, style = 'png', ' class="exact"'
  scale = min(1.0, _THUMBNAIL_SIZE / max(height, width))
  if scale < 1:
    size = max(1, round(width * scale)), max(1, round(height * scale))
    picture = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
  options = [cv2.IMWRITE_JPEG_QUALITY, 82] if kind == 'jpeg' else []
  _, encoded = cv2.imencode(
    f'.{kind}', cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), options
  )
  content = base64.b64encode(encoded.tobytes()).decode()
  return (
    f'<div class="picture"><img{style} alt="image {row}" '
    f'src="data:image/{kind};base64,{content}"></div>'
  )


def _draw_sheet(collection: Collection) -> list[tuple[int, list[int]]]:
  """Draws classes, and images of each, as (label, rows), ordered by label."""
  generator = np.random.default_rng(0)
  labels = np.unique(collection.labels)
  size = min(len(labels), _SHEET_CLASSES)
  chosen = np.sort(generator.choice(labels, size, replace=False))
  drawn = []
  for label in chosen.tolist():
    rows = np.flatnonzero(collection.labels == label)
    size = min(len(rows), _SHEET_IMAGES)
    rows = np.sort(generator.choice(rows, size, replace=False))
    drawn.append((label, rows.tolist()))
  return drawn


def _histogram(images_per_class: np.ndarray) -> str:
  """Draws how many classes have how many images."""
  counts = images_per_class[images_per_class > 0]
  if not len(counts):
    return '<p>No images.</p>'
  least, most = int(counts.min()), int(counts.max())
  # A long tail needs bars that widen, of which none is narrower than 1.
  edges = np.arange(least, most + 2)
  if len(edges) > _MAX_BARS:
    edges = np.geomspace(least, most + 1, _MAX_BARS + 1).round().astype(int)
    edges = np.unique(edges)
  heights = np.histogram(counts, edges)[0]
  return ''.join(_bars(heights, edges))


def _bars(heights: np.ndarray, edges: np.ndarray) -> Iterator[str]:
  """Yields the parts of a drawing of 720 x 204."""
  width, top, bottom, left = 720, 12, 160, 56
  step = min(60.0, (width - left) / len(heights))
  tallest = int(heights.max())
  yield (
    f'<svg viewBox="0 0 {width} 204" role="img" aria-label="Number of classes '
    f'by their number of images, {edges[0]} to {edges[-1] - 1}">'
  )
  for share in (0, 1):
    y = bottom - share * (bottom - top)
    yield f'<line x1="{left}" x2="{width}" y1="{y}" y2="{y}"/>'
    yield (
      f'<text x="{left - 8}" y="{y + 4}" text-anchor="end">'
      f'{share * tallest:,}</text>'
    )
  every = -(-len(heights) // 12)
  for i, height in enumerate(heights.tolist()):
    first, last = int(edges[i]), int(edges[i + 1]) - 1
    name = f'{first:,}' if first == last else f'{first:,} to {last:,}'
    tall = height / tallest * (bottom - top)
    x = left + i * step
    yield (
      f'<rect x="{x + 1:.1f}" y="{bottom - tall:.1f}" rx="2" '
      f'width="{max(1.0, step - 2):.1f}" height="{tall:.1f}">'
      f'<title>{height:,} classes of {name} images</title></rect>'
    )
    if i % every == 0:
      yield (
        f'<text x="{x + step / 2:.1f}" y="{bottom + 17}" '
        f'text-anchor="middle">{first:,}</text>'
      )
  yield (
    f'<text x="{left}" y="{bottom + 38}">images of a class; upwards: the '
    'number of classes</text></svg>'
  )
