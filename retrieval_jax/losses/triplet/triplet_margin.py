"""The triplet margin loss, over all triplets of a batch without a cube.

Which triplets are active is a piecewise constant function of the distances, so
it enters the loss and its gradient only through counts. With n_ap the number
of active negatives of the pair (a, p) and m_an that of active positives of the
pair (a, n), neither of which carries a gradient,

  sum over active (a, p, n) of (d_ap - d_an + margin)
    = sum_ap n_ap (d_ap + margin) - sum_an m_an d_an

and the gradient with respect to the distances is exactly n_ap and -m_an. What
no counts can say (softplus, swap, triplets of another distance) is summed over
a few positives of each anchor at a time.
"""

import jax
import jax.numpy as jnp
from jax import lax

from retrieval_jax.core.distances import EUCLIDEAN, Distance
from retrieval_jax.losses.mining.counting import (
  count_triplets,
  sum_over_positives,
  take,
)
from retrieval_jax.losses.mining.sampled import random_triplets
from retrieval_jax.losses.mining.triplets import Bounds, Listed, Triplets
from retrieval_jax.losses.terms import (
  Reducer,
  Terms,
  reduce_row,
  row_means,
  row_term,
)

# The matrix holds so many times what a few triplets ask for.
_FEW = 16


def triplet_margin(
  distances: jax.Array,
  positives: jax.Array,
  negatives: jax.Array,
  *,
  triplets: Triplets | None = None,
  margin: float = 0.05,
  swap: bool = False,
  smooth_loss: bool = False,
  triplets_per_anchor: int | str = 'all',
  distance: Distance = EUCLIDEAN,
  anchors: jax.Array | None = None,
  candidates: jax.Array | None = None,
  row_keys: jax.Array | None = None,
  reducer: str | Reducer = 'nonzero_mean',
) -> Terms:
  """Triplet margin loss over all triplets, in O(B G) memory.

    L = mean over (a, p, n) of max(0, d_ap - d_an + margin)

  With `swap`, d_an is min(d_an, d_pn); with `smooth_loss`, max(0, x) is
  log(1 + exp(x)). Of a similarity s, d is -s.

  Use it for retrieval with few images of many classes, and with a miner of
  semihard triplets at the start; against the pair losses, it asks for an order
  and not for a distance.

  Cost: O(B G P) time (P the width of the columns that hold the positives of a
  row: order the candidates by class and P is the size of a class), O(B G)
  memory. `swap` makes that O(B G P D), as matrix products.

  Defaults: PML 2.9's; PML 3 has a `margin` of 0.2.

  Args:
    distances: [B, G] of anchors and candidates, any float dtype.
    positives: [B, G] bool, the pairs of one class, without the row itself.
    negatives: [B, G] bool, the pairs of two classes.
    triplets: of a triplet miner; None uses all.
    margin: in the unit of the distances, at least 0.
    swap: whether the negative may be compared with the positive instead of the
      anchor, if it is nearer to that.
    smooth_loss: whether the hinge is smooth; no triplet is then without loss.
    triplets_per_anchor: 'all', or how many are drawn of each anchor, uniformly
      with replacement; `triplets` are always all used.
    distance: what the matrix is of.
    anchors: [B, D], with `candidates`: a few listed triplets are then measured
      by themselves, and nothing of the matrix is needed. None takes the matrix.
    candidates: [G, D], with `swap` or `anchors`.
    row_keys: [B] random keys, with a number of `triplets_per_anchor`.
    reducer: 'nonzero_mean' divides by the triplets with a loss above 0, 'mean'
      by all that are used, 'per_anchor' (which PML refuses) takes the mean over
      anchors of the mean over their used triplets.

  Returns:
    The term 'loss', the sum and the number of the triplets of a row.

  Example:
    >>> d = jnp.array([[0.0, 0.5, 0.375, 0.9]])
    >>> positives = jnp.array([[False, True, False, False]])
    >>> negatives = jnp.array([[False, False, True, True]])
    >>> terms = triplet_margin(d, positives, negatives, margin=0.125)
    >>> values, counts = terms['loss']
    >>> print(values, counts)
    [0.25] [1.]

  References:
    Schroff et al., FaceNet, CVPR 2015, eq. 3; Balntas et al., Learning local
    feature descriptors with triplets, BMVC 2016 (swap).
  """
  reducer = Reducer(reducer) if isinstance(reducer, str) else reducer
  d = jnp.where(positives | negatives, distances.astype(jnp.float32), 0.0)
  d = _apart(distance, d)
  if not d.size:
    return {'loss': (jnp.sum(d, axis=1), jnp.zeros(d.shape[0]))}
  if triplets is None and triplets_per_anchor != 'all':
    triplets = random_triplets(
      positives, negatives, row_keys, triplets_per_anchor
    )
  if isinstance(triplets, Listed):
    is_few = anchors is not None
    is_few &= _FEW * triplets.used.shape[1] <= d.shape[1]

    def measure(columns):
      if not is_few:
        return take(d, columns)
      return _measure(
        distance, lambda column: (anchors, candidates[column]), columns.T
      )

    return _listed(
      measure,
      triplets,
      margin,
      swap,
      smooth_loss,
      distance,
      candidates,
      reducer,
    )
  counted = triplets is None or (
    isinstance(triplets, Bounds) and triplets.distance == distance
  )
  if counted and not swap and not smooth_loss:
    values, counts = _counted(
      d, positives, negatives, triplets, margin, reducer
    )
  else:
    values, counts = _summed(
      d,
      positives,
      negatives,
      triplets,
      margin,
      swap,
      smooth_loss,
      distance,
      candidates,
      reducer,
    )
  if reducer.name == 'per_anchor':
    values, counts = row_means(values, counts)
  # A NaN is in no interval; it must not pass for a row without triplets.
  lost = jnp.isnan(jnp.sum(d, axis=1))
  values = jnp.where(lost, jnp.nan, values)
  return {'loss': (values, jnp.where(lost, jnp.maximum(counts, 1.0), counts))}


