"""Pairs and triplets that are drawn at random."""

import math

import jax
import jax.numpy as jnp

from retrieval_jax.core.distances import EUCLIDEAN, Distance
from retrieval_jax.core.errors import InputError
from retrieval_jax.losses.mining.ranks import nearness_order
from retrieval_jax.losses.mining.triplets import Listed


def distance_weighted_miner(
  distances: jax.Array,
  positives: jax.Array,
  negatives: jax.Array,
  *,
  candidates: jax.Array,
  row_keys: jax.Array,
  distance: Distance = EUCLIDEAN,
  cutoff: float = 0.5,
  nonzero_loss_cutoff: float = 1.4,
) -> Listed:
  """A negative for each positive pair, so that all distances are as likely.

    P(n | a) ~ 1 / q(max(d_an, cutoff))  where d_an < nonzero_loss_cutoff
    log q(d) = (D - 2) log d + (D - 3) / 2 log(1 - d^2 / 4)

  q is how distances between random points of the unit sphere lie. An anchor
  without a negative below the upper cutoff has no triplet. Each positive pair
  is in one triplet; PML draws the positives too, with replacement, as many as
  the class has images, and loses anchors whose weights underflow beside those
  of another anchor. The draw is a function of the row's key.

  Use it with the margin or the triplet loss, where uniform negatives are all
  far away and the hardest are noise.

  Cost: O(B G log G) time, O(B G) memory.

  Defaults: PML's.

  Args:
    distances: [B, G] of anchors and candidates.
    positives: [B, G] bool.
    negatives: [B, G] bool.
    candidates: [G, D], for D.
    row_keys: [B] random keys.
    distance: what the matrix is of: 'lp' with p=2 and power=1, normalised.
    cutoff: smaller distances are weighted as this one, in (0, 2).
    nonzero_loss_cutoff: negatives from this distance on are left out.

  Returns:
    [B, G] triplets, one for each positive pair.

  Raises:
    InputError: for a distance that is not of the unit sphere.

  References:
    Wu et al., Sampling Matters in Deep Embedding Learning, ICCV 2017, section
    4.
  """
  if distance != EUCLIDEAN:
    raise InputError(
      f"miner.distance is {distance!r}; allowed for 'distance_weighted' is "
      "'lp' with p=2, power=1 and normalize=True: its weights are of the unit "
      'sphere'
    )
  dim = candidates.shape[1]
  num_columns = positives.shape[1]
  d = nearness_order(distances, False)
  near = jnp.maximum(d, cutoff)
  inside = negatives & (near < nonzero_loss_cutoff) & (near < 2.0)
  near = jnp.where(inside, near, 1.0)
  log_weights = (2.0 - dim) * jnp.log(near)
  log_weights -= 0.5 * (dim - 3) * jnp.log(1.0 - 0.25 * near * near)
  log_weights = jnp.where(inside, log_weights, -jnp.inf)
  # The loss is to see a NaN.
  found = jnp.any(inside | (negatives & jnp.isnan(d)), axis=1)
  top = jnp.max(log_weights, axis=1, keepdims=True, initial=-jnp.inf)
  top = jnp.where(jnp.isfinite(top), top, 0.0)
  reached = jnp.cumsum(jnp.exp(log_weights - top), axis=1)
  draws = jax.vmap(lambda k: jax.random.uniform(k, (num_columns,)))(row_keys)
  chosen = _draw(draws, reached)
  columns = jnp.arange(num_columns, dtype=jnp.int32)[None, :]
  columns = jnp.broadcast_to(columns, positives.shape)
  return Listed(columns, chosen, positives & found[:, None])


def random_triplets(
  positives: jax.Array,
  negatives: jax.Array,
  row_keys: jax.Array,
  per_anchor: int,
) -> Listed:
  """Draws triplets of each anchor uniformly, with replacement.

  Args:
    positives: [B, G] bool.
    negatives: [B, G] bool.
    row_keys: [B] random keys.
    per_anchor: how many.

  Returns:
    [B, per_anchor] triplets; none of an anchor without a positive or negative.
  """
  draws = jax.vmap(lambda k: jax.random.uniform(k, (2, per_anchor)))(row_keys)
  found = jnp.any(positives, axis=1) & jnp.any(negatives, axis=1)
  p, n = (
    _draw(draws[:, i], jnp.cumsum(mask.astype(jnp.float32), axis=1))
    for i, mask in enumerate((positives, negatives))
  )
  return Listed(p, n, jnp.broadcast_to(found[:, None], p.shape))


