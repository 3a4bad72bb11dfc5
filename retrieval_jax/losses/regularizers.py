"""Regularizers of embeddings and of proxies.

A regularizer sees rows as they are, before anything scales them to unit length:
the embeddings of a batch, or the proxies, the centres of a class adjacent. It
returns a value and a count for each row, as losses do, so that padding and the
number of devices change nothing.
"""

import math

import jax
import jax.numpy as jnp
from jax import lax

from retrieval_jax.core import arrays, collectives
from retrieval_jax.core.errors import InputError
from retrieval_jax.core.hyperparameters import Number
from retrieval_jax.losses.rows import Regularizer

# Entries of a matrix of similarities that are kept at a time: 16 MiB.
_MAX_PAIRS = 2**22


def center_invariant(
  rows: jax.Array,
  *,
  valid: jax.Array | None = None,
  axis_name: str | None = None,
) -> tuple[jax.Array, jax.Array]:
  """Draws all rows to the same length.

    R_i = (||w_i||^2 - mean_j ||w_j||^2)^2 / 4

  Use it on proxies when classes are unbalanced and a loss compares lengths:
  proxies of large classes grow longer. Losses of cosines do not see lengths; on
  their proxies it evens out effective learning rates alone. Fourth powers
  overflow at lengths above 1e9.

  Cost: O(B D).

  Args:
    rows: [B, D] any float dtype, embeddings or proxies.
    valid: [B] bool, False at padding; None for none.
    axis_name: of the devices that hold other rows, or None.

  Returns:
    (values [B], counts [B]), float32.

  Example:
    >>> values, counts = center_invariant(jnp.array([[1.0], [2.0]]))
    >>> print(values, counts)
    [0.5625 0.5625] [1. 1.]

  References:
    Wu et al., Deep Face Recognition with Center Invariant Loss, ACM Multimedia
    Thematic Workshops 2017.
  """
  rows, valid = _kept(rows, valid)
  square = jnp.sum(rows * rows, axis=1)
  counts = valid.astype(jnp.float32)
  total, count = collectives.psum((jnp.sum(square), jnp.sum(counts)), axis_name)
  apart = square - total / jnp.maximum(count, 1.0)
  return counts * apart * apart / 4.0, counts


def lp(
  rows: jax.Array,
  *,
  valid: jax.Array | None = None,
  axis_name: str | None = None,
  p: float = 2.0,
  power: float = 1.0,
) -> tuple[jax.Array, jax.Array]:
  """Draws rows to zero.

    R_i = ||w_i||_p ^ power

  A row of zeros has no gradient.

  Use it on embeddings whose lengths run away, as under losses of dot products;
  with a small weight. On proxies it is weight decay, in the loss.

  Cost: O(B D).

  Args:
    rows: [B, D] any float dtype, embeddings or proxies.
    valid: [B] bool, False at padding; None for none.
    axis_name: not looked at: a row's value is its own.
    p: of the norm, at least 1.
    power: of the norm, above 0.

  Returns:
    (values [B], counts [B]), float32.

  Example:
    >>> values, counts = lp(jnp.array([[3.0, -4.0], [0.0, 0.0]]), power=2)
    >>> print(values, counts)
    [25.  0.] [1. 1.]
  """
  del axis_name
  rows, valid = _kept(rows, valid)
  # Scaled by the largest entry, the power of no entry overflows. The norm
  # grows with the scale, so its gradient is right with the scale held fixed.
  size = jnp.abs(rows)
  largest = lax.stop_gradient(jnp.max(size, axis=1, initial=0.0))
  nonzero = ~(largest <= 0)  # A NaN stays a NaN.
  scale = jnp.where(nonzero, largest, 1.0)
  size = size / scale[:, None]
  total = jnp.sum(size if p == 1 else size**p, axis=1)
  total = jnp.where(nonzero, total, 1.0)
  norm = scale * (total if p == 1 else total ** (1.0 / p))
  values = norm if power == 1 else norm**power
  return jnp.where(nonzero, values, 0.0), valid.astype(jnp.float32)


