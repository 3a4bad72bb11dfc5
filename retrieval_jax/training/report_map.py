"""The section of the report with the embeddings on a plane."""

import numpy as np

from retrieval_jax.training import plots, report_page
from retrieval_jax.training.report_data import ReportData

# The map shows at most this many gallery images and wrong queries, whatever
# the sizes, so that the page stays small and the decomposition quick.
_MAX_MAP_DOTS = 4000
_MAX_MAP_CROSSES = 400


def map_section(data: ReportData) -> str:
  """Returns the gallery and the wrong queries on two principal axes."""
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
