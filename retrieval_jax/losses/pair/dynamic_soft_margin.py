"""Dynamic soft margin: triplets weighted by the distribution of their kind."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from retrieval_jax.core.distances import Distance
from retrieval_jax.losses.pair import sums
from retrieval_jax.losses.terms import Reducer, Terms

_DISTANCE = Distance('lp')


def dynamic_soft_margin(
  embeddings: jax.Array,
  candidates: jax.Array,
  positives: jax.Array,
  negatives: jax.Array,
  *,
  min_val: float = -2.0,
  num_bins: int = 10,
  momentum: float = 0.01,
  state: Mapping[str, jax.Array] | None = None,
  distance: Distance = _DISTANCE,
  reducer: str | Reducer = 'mean',
) -> tuple[Terms, dict[str, jax.Array]]:
  """Dynamic soft margin: a triplet weighs as much as it is harder than others.

    L = mean over (a, p, n) of w(x) x,   x = d_ap - d_an
    w(x) = sum of the histogram over the bins up to that of x

  with the histogram h of past x, each x shared by the two bins around it:

    h <- normalised((1 - momentum) h + momentum (triplets of each bin))

  As in PML the batch is added by its number of triplets and the past by 1, so
  that many triplets outweigh it; the first batch is taken whole. The weights
  carry no gradient, as in the paper. (PML differentiates its histogram, keeps
  the graph of the step before, and so fails in the second step; it also fails
  for an x in the last bin, which here is counted in that bin alone. Values
  agree.)

  Use it where a margin would have to be tuned, as with local descriptors: it
  has none.

  Cost: O(B G (D + P num_bins)) time with P the positives of an anchor, and
  O(B G) memory; triplets are counted, not listed.

  Defaults: PML's.

  Args:
    embeddings: [B, D] of all anchors, any float dtype.
    candidates: [G, D] likewise.
    positives: [B, G] bool, the pairs of one class, without the row itself.
    negatives: [B, G] bool, the pairs of two classes.
    min_val: the least x there is, below 0; the bins end at -min_val.
    num_bins: of the histogram.
    momentum: of a triplet of this batch in the histogram, in (0, 1].
    state: {'histogram'}, [num_bins] float32, all 0 before the first step. None
      is that.
    distance: of the embeddings.
    reducer: without effect, as in PML: the mean is over all triplets.

  Returns:
    (terms, next state): the term 'loss', the sum and the number of a row's
    triplets, and the histogram with this batch in it. A batch without triplets,
    or with a NaN, leaves the histogram as it is.

  Example:
    >>> x = jnp.array([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]])
    >>> positives = jnp.array([[0, 1, 0], [1, 0, 0], [0, 0, 0]], bool)
    >>> negatives = jnp.array([[0, 0, 1], [0, 0, 1], [1, 1, 0]], bool)
    >>> terms, state = dynamic_soft_margin(x, x, positives, negatives)
    >>> [f'{mass:.2f}' for mass in state['histogram'][3:6]]
    ['0.48', '0.35', '0.17']

  References:
    Zhang and Rusinkiewicz, Learning Local Descriptors with a CDF-Based Dynamic
    Soft Margin, ICCV 2019.
  """
  del reducer
  width = 2.0 * abs(min_val) / num_bins
  edges = [min_val + k * width for k in range(num_bins)]
  has_both = jnp.any(positives, axis=1) & jnp.any(negatives, axis=1)
  counts = jnp.sum(positives, axis=1, dtype=jnp.float32)
  counts *= jnp.sum(negatives, axis=1, dtype=jnp.float32)
  # Rows of one kind of pair have no triplet.
  rows = (
    embeddings,
    positives & has_both[:, None],
    negatives & has_both[:, None],
  )
  fixed = tuple(map(lax.stop_gradient, rows))

  def sum_ramps(x, positives, negatives):
    far, near, num_slots = _slots(
      distance.matrix(x, fixed_candidates), positives, negatives
    )

    # The share of a triplet in the bins above k is a ramp that rises from 0 at
    # the edge of bin k to 1 at the next one. -inf is no triplet.
    def add(i, ramps):
      gap = near(i)[1] - far
      return ramps + jnp.stack(
        [
          jnp.sum(jnp.clip((gap - edge) / width, 0.0, 1.0), axis=0)
          for edge in edges
        ]
      )

    zeros = jnp.zeros((num_bins, far.shape[1]), jnp.float32)
    return jnp.sum(lax.fori_loop(0, num_slots, add, zeros), axis=1)

  fixed_candidates = lax.stop_gradient(candidates)
  ramps = sums.sum_by_blocks(sum_ramps, *fixed)
  total = jnp.sum(counts)
  # Nothing lies beyond the last bin but rounding.
  above = jnp.concatenate([total[None], ramps[:-1], jnp.zeros((1,))])
  past = jnp.zeros((num_bins,)) if state is None else state['histogram']
  histogram = _blend(past, above[:-1] - above[1:], momentum)

  def weigh(x, positives, negatives):
    far, near, num_slots = _slots(
      distance.matrix(x, fixed_candidates), positives, negatives
    )

    def add(i, weights):
      here, nearby = near(i)
      gap = nearby - far
      # Bin 0 takes what rounding leaves below it.
      weight = jnp.where(gap > -jnp.inf, histogram[0], 0.0)
      for k in range(1, num_bins):
        weight += jnp.where(gap >= edges[k], histogram[k], 0.0)
      each = jnp.sum(weight, axis=1, keepdims=True)
      return jnp.where(here, each, weights) - weight

    zeros = jnp.zeros(far.shape, jnp.float32)
    return lax.fori_loop(0, num_slots, add, zeros)

  weights = lax.stop_gradient(sums.by_blocks(weigh, *fixed))

  def value(x, positives, negatives, weights):
    matrix = distance.matrix(x, candidates)
    matrix = jnp.where(positives | negatives, matrix, 0.0)
    return jnp.sum(weights * matrix, axis=1)

  values = sums.by_blocks(value, *rows, weights)
  known = jnp.where(jnp.isfinite(jnp.sum(histogram)), histogram, past)
  return {'loss': (values, counts)}, {'histogram': known}


def init_dynamic_soft_margin(
  hyperparameters: Mapping[str, Any], num_classes: int, embedding_dim: int
) -> dict[str, jax.Array]:
  """Returns what `dynamic_soft_margin` keeps, before the first step.

  Example:
    >>> init_dynamic_soft_margin({'num_bins': 4}, 10, 64)['histogram'].tolist()
    [0.0, 0.0, 0.0, 0.0]
  """
  del num_classes, embedding_dim
  num_bins = hyperparameters.get('num_bins', 10)
  return {'histogram': jnp.zeros(num_bins, jnp.float32)}


def _blend(past, mass, momentum):
  """Returns the histogram with a batch in it; no batch leaves it as it is."""
  total = jnp.sum(mass)
  momentum = jnp.where(jnp.sum(past) > 0, momentum, 1.0)
  blended = (1.0 - momentum) * past + momentum * mass
  size = jnp.sum(blended)
  blended = blended / jnp.where(size == 0, 1.0, size)
  return jnp.where(total == 0, past, blended)


def _slots(matrix, positives, negatives):
  """Returns the negatives, a function of i for the i-th positives, how many."""
  far = jnp.where(negatives, matrix, jnp.inf)
  places = jnp.cumsum(positives, axis=1, dtype=jnp.int32)

  def near(i):
    here = positives & (places == i + 1)
    found = jnp.any(here, axis=1, keepdims=True)
    nearby = jnp.sum(jnp.where(here, matrix, 0.0), axis=1, keepdims=True)
    return here, jnp.where(found, nearby, -jnp.inf)

  return far, near, jnp.max(places, initial=0)
