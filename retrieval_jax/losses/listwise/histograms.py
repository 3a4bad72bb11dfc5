"""Losses on soft histograms of similarities: FastAP and the histogram loss."""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from retrieval_jax.core.distances import Distance
from retrieval_jax.core.errors import InputError
from retrieval_jax.losses.terms import Reducer, Terms, row_term

SQUARED_LP = Distance('lp', power=2)
COSINE = Distance('cosine')


def fast_ap(
  distances: jax.Array,
  positives: jax.Array,
  negatives: jax.Array,
  *,
  num_bins: int = 10,
  distance: Distance = SQUARED_LP,
  reducer: str | Reducer = 'mean',
) -> Terms:
  """FastAP: 1 - average precision, by soft histograms of the distances.

    L_a = 1 - (1 / |P|) sum_r h+_r H+_r / H_r
    h_r = sum_j max(0, 1 - |d_j - r Delta| / Delta),  r = 0 .. num_bins

  h+ is over the positives, H+ and H are the sums up to r over the positives and
  over all; Delta is the largest distance over num_bins.

  Use it when the metric is mAP and batches are large: time does not grow with
  the number of positives, unlike `smooth_ap`'s. Positives and negatives within
  one bin are not told apart.

  Cost: O(B G num_bins) time, O(B G) memory.

  Defaults: PML's.

  Args:
    distances: [B, G] of anchors and candidates, any float dtype.
    positives: [B, G] bool, the pairs of one class, without the row itself.
    negatives: [B, G] bool, the pairs of two classes.
    num_bins: of the histograms, at least 1.
    distance: what `distances` are, 'lp' of unit rows with p = 2; its power says
      the largest one, 2 ** power.
    reducer: over the anchors that have a positive.

  Returns:
    The term 'loss', one value a row.

  Raises:
    InputError: for a distance of other rows, which has no largest value.

  Example:
    >>> d = jnp.array([[0.2, 1.0, 0.6, 1.8]])
    >>> positives = jnp.array([[True, True, False, False]])
    >>> values, counts = fast_ap(d, positives, ~positives)['loss']
    >>> print([f'{value:.4f}' for value in values], counts)
    ['0.2667'] [1.]

  References:
    Cakir et al., Deep Metric Learning to Rank, CVPR 2019.
  """
  if distance.p != 2 or not distance.normalize:
    raise InputError(
      f'distance.p is {distance.p:g} and distance.normalize is '
      f"{distance.normalize} with loss 'fast_ap'; allowed are 2 and True: its "
      'bins end at the largest distance on the unit sphere'
    )
  delta = 2.0**distance.power / num_bins
  d = distances.astype(jnp.float32)

  def histogram(mask):
    outside = jnp.where(mask, d, jnp.inf).T
    return soft_histogram(outside, None, 0.0, delta, num_bins)

  of_positives = histogram(positives)
  below = jnp.cumsum(of_positives, axis=0)
  all_below = below + jnp.cumsum(histogram(negatives), axis=0)
  # Compared so that a NaN stays.
  filled = ~(of_positives * below <= 0)
  precisions = jnp.where(
    filled, of_positives * below / jnp.where(filled, all_below, 1.0), 0.0
  )
  numbers = jnp.sum(positives, axis=1)
  valid = numbers > 0
  values = jnp.sum(precisions, axis=0) / jnp.where(valid, numbers, 1)
  return row_term(1.0 - values, valid, reducer)


