"""The page of a search: queries, and the images that were found for them."""

import os
import string
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

from retrieval_jax.core import files, pages
from retrieval_jax.core.strings import printable
from retrieval_jax.data import decoding
from retrieval_jax.training import plots, report_page

_TILE_SIZE = 256

_STYLE = """
:root { --tile: #eef0f2; --mark: #4e79a7;
  --warning: #fff6e0; --warning-line: #d9a62b; }
@media (prefers-color-scheme: dark) {
  :root { --tile: #22272e; --mark: #6f9bd1;
    --warning: #2b2414; --warning-line: #b98b1e; }
}
main, header { max-width: 76rem; }
header { margin-bottom: 1.5rem; }
.result { display: grid; gap: 1.4rem;
  grid-template-columns: 10rem minmax(0, 1fr); }
.tiles { display: grid; gap: .8rem; align-content: start;
  grid-template-columns: repeat(auto-fill, minmax(9rem, 1fr)); }
figure { min-width: 0; }
.picture { display: grid; place-items: center; aspect-ratio: 1; padding: 4px;
  overflow: hidden; background: var(--tile); border: 2px solid transparent;
  border-radius: 6px; color: var(--soft); font-size: .8rem;
  text-align: center; }
.query .picture { border-color: var(--mark); }
.picture img { width: 100%; height: 100%; object-fit: contain; min-height: 0; }
.picture img.small { image-rendering: pixelated; }
figcaption { margin-top: .35rem; font-size: .78rem; line-height: 1.4;
  color: var(--soft); }
figcaption b { color: var(--text); font-weight: 600;
  font-variant-numeric: tabular-nums lining-nums; }
figcaption span { display: block; overflow: hidden; text-overflow: ellipsis;
  white-space: nowrap; }
.none { align-self: start; margin: 0; padding: .6rem .9rem;
  background: var(--warning); border-left: 3px solid var(--warning-line);
  border-radius: .25rem; }
dl { margin: 0; font-size: .9rem; }
dl div { display: flex; justify-content: space-between; gap: 1rem;
  padding: .2rem 0; }
dt { color: var(--soft); white-space: nowrap; }
dd { margin: 0; text-align: right; overflow-wrap: anywhere; }
@media (max-width: 40rem) {
  .result { grid-template-columns: minmax(0, 1fr); }
  .query { max-width: 9rem; }
  .tiles { grid-template-columns: repeat(auto-fill, minmax(6.5rem, 1fr)); }
}
"""

_PAGE = string.Template(
  pages.frame(
    '$title',
    _STYLE,
    """<header><h1>$title</h1><p>$summary</p></header>
<main>
$results<section><h2>How it was found</h2>$facts</section>
</main>
""",
  )
)


class Answer(NamedTuple):
  """What was found for a query.

  Attributes:
    query: the path of its image.
    nearest: (path, similarity), best first, at least one.
    num_matches: how many of them are similar enough, the first ones.
  """

  query: str
  nearest: Sequence[tuple[str, float]]
  num_matches: int


def render_page(
  answers: Sequence[Answer],
  *,
  num_images: int,
  threshold: float | None,
  facts: Mapping[str, Any],
) -> str:
  """Returns the page as HTML, the pictures inside.

  Args:
    answers: in the order of the page.
    num_images: that were searched.
    threshold: the least similarity of an answer; None: there is none.
    facts: name -> value, of the index and its model.
  """
  summary = (
    f'{report_page.count(len(answers), "query", "queries")} against '
    f'{report_page.count(num_images, "image")}, by cosine similarity'
  )
  if threshold is not None:
    summary += f'; no match below {threshold:.4f}'
  return _PAGE.substitute(
    title='Search results',
    summary=escape(summary),
    results=''.join(_result(answer, threshold) for answer in answers),
    facts=report_page.fact_list(
      {name: printable(str(value)) for name, value in facts.items()}
    ),
  )


def _result(answer: Answer, threshold: float | None) -> str:
  """Returns a query with what was found."""
  if answer.num_matches:
    tiles = ''.join(
      _tile(
        path,
        f'<b>{rank}</b> &nbsp;{similarity:.4f}',
        # The last folder often tells more than the name.
        '/'.join(path.split(os.sep)[-2:]),
      )
      for rank, (path, similarity) in enumerate(
        answer.nearest[: answer.num_matches], 1
      )
    )
    found = f'<div class="tiles">{tiles}</div>'
  else:
    found = (
      f'<p class="none">No match: the most similar image has '
      f'{answer.nearest[0][1]:.4f}, below the threshold {threshold:.4f}.</p>'
    )
  return (
    f'<section><h2>{_text(os.path.basename(answer.query))}</h2>'
    f'<div class="result"><div class="query">{_tile(answer.query, "query")}'
    f'</div>{found}</div></section>\n'
  )


def _tile(path: str, note: str, name: str = '') -> str:
  """Returns a picture with a note (HTML) and a name below."""
  # The whole path shows on hovering.
  return (
    f'<figure title="{_text(path)}"><div class="picture">{_picture(path)}</div>'
    f'<figcaption>{note}<span>{_text(name)}</span></figcaption></figure>'
  )


def _picture(path: str) -> str:
  """Returns a thumbnail, or why there is none."""
  try:
    image = decoding.decode(files.read_bytes(path), 3, _TILE_SIZE)
  except (OSError, decoding.UnreadableImageError):
    return 'cannot be read any more'
  style = ' class="small"' if max(image.shape) <= 64 else ''
  alt = _text(os.path.basename(path))
  return (
    f'<img{style} src="{plots.encode_image(image, _TILE_SIZE)}" alt="{alt}">'
  )


def _text(text: str) -> str:
  """Returns text as HTML; what cannot be printed or encoded is spelt out."""
  return escape(printable(text))
