"""The page of a run: what it reached, where it fails, what it looks like.

`render_report` turns a `ReportData` into one HTML file that needs nothing else:
the images are inside, there is no script, and its content policy forbids the
browser any request. The same data give the same bytes.
"""

import dataclasses
import functools
import importlib.metadata
import itertools
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from retrieval_jax import metrics
from retrieval_jax.training import ablation as ablation_lib
from retrieval_jax.training import (
  checkpoint,
  inspection,
  plots,
  report_page,
  report_rankings,
)

_NUM_SAMPLES = 8
_NUM_FAILURES = 10
_NUM_PAIRS = 10
_NUM_NEIGHBORS = 10
# The map shows at most this many gallery images and wrong queries, whatever
# the sizes, so that the page stays small and the decomposition quick.
_MAX_MAP_DOTS = 4000
_MAX_MAP_CROSSES = 400

# The score that orders the failures: the first of these that was measured.
_QUERY_SCORES = {
  'mean_average_precision': 'average precision',
  'mean_average_precision_at_r': 'average precision at R',
  'r_precision': 'R-precision',
  'mean_reciprocal_rank': 'reciprocal rank',
  'precision_at_1': 'precision at 1',
}
_PROTOCOL_NAMES = {
  'similarity': 'Similarity',
  'num_queries': 'Queries',
  'num_unreadable_images': 'Images that cannot be read, left out',
  'num_lone_queries': 'Lone queries, without a match, left out',
  'gallery_size': 'Gallery images',
  'ignored': 'Left out of the ranking of a query',
  'self_excluded': 'Each query excluded from its own ranking',
  'num_zero_embeddings': 'Embeddings that are zero',
  'tie_rate': 'Matches tied with another class',
  'tie_resolution': 'Similarities tie within',
}
_PACKAGES = (
  'retrieval_jax',
  'jax',
  'jaxlib',
  'flax',
  'optax',
  'orbax-checkpoint',
  'numpy',
)


