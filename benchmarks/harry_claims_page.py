"""The tables and plots of docs/harry.md, from what `harry_claims.py` measured.

PYTHONPATH=. python benchmarks/harry_claims_page.py
"""

import numpy as np
import trainings
from harry_claims import (
  ALL,
  LOSSES,
  MEASURED,
  RATES,
  SIZES,
  STARTS,
  Arm,
  best_rate,
  collected,
  curve,
  seconds_at,
  tuning,
)
from matplotlib.figure import Figure

from retrieval_jax.training.plots import PALETTE

DOCS = trainings.ROOT / 'docs'
PAGE = DOCS / 'harry.md'
NAMES = {
  'adamw': 'Adam',
  'sgd': 'SGD',
  'normal': 'random',
  'class_mean': 'class means',
  'head_only': 'head first',
}
COLORS = dict(zip(ALL, PALETTE, strict=False))
# The R@1 that a loss is timed to.
TARGETS = (0.7, 0.8, 0.9)
EARLY = 40
SEEDS = 3
# Of a curve: before training, and as it goes.
TIMES = (0, *MEASURED)


def curves(arm: Arm) -> np.ndarray:
  """Returns [seeds, times] R@1 of an arm, at `TIMES`.

  Without rows while seeds are missing: an arm is shown when it is complete.
  """
  found, prefix = collected(), f'{arm.key}/'
  rows = [
    [found['untrained'][key.replace(prefix, f'{arm.size(0)}/')], *curve(one)]
    for key, one in found['run'].items()
    if key.startswith(prefix)
  ]
  return np.array(rows if len(rows) >= SEEDS else []).reshape(-1, len(TIMES))


def complete() -> list[str]:
  """Returns the optimizers with which every loss has been trained."""
  return [
    name
    for name in RATES
    if all(len(curves(Arm(name, loss))) for loss in LOSSES)
  ]


def reach(times: np.ndarray, values: np.ndarray, target: float) -> float:
  """Returns when a curve first reaches a value, by straight lines between.

  Example:
    >>> reach(np.array([0, 20, 40]), np.array([0.5, 0.6, 0.8]), 0.7)
    30.0
  """
  above = np.flatnonzero(values >= target)
  if not len(above):
    return np.inf
  place = above[0]
  if place == 0:
    return float(times[0])
  (t0, t1), (v0, v1) = (
    times[place - 1 : place + 1],
    values[place - 1 : place + 1],
  )
  return float(t0 + (t1 - t0) * (target - v0) / (v1 - v0))


def spread(values: np.ndarray, digits: int = 3) -> str:
  """Returns mean ± standard deviation over seeds, '-' if one is infinite."""
  if not len(values) or not np.isfinite(values).all():
    return '-'
  deviation = np.std(values, ddof=1) if len(values) > 1 else 0.0
  return f'{np.mean(values):.{digits}f} ± {deviation:.{digits}f}'


def rates_table() -> str:
  """Returns R@1 on the validation classes at each rate, early and last."""
  tables = []
  for optimizer, rates in RATES.items():
    rows = [[NAMES[optimizer], *map(str, rates)]]
    early = MEASURED.index(EARLY)
    for loss in ALL:
      arm = Arm(optimizer, loss)
      tried, best = tuning(arm), best_rate(arm)
      if not tried:
        continue
      rows.append([loss])
      for rate in rates:
        cell = ''
        if rate in tried:
          cell = f'{tried[rate][early]:.3f}, {tried[rate][-1]:.3f}'
        rows[-1].append(f'**{cell}**' if rate == best else cell)
    tables.append(trainings.markdown(rows))
  return '\n\n'.join(tables)


def losses_table() -> str:
  """Returns R@1 as training goes on, from random proxies, by optimizer."""
  shown = (20, 40, 80, 160)
  rows = [['optimizer', 'loss', 'rate', *(f'step {s}' for s in shown)]]
  rows[0] += [f'steps to {target:g}' for target in TARGETS]
  for optimizer in complete():
    for loss in ALL:
      arm = Arm(optimizer, loss)
      found = curves(arm)
      if not len(found):
        continue
      places = [TIMES.index(step) for step in shown]
      rows.append(
        [
          NAMES[optimizer],
          loss,
          str(best_rate(arm)),
          *(spread(found[:, place]) for place in places),
          *(
            spread(np.array([reach(TIMES, one, t) for one in found]), 0)
            for t in TARGETS
          ),
        ]
      )
  return trainings.markdown(rows)