def uniform_histogram_miner(
  matrix: jax.Array,
  positives: jax.Array,
  negatives: jax.Array,
  *,
  row_keys: jax.Array,
  num_bins: int = 100,
  pos_per_bin: int = 10,
  neg_per_bin: int = 10,
) -> tuple[jax.Array, jax.Array]:
  """Pairs spread evenly over the range of their distances.

    bin(a, p) = floor(num_bins (d_ap - min d) / (max d - min d))

  over all positive pairs of the batch, the largest in the last bin, and of each
  bin so many pairs are drawn; likewise the negatives. A bin with fewer pairs
  gives all of them: PML draws with replacement and takes them several times.
  The draw is a function of the rows' keys.

  Use it where easy pairs outnumber all others a thousandfold, and hard ones
  alone are noise.

  Cost: O(B G log(B G)) time, O(B G) memory of the whole batch.

  Defaults: PML's.

  Args:
    matrix: [B, G] of all anchors and candidates.
    positives: [B, G] bool.
    negatives: [B, G] bool.
    row_keys: [B] random keys.
    num_bins: how many bins, up to 65,536.
    pos_per_bin: positives that are drawn of each.
    neg_per_bin: negatives likewise.

  Returns:
    (positives, negatives), [B, G] bool, the selected pairs.

  References:
    UniformHistogramMiner of PML.
  """
  matrix = nearness_order(matrix, False)
  shape = (2, matrix.shape[1])
  bits = jax.vmap(lambda k: jax.random.bits(k, shape, jnp.uint32))(row_keys)
  return (
    _of_bins(matrix, positives, bits[:, 0], num_bins, pos_per_bin),
    _of_bins(matrix, negatives, bits[:, 1], num_bins, neg_per_bin),
  )


def _draw(draws, reached):
  """Returns [B, T] int32, columns drawn by their running sums of weights."""
  if not reached.shape[1]:
    return jnp.zeros(draws.shape, jnp.int32)
  total = reached[:, -1:]
  # A draw that rounds up to the total would name no column.
  below = jnp.nextafter(total, jnp.zeros_like(total))
  goals = jnp.minimum(draws * total, below)
  columns = jax.vmap(
    lambda sums, goal: jnp.searchsorted(sums, goal, side='right')
  )(reached, goals)
  return jnp.minimum(columns, reached.shape[1] - 1).astype(jnp.int32)


def _of_bins(matrix, mask, bits, num_bins, per_bin):
  if not matrix.size:
    return mask
  low = jnp.min(matrix, where=mask, initial=jnp.inf)
  high = jnp.max(matrix, where=mask, initial=-jnp.inf)
  wide = high > low
  place = jnp.where(mask, matrix, 0.0) - jnp.where(wide, low, 0.0)
  place = place / jnp.where(wide, high - low, 1.0) * num_bins
  # As the last bin of PML's, which is closed, holds all that are equal.
  last = jnp.where(wide, jnp.clip(place, 0, num_bins - 1), num_bins - 1)
  bins = jnp.where(mask, last.astype(jnp.uint32), num_bins)
  # The bin in the high bits, the draw in the low: one sort for both.
  shift = 32 - math.ceil(math.log2(num_bins + 1))
  keys = (bins << shift) | (bits >> (32 - shift))
  ranked = jnp.sort(keys.reshape(-1))
  starts = jnp.arange(num_bins + 1, dtype=jnp.uint32) << shift
  starts = jnp.searchsorted(ranked, starts)
  ends = jnp.minimum(starts[:-1] + per_bin, starts[1:])
  # The last key that is taken; of an empty bin it belongs to another, lower.
  largest = ranked[jnp.maximum(ends - 1, 0)]
  drawn = keys <= largest[jnp.minimum(bins, num_bins - 1)]
  return mask & (drawn | jnp.isnan(matrix))