def regular_face(
  rows: jax.Array,
  *,
  valid: jax.Array | None = None,
  axis_name: str | None = None,
) -> tuple[jax.Array, jax.Array]:
  """Pushes each row away from its nearest neighbour.

    R_i = max_{j != i} cos(w_i, w_j)

  The gradient moves both of them. With several centres a class, as in PML, the
  neighbour may be of the same class. A lone row has no value; PML gives it 1.

  Use it on proxies, to spread classes over the sphere where a softmax leaves
  some close together, as with many rare classes.

  Cost: O(B^2 D) time, at a million rows far above that of a step; memory
  O(B D) beside blocks of 16 MiB.

  Args:
    rows: [B, D] any float dtype, embeddings or proxies, normalised inside.
    valid: [B] bool, False at padding; None for none.
    axis_name: of the devices that hold other rows, or None; rows are gathered.

  Returns:
    (values [B], counts [B]), float32.

  Example:
    >>> rows = jnp.array([[1.0, 0.0], [0.0, 2.0], [0.0, -1.0]])
    >>> values, counts = regular_face(rows)
    >>> print(values, counts)
    [0. 0. 0.] [1. 1. 1.]

  References:
    Zhao et al., RegularFace: Deep Face Recognition via Exclusive
    Regularization, CVPR 2019.
  """
  rows, valid = _kept(rows, valid)
  units = arrays.normalize(rows)
  ids = collectives.row_ids(rows.shape[0], axis_name)
  others, others_valid = collectives.all_gather_rows((units, valid), axis_name)
  nearest = _nearest(
    lax.stop_gradient(units), ids, lax.stop_gradient(others), others_valid
  )
  values = jnp.sum(units * others[nearest], axis=1)
  counts = valid & (jnp.sum(others_valid) > 1)
  counts = counts.astype(jnp.float32)
  return jnp.where(counts > 0, values, 0.0), counts


def sparse_centers(
  rows: jax.Array,
  *,
  centers_per_class: int,
  valid: jax.Array | None = None,
  axis_name: str | None = None,
) -> tuple[jax.Array, jax.Array]:
  """Draws the centres of a class together, so that no more remain than needed.

    R = 1 / (C K (K - 1)) sum_j sum_{k < l} sqrt(2 - 2 cos(w_jk, w_jl))

  The mean over pairs is halved, as in PML and the paper. Where two centres
  coincide the gradient of their distance is zero.

  Use it with `soft_triple`, at a weight of 0.2 as in the paper, when the number
  of centres is set higher than most classes need.

  Cost: O(C K^2 D) time, O(C K^2) memory.

  Args:
    rows: [C * K, D] any float dtype, proxies, normalised inside.
    centers_per_class: K, at least 2.
    valid: [C * K] bool, False at padding; None for none.
    axis_name: not looked at: a class is on one device.

  Returns:
    (values [C * K], counts [C * K]), float32: a centre has its pairs with the
    later ones of its class, and counts each twice.

  Raises:
    InputError: for one centre a class.

  Example:
    >>> rows = jnp.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, 2.0]])
    >>> values, counts = sparse_centers(rows, centers_per_class=2)
    >>> print(values, counts)
    [2. 0. 0. 0.] [2. 0. 2. 0.]

  References:
    Qian et al., SoftTriple Loss: Deep Metric Learning Without Triplet Sampling,
    ICCV 2019.
  """
  del axis_name
  if centers_per_class < 2:
    raise InputError(
      f'loss.weight_regularizer is sparse_centers with {centers_per_class} '
      'centre a class; allowed is at least 2: set loss.centers_per_class or '
      'loss.sub_centers'
    )
  rows, valid = _kept(rows, valid)
  units = arrays.normalize(rows).reshape(-1, centers_per_class, rows.shape[1])
  valid = valid.reshape(-1, centers_per_class)
  cosines = jnp.einsum(
    'ckd,cld->ckl', units, units, precision=lax.Precision.HIGHEST
  )
  later = jnp.triu(jnp.ones((centers_per_class,) * 2, bool), 1)
  pairs = valid[:, :, None] & valid[:, None, :] & later[None]
  square = jnp.where(pairs, 2.0 - 2.0 * cosines, 0.0)
  # Below it the cosine is rounding, and the direction of the gradient noise.
  apart = ~(square <= 1e-6)  # A NaN stays a NaN.
  distances = jnp.where(apart, jnp.sqrt(jnp.where(apart, square, 1.0)), 0.0)
  counts = 2.0 * jnp.sum(pairs.astype(jnp.float32), axis=2)
  return jnp.sum(distances, axis=2).reshape(-1), counts.reshape(-1)


