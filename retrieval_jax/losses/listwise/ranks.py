"""Smooth ranks of the positives of an anchor, in O(B G) memory.

The rank of a positive p among candidates j is a sum of steps,

    R_p = sum_j H(s_j - s_p)

and H is smooth. All comparisons together are a cube, B x P x G. They are made
one positive of every anchor at a time, [G, B]; what such a loop computes has no
automatic derivative (its length is the largest number of positives, known at
run time alone), so it is written here: with a_p = dL / dR_p,

    dL / ds_j =  sum_p a_p H'(s_j - s_p)
    dL / ds_p = -a_p sum_j H'(s_j - s_p)

which is a second run over the same comparisons.

The positives of a row are looked at in slots: slot i of a row is its i-th
column from the first positive on. Where the candidates are ordered by class,
there are as many slots as positives. Arrays are [slots, B] and [G, B], anchors
last, so that sums over candidates run down the columns, where vector
instructions apply.
"""

import functools
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax import lax

# Positives compared with each other in one go.
_BLOCK = 16


class Step(Protocol):
  """H, for d = s_j - s_p; 0 at -inf, where what is not compared lies."""

  def value(self, d: jax.Array) -> jax.Array:
    """Returns H(d)."""

  def slope(self, d: jax.Array) -> jax.Array:
    """Returns H'(d)."""


class Sigmoid(NamedTuple):
  """1 / (1 + exp(-d / temperature))."""

  temperature: float

  def value(self, d: jax.Array) -> jax.Array:
    """Returns H(d)."""
    return lax.logistic(d * (1.0 / self.temperature))

  def slope(self, d: jax.Array) -> jax.Array:
    """Returns H'(d)."""
    value = self.value(d)
    return value * (1.0 - value) * (1.0 / self.temperature)


class Slots(NamedTuple):
  """The positives of each anchor.

  Attributes:
    similarities: [S, B] float32.
    valid: [S, B] bool, where there is a positive.
    count: int32 scalar, slots in use; the others are not valid.
  """

  similarities: jax.Array
  valid: jax.Array
  count: jax.Array

  def sum(self, values: jax.Array) -> jax.Array:
    """Returns [B], the sum over the positives of values [S, B]."""
    return jnp.sum(jnp.where(self.valid, values, 0.0), axis=0)

  def numbers(self) -> jax.Array:
    """Returns [B] float32, how many positives an anchor has."""
    return jnp.sum(self.valid, axis=0).astype(jnp.float32)


