"""Triplets with a wide angle at the negative."""

import math

import jax
import jax.numpy as jnp
from jax import lax

from retrieval_jax.core.distances import Distance
from retrieval_jax.core.errors import InputError
from retrieval_jax.losses.mining.counting import take
from retrieval_jax.losses.mining.triplets import Selected

# PML's miner measures between rows as they are.
RAW = Distance('lp', normalize=False)


def angular_miner(
  distances: jax.Array,
  positives: jax.Array,
  negatives: jax.Array,
  *,
  candidates: jax.Array,
  distance: Distance = RAW,
  angle: float = 20.0,
) -> Selected:
  """Triplets whose angle at the negative is above a threshold.

    arctan(||a - p|| / (2 ||n - c||)) > angle,  c = (a + p) / 2

  Embeddings are taken as they are: PML's AngularMiner measures between raw
  embeddings, though it asks for a distance that normalises. Set
  distance={'name': 'lp'} for unit rows, as the paper has them. Nothing carries
  a gradient.

  Use it in front of the triplet or the angular loss, where classes differ in
  how far they spread: an angle does not depend on the scale.

  Cost: O(B P G D) time of a row block (P positives of a row), as matrix
  products; O(B G) memory.

  Defaults: PML's.

  Args:
    distances: [B, G] of anchors and candidates.
    positives: [B, G] bool, not looked at.
    negatives: [B, G] bool, not looked at.
    candidates: [G, D].
    distance: what the matrix is of, 'lp' with p=2.
    angle: in degrees, in (0, 90).

  Returns:
    The triplets above the angle.

  Raises:
    InputError: for p other than 2.

  References:
    Wang et al., Deep Metric Learning with Angular Loss, ICCV 2017.
  """
  del positives, negatives
  if distance.p != 2:
    raise InputError(
      f'miner.distance.p is {distance.p!r}; allowed is 2: the angle of '
      "'angular' is of the plane, set miner.distance.p=2"
    )
  matrix = lax.stop_gradient(distances.astype(jnp.float32))
  square = matrix ** (2.0 / distance.power)
  between = Distance('lp', power=2, normalize=distance.normalize)
  # ap^2 > 4 tan^2 nc^2, with nc by the median of the triangle.
  factor = 4.0 * math.tan(math.radians(angle)) ** 2

  def select(columns, arrays):
    square, candidates = arrays
    others = candidates[columns.reshape(-1)]
    square_pn = between.matrix(others, candidates)
    square_pn = square_pn.reshape(*columns.shape, len(candidates))
    square_ap = take(square, columns)[:, :, None]
    square_nc = 0.5 * (square[:, None, :] + square_pn) - 0.25 * square_ap
    return square_ap > factor * jax.nn.relu(square_nc)

  return Selected(select, (square, lax.stop_gradient(candidates)))