def installed_versions() -> dict[str, str]:
  """Returns the versions of Python and of the packages that make a run."""
  versions = {'python': platform.python_version()}
  for name in _PACKAGES:
    try:
      versions[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      continue  # Run from a checkout that is not installed.
  return versions


@dataclasses.dataclass(frozen=True)
class ReportData:
  """Everything the page shows.

  Attributes:
    title: the heading, such as the name of the run.
    config: nested dictionaries of plain values.
    evaluation: the metrics.
    history: rows in the order of their steps, each {'step': int} and any of
      'train/<loss>' and 'eval/<set>/<metric>'.
    query_embeddings: [Q, D] float.
    gallery_embeddings: [N, D] float.
    query_labels: [Q] int.
    gallery_labels: [N] int.
    class_names: the name of class i at i; None, or shorter, for classes that
      are known by number only.
    query_images: indices [n] -> [n, H, W, C] uint8, C = 1 or 3.
    gallery_images: likewise.
    neighbor_indices: [Q, K] int, gallery rows, nearest first, without the query
      itself and what it is not judged by; -1 where there are no more.
    neighbor_similarities: [Q, K] float.
    relevant: [Q, K] bool, whether a neighbour is what was looked for; None: if
      it is of the query's class.
    selection: why the weights are these, in a sentence.
    watched: the set whose metrics are in the history.
    pairs: what the similarities of pairs say, if that is known.
    pairs_note: which pairs these are, if not all; or why there are none.
    ablation: the ranked lists with and without post-processing; may be empty.
    versions: {package: version}.
  """

  title: str
  config: Mapping[str, Any]
  evaluation: metrics.RetrievalResult
  history: Sequence[Mapping[str, float]]
  query_embeddings: np.ndarray
  gallery_embeddings: np.ndarray
  query_labels: np.ndarray
  gallery_labels: np.ndarray
  class_names: Sequence[str] | None
  query_images: Callable[[np.ndarray], np.ndarray]
  gallery_images: Callable[[np.ndarray], np.ndarray]
  neighbor_indices: np.ndarray
  neighbor_similarities: np.ndarray
  relevant: np.ndarray | None = None
  selection: str = ''
  watched: str = 'test'
  pairs: metrics.Verification | None = None
  pairs_note: str = ''
  ablation: Sequence[ablation_lib.Variant] = ()
  versions: Mapping[str, str] = dataclasses.field(
    default_factory=installed_versions
  )

  def class_name(self, label: int) -> str:
    """Returns the name of a class, or its number where it has no name."""
    names = () if self.class_names is None else self.class_names
    return str(names[label]) if 0 <= label < len(names) else str(label)

  @functools.cached_property
  def lone(self) -> np.ndarray:
    """[Q] bool, the queries without any match in the gallery."""
    lone = self.neighbor_indices[:, 0] < 0
    for scores in self.evaluation.per_query.values():
      lone |= np.isnan(scores)
    return lone

  @functools.cached_property
  def right(self) -> np.ndarray:
    """[Q, K] bool, whether a neighbour is what was looked for."""
    right = self.relevant
    if right is None:
      found = self.gallery_labels[self.neighbor_indices]
      right = found == self.query_labels[:, None]
    return right & (self.neighbor_indices >= 0)


def write_report(path: str | os.PathLike, data: ReportData) -> None:
  """Writes the page to `path`; a reader sees the old one or the new, whole."""
  checkpoint.write_text(os.fspath(path), render_report(data))


def render_report(data: ReportData) -> str:
  """Returns the page as HTML; the same data give the same text."""
  queries, gallery = len(data.query_labels), len(data.gallery_labels)
  classes = len(np.unique(data.gallery_labels))
  return report_page.PAGE.substitute(
    title=escape(data.title),
    summary=f'{report_page.count(queries, "query", "queries")} against '
    f'{report_page.count(gallery, "gallery image")} of '
    f'{report_page.count(classes, "class", "classes")}',
    results=_results(data),
    training=_training(data),
    curves=report_rankings.curves_section(
      data.evaluation.curves, data.pairs, data.pairs_note
    ),
    ablation=report_rankings.ablation_section(data.ablation),
    neighbors=_neighbors(data),
    failures=_failures(data),
    confusions=_confusions(data),
    map=_map(data),
    details=_details(data),
  )


def gallery_image(
  data: ReportData, num_queries: int = 8, k: int = 8
) -> np.ndarray:
  """Returns the neighbours of some queries as one picture.

  Args:
    data: the run; the queries are those of the page.
    num_queries: rows of the picture, fewer if there are fewer queries.
    k: neighbours in a row, fewer if there are fewer.

  Returns:
    [height, width, 3] uint8, each row a query and its neighbours, nearest
    first, framed green (of its class) or red.
  """
  chosen = inspection.sample_queries(data.query_labels, data.lone, num_queries)
  neighbors = data.neighbor_indices[chosen, :k]
  images = data.gallery_images(np.maximum(neighbors, 0).reshape(-1))
  return plots.neighbor_sheet(
    data.query_images(chosen),
    images.reshape(*neighbors.shape, *images.shape[1:]),
    data.right[chosen, :k],
    neighbors >= 0,
  )


def _results(data: ReportData) -> str:
  """The warnings, the table of metrics, the protocol."""
  protocol = data.evaluation.protocol
  rows = []
  for name, value in data.evaluation.metrics.items():
    low, high = data.evaluation.ranges.get(name, (value, value))
    tied = ''
    if f'{low:.4f}' != f'{high:.4f}':
      tied = f'<br>{low:.4f} to {high:.4f} by the order of ties.'
    definition = protocol.get('definitions', {}).get(name, '')
    rows.append(
      f'<tr><th scope="row">{escape(name)}</th>'
      f'<td class="number">{value:.4f}</td>'
      f'<td class="definition">{escape(definition)}{tied}</td></tr>'
    )
  facts = {
    _PROTOCOL_NAMES.get(name, name.replace('_', ' ').capitalize()): value
    for name, value in protocol.items()
    if isinstance(value, str | int | float) or name == 'ignored'
  }
  if data.selection:
    facts = {'Measured': data.selection} | facts
  return (
    report_page.warning_list(protocol.get('warnings', ()))
    + '<table class="metrics"><thead><tr><th scope="col">Metric</th>'
    '<th scope="col" class="number">Value</th>'
    '<th scope="col">What it is</th></tr></thead>'
    f'<tbody>{"".join(rows)}</tbody></table>' + report_page.fact_list(facts)
  )


def _training(data: ReportData) -> str:
  """The curves of the losses and of the metrics."""
  curves = {
    key: (
      np.array([row['step'] for row in data.history if key in row]),
      np.array([row[key] for row in data.history if key in row], np.float64),
    )
    for key in dict.fromkeys(key for row in data.history for key in row)
  }
  # A loss of one term is not drawn twice.
  total = curves.get('train/loss', ((), ()))[1]
  losses = {
    key.removeprefix('train/'): curve
    for key, curve in curves.items()
    if key == 'train/loss'
    or key.startswith('train/loss_')
    and not np.array_equal(curve[1], total, equal_nan=True)
  }
  prefix = f'eval/{data.watched}/'
  watched = {
    key.removeprefix(prefix): curve
    for key, curve in curves.items()
    if key.removeprefix(prefix) in data.evaluation.metrics
  }
  # What has a scale of its own is drawn apart.
  shares = {
    name: curve
    for name, curve in watched.items()
    if metrics.bounds(name) == (0, 1)
  }
  if not losses and not watched:
    return '<p class="empty">No curves: no training history was recorded.</p>'
  bad = {
    name: steps[~np.isfinite(values)].tolist()
    for name, (steps, values) in losses.items()
  }
  warnings = []
  if bad_steps := set().union(*bad.values()):
    warnings.append(
      f'not finite at {report_page.count(len(bad_steps), "logged step")}, '
      f'first at step {min(bad_steps):,} (dotted red line): '
      + ', '.join(name for name in bad if bad[name])
    )
  return (
    report_page.warning_list(warnings)
    + '<div class="curves">'
    + _curves('Loss', losses)
    + _curves(f'Metrics on the {data.watched} set', shares, upper=1.0)
    + ''.join(
      _curves(f'{escape(name)} on the {data.watched} set', {name: curve})
      for name, curve in watched.items()
      if name not in shares
    )
    + '</div>'
  )


def _curves(
  title: str,
  curves: Mapping[str, tuple[np.ndarray, np.ndarray]],
  upper: float | None = None,
) -> str:
  """One drawing of {name: (steps, values)}."""
  if not curves:
    return ''
  told = '; '.join(
    f'{name} from {values[0]:.4g} at step {steps[0]:,} to {values[-1]:.4g} at '
    f'step {steps[-1]:,}'
    for name, (steps, values) in curves.items()
  )
  picture = report_page.picture_tag(
    lambda theme: plots.draw_curves(list(curves.values()), theme, upper=upper),
    f'{title} against the training step: {told}.',
  )
  legend = report_page.legend(zip(curves, itertools.cycle(plots.PALETTE)))
  return (
    f'<figure class="curve"><h3>{title}</h3>{picture}'
    f'<figcaption>{legend}</figcaption></figure>'
  )


def _neighbors(data: ReportData) -> str:
  """Some queries with their nearest gallery images."""
  chosen = inspection.sample_queries(data.query_labels, data.lone, _NUM_SAMPLES)
  return _query_rows(data, chosen, [''] * len(chosen))


def _failures(data: ReportData) -> str:
  """The queries of the lowest average precision."""
  per_query = data.evaluation.per_query
  measured = [name for name in _QUERY_SCORES if name in per_query]
  if not measured:
    return '<p class="empty">No score of single queries was measured.</p>'
  scores, score = per_query[measured[0]], _QUERY_SCORES[measured[0]]
  worst = inspection.worst_queries(scores, _NUM_FAILURES)
  if not len(worst):
    return f'<p class="empty">None: every query has {score} 1.</p>'
  imperfect = int(np.sum(scores < inspection.PERFECT))
  return (
    f'<p>{report_page.count(imperfect, "query has", "queries have")} {score} '
    f'below 1; the lowest are shown, with the {score} below the class.</p>'
    + _query_rows(data, worst, [f'{scores[i]:.4f}' for i in worst])
  )


def _confusions(data: ReportData) -> str:
  """The classes most often taken for another."""
  nearest = data.neighbor_indices[:, 0]
  # What is relevant is not mistaken, be it of another set of labels.
  taken_for = np.where(
    data.right[:, 0], data.query_labels, data.gallery_labels[nearest]
  )
  pairs = inspection.confused_pairs(
    data.query_labels,
    taken_for,
    data.neighbor_similarities[:, 0],
    data.lone,
  )
  if not pairs:
    return (
      '<p class="empty">None: the nearest gallery image of every query is of '
      'its class.</p>'
    )
  shown = pairs[:_NUM_PAIRS]
  examples = np.array([pair.example for pair in shown])
  query_images = data.query_images(examples)
  other_images = data.gallery_images(nearest[examples])
  rows = []
  for i, pair in enumerate(shown):
    query = data.class_name(pair.query_class)
    other = data.class_name(pair.nearest_class)
    rows.append(
      '<tr><td><span class="pair">'
      + report_page.image_tag(query_images[i], f'a query of class {query}')
      + report_page.image_tag(other_images[i], f'its nearest, of class {other}')
      + f'</span></td><td><bdi>{escape(query)}</bdi> →'
      f' <bdi>{escape(other)}</bdi></td>'
      f'<td class="number">{pair.count:,}</td>'
      f'<td class="number">{pair.count / pair.total:.1%}</td></tr>'
    )
  wrong = sum(pair.count for pair in pairs)
  return (
    f'<p>{report_page.count(wrong, "query has", "queries have")} a nearest '
    'gallery image of another class, in '
    f'{report_page.count(len(pairs), "ordered pair")} of classes.</p>'
    '<table class="pairs"><thead><tr><th scope="col">Example</th>'
    '<th scope="col">Query → nearest</th>'
    '<th scope="col" class="number">Queries</th>'
    '<th scope="col" class="number">Of the class</th></tr></thead>'
    f'<tbody>{"".join(rows)}</tbody></table>'
  )


def _map(data: ReportData) -> str:
  """The gallery and the wrong queries on two principal axes."""
  rng = np.random.default_rng(0)
  size = len(data.gallery_labels)
  # In random order, so that no class is drawn over all the others.
  dots = rng.permutation(size)[:_MAX_MAP_DOTS]
  wrong = np.flatnonzero(~data.right[:, 0] & ~data.lone)
  crosses = rng.permutation(wrong)[:_MAX_MAP_CROSSES]
  # Unit rows, as the cosine sees them.
  rows = plots.unit_rows(data.gallery_embeddings[dots])
  mean, axes, explained = plots.principal_components(rows)
  queries = plots.unit_rows(data.query_embeddings[crosses])

  labels = data.gallery_labels[dots]
  classes, counts = np.unique(labels, return_counts=True)
  largest = classes[np.argsort(-counts, kind='stable')][: len(plots.PALETTE)]
  color_of = dict(zip(np.sort(largest).tolist(), plots.PALETTE, strict=False))
  legend = [(data.class_name(label), color_of[label]) for label in color_of]
  if len(classes) > len(color_of):
    others = report_page.count(
      len(classes) - len(color_of), 'smaller class', 'smaller classes'
    )
    legend.append((others, plots.OTHER))

  told = (
    f'Each dot is a gallery image ({_of(len(dots), size)}), each cross a query '
    f'whose nearest image is wrong ({_of(len(crosses), len(wrong))}).'
  )
  picture = report_page.picture_tag(
    lambda theme: plots.draw_map(
      (rows - mean) @ axes,
      [color_of.get(label, plots.OTHER) for label in labels.tolist()],
      (queries - mean) @ axes,
      explained,
      theme,
    ),
    f'Embeddings on their first two principal axes. {told}',
  )
  return (
    f'<p>{told} The axes are the two of the largest variance; what is close '
    'here may be far apart on the others.</p>'
    f'<figure class="map">{picture}'
    f'<figcaption>{report_page.legend(legend)}</figcaption></figure>'
  )


def _of(shown: int, number: int) -> str:
  """Says whether all or a random part is shown."""
  if shown == number:
    return f'all {number:,}'
  return f'{shown:,} at random of {number:,}'


def _details(data: ReportData) -> str:
  """The config and the versions."""
  return (
    '<details><summary>Config</summary>'
    + report_page.fact_list(data.config)
    + '</details><details><summary>Versions</summary>'
    + report_page.fact_list(data.versions)
    + '</details>'
  )


def _query_rows(
  data: ReportData, chosen: np.ndarray, notes: Sequence[str]
) -> str:
  """Queries, each with its neighbours framed by whether they are right.

  A list that has ended shows fewer.
  """
  neighbors = data.neighbor_indices[chosen, :_NUM_NEIGHBORS]
  images = data.gallery_images(np.maximum(neighbors, 0).reshape(-1))
  images = images.reshape(*neighbors.shape, *images.shape[1:])
  query_images = data.query_images(chosen)
  rows = []
  for i, query in enumerate(chosen):
    name = data.class_name(int(data.query_labels[query]))
    first = report_page.tile(
      'query',
      query_images[i],
      f'query {query}, of class {name}',
      name,
      notes[i],
    )
    tiles = []
    for j in np.flatnonzero(neighbors[i] >= 0):
      name = data.class_name(int(data.gallery_labels[neighbors[i, j]]))
      kind, mark = ('right', '✓') if data.right[query, j] else ('wrong', '✗')
      tiles.append(
        report_page.tile(
          kind,
          images[i, j],
          f'neighbour {j + 1}, {kind}, of class {name}',
          f'{mark} {name}',
          f'{data.neighbor_similarities[query, j]:.3f}',
        )
      )
    rows.append(
      f'<div class="row">{first}<div class="tiles">{"".join(tiles)}</div></div>'
    )
  return ''.join(rows)
