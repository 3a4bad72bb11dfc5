"""The hardest, and the easiest, pairs of an anchor or of a batch."""

import jax
import jax.numpy as jnp

from retrieval_jax.core.errors import InputError
from retrieval_jax.losses.mining.ranks import largest, nearness_order

STRATEGIES = ('all', 'easy', 'hard', 'semihard')


def batch_easy_hard_miner(
  matrix: jax.Array,
  positives: jax.Array,
  negatives: jax.Array,
  *,
  inverted: bool = False,
  pos_strategy: str = 'easy',
  neg_strategy: str = 'semihard',
  allowed_pos_range: tuple[float, float] | None = None,
  allowed_neg_range: tuple[float, float] | None = None,
) -> tuple[jax.Array, jax.Array]:
  """One positive and one negative of each anchor, or all of one kind.

    positive  easy: the nearest; hard: the farthest; semihard: the farthest of
              those nearer than the negative
    negative  easy: the farthest; hard: the nearest; semihard: the nearest of
              those farther than the positive
    all       of both: every pair

  Unless one strategy is 'all', an anchor without either has no pair. Of equally
  near candidates the first is taken. Nothing carries a gradient.

  Use it with pos_strategy='easy' where images of a class differ much: an anchor
  then need not be near to all of its class.

  Cost: O(B G) time and memory.

  Defaults: PML's.

  Args:
    matrix: [B, G] of anchors and candidates.
    positives: [B, G] bool.
    negatives: [B, G] bool.
    inverted: whether the matrix holds similarities.
    pos_strategy: one of `STRATEGIES`.
    neg_strategy: one of `STRATEGIES`; only one of the two may be 'semihard',
      and not beside 'all'.
    allowed_pos_range: (low, high), both included: what the entry of a selected
      positive may be, in the unit of the matrix; None for no limit. As in PML
      it means nothing to the strategy 'all'.
    allowed_neg_range: likewise of negatives.

  Returns:
    (positives, negatives), [B, G] bool, the selected pairs.

  Raises:
    InputError: for strategies that do not go together.

  Example:
    >>> d = jnp.array([[0.0, 0.5, 0.2, 0.4, 0.9]])
    >>> p = jnp.array([[False, True, True, False, False]])
    >>> n = jnp.array([[False, False, False, True, True]])
    >>> p, n = batch_easy_hard_miner(d, p, n, pos_strategy='hard')
    >>> p.astype(int).tolist(), n.astype(int).tolist()
    ([[0, 1, 0, 0, 0]], [[0, 0, 0, 0, 1]])

  References:
    Xuan et al., Improved Embeddings with Easy Positive Triplet Mining,
    WACV 2020.
  """
  strategies = {pos_strategy, neg_strategy}
  if strategies in ({'semihard'}, {'semihard', 'all'}):
    raise InputError(
      f'miner.pos_strategy is {pos_strategy!r} and miner.neg_strategy '
      f"{neg_strategy!r}; allowed beside 'semihard' is 'easy' or 'hard', which "
      'says where the other of the two is'
    )
  # Bounds are written with "not", so that the loss sees a NaN.
  d = nearness_order(matrix, inverted)
  if pos_strategy != 'all':
    positives &= _within(matrix, allowed_pos_range)
  if neg_strategy != 'all':
    negatives &= _within(matrix, allowed_neg_range)
  far_positive, near_negative = pos_strategy != 'easy', neg_strategy != 'easy'
  if pos_strategy == 'semihard':
    negatives = _extreme(d, negatives, not near_negative)
    bound = jnp.min(
      jnp.where(negatives, d, jnp.inf),
      axis=1,
      keepdims=True,
      initial=jnp.inf,
    )
    positives = _extreme(d, positives & ~(d >= bound), far_positive)
  else:
    if pos_strategy != 'all':
      positives = _extreme(d, positives, far_positive)
    if neg_strategy == 'semihard':
      bound = jnp.max(
        jnp.where(positives, d, -jnp.inf),
        axis=1,
        keepdims=True,
        initial=-jnp.inf,
      )
      negatives &= ~(d <= bound)
    if neg_strategy != 'all':
      negatives = _extreme(d, negatives, not near_negative)
  if 'all' in strategies:
    return positives, negatives
  return _of_both(positives, negatives)


def batch_hard_miner(
  matrix: jax.Array,
  positives: jax.Array,
  negatives: jax.Array,
  *,
  inverted: bool = False,
  allowed_pos_range: tuple[float, float] | None = None,
  allowed_neg_range: tuple[float, float] | None = None,
) -> tuple[jax.Array, jax.Array]:
  """The farthest positive and the nearest negative of each anchor.

    positive  argmax_p d_ap
    negative  argmin_n d_an

  It is `batch_easy_hard_miner` with both strategies 'hard'; see there.

  Use it with the triplet loss on clean labels: one wrong label is the hardest
  positive of its whole class.

  Cost: O(B G) time and memory.

  Defaults: PML's: no limits.

  Args:
    matrix: [B, G] of anchors and candidates.
    positives: [B, G] bool.
    negatives: [B, G] bool.
    inverted: whether the matrix holds similarities.
    allowed_pos_range: (low, high), both included: what the entry of a selected
      positive may be, in the unit of the matrix; None for no limit.
    allowed_neg_range: likewise of negatives.

  Returns:
    (positives, negatives), [B, G] bool, the selected pairs.

  Example:
    >>> d = jnp.array([[0.0, 0.5, 0.2, 0.4, 0.9]])
    >>> p = jnp.array([[False, True, True, False, False]])
    >>> n = jnp.array([[False, False, False, True, True]])
    >>> p, n = batch_hard_miner(d, p, n)
    >>> p.astype(int).tolist(), n.astype(int).tolist()
    ([[0, 1, 0, 0, 0]], [[0, 0, 0, 1, 0]])

  References:
    Hermans et al., In Defense of the Triplet Loss for Person
    Re-Identification, arXiv:1703.07737, 2017.
  """
  return batch_easy_hard_miner(
    matrix,
    positives,
    negatives,
    inverted=inverted,
    pos_strategy='hard',
    neg_strategy='hard',
    allowed_pos_range=allowed_pos_range,
    allowed_neg_range=allowed_neg_range,
  )


