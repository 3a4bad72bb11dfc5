"""The sections of the report that show queries, and what each has found."""

from collections.abc import Sequence
from html import escape

import numpy as np

from retrieval_jax.training import inspection, plots, report_page
from retrieval_jax.training.report_data import ReportData

_NUM_SAMPLES = 8
_NUM_FAILURES = 10
_NUM_PAIRS = 10
_NUM_NEIGHBORS = 10
# The score that orders the failures: the first of these that was measured.
_QUERY_SCORES = {
  'mean_average_precision': 'average precision',
  'mean_average_precision_at_r': 'average precision at R',
  'r_precision': 'R-precision',
  'mean_reciprocal_rank': 'reciprocal rank',
  'precision_at_1': 'precision at 1',
}


def neighbors_section(data: ReportData) -> str:
  """Returns some queries with their nearest gallery images."""
  chosen = inspection.sample_queries(data.query_labels, data.lone, _NUM_SAMPLES)
  return _rows(data, chosen, [''] * len(chosen))


def failures_section(data: ReportData) -> str:
  """Returns the queries of the lowest average precision."""
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
    + _rows(data, worst, [f'{scores[i]:.4f}' for i in worst])
  )


def confusions_section(data: ReportData) -> str:
  """Returns the classes most often taken for another."""
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


def _rows(data: ReportData, chosen: np.ndarray, notes: Sequence[str]) -> str:
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
