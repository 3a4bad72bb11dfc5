"""The section of the report on rankings and thresholds, and on re-ranking."""

from collections.abc import Sequence
from html import escape

from retrieval_jax import metrics
from retrieval_jax.training import ablation, ranking_plots, report_page

_BAND = 'The band is the 95 % confidence interval over queries.'


def curves_section(
  curves: metrics.RankingCurves | None,
  verification: metrics.Verification | None,
  note: str = '',
) -> str:
  """Returns CMC, precision against recall, and the similarities of pairs.

  Args:
    curves: over the rankings; None: not measured.
    verification: over the pairs, if that is known.
    note: which pairs, if not all; or why there are none.
  """
  figures = []
  if curves is not None:
    figures += [
      _figure(
        'Found in the first k ranks (CMC)',
        lambda theme: ranking_plots.draw_curve(
          curves.cmc, theme, along='k', log=True
        ),
        'The share of queries with a match among the first k, from '
        f'{curves.cmc.mean[0]:.4f} at 1 to {curves.cmc.mean[-1]:.4f} at '
        f'{curves.cmc.x[-1]:,}. {_BAND}',
      ),
      _figure(
        'Precision against recall',
        lambda theme: ranking_plots.draw_curve(
          curves.precision, theme, along='recall'
        ),
        'The largest precision of a query at any rank with at least that '
        f'recall: {curves.precision.mean[len(curves.precision.x) // 2]:.4f} at '
        f'half, {curves.precision.mean[-1]:.4f} at all matches. {_BAND}',
      ),
    ]
  if verification is not None:
    figures.append(_similarities(verification, note))
    note = ''
  return (
    f'<div class="curves">{"".join(figures)}</div>'
    f'<p class="empty">{escape(note)}</p>'
  )


def _similarities(verification, note):
  best = verification.roc.best_f1
  told = (
    f'One threshold for all queries: at {best.threshold:.4f} (dashed) F1 is '
    f'largest, {best.f1:.4f}, with a precision of {best.precision:.4f} and a '
    f'recall of {best.recall:.4f}.'
  )
  if note:
    told += f' {note}'
  legend = report_page.legend(
    [
      (f'{best.num_positives:,} pairs that match', ranking_plots.POSITIVES),
      (f'{best.num_negatives:,} that do not', ranking_plots.NEGATIVES),
    ]
  )
  return _figure(
    'Similarity of pairs',
    lambda theme: ranking_plots.draw_similarities(
      verification.bar_edges,
      verification.positive_bars,
      verification.negative_bars,
      best.threshold,
      theme,
    ),
    told,
    legend,
  )


def _figure(title, draw, told, legend=''):
  picture = report_page.picture_tag(draw, f'{title}: {told}')
  return (
    f'<figure class="curve"><h3>{title}</h3>{picture}'
    f'<figcaption>{legend}<p class="told">{escape(told)}</p></figcaption>'
    '</figure>'
  )


def ablation_section(variants: Sequence[ablation.Variant]) -> str:
  """Returns the metrics of each chain of post-processing as a table."""
  if not variants:
    return (
      '<p class="empty">None was chosen; see eval.postprocessing of the '
      'config.</p>'
    )
  names = dict.fromkeys(n for v in variants for n in v.result.metrics)
  heads = ''.join(
    f'<th scope="col" class="number">{escape(name)}</th>' for name in names
  )
  rows = []
  labels = ablation.labels(variants)
  for label, variant in zip(labels, variants, strict=True):
    cells = ''.join(
      f'<td class="number">{variant.result.metrics[name]:.4f}</td>'
      if name in variant.result.metrics
      else '<td></td>'
      for name in names
    )
    rows.append(f'<tr><th scope="row">{escape(label)}</th>{cells}</tr>')
  return (
    '<div class="wide"><table class="ablation"><thead><tr>'
    f'<th scope="col">Post-processing</th>{heads}</tr></thead>'
    f'<tbody>{"".join(rows)}</tbody></table></div>'
    f'<p class="empty">{ablation.depth_note(variants)}</p>'
  )
