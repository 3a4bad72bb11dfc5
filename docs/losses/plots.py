"""Draws the gradient of each loss against the cosine; see `generate.py`.

Everything goes through `losses.compute`: embeddings are placed on the sphere so
that the cosines are the ones wanted, and the derivative is automatic.
"""

import dataclasses
import functools
import math
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import scipy.linalg
from matplotlib import pyplot as plt

from retrieval_jax import losses
from retrieval_jax.losses.rows import Loss

POSITIVE, NEGATIVES = 0.5, (0.1,) * 8
NUM_CLASSES = 100
LENGTH = 20.0
CLASS_COUNT = 10
# They have one positive an anchor.
_ONE_POSITIVE = ('instance', 'n_pairs')
# They look at no positive or negative pairs.
_LEFT_OUT = ('manifold', 'vicreg')
_VARIANTS = {
  'triplet_margin': {
    'triplet_margin': {},
    'smooth_loss=True': {'smooth_loss': True},
    'miner=triplet_margin, semihard': {
      'miner': {'name': 'triplet_margin', 'type_of_triplets': 'semihard'}
    },
    'distance=cosine': {'distance': 'cosine'},
  },
}
# The push of a proxy anchor is a mean over the classes.
_ENLARGED = {'proxy_anchor': NUM_CLASSES}
_BLUE, _RED = '#1f6fb4', '#c8451b'


@dataclasses.dataclass(frozen=True)
class Curve:
  """One line of a panel.

  Attributes:
    label: of the legend.
    color: of the line.
    loss: of the cosine that moves, float32 scalar to scalar.
    factor: that the derivative is drawn enlarged by.
  """

  label: str
  color: str
  loss: Callable[[jax.Array], jax.Array]
  factor: int = 1


def draw(rows: Mapping[str, Loss], path: pathlib.Path) -> None:
  """Draws a panel for each loss of a family.

  Args:
    rows: of the registry.
    path: of the picture, which is overwritten.
  """
  matplotlib.use('Agg')
  panels = [
    (title, list(_curves(name, rows[name], options)))
    for name in rows
    if name not in _LEFT_OUT
    for title, options in _VARIANTS.get(name, {name: {}}).items()
  ]
  columns = 5 if len(panels) > 8 else 3 if len(panels) in (5, 6) else 4
  height = math.ceil(len(panels) / columns)
  figure, axes = plt.subplots(
    height,
    columns,
    figsize=(11.0, 11.0 / columns * 0.8 * height + 0.6),
    squeeze=False,
    layout='constrained',
  )
  for axis in axes.flat[len(panels) :]:
    axis.set_visible(False)
  for axis, (title, curves) in zip(axes.flat, panels, strict=False):
    _panel(axis, title, curves)
  figure.supxlabel('cosine', fontsize=9)
  figure.supylabel('d loss / d cosine', fontsize=9)
  handles, labels = axes.flat[0].get_legend_handles_labels()
  figure.legend(
    handles, labels, loc='outside upper center', ncols=2, frameon=False
  )
  figure.savefig(path, dpi=100, pil_kwargs={'optimize': True})
  plt.close(figure)


def _panel(axis, title, curves):
  cosines = np.linspace(-0.998, 0.998, 999)
  low, high = 0.0, 0.0
  for curve in curves:
    slopes = curve.factor * np.asarray(_slopes(curve.loss, cosines))
    axis.plot(
      cosines, slopes, color=curve.color, linewidth=1.2, label=curve.label
    )
    # What has no bound at a cosine of 1 or -1 leaves the panel.
    inner = slopes[np.abs(cosines) < 0.9]
    if np.abs(slopes).max() < 2 * np.abs(inner).max():
      inner = slopes
    low, high = min(low, inner.min()), max(high, inner.max())
    if curve.factor != 1:
      title += f' ({curve.label} x {curve.factor})'
  axis.axhline(0.0, color='0.7', linewidth=0.6, zorder=0)
  axis.set_title(title, fontsize=8)
  axis.set_xlim(-1.0, 1.0)
  axis.set_xticks([-1.0, -0.5, 0.0, 0.5, 1.0])
  axis.tick_params(labelsize=7)
  margin = 0.08 * (high - low)
  axis.set_ylim(low - margin, high + margin)


def _slopes(loss, cosines):
  slopes = jax.jit(jax.vmap(jax.grad(loss)))
  return slopes(jnp.asarray(cosines, jnp.float32))


def _curves(name: str, row: Loss, options: Mapping[str, Any]):
  if row.kind == 'proxy':
    yield from _of_proxies(name, row)
    return
  make = _of_n_pairs if name == 'n_pairs' else _of_pairs
  alone = name in _ONE_POSITIVE
  for label, color, positives, negatives in (
    ('a positive pair', _BLUE, 1, 0),
    ('a negative pair', _RED, 0, 1),
  ):

    def cosines(c, positives=positives, negatives=negatives):
      held = [] if alone and positives else [POSITIVE]
      return [c] * positives + held, [c] * negatives + list(NEGATIVES)

    yield Curve(label, color, functools.partial(make, name, options, cosines))


def _of_pairs(name, options, cosines, c):
  """Returns the loss of one anchor."""
  positives, negatives = cosines(c)
  anchor, candidates, _ = _place(positives + negatives)
  labels = [0] * len(positives) + list(range(1, 1 + len(negatives)))
  return losses.compute(
    name,
    anchor[None, :],
    np.array([0]),
    ref_embeddings=candidates,
    ref_labels=np.array(labels),
    **options,
  )


def _of_n_pairs(name, options, cosines, c):
  """Returns the loss of one anchor, the others being apart from all."""
  positives, negatives = cosines(c)
  anchor, partners, others = _place(positives + negatives)
  labels = np.arange(len(partners))
  return losses.compute(
    name,
    jnp.concatenate([anchor[None, :], others[: len(partners) - 1]]),
    labels,
    ref_embeddings=partners,
    ref_labels=labels,
    reducer='sum',
    **options,
  )


def _place(cosines):
  """Returns an anchor, candidates at these cosines, and further directions.

  All have unit length and a mean of 0, so that the 'snr' distance is 2 - 2 c as
  the squared Euclidean one; each candidate leaves the anchor in a direction of
  its own.
  """
  count = len(cosines)
  basis = jnp.asarray(scipy.linalg.helmert(2 * count + 2), jnp.float32)
  c = jnp.stack([jnp.asarray(value, jnp.float32) for value in cosines])[:, None]
  candidates = c * basis[:1] + jnp.sqrt(1.0 - c * c) * basis[1 : count + 1]
  return basis[0], candidates, basis[count + 1 :]


def _of_proxies(name: str, row: Loss) -> Iterator[Curve]:
  def loss(cosines, c):
    found = jnp.zeros(NUM_CLASSES).at[: len(cosines(c))].set(cosines(c))
    found = found[:, None]
    basis = jnp.eye(NUM_CLASSES + 1)
    proxies = found * basis[:1] + jnp.sqrt(1.0 - found * found) * basis[1:]
    counts = [CLASS_COUNT] * NUM_CLASSES
    return losses.compute(
      name,
      LENGTH * basis[:1],
      np.array([0]),
      proxies=proxies,
      class_counts=counts if 'class_counts' in row.needs else None,
      **{row.centers[0]: 1},
    )

  own = functools.partial(loss, lambda c: jnp.stack([c]))
  other = functools.partial(loss, lambda c: jnp.stack([POSITIVE + 0.0 * c, c]))
  yield Curve('own class', _BLUE, own)
  yield Curve('another class', _RED, other, _ENLARGED.get(name, 1))
