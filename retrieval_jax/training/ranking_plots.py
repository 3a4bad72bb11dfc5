"""Drawings of what a threshold or a cut of the ranking does."""

import numpy as np
from matplotlib.ticker import PercentFormatter, ScalarFormatter

from retrieval_jax import metrics
from retrieval_jax.training import plots

_SIZE = {'width': 4.6, 'height': 2.8, 'dpi': 230}
POSITIVES, NEGATIVES = plots.PALETTE[:2]


def draw_curve(
  curve: metrics.Curve, theme: plots.Theme, *, along: str, log: bool = False
) -> bytes:
  """Draws a curve of shares with its band.

  Args:
    curve: in [0, 1].
    theme: the colours.
    along: what the horizontal axis is.
    log: whether that axis is logarithmic.

  Returns:
    A PNG of 1,058 x 644 pixels.
  """
  figure, axes = plots.new_axes(theme, **_SIZE)
  color = plots.PALETTE[0]
  axes.fill_between(
    curve.x, curve.low, curve.high, color=color, alpha=0.25, linewidth=0
  )
  axes.plot(curve.x, curve.mean, color=color, linewidth=1.8)
  if log:
    axes.set_xscale('log')
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.minorticks_off()
  axes.set_xlim(curve.x[0], curve.x[-1])
  low = min(float(curve.low.min()), 0.9)
  axes.set_ylim(max(0.0, low - 0.1 * (1 - low)), 1.0 + 0.03 * (1 - low))
  axes.set_xlabel(along)
  axes.grid(color=theme.grid, linewidth=0.8)
  return plots.to_png(figure)


def draw_similarities(
  edges: np.ndarray,
  positives: np.ndarray,
  negatives: np.ndarray,
  threshold: float,
  theme: plots.Theme,
) -> bytes:
  """Draws how similar positive and negative pairs are, each to a sum of 1.

  Args:
    edges: [n + 1] float, ascending, of the bars.
    positives: [n] int, pairs in each bar.
    negatives: [n] int, likewise.
    threshold: marked by a line.
    theme: the colours.

  Returns:
    A PNG of 1,058 x 644 pixels.
  """
  figure, axes = plots.new_axes(theme, **_SIZE)
  for counts, color in ((negatives, NEGATIVES), (positives, POSITIVES)):
    shares = counts / max(counts.sum(), 1)
    axes.stairs(shares, edges, color=color, fill=True, alpha=0.3)
    axes.stairs(shares, edges, color=color, linewidth=1.2)
  axes.axvline(threshold, color=theme.strong, linewidth=1.2, linestyle='--')
  filled = np.flatnonzero(positives + negatives)
  width = edges[1] - edges[0]
  axes.set_xlim(edges[filled[0]] - width, edges[filled[-1] + 1] + width)
  axes.set_ylim(bottom=0)
  axes.yaxis.set_major_formatter(PercentFormatter(1.0))
  axes.set_xlabel('similarity of a pair')
  axes.grid(color=theme.grid, linewidth=0.8)
  return plots.to_png(figure)
