"""From which similarity on a nearest neighbour is an answer.

A search answers with the nearest image if its similarity is at least a
threshold t, and else with "no match". So thresholds are chosen on what decides:
the best image of each query (top 1), not all pairs, of which nearly all are far
too unlike to be an answer of anything, and would make any threshold look safe.

Of each query two numbers are needed: the best similarity of an image of its
class, p, and of one of any other class, n. The answer is max(p, n), right if
p > n. A tie counts as wrong: which of the two is shown is no merit. A query
without an image of its class counts too: any answer to it is wrong.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from retrieval_jax.core import arrays, tiles
from retrieval_jax.core.errors import InputError

_BLOCK_ROWS = 256
_TILE_ROWS = 4096
_NO_LABEL = -1


class Calibration(NamedTuple):
  """A threshold, and what it did on the queries it was chosen on.

  Attributes:
    value: t, the least similarity of an answer; a float32 number.
    precision: the share of right answers among the answers; NaN without any.
    answered: the share of the queries that were answered.
    false_positive_rate: the share of the queries that would be answered if the
      gallery had no image of their class.
    num_queries: Q.
  """

  value: float
  precision: float
  answered: float
  false_positive_rate: float
  num_queries: int

  def to_dict(self) -> dict[str, Any]:
    """Returns the fields as JSON holds them, which knows no NaN."""
    fields = self._asdict()
    return fields | {'precision': self.precision if self.answered else None}


def best_similarities(
  embeddings: np.ndarray,
  labels: np.ndarray,
  gallery_embeddings: np.ndarray | None = None,
  gallery_labels: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
  """Returns p and n of each query, in memory O(Q D + N D).

  Args:
    embeddings: [Q, D] any float dtype, normalised inside.
    labels: [Q] int32 >= 0.
    gallery_embeddings: [N, D]; None: the queries, each without itself.
    gallery_labels: [N] int32 >= 0.

  Returns:
    (p [Q], n [Q]) float32, the largest cosine with an image of the same class
    and of any other; -inf without one.

  Raises:
    InputError: for arrays of other shapes, or values that are not finite.

  Example:
    >>> x = np.array([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])
    >>> same, other = best_similarities(x, np.array([0, 0, 1]))
    >>> same.round(2).tolist(), other.round(2).tolist()
    ([0.6000000238418579, 0.6000000238418579, -inf], [0.0, \
0.800000011920929, 0.800000011920929])
  """
  self_excluded = gallery_embeddings is None
  if self_excluded:
    gallery_embeddings, gallery_labels = embeddings, labels
  queries = tiles.check_embeddings(embeddings, 'embeddings')
  gallery = tiles.check_embeddings(
    gallery_embeddings, 'gallery_embeddings', queries.shape[1]
  )
  labels = _check_labels(labels, queries, 'labels')
  gallery_labels = _check_labels(gallery_labels, gallery, 'gallery_labels')
  same = np.full(len(queries), -np.inf, np.float32)
  other = same.copy()
  for block in tiles.blocks(len(queries), _BLOCK_ROWS):
    ids = np.arange(block.start, block.stop, dtype=np.int32)
    rows = _padded(tiles.unit_rows(queries[block]), _BLOCK_ROWS, 0)
    own = _padded(labels[block], _BLOCK_ROWS, _NO_LABEL)
    ids = _padded(ids if self_excluded else ids - len(queries), _BLOCK_ROWS, -1)
    for tile in tiles.blocks(len(gallery), _TILE_ROWS):
      found = _best_of_tile(
        rows,
        own,
        ids,
        _padded(tiles.unit_rows(gallery[tile]), _TILE_ROWS, 0),
        _padded(gallery_labels[tile], _TILE_ROWS, _NO_LABEL),
        tile.start,
      )
      size = block.stop - block.start
      for best, values in zip((same, other), found, strict=True):
        best[block] = np.maximum(best[block], np.asarray(values)[:size])
  return same, other


@jax.jit
def _best_of_tile(rows, labels, ids, gallery_rows, gallery_labels, start):
  """Returns the best similarity of the same class, and of the others."""
  similarities = arrays.dot_products(rows, gallery_rows)
  columns = start + jnp.arange(len(gallery_rows), dtype=jnp.int32)
  out = (gallery_labels < 0)[None, :] | (ids[:, None] == columns[None, :])
  is_same = labels[:, None] == gallery_labels[None, :]

  def best(mask):
    return jnp.max(jnp.where(mask & ~out, similarities, -jnp.inf), axis=1)

  return best(is_same), best(~is_same)


def threshold_for_precision(
  same: np.ndarray, other: np.ndarray, precision: float
) -> Calibration:
  """Returns the threshold of a wanted precision that answers most queries.

  precision(t) = #{max(p, n) >= t, p > n} / #{max(p, n) >= t}

  It does not always rise with t: t is the least of all observed similarities
  that has the precision wanted. Equal similarities are answered together.

  Args:
    same: [Q] p of `best_similarities`.
    other: [Q] n.
    precision: wanted, in (0, 1].

  Raises:
    InputError: if no threshold has it; the best that there is is named.

  Example:
    >>> same = np.array([0.9, 0.8, 0.7, 0.6], np.float32)
    >>> other = np.array([0.1, 0.2, 0.75, 0.2], np.float32)
    >>> found = threshold_for_precision(same, other, 0.9)
    >>> round(found.value, 4), found.precision, found.answered
    (0.8, 1.0, 0.5)
  """
  _check_share('precision', precision, is_open=True)
  best = _best(same, other)
  order = np.argsort(-best, kind='stable')
  values, right = best[order], (same > other)[order]
  # Ties end together.
  last = np.flatnonzero(np.append(values[1:] != values[:-1], True))
  precisions = np.cumsum(right)[last] / (last + 1)
  reached = np.flatnonzero(precisions >= precision)
  if not len(reached):
    top = int(np.argmax(precisions))
    raise InputError(
      f'precision is {precision}, but of the {len(best)} queries no threshold '
      f'gives more than {precisions[top]:.4f} (at similarity '
      f'{values[last[top]]:.4f}); allowed is at most that: lower it, or train '
      'further'
    )
  return _describe(same, other, values[last[reached[-1]]])


def threshold_for_fpr(
  same: np.ndarray, other: np.ndarray, false_positive_rate: float
) -> Calibration:
  """Returns the least threshold that refuses queries without a match.

  false_positive_rate(t) = #{n >= t} / Q

  is the share of the queries that would be answered if the gallery had no image
  of their class: every answer is then wrong.

  Args:
    same: [Q] p of `best_similarities`.
    other: [Q] n.
    false_positive_rate: wanted at most, in [0, 1).

  Raises:
    InputError: for a rate that is none.

  Example:
    >>> same = np.array([0.9, 0.8, 0.7, 0.6], np.float32)
    >>> other = np.array([0.1, 0.2, 0.75, 0.25], np.float32)
    >>> found = threshold_for_fpr(same, other, 0.25)
    >>> round(found.value, 4), found.false_positive_rate, found.answered
    (0.25, 0.25, 1.0)
  """
  _check_share('false_positive_rate', false_positive_rate, is_open=False)
  _best(same, other)
  descending = -np.sort(-other)
  # The most that may be answered; t lies just above the one after them.
  allowed = np.searchsorted(
    np.arange(1, len(other) + 1) / len(other), false_positive_rate, 'right'
  )
  if allowed == len(other):
    return _describe(same, other, np.float32(-1))
  value = np.nextafter(descending[allowed], np.float32(2), dtype=np.float32)
  return _describe(same, other, max(value, np.float32(-1)))


def _best(same: np.ndarray, other: np.ndarray) -> np.ndarray:
  """Returns [Q] max(p, n), or raises if nothing can be chosen on it."""
  best = np.maximum(same, other)
  if not len(best) or not (
    np.isfinite(same).any() and np.isfinite(other).any()
  ):
    raise InputError(
      'no threshold can be chosen where no query has both an image of its '
      'class and one of another; allowed are at least two classes, of which '
      'one has two images: choose other labelled images'
    )
  return best


def _describe(
  same: np.ndarray, other: np.ndarray, value: np.float32
) -> Calibration:
  answered = np.maximum(same, other) >= value
  right = answered & (same > other)
  count = int(answered.sum())
  return Calibration(
    value=float(value),
    precision=float(right.sum() / count) if count else float('nan'),
    answered=float(answered.mean()),
    false_positive_rate=float((other >= value).mean()),
    num_queries=len(same),
  )


def _check_share(name: str, value: float, is_open: bool) -> None:
  is_allowed = 0 < value <= 1 if is_open else 0 <= value < 1
  if isinstance(value, bool) or not is_allowed:
    interval = 'above 0, up to 1' if is_open else 'from 0 up to, not with, 1'
    raise InputError(
      f'{name} is {value!r}; allowed is a share {interval}: choose one, such '
      f'as {0.99 if is_open else 0.01}'
    )


def _check_labels(
  labels: np.ndarray, embeddings: np.ndarray, name: str
) -> np.ndarray:
  labels = np.asarray(labels)
  if labels.shape != (len(embeddings),) or labels.dtype.kind not in 'iu':
    raise InputError(
      f'{name} has shape {labels.shape} and dtype {labels.dtype}; allowed are '
      f'ints of shape ({len(embeddings)},), one class an image: pass these'
    )
  if labels.min() < 0:
    raise InputError(
      f'{name} row {int(np.argmin(labels))} is {labels.min()}; allowed are '
      'classes from 0: number them so'
    )
  return labels.astype(np.int32)


def _padded(array: np.ndarray, num_rows: int, value: int) -> np.ndarray:
  widths = [(0, num_rows - len(array))] + [(0, 0)] * (array.ndim - 1)
  return np.pad(array, widths, constant_values=value)
