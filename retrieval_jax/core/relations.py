"""Which rows belong together: labels -> relevance, and the masks of a batch.

Everything that asks "are these two the same?" (sampler, miner, loss, metric)
asks here, so that another kind of label is taught to the project once.
"""

import jax
import jax.numpy as jnp
import numpy as np

from retrieval_jax.core.errors import InputError


def relevance(labels: jax.Array, others: jax.Array) -> jax.Array:
  """Returns r_ij, the relevance of `others[j]` to `labels[i]`.

  Args:
    labels: [B] int class labels.
    others: [G] int class labels.

  Returns:
    [B, G] float32, 1 for the same class and 0 otherwise; positive means > 0.

  Example:
    >>> relevance(jnp.array([0, 1]), jnp.array([1, 1, 0])).tolist()
    [[0.0, 0.0, 1.0], [1.0, 1.0, 0.0]]
  """
  return (labels[:, None] == others[None, :]).astype(jnp.float32)


def pair_masks(
  labels: jax.Array,
  candidate_labels: jax.Array,
  ids: jax.Array | None = None,
  candidate_ids: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
  """Returns the positive and the negative pairs of anchors and candidates.

  Args:
    labels: [B] int, of the anchors; a negative label marks padding, which is in
      no pair.
    candidate_labels: [G] int likewise.
    ids: [B] int, the row of each anchor in the whole batch; with
      `candidate_ids`, a pair of equal ids is the row itself and is left out.
    candidate_ids: [G] int likewise.

  Returns:
    (positives, negatives), each [B, G] bool.

  Example:
    >>> y, i = jnp.array([0, 0, 1]), jnp.arange(3)
    >>> positives, negatives = pair_masks(y, y, i, i)
    >>> positives.astype(int).tolist()
    [[0, 1, 0], [1, 0, 0], [0, 0, 0]]
    >>> negatives.astype(int).tolist()
    [[0, 0, 1], [0, 0, 1], [1, 1, 0]]
  """
  related = relevance(labels, candidate_labels) > 0
  valid = (labels >= 0)[:, None] & (candidate_labels >= 0)[None, :]
  if ids is not None:
    valid &= ids[:, None] != candidate_ids[None, :]
  return related & valid, ~related & valid


def check_labels(labels, name: str = 'labels') -> np.ndarray:
  """Returns labels as a [N] int64 array of the host, or says what is wrong.

  Labels of shape (N, 1) are what made a well-known calculator print an mAP of
  4949.99: they broadcast against [N] to [N, N]. They are refused, not squeezed.

  Args:
    labels: array of rank 1 and an integer dtype.
    name: how the message calls them.

  Raises:
    InputError: for another rank, or another dtype (float32 merges labels above
      2 ** 24).

  Example:
    >>> check_labels([3, 1])
    array([3, 1])
  """
  labels = np.asarray(labels)
  if labels.ndim != 1:
    raise InputError(
      f'{name} has shape {labels.shape}; allowed is (N,), one int a row: '
      'pass labels.reshape(-1) if there is one label a row'
    )
  if not np.issubdtype(labels.dtype, np.integer):
    raise InputError(
      f'{name} has dtype {labels.dtype}; allowed are integers: '
      'pass labels.astype(int), or np.unique(labels, return_inverse=True)[1]'
    )
  return labels.astype(np.int64)