def zero_mean(
  rows: jax.Array,
  *,
  valid: jax.Array | None = None,
  axis_name: str | None = None,
) -> tuple[jax.Array, jax.Array]:
  """Draws the entries of each row to a mean of zero.

    R_i = | sum_d w_id |

  The mean is that of a row's entries, as in PML, and not that of the batch.

  Use it on embeddings under the SNR distance, which takes the variance of the
  entries for their energy: the two agree where the mean is zero.

  Cost: O(B D).

  Args:
    rows: [B, D] any float dtype, embeddings or proxies.
    valid: [B] bool, False at padding; None for none.
    axis_name: not looked at: a row's value is its own.

  Returns:
    (values [B], counts [B]), float32.

  Example:
    >>> values, counts = zero_mean(jnp.array([[1.0, -3.0], [1.0, -1.0]]))
    >>> print(values, counts)
    [2. 0.] [1. 1.]

  References:
    Yuan et al., Signal-to-Noise Ratio: A Robust Distance Metric for Deep Metric
    Learning, CVPR 2019.
  """
  del axis_name
  rows, valid = _kept(rows, valid)
  return jnp.abs(jnp.sum(rows, axis=1)), valid.astype(jnp.float32)


def _kept(rows, valid):
  """Returns the rows in float32, padding as zeros, and which are valid."""
  rows = rows.astype(jnp.float32)
  if valid is None:
    return rows, jnp.ones(rows.shape[:1], bool)
  return jnp.where(valid[:, None], rows, 0.0), valid


def _nearest(units, ids, others, others_valid):
  """Returns for each row the place of the most similar other one."""
  num_rows, num_others = units.shape[0], others.shape[0]
  chunk = min(num_rows, max(1, _MAX_PAIRS // num_others))
  num_chunks = math.ceil(num_rows / chunk)

  def of_chunk(inputs):
    some, own = inputs
    similarities = arrays.dot_products(some, others)
    itself = own[:, None] == jnp.arange(num_others, dtype=jnp.int32)[None, :]
    left_out = itself | ~others_valid[None, :]
    return jnp.argmax(jnp.where(left_out, -jnp.inf, similarities), axis=1)

  if num_chunks == 1:
    return of_chunk((units, ids))
  padding = num_chunks * chunk - num_rows
  units = jnp.pad(units, ((0, padding), (0, 0)))
  ids = jnp.pad(ids, (0, padding))
  nearest = lax.map(
    of_chunk,
    (units.reshape(num_chunks, chunk, -1), ids.reshape(num_chunks, chunk)),
  )
  return nearest.reshape(-1)[:num_rows]


_BOTH = ('embeddings', 'proxies')

REGULARIZERS: dict[str, Regularizer] = {
  'center_invariant': Regularizer(center_invariant, _BOTH, {}),
  'lp': Regularizer(
    lp, _BOTH, {'p': Number(least=1.0, closed=True), 'power': Number()}
  ),
  'regular_face': Regularizer(regular_face, _BOTH, {}),
  'sparse_centers': Regularizer(
    sparse_centers, ('proxies',), {}, needs=('centers_per_class',)
  ),
  'zero_mean': Regularizer(zero_mean, _BOTH, {}),
}
