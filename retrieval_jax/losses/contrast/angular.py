"""Angular loss: the angle at the negative, for every pair of positives.

With u_an = 4 t <a, n> and v_pn = 4 t <p, n> the negatives of a pair (a, p) are
summed as exp(u_an + v_pn), a product of the matrices exp(u) and exp(v): no list
of triplets is made. Each row is scaled by its largest entry first. The
product loses what is too far below both maxima, which only embeddings of large
norm reach; then the sum is taken as it stands, for one anchor after another.
"""

import math

import jax
import jax.numpy as jnp
from jax import lax

from retrieval_jax.core import arrays
from retrieval_jax.core.errors import InputError
from retrieval_jax.losses.terms import Reducer, Terms, reduce_row

_BLOCK = 512
# Terms below the smallest float32, 1e-38, are lost: relative to this, nothing.
_LEAST = 1e-30


def angular(
  embeddings: jax.Array,
  candidates: jax.Array,
  positives: jax.Array,
  negatives: jax.Array,
  *,
  labels: jax.Array,
  alpha: float = 40.0,
  normalize_negatives: bool = False,
  reducer: str | Reducer = 'mean',
) -> Terms:
  """Angular loss: bounds the angle at the negative of each triplet.

    L_ap = log(1 + sum_n exp(4 t <a + p, n> - 2 (1 + t) <a, p>))
    t = tan(alpha)^2

  a and p are scaled to unit length; n is as it comes, as in PML 2, where the
  paper and PML 3 have all three of unit length: `normalize_negatives`.

  Use it beside N-pairs or another loss of distances, on classes of varying
  spread: an angle does not depend on the scale of a class. Set
  `normalize_negatives` unless PML's values are wanted: without it the loss
  shrinks as the embeddings do.

  Cost: O(B G (G + D)) time as matrix products, O(512 G) memory. From norms of
  about 30 on, without `normalize_negatives`, one anchor after another is summed
  without them.

  Defaults: PML 2.9's.

  Args:
    embeddings: [B, D] of the anchors, any float dtype.
    candidates: [G, D], the same rows, or references.
    positives: [B, G] bool, the pairs of one class, without the row itself.
    negatives: [B, G] bool, the pairs of two classes.
    labels: [B] int of the anchors.
    alpha: upper bound of the angle in degrees, in (0, 90).
    normalize_negatives: whether the negatives are scaled to unit length too.
    reducer: over the positive pairs. A pair of an anchor without negatives
      counts, with a loss of 0.

  Returns:
    The term 'loss', the sum and the number of the positive pairs of a row.

  Raises:
    InputError: for label sets, where a and p need not share their negatives.

  Example:
    >>> x = jnp.array([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])
    >>> y = jnp.array([0, 0, 1])
    >>> same = y[:, None] == y[None, :]
    >>> positives = same & ~jnp.eye(3, dtype=bool)
    >>> terms = angular(x, x, positives, ~same, labels=y)
    >>> [f'{value:.3f}' for value in terms['loss'][0]]
    ['0.803', '0.803', '0.000']

  References:
    Wang et al., Deep Metric Learning with Angular Loss, ICCV 2017.
  """
  if labels.ndim != 1:
    raise InputError(
      f'labels has shape {labels.shape}; angular takes (B,), one class a row: '
      'for label sets use multi_label_supcon'
    )
  num_rows, num_columns = positives.shape
  if not num_rows or not num_columns:
    nothing = jnp.zeros((num_rows, num_columns))
    return {'loss': reduce_row(nothing, positives, reducer)}
  square = math.tan(math.radians(alpha)) ** 2
  anchors, partners = arrays.normalize(embeddings), arrays.normalize(candidates)
  others = partners if normalize_negatives else candidates.astype(jnp.float32)

  def products(rows):
    # Scaled before the product: a factor after it may be fused into the
    # difference with the largest, unrounded, and 1e30 would be apart from 1e30.
    return arrays.dot_products(4 * square * rows, others)

  # A positive has the negatives of any anchor that it is a positive of.
  owners = jnp.argmax(positives, axis=0)
  partner_blocks = _cut((partners, owners))

  def row_block(block):
    rows, block_positives, u_mask = block
    u = products(rows)

    def partner_block(block):
      rows_p, owners_p, used = block
      v, v_mask = products(rows_p), negatives[owners_p]
      total = _sums(u, u_mask, v, v_mask, used.T)
      return total - 2 * (1 + square) * arrays.dot_products(rows, rows_p)

    columns = jax.checkpoint(partner_block)
    blocks = (*partner_blocks, _cut(block_positives.T))
    logits = _map(columns, blocks)
    logits = jnp.swapaxes(logits, 0, 1).reshape(rows.shape[0], -1)
    used = block_positives & jnp.any(u_mask, axis=1, keepdims=True)
    logits = jnp.where(used, logits[:, :num_columns], 0.0)
    values = jnp.where(used, jax.nn.softplus(logits), 0.0)
    return reduce_row(values, block_positives, reducer)

  row_blocks = _cut((anchors, positives, negatives))
  values, counts = _map(jax.checkpoint(row_block), row_blocks)
  return {
    'loss': (values.reshape(-1)[:num_rows], counts.reshape(-1)[:num_rows])
  }


def _sums(u, u_mask, v, v_mask, used):
  """Returns log(sum_n exp(u_an + v_pn)) of the pairs (a, p) that are used."""
  used &= jnp.any(u_mask, axis=1, keepdims=True)

  def scaled(x, mask):
    largest = jnp.max(jnp.where(mask, x, -jnp.inf), axis=1)
    found = jnp.any(mask, axis=1)
    largest = lax.stop_gradient(jnp.where(found, largest, 0.0))
    shifted = jnp.where(mask, x - largest[:, None], -jnp.inf)
    return jnp.exp(shifted), largest

  u_exp, u_largest = scaled(u, u_mask)
  v_exp, v_largest = scaled(v, v_mask)
  sums = arrays.dot_products(u_exp, v_exp)
  exact = jnp.all((sums >= _LEAST) | ~used)

  def from_product(u, v):
    del u, v
    logs = jnp.log(jnp.where(used & (sums >= _LEAST), sums, 1.0))
    return logs + u_largest[:, None] + v_largest[None, :]

  def one_by_one(u, v):
    def row(row):
      u_row, mask = row
      mask = jnp.broadcast_to(mask[None, :], v.shape)
      return arrays.masked_logsumexp(u_row[None, :] + v, mask)

    return lax.map(jax.checkpoint(row), (u, u_mask))

  return lax.cond(exact, from_product, one_by_one, u, v)


def _cut(tree):
  """Cuts rows into blocks [blocks, n, ...], the last filled with zeros."""

  def cut(x):
    size = min(_BLOCK, x.shape[0])
    fill = ((0, -x.shape[0] % size),) + ((0, 0),) * (x.ndim - 1)
    return jnp.pad(x, fill).reshape(-1, size, *x.shape[1:])

  return jax.tree.map(cut, tree)


def _map(function, blocks):
  """`lax.map`, and no loop around a single block."""
  if jax.tree.leaves(blocks)[0].shape[0] > 1:
    return lax.map(function, blocks)
  only = jax.tree.map(lambda x: x[0], blocks)
  return jax.tree.map(lambda x: x[None], function(only))
