"""Softmax losses whose margin follows the length of the embedding.

The length of an embedding before it is normalised tells how good the image is:
models learn to give blurred or odd images short ones.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from retrieval_jax.core.class_shards import Shard
from retrieval_jax.core.errors import InputError
from retrieval_jax.losses import terms
from retrieval_jax.losses.proxy import angles, softmax, statistics
from retrieval_jax.losses.terms import Reducer, Terms


def magface(
  cosines: jax.Array,
  labels: jax.Array,
  *,
  norms: jax.Array,
  margin_min: float = 0.45,
  margin_max: float = 0.8,
  norm_min: float = 10.0,
  norm_max: float = 110.0,
  lambda_g: float = 35.0,
  scale: float = 64.0,
  weights: jax.Array | None = None,
  reducer: str | Reducer = 'mean',
  shard: Shard | None = None,
) -> Terms:
  """MagFace: ArcFace with a margin that grows with the embedding.

    m_i = margin_min
          + (margin_max - margin_min) (a_i - norm_min) / (norm_max - norm_min)
    g_i = lambda_g (a_i / norm_max^2 + 1 / a_i),  a_i = ||x_i|| within bounds

  and then the term 'loss' is ArcFace's with m_i, and 'magnitude' is g. The
  first draws the length of an embedding down, the second draws it up, and the
  nearer an embedding is to its class the longer it gets. Beyond the bounds of
  the length neither has a gradient for it. The published code drops the margin
  where c < 0; here it is carried on as in ArcFace.

  Use it if the length of an embedding is to measure the quality of an image,
  say to weigh or reject images at search. Look at the lengths that the model
  starts with, and set the bounds around them.

  Cost: O(B C) time and memory, beside the product that gives the cosines.

  Defaults: those of the authors' training script.

  Args:
    cosines: [B, C] in [-1, 1] up to rounding, any float dtype.
    labels: [B] int, the own class; negative marks padding.
    norms: [B] float32, ||x_i||.
    margin_min: l_m of the paper, radians, in [0, pi / 2].
    margin_max: u_m, radians, in (0, pi / 2].
    norm_min: l_a, above 0.
    norm_max: u_a, above `norm_min`.
    lambda_g: the weight of g, at least 0.
    scale: above 0.
    weights: [B] float, of the rows; each term is divided by their sum.
    reducer: over the rows.
    shard: how the classes are shared out over devices, or None.

  Returns:
    The terms 'loss' and 'magnitude', one value a row each.

  Raises:
    InputError: if `norm_max` is not above `norm_min`.

  Example:
    >>> cosines = jnp.array([[0.8, 0.1], [0.8, 0.1]])
    >>> labels, norms = jnp.array([0, 0]), jnp.array([10.0, 110.0])
    >>> found = magface(cosines, labels, norms=norms, scale=8.0)
    >>> print(found['loss'][0].round(4), found['magnitude'][0].round(1))
    [0.0549 0.5911] [3.5 0.6]

  References:
    Meng et al., MagFace, CVPR 2021.
  """
  if norm_max <= norm_min:
    raise InputError(
      f'loss.norm_max is {norm_max!r}; allowed is above loss.norm_min, '
      f'{norm_min!r}: set both'
    )
  length = jnp.clip(norms.astype(jnp.float32), norm_min, norm_max)
  slope = (margin_max - margin_min) / (norm_max - norm_min)
  margins = margin_min + slope * (length - norm_min)
  found = softmax.margin_softmax(
    cosines,
    labels,
    lambda c: angles.add_margin(c, margins),
    scale,
    weights=weights,
    reducer=reducer,
    shard=shard,
  )
  magnitude = lambda_g * (length / norm_max**2 + 1.0 / length)
  if weights is not None:
    weights = weights.astype(jnp.float32)
  found['magnitude'] = terms.reduce_row(
    magnitude, labels >= 0, reducer, weights
  )
  return found


def adaface(
  cosines: jax.Array,
  labels: jax.Array,
  *,
  norms: jax.Array,
  state: dict[str, jax.Array],
  margin: float = 0.4,
  h: float = 0.333,
  decay: float = 0.99,
  scale: float = 64.0,
  axis_name: str | None = None,
  weights: jax.Array | None = None,
  reducer: str | Reducer = 'mean',
  shard: Shard | None = None,
) -> tuple[Terms, dict[str, jax.Array]]:
  """AdaFace: hard rows weigh more if the image is good, less if it is not.

    k_i = clip(h (a_i - mean) / (std + 0.001), -1, 1),  a_i = ||x_i||
    t = cos(clip(theta - margin k, 0, pi)) - (margin + margin k)

  t takes the place of the own cosine in the softmax. k = -1 is ArcFace, 0 is
  CosFace, and 1 an ArcFace with a negative angle. Mean and deviation of the
  lengths a_i, each within [0.001, 100], are moving averages over batches that
  begin at 20 and 100. No gradient goes through them, nor through k; where the
  angle is clipped, none goes through the angle.

  Use it on images of mixed quality (surveillance, web photographs) where some
  cannot be recognised at all, against ArcFace, which pulls at those hardest.

  Cost: O(B C) time and memory, beside the product that gives the cosines.

  Defaults: those of the authors' training scripts. There the decay is 1 less
  `t_alpha`, 0.01; their head class alone has a `t_alpha` of 1, and no memory.

  Args:
    cosines: [B, C] in [-1, 1] up to rounding, any float dtype.
    labels: [B] int, the own class; negative marks padding, which is not in the
      statistics either.
    norms: [B] float32, ||x_i||.
    state: 'mean' and 'std', float32 scalars; see `adaface_state`.
    margin: m of the paper, radians and cosine, in (0, 1].
    h: how much of the batch lies within the clip, above 0.
    decay: of the moving averages, in [0, 1), 0 being the batch alone.
    scale: above 0.
    axis_name: of the devices that hold the other rows, or None.
    weights: [B] float, of the rows; the loss is divided by their sum.
    reducer: over the rows.
    shard: how the classes are shared out over devices, or None.

  Returns:
    The term 'loss', one value a row, and the next state, which is what this
    loss was computed with.

  Example:
    >>> cosines = jnp.array([[0.8, 0.1], [0.8, 0.1]])
    >>> labels, norms = jnp.array([0, 0]), jnp.array([5.0, 15.0])
    >>> found, state = adaface(
    ...   cosines, labels, norms=norms, state=adaface_state(), decay=0.0
    ... )
    >>> print(state['mean'], state['std'].round(3))
    10.0 7.071

  References:
    Kim et al., AdaFace, CVPR 2022.
  """
  lengths = lax.stop_gradient(jnp.clip(norms.astype(jnp.float32), 1e-3, 100.0))
  valid = labels >= 0
  mean, count = statistics.batch_mean(lengths, valid, axis_name)
  square, _ = statistics.batch_mean((lengths - mean) ** 2, valid, axis_name)
  std = jnp.sqrt(square * count / jnp.maximum(count - 1.0, 1.0))
  state = {
    name: statistics.moving_average(state[name], new, decay, count)
    for name, new in (('mean', mean), ('std', std))
  }
  k = (lengths - state['mean']) / (state['std'] + 1e-3)
  k = jnp.clip(h * k, -1.0, 1.0)

  def target(cosine):
    added = -margin * k
    theta = angles.angle(lax.stop_gradient(cosine)) + added
    moved = cosine * jnp.cos(added) - angles.sine(cosine) * jnp.sin(added)
    moved = jnp.where(theta > math.pi, -1.0, moved)
    moved = jnp.where(theta < 0.0, 1.0, moved)
    return moved - (margin + margin * k)

  found = softmax.margin_softmax(
    cosines,
    labels,
    target,
    scale,
    weights=weights,
    reducer=reducer,
    shard=shard,
  )
  return found, state


def adaface_state(*_: Any) -> dict[str, jax.Array]:
  """Returns the statistics before the first batch, those of the paper's code.

  Example:
    >>> {name: value.item() for name, value in adaface_state().items()}
    {'mean': 20.0, 'std': 100.0}
  """
  return {'mean': jnp.float32(20.0), 'std': jnp.float32(100.0)}