def starts_table() -> str:
  """Returns R@1 early and last, by the start of the proxies and the sizes."""
  early = TIMES.index(EARLY)
  rows = [['sizes', 'proxies', *LOSSES]]
  for sizes in SIZES:
    for start in STARTS:
      cells = []
      for loss in LOSSES:
        found = curves(Arm('adamw', loss, start, sizes))
        cells.append(
          f'{spread(found[:, early])}, {spread(found[:, -1])}'
          if len(found)
          else ''
        )
      if any(cells):
        rows.append([', '.join(map(str, sizes)), NAMES[start], *cells])
  return trainings.markdown(rows)


def seconds_table() -> str:
  """Returns the seconds to a R@1, by the start of the proxies and the sizes."""
  rows = [['sizes', 'proxies', 'seconds in all', *LOSSES]]
  for sizes in SIZES:
    for start in STARTS:
      arms = [Arm('adamw', loss, start, sizes) for loss in LOSSES]
      if not all(len(curves(arm)) for arm in arms):
        continue
      cells = []
      for arm in arms:
        seconds = (0, *seconds_at(arm))
        cells.append(
          ', '.join(
            spread(np.array([reach(seconds, c, t) for c in curves(arm)]), 1)
            for t in TARGETS
          )
        )
      total = np.mean([seconds_at(arm)[-1] for arm in arms])
      words = ', '.join(map(str, sizes)), NAMES[start], f'{total:.1f}'
      rows.append([*words, *cells])
  return trainings.markdown(rows)


def times_table() -> str:
  """Returns the time of a step."""
  times = collected()['time']
  kinds = sorted({key.split('/', 1)[1] for key in times}, reverse=True)
  rows = [['ms a step', *kinds]]
  for loss in LOSSES:
    rows.append([loss, *(f'{times[f"{loss}/{kind}"]:.1f}' for kind in kinds)])
  return trainings.markdown(rows)


def panel(axis, title, drawn) -> None:
  """Draws (label, colour, style, times, [seeds, times] R@1) into a panel."""
  for label, color, style, times, values in drawn:
    if not len(values):
      continue
    axis.plot(times, values.mean(axis=0), style, color=color, label=label)
    axis.fill_between(
      times, values.min(axis=0), values.max(axis=0), color=color, alpha=0.15
    )
  axis.set_title(title, fontsize=9)
  axis.grid(alpha=0.3)
  axis.tick_params(labelsize=8)


def figure(name, panels, x_label) -> None:
  """Writes the panels that have a curve beside each other to docs/."""
  panels = [
    (title, drawn)
    for title, drawn in panels
    if any(len(values) for *_, values in drawn)
  ]
  drawing = Figure(
    figsize=(max(6.8, 3.4 * len(panels)), 3.4), layout='constrained'
  )
  axes = drawing.subplots(1, len(panels), sharey=True, squeeze=False)[0]
  for axis, (title, drawn) in zip(axes, panels, strict=True):
    panel(axis, title, drawn)
  handles, labels = axes[0].get_legend_handles_labels()
  drawing.legend(
    handles,
    labels,
    loc='outside upper center',
    ncols=3,
    fontsize=9,
  )
  drawing.supxlabel(x_label, fontsize=9)
  axes[0].set_ylabel('R@1', fontsize=9)
  drawing.savefig(DOCS / name, dpi=100, pil_kwargs={'optimize': True})


def draw() -> None:
  """Draws all plots of the page."""

  def by_steps(optimizer):
    return [
      (loss, COLORS[loss], '-', TIMES, curves(Arm(optimizer, loss)))
      for loss in ALL
    ]

  figure(
    'harry_optimizers.png',
    [
      (f'{NAMES[name]}, each loss at its best rate', by_steps(name))
      for name in complete()
    ],
    'steps',
  )
  figure(
    'harry_seconds.png',
    [
      (
        f'proxies: {NAMES[start]}',
        [
          (
            f'{loss}, {" then ".join(map(str, sizes))} px',
            COLORS[loss],
            style,
            (0, *seconds_at(Arm('adamw', loss, start, sizes))),
            curves(Arm('adamw', loss, start, sizes)),
          )
          for sizes, style in zip(SIZES, ('-', '--'), strict=True)
          for loss in LOSSES
        ],
      )
      for start in STARTS
    ],
    'seconds of training, on one core',
  )


def main() -> None:
  trainings.write(rates_table(), 'rates', PAGE)
  trainings.write(losses_table(), 'losses', PAGE)
  trainings.write(starts_table(), 'starts', PAGE)
  trainings.write(seconds_table(), 'seconds', PAGE)
  trainings.write(times_table(), 'times', PAGE)
  draw()


if __name__ == '__main__':
  main()