def histogram(
  embeddings: jax.Array,
  candidates: jax.Array,
  positives: jax.Array,
  negatives: jax.Array,
  *,
  n_bins: int | None = None,
  delta: float | None = None,
  distance: Distance = COSINE,
  ids: jax.Array | None = None,
  candidate_ids: jax.Array | None = None,
  reducer: str | Reducer = 'mean',
) -> Terms:
  """Histogram loss: how probable it is that a negative pair is the nearer one.

    L = sum_r p-_r sum_{q <= r} p+_q
    p_r = mean over pairs of max(0, 1 - |s - t_r| / delta)
    t_r = -1 + r delta,  r = 0 .. 2 / delta

  p+ and p- are the soft histograms of the similarities of all positive and all
  negative pairs of the batch. As in PML a pair is there once, not once from
  each side, and only if one of its anchors has positives and negatives. (PML
  fails at a cosine of exactly 1, as of duplicates: its last bin is missing.
  Here it is the end of the last bin.)

  Use it where margins and temperatures are hard to choose: it has none. It
  looks at all pairs at once, so that few bad pairs weigh little; batches should
  hold many positive pairs.

  Cost: O(B G / delta) time, O(B G) memory, for the whole batch on every device.

  Defaults: PML's.

  Args:
    embeddings: [B, D] of the whole batch, any float dtype.
    candidates: [G, D] what they are compared with.
    positives: [B, G] bool, the pairs of one class, without the row itself.
    negatives: [B, G] bool, the pairs of two classes.
    n_bins: R, at least 1; None: 100, if `delta` is None too.
    delta: width of a bin, 2 / n_bins, so that it divides 2; None: by `n_bins`.
    distance: the similarity, with values in [-1, 1].
    ids: [B] int of the anchors, and
    candidate_ids: [G] int of the candidates, equal for a row and itself; None:
      no candidate is an anchor.
    reducer: without effect but for 'sum', which adds the value of the batch
      once for each anchor.

  Returns:
    The term 'loss': for each anchor with positives and negatives, the value of
    the batch.

  Raises:
    InputError: if n_bins and delta contradict each other, or delta does not
      divide 2.

  Example:
    >>> x = jnp.array([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0], [-0.6, 0.8]])
    >>> positives = jnp.array([[0, 1, 0, 0], [1, 0, 0, 0],
    ...                        [0, 0, 0, 1], [0, 0, 1, 0]], bool)
    >>> negatives = ~positives & ~jnp.eye(4, dtype=bool)
    >>> values, _ = histogram(x, x, positives, negatives, n_bins=20)['loss']
    >>> [f'{value:.4f}' for value in values]
    ['0.2500', '0.2500', '0.2500', '0.2500']

  References:
    Ustinova and Lempitsky, Learning Deep Embeddings with Histogram Loss,
    NIPS 2016.
  """
  num_bins = _num_bins(n_bins, delta)
  valid = jnp.any(positives, axis=1) & jnp.any(negatives, axis=1)
  sides = jnp.where(valid, 1.0, 0.0)[:, None]
  if ids is not None and candidate_ids is not None:
    # A pair that is met from both sides counts half at each.
    same = (ids[:, None] == candidate_ids[None, :]) & valid[:, None]
    sides = sides / jnp.where(jnp.any(same, axis=0), 2.0, 1.0)[None, :]
  s = distance.matrix(embeddings, candidates)

  def density(mask):
    mask &= valid[:, None]
    pairs = jnp.where(mask, s, jnp.inf).T
    weights = jnp.where(mask, sides, 0.0).T
    found = soft_histogram(pairs, weights, -1.0, 2.0 / num_bins, num_bins)
    total = jnp.sum(weights)
    return jnp.sum(found, axis=1) / jnp.where(total > 0, total, 1.0)

  value = jnp.sum(density(negatives) * jnp.cumsum(density(positives)))
  return row_term(jnp.broadcast_to(value, valid.shape), valid, reducer)


def _num_bins(n_bins, delta):
  if delta is None:
    return 100 if n_bins is None else n_bins
  fitting = round(2.0 / delta)
  if abs(fitting * delta - 2.0) > 1e-6 or fitting < 1:
    raise InputError(
      f'loss.delta is {delta!r}; allowed is 2 / n_bins, of a whole n_bins: set '
      f'loss.n_bins to {max(fitting, 1)} instead'
    )
  if n_bins is not None and n_bins != fitting:
    raise InputError(
      f'loss.n_bins is {n_bins!r} and loss.delta is {delta!r}; allowed is '
      'delta = 2 / n_bins: leave one of them out'
    )
  return fitting


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def soft_histogram(
  values: jax.Array,
  weights: jax.Array | None,
  low: float,
  delta: float,
  num_bins: int,
) -> jax.Array:
  """Shares each value between the two nearest nodes low + r delta.

  Args:
    values: [N, B] float32; inf is left out, and what is outside the nodes by
      rounding belongs to the last one.
    weights: [N, B] float32 without gradient, or None for 1.
    low: the first node.
    delta: between two nodes.
    num_bins: R; there are R + 1 nodes.

  Returns:
    [R + 1, B] float32, of each column. (A node at a time: adding each value
    where it belongs, a scatter, is not made of vector instructions.)

  Example:
    >>> values = jnp.array([[0.25], [1.0], [jnp.inf]])
    >>> soft_histogram(values, None, 0.0, 1.0, 2).ravel().tolist()
    [0.75, 1.25, 0.0]
  """
  values = _clip(values, low, delta, num_bins)

  def add_node(r, found):
    near = 1.0 - jnp.abs(values - (low + delta * r)) * (1.0 / delta)
    near = jnp.maximum(near, 0.0)
    if weights is not None:
      near *= weights
    return lax.dynamic_update_index_in_dim(found, jnp.sum(near, axis=0), r, 0)

  found = jnp.zeros((num_bins + 1,) + values.shape[1:], values.dtype)
  return lax.fori_loop(0, num_bins + 1, add_node, found)


def _soft_histogram_forward(values, weights, low, delta, num_bins):
  found = soft_histogram(values, weights, low, delta, num_bins)
  return found, (values, weights)


def _soft_histogram_backward(low, delta, num_bins, saved, gradient):
  values, weights = saved
  inside = values < jnp.inf
  bins = jnp.floor((jnp.where(inside, values, low) - low) * (1.0 / delta))
  bins = jnp.clip(bins.astype(jnp.int32), 0, num_bins - 1)
  slopes = (gradient[1:] - gradient[:-1]) * (1.0 / delta)
  slopes = jnp.take_along_axis(slopes, bins, axis=0, mode='clip')
  slopes = jnp.where(inside, slopes, 0.0)
  if weights is None:
    return slopes, None
  return slopes * weights, jnp.zeros_like(weights)


soft_histogram.defvjp(_soft_histogram_forward, _soft_histogram_backward)


def _clip(values, low, delta, num_bins):
  """Returns the values between the first and the last node; inf stays."""
  clipped = jnp.clip(values, low, low + delta * num_bins)
  return jnp.where(values == jnp.inf, values, clipped)
