"""Softmax losses that change the logits of the other classes too."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from retrieval_jax.core.class_shards import Shard, own_cosines
from retrieval_jax.losses.proxy import angles, softmax, statistics
from retrieval_jax.losses.terms import Reducer, Terms


def circle_classification(
  cosines: jax.Array,
  labels: jax.Array,
  *,
  margin: float = 0.25,
  scale: float = 256.0,
  stop_gradient: bool = True,
  label_smoothing: float = 0.0,
  weights: jax.Array | None = None,
  reducer: str | Reducer = 'mean',
  shard: Shard | None = None,
) -> Terms:
  """Circle loss with class labels: each logit weighted by how far it is off.

    L_i = -log(e^{z_iy} / (e^{z_iy} + sum_{j != y} e^{z_ij}))
    z_iy = scale max(0, 1 + margin - c_iy) (c_iy - (1 - margin))
    z_ij = scale max(0, c_ij + margin) (c_ij - margin)

  The weights max(0, .) carry no gradient, unless `stop_gradient` is False: the
  paper's analysis and PML's pair version hold them fixed, some codes do not.

  Use it against ArcFace when a class should stop pulling at the rows that are
  near it already: the gradient fades towards the optimum by itself.

  Cost: O(B C) time and memory, beside the product that gives the cosines.

  Defaults: the paper's for faces; for person re-identification it has 0.25 and
  a scale of 128, for fine-grained retrieval 0.4 and 80.

  Args:
    cosines: [B, C] in [-1, 1] up to rounding, any float dtype.
    labels: [B] int, the own class; negative marks padding.
    margin: m of the paper, in (0, 1].
    scale: gamma of the paper, above 0.
    stop_gradient: whether the weights carry no gradient.
    label_smoothing: in [0, 1), the share of the target that is spread over all
      classes; see `softmax.margin_softmax`.
    weights: [B] float, of the rows; the loss is divided by their sum.
    reducer: over the rows.
    shard: how the classes are shared out over devices, or None.

  Returns:
    The term 'loss', one value a row.

  Example:
    >>> cosines = jnp.array([[0.8, 0.1], [0.3, 0.4]])
    >>> labels = jnp.array([0, 1])
    >>> terms = circle_classification(cosines, labels, scale=8.0)
    >>> [f'{value:.2f}' for value in terms['loss'][0]]
    ['0.44', '2.67']

  References:
    Sun et al., Circle Loss, CVPR 2020, eq. 4 to 6.
  """
  cosines = cosines.astype(jnp.float32)
  fixed = lax.stop_gradient if stop_gradient else lambda c: c
  own = own_cosines(cosines, labels, shard)
  own_weights = scale * jax.nn.relu(1.0 + margin - fixed(own))
  other_weights = scale * jax.nn.relu(fixed(cosines) + margin)
  return softmax.softmax_terms(
    other_weights * (cosines - margin),
    labels,
    own_weights * (own - (1.0 - margin)),
    label_smoothing=label_smoothing,
    weights=weights,
    reducer=reducer,
    shard=shard,
  )


def curricularface(
  cosines: jax.Array,
  labels: jax.Array,
  *,
  state: dict[str, jax.Array],
  margin: float = 0.5,
  decay: float = 0.99,
  scale: float = 64.0,
  axis_name: str | None = None,
  weights: jax.Array | None = None,
  reducer: str | Reducer = 'mean',
  shard: Shard | None = None,
) -> tuple[Terms, dict[str, jax.Array]]:
  """CurricularFace: hard classes weigh more as training goes on.

    z_iy = scale t_i,  t_i as in ArcFace
    z_ij = scale c_ij              if c_ij <= cos(theta_iy + margin)
    z_ij = scale c_ij (t + c_ij)   otherwise: j is a hard class for row i

  z are the logits of a softmax. t is a moving average of the own cosines of the
  batch that begins at 0: early on hard classes count less than they would in
  ArcFace, later more. No gradient goes through t, nor through the choice of
  the line.

  Use it instead of ArcFace for long runs on clean data; wrong labels become
  hard classes, and weigh more too.

  Cost: O(B C) time and memory, beside the product that gives the cosines.

  Defaults: those of the authors' code.

  Args:
    cosines: [B, C] in [-1, 1] up to rounding, any float dtype.
    labels: [B] int, the own class; negative marks padding, which is not in the
      average either.
    state: 't', a float32 scalar; see `curricularface_state`.
    margin: m, radians, in (0, pi / 2].
    decay: of the moving average, in [0, 1), 0 being the batch alone.
    scale: above 0.
    axis_name: of the devices that hold the other rows, or None.
    weights: [B] float, of the rows; the loss is divided by their sum.
    reducer: over the rows.
    shard: how the classes are shared out over devices, or None.

  Returns:
    The term 'loss', one value a row, and the next state, which is what this
    loss was computed with.

  Example:
    >>> cosines = jnp.array([[0.8, 0.1], [0.4, 0.4]])
    >>> found, state = curricularface(
    ...   cosines, jnp.array([0, 1]), state=curricularface_state(), scale=8.0
    ... )
    >>> [f'{value:.3f}' for value in found['loss'][0]], f'{state["t"]:.3f}'
    (['0.078', '2.132'], '0.006')

  References:
    Huang et al., CurricularFace, CVPR 2020.
  """
  cosines = cosines.astype(jnp.float32)
  own = own_cosines(cosines, labels, shard)
  mean, count = statistics.batch_mean(own, labels >= 0, axis_name)
  t = statistics.moving_average(state['t'], mean, decay, count)
  # Not the continued one: it says where the boundary of the class is.
  boundary = own * math.cos(margin) - angles.sine(own) * math.sin(margin)
  hard = cosines > boundary[:, None]
  found = softmax.softmax_terms(
    scale * jnp.where(hard, cosines * (t + cosines), cosines),
    labels,
    scale * angles.add_margin(own, margin),
    weights=weights,
    reducer=reducer,
    shard=shard,
  )
  return found, {'t': t}


def curricularface_state(*_: Any) -> dict[str, jax.Array]:
  """Returns the average before the first batch.

  Example:
    >>> curricularface_state()['t'].item()
    0.0
  """
  return {'t': jnp.float32(0.0)}
