"""AdaCos: a softmax over cosines whose scale is computed, not set."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from retrieval_jax.core import collectives
from retrieval_jax.core.class_shards import Shard, is_own, own_cosines
from retrieval_jax.losses.proxy import softmax, statistics
from retrieval_jax.losses.terms import Reducer, Terms

# The formulas give a scale of 0 or less for two classes, and one that grows
# without end while all embeddings are alike.
_LEAST, _MOST = 1.0, 1000.0


def adacos(
  cosines: jax.Array,
  labels: jax.Array,
  *,
  state: dict[str, jax.Array],
  dynamic: bool = True,
  axis_name: str | None = None,
  weights: jax.Array | None = None,
  reducer: str | Reducer = 'mean',
  shard: Shard | None = None,
) -> tuple[Terms, dict[str, jax.Array]]:
  """AdaCos: a softmax over cosines that computes its own scale.

    L_i = -log(e^{s c_iy} / sum_j e^{s c_ij})
    s = sqrt(2) log(C - 1)                                      fixed
    s = log(B) / cos(min(pi / 4, theta)),  B = mean_i sum_{j != y} e^{s' c_ij}

  The second s is the dynamic one: s' is that of the step before, which begins
  at the fixed one, and theta is the median angle of the rows with their own
  class (the lower of two). Statistics are of the whole batch, over all devices;
  no gradient goes through s. It is kept within 1 and 1000, which few classes or
  a collapsed model would leave.

  Use it when there is no time to tune a scale and a margin; it has neither.

  Cost: O(B C) time and memory, beside the product that gives the cosines; the
  dynamic one reads the cosines once more.

  Defaults: the dynamic scale; without it, the fixed one.

  Args:
    cosines: [B, C] in [-1, 1] up to rounding, any float dtype.
    labels: [B] int, the own class; negative marks padding, which is not in the
      statistics either.
    state: 'scale', a float32 scalar; see `adacos_state`.
    dynamic: whether the scale follows the batch.
    axis_name: of the devices that hold the other rows, or None.
    weights: [B] float, of the rows; the loss is divided by their sum.
    reducer: over the rows.
    shard: how the classes are shared out over devices, or None.

  Returns:
    The term 'loss', one value a row, and the next state, whose scale is what
    this loss was computed with.

  Example:
    >>> cosines = jnp.array([[0.8, 0.1, 0.0], [0.3, 0.9, 0.1]])
    >>> state = adacos_state({}, num_classes=1000)
    >>> found, state = adacos(cosines, jnp.array([0, 1]), state=state)
    >>> print(state['scale'].round(3))
    2.808

  References:
    Zhang et al., AdaCos, CVPR 2019.
  """
  cosines = cosines.astype(jnp.float32)
  scale = state['scale']
  if dynamic:
    scale = _next_scale(
      scale, lax.stop_gradient(cosines), labels, axis_name, shard
    )
  found = softmax.margin_softmax(
    cosines,
    labels,
    lambda c: c,
    scale,
    weights=weights,
    reducer=reducer,
    shard=shard,
  )
  return found, {'scale': scale}


def adacos_state(
  hyper: Mapping[str, Any], num_classes: int, *_: Any
) -> dict[str, jax.Array]:
  """Returns the fixed scale, with which the dynamic one begins too.

  Example:
    >>> print(adacos_state({}, num_classes=81313)['scale'].round(2))
    15.99
  """
  del hyper
  scale = math.sqrt(2.0) * math.log(max(num_classes - 1, 1))
  return {'scale': jnp.float32(min(max(scale, _LEAST), _MOST))}


def _next_scale(scale, cosines, labels, axis_name, shard):
  valid = labels >= 0
  others = valid[:, None] & ~is_own(cosines, labels)
  if shard is not None and shard.present is not None:
    others &= shard.present[None, :]
  logits = jnp.where(others, scale * cosines, -jnp.inf)
  # Either the rows are shared out or the columns, never both.
  axis = axis_name if shard is None else shard.axis_name
  largest = jnp.max(logits)
  if axis is not None:
    largest = lax.pmax(largest, axis)
  # With no other class the scale comes out as the least.
  largest = jnp.where(largest == -jnp.inf, 0.0, largest)
  total = collectives.psum(jnp.sum(jnp.exp(logits - largest)), axis)
  own = own_cosines(cosines, labels, shard)
  median, count = _lower_median_angle(own, valid, axis_name)
  log_mean = largest + jnp.log(total) - jnp.log(jnp.maximum(count, 1.0))
  # cos(min(pi / 4, theta)), without the angle.
  new = log_mean / jnp.maximum(median, math.sqrt(0.5))
  # Not a NaN, which clip would pass on, nor -inf, which is the least.
  new = jnp.clip(new, _LEAST, _MOST)
  return statistics.moving_average(scale, new, 0.0, count)


def _lower_median_angle(own, valid, axis_name):
  """Returns (the cosine of the median angle, number of rows)."""
  own, valid = collectives.all_gather_rows((own, valid), axis_name)
  nearest_first = -jnp.sort(jnp.where(valid, -own, jnp.inf))
  count = jnp.sum(valid.astype(jnp.int32))
  median = nearest_first[jnp.maximum(count - 1, 0) // 2]
  return median, count.astype(jnp.float32)
