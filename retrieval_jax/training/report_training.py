"""The section of the report on the training: its losses and its metrics."""

import itertools
from collections.abc import Mapping
from html import escape

import numpy as np

from retrieval_jax import metrics
from retrieval_jax.training import plots, report_page
from retrieval_jax.training.report_data import ReportData


def training_section(data: ReportData) -> str:
  """Returns the curves of the losses and of the metrics."""
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
