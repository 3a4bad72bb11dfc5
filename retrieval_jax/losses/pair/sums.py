"""What the pair losses share: which anchors count, and sums of exponentials."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

# Anchors of one block of a loss that sees the whole batch.
BLOCK = 1024


def counted_anchors(
  positives: jax.Array, negatives: jax.Array, labels: jax.Array | None
) -> jax.Array:
  """Returns [B] bool, the anchors that a mean over anchors divides by.

  Those are all but the padding, also an anchor that a miner left without a
  pair: its loss is 0, and it counts.

  Args:
    positives: [B, G] bool.
    negatives: [B, G] bool.
    labels: [B] int, or [B, L] label sets; negative marks padding. None takes
      the anchors that have a pair.

  Example:
    >>> none = jnp.zeros((2, 3), bool)
    >>> counted_anchors(none, none, jnp.array([4, -1])).tolist()
    [True, False]
  """
  if labels is None:
    return jnp.any(positives | negatives, axis=1)
  is_label = labels >= 0
  return jnp.any(is_label, axis=1) if labels.ndim == 2 else is_label


def pair_logsumexps(
  logits: jax.Array, positives: jax.Array, negatives: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Returns log(sum_j e^{x_ij}) over the positives, and over the negatives.

  No pair is both, so that one exponential a pair is enough.

  Args:
    logits: [B, G] float32.
    positives: [B, G] bool.
    negatives: [B, G] bool, none of them a positive.

  Returns:
    ([B], [B]) float32; 0, with a zero gradient, for an anchor without such a
    pair.

  Example:
    >>> positives = jnp.array([[True, True, False]])
    >>> sums = pair_logsumexps(jnp.zeros((1, 3)), positives, ~positives)
    >>> [f'{x[0]:.4f}' for x in sums]
    ['0.6931', '0.0000']
  """
  used = positives | negatives
  fixed = lax.stop_gradient(logits)

  def largest_of(mask):
    largest = jnp.max(
      jnp.where(mask, fixed, -jnp.inf), axis=1, initial=-jnp.inf
    )
    return jnp.where(jnp.any(mask, axis=1), largest, 0.0)

  largest_p, largest_n = largest_of(positives), largest_of(negatives)
  shift = jnp.where(positives, largest_p[:, None], largest_n[:, None])
  exps = jnp.exp(jnp.where(used, logits - shift, -jnp.inf))

  def log_of(exps, mask):
    total = jnp.sum(exps, axis=1)
    return jnp.log(jnp.where(jnp.any(mask, axis=1), total, 1.0))

  return (
    largest_p + log_of(jnp.where(positives, exps, 0.0), positives),
    largest_n + log_of(jnp.where(positives, 0.0, exps), negatives),
  )


def by_blocks(
  function: Callable[..., Any], *rows: jax.Array, size: int = BLOCK
) -> Any:
  """Applies a function to blocks of rows, and keeps nothing for the gradient.

  Args:
    function: blocks [n, ...] -> pytree of arrays [n, ...], row by row.
    *rows: arrays [B, ...], cut alike; the last block is filled with zeros.
    size: rows of a block.

  Returns:
    What the function returns, for all rows.

  Example:
    >>> by_blocks(lambda x: 2 * x, jnp.arange(5), size=2).tolist()
    [0, 2, 4, 6, 8]
  """
  num_rows = rows[0].shape[0]
  if num_rows <= size:
    return function(*rows)
  blocks = lax.map(
    jax.checkpoint(lambda block: function(*block)), _cut(rows, size)
  )
  return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:num_rows], blocks)


def sum_by_blocks(
  function: Callable[..., jax.Array], *rows: jax.Array, size: int = BLOCK
) -> jax.Array:
  """Adds up what a function returns for blocks of rows.

  Args:
    function: blocks [n, ...] -> array, the same shape for each.
    *rows: arrays [B, ...], cut alike; the last block is filled with zeros.
    size: rows of a block.

  Example:
    >>> print(sum_by_blocks(jnp.sum, jnp.arange(5.0), size=2))
    10.0
  """
  if rows[0].shape[0] <= size:
    return function(*rows)
  block = jax.checkpoint(lambda block: function(*block))
  return jnp.sum(lax.map(block, _cut(rows, size)), axis=0)


def _cut(rows, size):
  def cut(x):
    fill = ((0, -x.shape[0] % size),) + ((0, 0),) * (x.ndim - 1)
    return jnp.pad(x, fill).reshape(-1, size, *x.shape[1:])

  return tuple(map(cut, rows))