def n_hard_miner(
  matrix: jax.Array,
  positives: jax.Array,
  negatives: jax.Array,
  *,
  inverted: bool = False,
  n_positive: int | tuple[int, int] = 1,
  n_negative: int | tuple[int, int] = 1,
) -> tuple[jax.Array, jax.Array]:
  """The n farthest positives and the n nearest negatives of each anchor.

    positives  those of rank first to last, from the largest d_ap down
    negatives  those of rank first to last, from the smallest d_an up

  with the ranks 1 to n, or those of a range. An anchor with fewer has all of
  them, one without either has no pair. Of equally near candidates the first are
  taken. Nothing carries a gradient.

  Use it where labels are noisy, with a range: (2, 5) leaves out the very
  hardest, which are often mislabelled.

  Cost: O(32 B G) time, O(B G) memory.

  Defaults: OML's.

  Args:
    matrix: [B, G] of anchors and candidates.
    positives: [B, G] bool.
    negatives: [B, G] bool.
    inverted: whether the matrix holds similarities.
    n_positive: how many, or (first, last) of them, the hardest being 1.
    n_negative: likewise.

  Returns:
    (positives, negatives), [B, G] bool, the selected pairs.

  Example:
    >>> d = jnp.array([[0.5, 0.2, 0.4, 0.9, 0.6]])
    >>> positives = jnp.array([[True, True, False, False, False]])
    >>> _, n = n_hard_miner(d, positives, ~positives, n_negative=(2, 3))
    >>> n.astype(int).tolist()
    [[0, 0, 0, 1, 1]]

  References:
    NHardTripletsMiner of OML (open-metric-learning).
  """
  d = nearness_order(matrix, inverted)
  positives = _ranked(d, positives, n_positive)
  negatives = _ranked(-d, negatives, n_negative)
  return _of_both(positives, negatives)


def hdc_miner(
  matrix: jax.Array,
  positives: jax.Array,
  negatives: jax.Array,
  *,
  inverted: bool = False,
  filter_percentage: float = 0.5,
) -> tuple[jax.Array, jax.Array]:
  """The hardest share of all pairs of the batch.

    positives  the ceil(filter_percentage n) farthest of all n
    negatives  the ceil(filter_percentage n) nearest of all n

  The miner sees all anchors of the batch at once. Of equal entries the first
  are taken, row by row. Nothing carries a gradient.

  Use it where a few anchors hold most of what is hard, and each anchor need not
  have a pair.

  Cost: O(32 B G) time, O(B G) memory of the whole batch.

  Defaults: PML's.

  Args:
    matrix: [B, G] of all anchors and candidates.
    positives: [B, G] bool.
    negatives: [B, G] bool.
    inverted: whether the matrix holds similarities.
    filter_percentage: the share that is kept, in (0, 1] (PML's word).

  Returns:
    (positives, negatives), [B, G] bool, the selected pairs.

  Example:
    >>> d = jnp.array([[0.5, 0.2, 0.4, 0.9]])
    >>> positives = jnp.array([[True, True, False, False]])
    >>> p, n = hdc_miner(d, positives, ~positives)
    >>> p.astype(int).tolist(), n.astype(int).tolist()
    ([[1, 0, 0, 0]], [[0, 0, 1, 0]])

  References:
    Yuan et al., Hard-Aware Deeply Cascaded Embedding, ICCV 2017.
  """
  d = nearness_order(matrix, inverted)

  def hardest(d, mask):
    number = jnp.sum(mask, dtype=jnp.int32).astype(jnp.float32)
    # 0.3 * 10 is above 3 in float32; the last digit is not to add a pair.
    count = jnp.ceil(filter_percentage * number * (1 - 3e-7))
    count = count.astype(jnp.int32).reshape(1)
    flat = largest(d.reshape(1, -1), mask.reshape(1, -1), count)
    return flat.reshape(mask.shape)

  return hardest(d, positives), hardest(-d, negatives)


def _within(matrix, limits):
  if limits is None:
    return jnp.ones(matrix.shape, bool)
  return ~((matrix < limits[0]) | (matrix > limits[1]))


def _extreme(d, mask, farthest):
  """Marks the first of the farthest or nearest of each row."""
  if not mask.shape[1]:
    return mask
  d = jnp.where(mask, -d if farthest else d, jnp.inf)
  columns = jnp.arange(mask.shape[1])[None, :]
  return mask & (columns == jnp.argmin(d, axis=1)[:, None])


def _ranked(d, mask, n):
  first, last = (1, n) if isinstance(n, int) else n
  rows = mask.shape[0]
  kept = largest(d, mask, jnp.full(rows, last, jnp.int32))
  if first > 1:
    kept &= ~largest(d, mask, jnp.full(rows, first - 1, jnp.int32))
  return kept


def _of_both(positives, negatives):
  """Leaves the anchors that have a positive and a negative."""
  both = jnp.any(positives, axis=1) & jnp.any(negatives, axis=1)
  return positives & both[:, None], negatives & both[:, None]
