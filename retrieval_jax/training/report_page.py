"""The frame of the report, its style in light and dark, its repeated parts.

Every function returns HTML and escapes what it is given.
"""

import string
from collections.abc import Callable, Iterable, Iterator, Mapping
from html import escape
from typing import Any

import numpy as np

from retrieval_jax.core import pages
from retrieval_jax.training import plots

_STYLE = """
:root {
  --right: #2a8f57; --wrong: #d1373f;
  --warning: #fff6e0; --warning-line: #d9a62b;
}
@media (prefers-color-scheme: dark) {
  :root {
    --right: #3fb477; --wrong: #ef5d64;
    --warning: #2b2414; --warning-line: #b98b1e;
  }
}
nav { margin: 1rem 0 1.5rem; display: flex; flex-wrap: wrap; gap: .25rem 1.1rem;
  font-size: .9rem; }
section > p:not(.warning) { margin: 0 0 1rem; color: var(--soft);
  max-width: 46rem; }
.warning { margin: 0 0 1rem; padding: .6rem .9rem; color: var(--text);
  background: var(--warning); border-left: 3px solid var(--warning-line);
  border-radius: .25rem; }
.empty { color: var(--soft); margin: 0; }
img { display: block; max-width: 100%; height: auto; }

th, td { padding: .5rem .9rem .5rem 0; text-align: left; vertical-align: top;
  border-bottom: 1px solid var(--line); }
thead th { color: var(--soft); font-size: .82rem; font-weight: 500; }
tbody th { font-weight: 550; }
.metrics tbody .number { font-weight: 650; }
.metrics td.number, .metrics th.number { padding-right: 1.75rem; }
.definition { color: var(--soft); font-size: .9rem; }
.pairs { max-width: 46rem; }
.pairs td { vertical-align: middle; overflow-wrap: break-word; }
.pairs thead .number { white-space: normal; }
.pair { display: flex; gap: 4px; }
.pair img { width: 3rem; max-width: none; border-radius: 2px; }

dl { margin: 1.1rem 0 0; font-size: .9rem; columns: 2 22rem;
  column-gap: 2.5rem; }
dl div { display: flex; justify-content: space-between; gap: 1rem;
  padding: .2rem 0; break-inside: avoid; }
dt { color: var(--soft); min-width: 35%; overflow-wrap: break-word; }
dd { margin: 0; text-align: right; overflow-wrap: anywhere;
  font-variant-numeric: tabular-nums lining-nums; }
details { padding: .6rem 0; border-top: 1px solid var(--line); }
details:first-of-type { border-top: 0; }
summary { cursor: pointer; font-weight: 550; }

.curves { display: grid; gap: 1.5rem;
  grid-template-columns: repeat(auto-fit, minmax(min(24rem, 100%), 1fr)); }
.curve h3 { margin: 0 0 .4rem; font-size: .95rem; font-weight: 550; }
.curve img { width: 100%; }
.told { margin: .35rem 0 0; font-size: .85rem; color: var(--soft); }
.wide { overflow-x: auto; }
.map img { width: 100%; max-width: 46rem; margin: 0 auto; }
.map figcaption { margin-top: .75rem; }
.legend { list-style: none; margin: .3rem 0 0; padding: 0; display: flex;
  flex-wrap: wrap; gap: .15rem 1.1rem; font-size: .85rem; font-weight: 400;
  color: var(--soft); }
.map .legend { justify-content: center; }
.legend li { overflow-wrap: anywhere; }
.legend span { display: inline-block; width: .7em; height: .7em;
  margin-right: .4em; border-radius: 50%; }

.row { display: grid; grid-template-columns: 5.25rem minmax(0, 1fr);
  gap: 1.4rem; padding: .8rem 0; border-top: 1px solid var(--line); }
.row:first-of-type { border-top: 0; padding-top: 0; }
.row:last-child { padding-bottom: 0; }
.tiles { display: grid; grid-template-columns: repeat(10, minmax(0, 1fr));
  gap: .45rem; }
.row img { width: 100%; padding: 2px; border: 3px solid var(--line);
  border-radius: 4px; }
.row .query img { border-color: var(--soft); }
.row .right img { border-color: var(--right); }
.row .wrong img { border-color: var(--wrong); }
.row figcaption { margin-top: .2rem; font-size: .75rem; line-height: 1.35;
  color: var(--soft); overflow: hidden; text-overflow: ellipsis;
  white-space: nowrap; font-variant-numeric: tabular-nums lining-nums; }
.row figcaption b { color: var(--text); font-weight: 600; }
.row .wrong figcaption { color: var(--wrong); }

@media (max-width: 40rem) {
  h1 { font-size: 1.4rem; }
  .metrics thead { display: none; }
  .metrics tr { display: grid; grid-template-columns: 1fr auto;
    padding: .5rem 0; border-bottom: 1px solid var(--line); }
  .metrics th, .metrics td { border: 0; padding: 0; }
  .metrics td.number { padding: 0; }
  .metrics .definition { grid-column: 1 / -1; }
  .row { grid-template-columns: 4rem minmax(0, 1fr); gap: .9rem; }
  .tiles { grid-template-columns: repeat(5, minmax(0, 1fr)); }
  .row figcaption { font-size: .7rem; }
  .pair img { width: 2rem; }
  th, td { padding-right: .5rem; }
}
@media print {
  body { background: none; padding: 0; }
  section { border: 0; padding: 0; }
  nav { display: none; }
}
"""