def _counted(d, positives, negatives, bounds, margin, reducer):
  """Returns (values, counts) of the hinge, by counts of triplets."""
  fixed = lax.stop_gradient(d)
  bound = fixed + margin
  least, most = (None, None) if bounds is None else bounds.arrays[1:]

  def under(upper):
    return upper if most is None else jnp.minimum(most, upper)

  def count(lower, upper):
    return count_triplets(fixed, positives, negatives, lower, upper)

  # d_an < d_ap + margin, as a closed bound.
  active = jnp.nextafter(bound, -jnp.inf)
  lower, of_loss = least, True
  if reducer.name == 'threshold':
    low, high = reducer.low, reducer.high
    if low is not None and low >= 0:
      active = jnp.nextafter(bound - low, -jnp.inf)
    else:
      of_loss = False
    if high is not None:
      over = bound - high if high > 0 else jnp.full_like(bound, jnp.inf)
      lower = over if least is None else jnp.maximum(least, over)
  elif reducer.name != 'nonzero_mean':
    of_loss = False

  per_positive, per_negative = count(lower, under(active))
  number = jnp.sum(per_positive, axis=1)
  values = jnp.sum((per_positive - per_negative) * d, axis=1)
  values += margin * number
  if of_loss:
    return values, number
  if lower is None and most is None:
    used = jnp.sum(positives, axis=1) * jnp.sum(negatives, axis=1)
    return values, used.astype(jnp.float32)
  used, _ = count(lower, under(jnp.full_like(bound, jnp.inf)))
  return values, jnp.sum(used, axis=1)


def _summed(
  d,
  positives,
  negatives,
  triplets,
  margin,
  swap,
  smooth_loss,
  distance,
  candidates,
  reducer,
):
  """Returns (values, counts), every triplet looked at."""
  select = None if triplets is None else triplets.select
  inner = Reducer('mean') if reducer.name == 'per_anchor' else reducer

  def add(columns, valid, fixed, operands):
    negatives, arrays = fixed
    d, candidates = operands
    used = valid[:, :, None] & negatives[:, None, :]
    if select is not None:
      used &= select(columns, arrays)
    far = d[:, None, :]
    if swap:
      others = candidates[columns.reshape(-1)]
      between = _apart(distance, distance.matrix(others, candidates))
      far = jnp.minimum(far, between.reshape(*columns.shape, len(candidates)))
    gaps = take(d, columns)[:, :, None] - far + margin
    return reduce_row(_hinge(gaps, smooth_loss), used, inner)

  arrays = None if triplets is None else lax.stop_gradient(triplets.arrays)
  operands = (d, candidates if swap else None)
  return sum_over_positives(add, positives, (negatives, arrays), operands)


def _measure(distance, pick, columns):
  """Returns [B, T], how far two rows are apart.

  Args:
    distance: of them.
    pick: a column [B] (or several) -> the two, [B, D] each.
    columns: [T, B] int (or several).
  """

  @jax.checkpoint
  def of(column):
    return distance.paired(*pick(column))

  return _apart(distance, lax.map(of, columns).T)


def _apart(distance, values):
  """Returns the distance that a similarity stands for; others are one."""
  return -values if distance.inverted else values


def _listed(
  measure, triplets, margin, swap, smooth_loss, distance, candidates, reducer
):
  """Returns the term of triplets that are listed."""
  far = measure(triplets.negatives)
  if swap:
    between = _measure(
      distance,
      lambda pair: (candidates[pair[0]], candidates[pair[1]]),
      (triplets.positives.T, triplets.negatives.T),
    )
    far = jnp.minimum(far, between)
  gaps = measure(triplets.positives) - far + margin
  return row_term(_hinge(gaps, smooth_loss), triplets.used, reducer)


def _hinge(gaps, smooth_loss):
  return jax.nn.softplus(gaps) if smooth_loss else jax.nn.relu(gaps)