def slots_of(similarities: jax.Array, positives: jax.Array) -> Slots:
  """Returns the positives of each row.

  Args:
    similarities: [B, G] float32.
    positives: [B, G] bool.

  Example:
    >>> s = jnp.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    >>> positives = jnp.array([[False, True, True], [True, False, False]])
    >>> slots = slots_of(s, positives)
    >>> print(slots.sum(slots.similarities), slots.numbers())
    [5. 4.] [2. 1.]
  """
  num_rows, num_columns = positives.shape
  num_slots = -(-num_columns // _BLOCK) * _BLOCK
  if not num_rows or not num_columns:
    empty = jnp.zeros((num_slots, num_rows))
    return Slots(empty, empty > 0, jnp.int32(0))
  found = jnp.any(positives, axis=1)
  first = jnp.argmax(positives, axis=1).astype(jnp.int32)
  last = num_columns - jnp.argmax(positives[:, ::-1], axis=1).astype(jnp.int32)
  count = jnp.max(jnp.where(found, last - first, 0))
  valid = _take(jnp.where(positives, 1.0, 0.0), first, count) > 0
  # Beyond the last column the last is taken again.
  slots = jnp.arange(num_slots, dtype=jnp.int32)[:, None]
  valid &= slots + first[None, :] < num_columns
  taken = _take(jnp.where(positives, similarities, 0.0), first, count)
  return Slots(taken, valid, count)


def sums_over(
  step: Step, slots: Slots, similarities: jax.Array, mask: jax.Array
) -> jax.Array:
  """Returns [S, B], the sum over candidates j of H(s_j - s_p).

  Args:
    step: H.
    slots: the positives p.
    similarities: [B, G] float32.
    mask: [B, G] bool, the candidates that are summed over.

  Example:
    >>> s = jnp.array([[0.5, 0.0, 0.5, 1.0]])
    >>> positives = jnp.array([[True, True, False, False]])
    >>> slots = slots_of(s, positives)
    >>> sums_over(Sigmoid(0.01), slots, s, ~positives)[:2, 0].tolist()
    [1.5, 2.0]
  """
  if not similarities.size:
    return jnp.zeros_like(slots.similarities)
  others = jnp.where(mask, similarities, -jnp.inf).T
  block = others.shape[0]
  return _sums(
    step, block, _thresholds(slots), others, slots.count, jnp.int32(1)
  )


def sums_within(step: Step, slots: Slots) -> jax.Array:
  """Returns [S, B], the sum over all positives q of H(s_q - s_p).

  The positive p is one of them: take H(0) off.

  Args:
    step: H.
    slots: the positives.

  Example:
    >>> s = jnp.array([[0.5, 0.0, 0.5, 1.0]])
    >>> slots = slots_of(s, s < 1)
    >>> sums_within(Sigmoid(0.01), slots)[:3, 0].tolist()
    [1.0, 2.5, 1.0]
  """
  if not slots.valid.size:
    return jnp.zeros_like(slots.similarities)
  others = jnp.where(slots.valid, slots.similarities, -jnp.inf)
  num_blocks = -(-slots.count // _BLOCK)
  return _sums(
    step, _BLOCK, _thresholds(slots), others, slots.count, num_blocks
  )


def with_itself(
  positives: jax.Array,
  ids: jax.Array | None,
  candidate_ids: jax.Array | None,
) -> jax.Array:
  """Returns the positives and the anchor itself, where it is a candidate.

  Args:
    positives: [B, G] bool, without the row itself.
    ids: [B] int, equal to a candidate's for the row itself alone; None: it is
      not among the candidates.
    candidate_ids: [G] int likewise.

  Returns:
    [B, G] bool. A row without a positive, as padding is, does not get itself.

  Example:
    >>> positives = jnp.array([[False, True], [False, False]])
    >>> with_itself(positives, jnp.arange(2), jnp.arange(2)).tolist()
    [[True, True], [False, False]]
  """
  if ids is None or candidate_ids is None:
    return positives
  itself = ids[:, None] == candidate_ids[None, :]
  return positives | (itself & jnp.any(positives, axis=1)[:, None])


def _thresholds(slots):
  # Nothing is as near as infinity: an unused slot adds 0, and no gradient.
  return jnp.where(slots.valid, slots.similarities, jnp.inf)


@jax.custom_vjp
def _take(x, first, count):
  """Returns [S, B], of each row of x [B, G] the columns from its first on."""
  num_rows, num_columns = x.shape
  rows = jnp.arange(num_rows, dtype=jnp.int32)

  def take_slot(i, taken):
    column = jnp.minimum(first + i, num_columns - 1)
    slot = x.at[rows, column].get(mode='promise_in_bounds')
    return lax.dynamic_update_index_in_dim(taken, slot, i, 0)

  num_slots = -(-num_columns // _BLOCK) * _BLOCK
  taken = jnp.zeros((num_slots, num_rows), x.dtype)
  return lax.fori_loop(0, count, take_slot, taken)


def _take_forward(x, first, count):
  # An array of no rows carries the width.
  return _take(x, first, count), (x[:0], first, count)


def _take_backward(saved, gradient):
  empty, first, count = saved
  num_rows, num_columns = gradient.shape[1], empty.shape[1]
  rows = jnp.arange(num_rows, dtype=jnp.int32)

  def put_slot(i, total):
    column = jnp.minimum(first + i, num_columns - 1)
    slot = lax.dynamic_index_in_dim(gradient, i, 0, keepdims=False)
    return total.at[rows, column].add(
      slot, mode='promise_in_bounds', unique_indices=True
    )

  total = jnp.zeros((num_rows, num_columns), gradient.dtype)
  return lax.fori_loop(0, count, put_slot, total), None, None


_take.defvjp(_take_forward, _take_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _sums(step, block, thresholds, others, count, num_blocks):
  """Returns [S, B], sums down the columns of H(others [F, B] - threshold).

  The others are taken in so many blocks of rows.
  """

  zeros = jnp.zeros(thresholds.shape[1:], thresholds.dtype)

  def sum_slot(i, sums):
    threshold = lax.dynamic_index_in_dim(thresholds, i, 0)

    def add_block(j, total):
      rows = lax.dynamic_slice_in_dim(others, j * block, block)
      return total + jnp.sum(step.value(rows - threshold), axis=0)

    total = _loop(block, others, num_blocks, add_block, zeros)
    return lax.dynamic_update_index_in_dim(sums, total, i, 0)

  return lax.fori_loop(0, count, sum_slot, jnp.zeros_like(thresholds))


def _sums_forward(step, block, thresholds, others, count, num_blocks):
  sums = _sums(step, block, thresholds, others, count, num_blocks)
  return sums, (thresholds, others, count, num_blocks)


def _sums_backward(step, block, saved, gradient):
  thresholds, others, count, num_blocks = saved
  zeros = jnp.zeros(thresholds.shape[1:], thresholds.dtype)

  def add_slot(i, totals):
    threshold = lax.dynamic_index_in_dim(thresholds, i, 0)
    weight = lax.dynamic_index_in_dim(gradient, i, 0)

    def add_block(j, carry):
      of_others, of_threshold = carry
      rows = lax.dynamic_slice_in_dim(others, j * block, block)
      slopes = weight * step.slope(rows - threshold)
      before = lax.dynamic_slice_in_dim(of_others, j * block, block)
      of_others = lax.dynamic_update_slice_in_dim(
        of_others, before + slopes, j * block, 0
      )
      return of_others, of_threshold - jnp.sum(slopes, axis=0)

    of_thresholds, of_others = totals
    of_others, of_threshold = _loop(
      block, others, num_blocks, add_block, (of_others, zeros)
    )
    of_thresholds = lax.dynamic_update_index_in_dim(
      of_thresholds, of_threshold, i, 0
    )
    return of_thresholds, of_others

  of_thresholds, of_others = lax.fori_loop(
    0, count, add_slot, (jnp.zeros_like(thresholds), jnp.zeros_like(others))
  )
  return of_thresholds, of_others, None, None


_sums.defvjp(_sums_forward, _sums_backward)


def _loop(block, others, num_blocks, body, start):
  """Runs over the blocks; a single one needs no loop."""
  if others.shape[0] == block:
    return body(0, start)
  return lax.fori_loop(0, num_blocks, body, start)