_BODY = """<header>
<h1>$title</h1>
<p>$summary</p>
<nav aria-label="Sections">
<a href="#results">Results</a> <a href="#training">Training</a>
<a href="#curves">Rankings</a> <a href="#neighbors">Neighbours</a>
<a href="#failures">Failures</a> <a href="#confusions">Confusions</a>
<a href="#map">Map</a> <a href="#ablation">Post-processing</a>
<a href="#details">Config</a>
</nav>
</header>
<main>
<section id="results"><h2>Results</h2>$results</section>
<section id="training"><h2>Training</h2>$training</section>
<section id="curves"><h2>Rankings and thresholds</h2>$curves</section>
<section id="neighbors"><h2>Nearest gallery images</h2>
<p>Some queries (left, seed 0) and what is most similar to them, with the
similarity. Green and ✓: of the query's class. Red and ✗: of another.</p>
$neighbors</section>
<section id="failures"><h2>Worst failures</h2>$failures</section>
<section id="confusions"><h2>Most confused classes</h2>$confusions</section>
<section id="map"><h2>Map of the embeddings</h2>$map</section>
<section id="ablation"><h2>Post-processing</h2>$ablation</section>
<section id="details"><h2>How it was made</h2>$details</section>
</main>
"""

# Filled by `string.Template.substitute` with HTML that is already escaped.
PAGE = string.Template(pages.frame('$title', _STYLE, _BODY))


def image_tag(image: np.ndarray, alt: str) -> str:
  """Returns an image of the data set ([H, W, C] uint8), as a thumbnail."""
  return f'<img src="{plots.encode_image(image)}" alt="{escape(alt)}">'


def picture_tag(draw: Callable[[plots.Theme], bytes], alt: str) -> str:
  """Returns a drawing in both themes; the reader's mode chooses."""
  light = plots.data_uri(draw(plots.LIGHT), 'png')
  dark = plots.data_uri(draw(plots.DARK), 'png')
  return (
    f'<picture><source media="(prefers-color-scheme: dark)" srcset="{dark}">'
    f'<img src="{light}" alt="{escape(alt)}"></picture>'
  )


def tile(kind: str, image: np.ndarray, alt: str, name: str, note: str) -> str:
  """Returns an image framed by `kind` (query, right, wrong), two lines below.

  A name that is too long for the tile is cut, and shown whole on hovering.
  """
  return (
    f'<figure class="{kind}">{image_tag(image, alt)}'
    f'<figcaption title="{escape(name)}"><b>{escape(name)}</b>'
    f'<br>{escape(note)}</figcaption></figure>'
  )


def warning_list(warnings: Iterable[str]) -> str:
  """Returns sentences that nobody should miss."""
  return ''.join(f'<p class="warning">{escape(w)}</p>' for w in warnings)


def legend(names_and_colors: Iterable[tuple[str, str]]) -> str:
  """Returns names, each with a dot of its colour."""
  items = ''.join(
    f'<li><span style="background:{color}"></span>{escape(name)}</li>'
    for name, color in names_and_colors
  )
  return f'<ul class="legend">{items}</ul>'


def fact_list(facts: Mapping[str, Any]) -> str:
  """Returns names and values in two columns; nested names are dotted.

  Example:
    >>> fact_list({'loss': {'margin': 0.4}})
    '<dl><div><dt>loss.margin</dt><dd>0.4</dd></div></dl>'
    >>> fact_list({'ignore': ()})
    '<dl><div><dt>ignore</dt><dd>none</dd></div></dl>'
  """
  rows = ''.join(
    f'<div><dt>{escape(name)}</dt><dd>{escape(_plain(value))}</dd></div>'
    for name, value in _flatten(facts)
  )
  return f'<dl>{rows}</dl>'


def count(number: int, one: str, many: str | None = None) -> str:
  """Returns a number with its noun.

  Example:
    >>> count(1, 'query', 'queries'), count(4000, 'image')
    ('1 query', '4,000 images')
  """
  return f'{number:,} {one if number == 1 else many or one + "s"}'


def _flatten(
  facts: Mapping[str, Any], prefix: str = ''
) -> Iterator[tuple[str, Any]]:
  for name, value in facts.items():
    if isinstance(value, Mapping):
      yield from _flatten(value, f'{prefix}{name}.')
    else:
      yield f'{prefix}{name}', value


def _plain(value: Any) -> str:
  """Returns a value as a reader writes it."""
  if isinstance(value, bool):
    return 'yes' if value else 'no'
  if isinstance(value, int):
    return f'{value:,}'
  if isinstance(value, float):
    return f'{value:.6g}'
  if isinstance(value, list | tuple):
    return ', '.join(map(_plain, value)) or 'none'
  return str(value)
