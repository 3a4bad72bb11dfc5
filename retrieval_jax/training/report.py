"""The page of a run: what it reached, where it fails, what it looks like.

`render_report` turns a `ReportData` into one HTML file that needs nothing else:
the images are inside, there is no script, and its content policy forbids the
browser any request. The same data give the same bytes.
"""

import os
from html import escape

import numpy as np

from retrieval_jax.training import (
  checkpoint,
  report_map,
  report_page,
  report_queries,
  report_rankings,
  report_training,
  reporting,
)
from retrieval_jax.training.report_data import ReportData

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
    training=report_training.training_section(data),
    curves=report_rankings.curves_section(
      data.evaluation.curves, data.pairs, data.pairs_note
    ),
    ablation=report_rankings.ablation_section(data.ablation),
    neighbors=report_queries.neighbors_section(data),
    failures=report_queries.failures_section(data),
    confusions=report_queries.confusions_section(data),
    map=report_map.map_section(data),
    details=_details(data),
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
    if name in protocol.get('thresholds', {}):
      words = reporting.describe_threshold(protocol['thresholds'][name])
      definition += f'; {words}'
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


def _details(data: ReportData) -> str:
  """The config and the versions."""
  return (
    '<details><summary>Config</summary>'
    + report_page.fact_list(data.config)
    + '</details><details><summary>Versions</summary>'
    + report_page.fact_list(data.versions)
    + '</details>'
  )
