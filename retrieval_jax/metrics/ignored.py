"""Rows of the gallery that a query must not be judged by.

They are in no ranking, neither as positives nor as negatives: what stood below
moves up. Junk images of landmark sets, the pictures that a query's own camera
took of it in re-identification, the frames of its own sequence.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import numpy as np

from retrieval_jax.core import relations, tiles
from retrieval_jax.core.errors import InputError

_ROWS_AT_ONCE = 64  # Compared with the labels of all of the gallery.


@dataclasses.dataclass(frozen=True, eq=False)
class Ignored:
  """Which rows of the gallery each query ignores.

  Attributes:
    rows: [Q, L] int rows of the gallery, padded with -1, or a sequence of Q
      sequences: rows ignored whatever they are.
    sequences: ([Q], [N]) int, of the queries and of the gallery: all rows of
      the query's own sequence are ignored. Negative: in no sequence.
    cameras: ([Q], [N]) int likewise: the positives that the query's own camera
      took are ignored; what it took of others stays, and distracts (the
      protocol of Market-1501).
  """

  rows: np.ndarray | Sequence[Sequence[int]] | None = None
  sequences: tuple[np.ndarray, np.ndarray] | None = None
  cameras: tuple[np.ndarray, np.ndarray] | None = None

  def checked(self, num_queries: int, num_rows: int) -> 'Ignored':
    """Returns it with int64 arrays that fit, or says what is wrong.

    Args:
      num_queries: Q.
      num_rows: N.

    Raises:
      InputError: for rows that are not in the gallery, or other lengths.
    """
    rows = self.rows
    if rows is not None:
      rows = check_rows(rows, 'ignored.rows', num_queries, num_rows)
    pairs = {}
    for name in ('sequences', 'cameras'):
      pair = getattr(self, name)
      if pair is None:
        continue
      if not isinstance(pair, (tuple, list)) or len(pair) != 2:
        raise InputError(
          f'ignored.{name} is {type(pair).__name__}; allowed is a pair, of the '
          'queries [Q] and of the gallery [N]: without a gallery give the '
          'same array twice'
        )
      pair = tuple(
        relations.check_labels(column, f'ignored.{name}') for column in pair
      )
      lengths = tuple(map(len, pair))
      if lengths != (num_queries, num_rows):
        raise InputError(
          f'ignored.{name} have lengths {lengths}; allowed are '
          f'{(num_queries, num_rows)}, one for each query and for each row of '
          'the gallery: check how they were gathered'
        )
      pairs[name] = pair
    return Ignored(rows, **pairs)

  def rows_of_all(
    self,
    labels: np.ndarray,
    gallery_labels: np.ndarray,
    grades: np.ndarray | None = None,
  ) -> np.ndarray:
    """Returns the rows of the gallery that each query ignores, for any reason.

    They take memory of Q times the most that one query ignores.

    Args:
      labels: [Q] int, or [Q, L] label sets, by which `cameras` knows positives.
      gallery_labels: [N] or [N, M] likewise.
      grades: [C, C], see `core.relations`.

    Returns:
      [Q, L'] int64, each row once, padded with -1.

    Raises:
      InputError: see `checked`.

    Example:
      >>> ignored = Ignored([[3], []], cameras=(np.array([0, 1]),
      ...                                       np.array([0, 0, 1, 1])))
      >>> ignored.rows_of_all(np.array([5, 6]), np.array([5, 6, 6, 5])).tolist()
      [[3, 0], [2, -1]]
    """
    checked = self.checked(len(labels), len(gallery_labels))

    def are_positive(block):
      others = np.broadcast_to(
        gallery_labels, (block.stop - block.start, *gallery_labels.shape)
      )
      return relations.are_related(labels[block], others, grades)

    found = []
    for block in tiles.blocks(len(labels), _ROWS_AT_ONCE):
      queries = np.arange(block.start, block.stop)
      rows, columns = checked.pairs(
        queries, lambda block=block: np.nonzero(are_positive(block))
      )
      order = np.argsort(rows, kind='stable')
      ends = np.cumsum(np.bincount(rows, minlength=len(queries)))
      found += np.split(columns[order], ends[:-1])
    return check_rows(found, 'ignored', len(labels))

  def pairs(
    self,
    queries: np.ndarray,
    find_positives: Callable[[], tuple[np.ndarray, np.ndarray]],
  ) -> tuple[np.ndarray, np.ndarray]:
    """Returns what some queries ignore, as pairs; one may come again.

    Args:
      queries: [B] int, which queries; this is `checked`.
      find_positives: gives the pairs that are positives, in the same form; it
        is called if `cameras` are given.

    Returns:
      ([P] int64 of the B queries, [P] int64 rows of the gallery).

    Example:
      >>> ignored = Ignored(sequences=(np.array([3, 4]), np.array([4, 3, 4])))
      >>> [of.tolist() for of in ignored.pairs(np.array([1]), lambda: None)]
      [[0, 0], [0, 2]]
    """
    found = [(np.zeros(0, np.int64),) * 2]
    if self.rows is not None:
      rows = self.rows[queries]
      query, place = np.nonzero(rows >= 0)
      found.append((query, rows[query, place]))
    if self.sequences is not None:
      order, known = self._by_sequence
      own = self.sequences[0][queries]
      begins, ends = (
        np.searchsorted(known, own, side) for side in ('left', 'right')
      )
      sizes = np.where(own >= 0, ends - begins, 0)
      query = np.repeat(np.arange(len(own)), sizes)
      nth = np.arange(len(query)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
      found.append((query, order[begins[query] + nth]))
    if self.cameras is not None:
      own, known = self.cameras
      query, row = find_positives()
      camera = own[queries[query]]
      is_own = (camera == known[row]) & (camera >= 0)
      found.append((query[is_own], row[is_own]))
    query, row = (np.concatenate(of) for of in zip(*found, strict=True))
    return query, row

  @functools.cached_property
  def _by_sequence(self):
    """([N] the gallery rows by sequence, [N] the sequence of each)."""
    known = self.sequences[1]
    order = np.argsort(known, kind='stable')
    return order, known[order]

  def describe(self) -> list[str]:
    """Returns what is ignored, in words."""
    sentences = []
    if self.rows is not None:
      sentences.append('rows listed for each query')
    if self.sequences is not None:
      sentences.append("rows of the query's own sequence")
    if self.cameras is not None:
      sentences.append("positives of the query's own camera")
    return sentences


def with_own_rows(
  ignored: Ignored | None, own_rows: np.ndarray | None
) -> Ignored | None:
  """Returns what is in no ranking, the query itself among it."""
  if own_rows is None:
    return ignored
  rows = own_rows[:, None]
  if ignored is None:
    return Ignored(rows)
  if ignored.rows is not None:
    rows = np.concatenate([ignored.rows, rows], axis=1)
  return dataclasses.replace(ignored, rows=rows)


def check_own_rows(
  own_rows, labels: np.ndarray, gallery_labels: np.ndarray
) -> np.ndarray:
  """Returns which gallery row each query itself is.

  Args:
    own_rows: [Q] int, negative for none.
    labels: [Q] int, or [Q, L] label sets.
    gallery_labels: [N] int, or [N, M] likewise.

  Returns:
    [Q] int64, -1 for none.

  Raises:
    InputError: for another shape or dtype, a row that is not there, or a label
      other than the query's.
  """
  own_rows = np.asarray(own_rows)
  if (
    own_rows.shape != labels.shape[:1]
    or not np.issubdtype(own_rows.dtype, np.integer)
    or own_rows.max(initial=-1) >= len(gallery_labels)
  ):
    raise InputError(
      f'own_rows has shape {own_rows.shape} and dtype {own_rows.dtype}; '
      f'allowed are {len(labels)} integers, one for each query, below '
      f'{len(gallery_labels)}, the rows of the gallery'
    )
  own_rows = np.where(own_rows < 0, -1, own_rows.astype(np.int64))
  query = np.flatnonzero(own_rows >= 0)
  if labels.ndim == 1:
    differs = labels[query] != gallery_labels[own_rows[query]]
    if differs.any():
      first = int(query[differs.argmax()])
      raise InputError(
        f'own_rows: query {first} has label {labels[first]} and is row '
        f'{own_rows[first]} of the gallery, with label '
        f'{gallery_labels[own_rows[first]]}; allowed are rows of one label: '
        'check how both were gathered'
      )
  return own_rows


def check_rows(
  rows, name: str, num_queries: int, num_rows: int | None = None
) -> np.ndarray:
  """Returns a list of rows for each query as an array, each row once.

  Args:
    rows: [Q, L] int, negative is none; or a sequence of Q sequences of ints.
    name: how the message calls them.
    num_queries: Q.
    num_rows: N, which all must be below; None: any.

  Returns:
    [Q, L'] int64, L' at least 1, descending in each row, padded with -1.

  Raises:
    InputError: for another shape or dtype, or a row that is not there.

  Example:
    >>> check_rows([[3, 1, 3], [], [0]], 'relevant', 3).tolist()
    [[3, 1], [-1, -1], [0, -1]]
  """
  rows = padded_rows(rows, name)
  if len(rows) != num_queries:
    raise InputError(
      f'{name} has {len(rows)} rows for {num_queries} queries; allowed is one '
      'for each: give a query without any an empty list'
    )
  if num_rows is not None and rows.size and rows.max() >= num_rows:
    raise InputError(
      f'{name} has {rows.max()}; allowed is at most {num_rows - 1}, for a '
      f'gallery of {num_rows} rows counted from 0: check that both are of one '
      'gallery'
    )
  rows = np.sort(np.maximum(rows.astype(np.int64), -1), axis=1)[:, ::-1].copy()
  again = np.zeros(rows.shape, bool)
  again[:, 1:] = rows[:, 1:] == rows[:, :-1]
  rows[again] = -1
  rows = np.sort(rows, axis=1)[:, ::-1]
  width = max(1, int((rows >= 0).sum(axis=1).max(initial=0)))
  if rows.shape[1] < width:
    rows = np.full((len(rows), 1), -1)
  return rows[:, :width]


def padded_rows(rows, name: str) -> np.ndarray:
  """Returns a list of rows for each query as an array, in its order.

  Args:
    rows: [Q, L] int, or a sequence of Q sequences of ints.
    name: how the message calls them.

  Returns:
    [Q, L] of an integer dtype, lists padded with -1 at the end.

  Raises:
    InputError: for another shape or dtype.

  Example:
    >>> padded_rows([[3, 1], []], 'rankings').tolist()
    [[3, 1], [-1, -1]]
  """
  if not isinstance(rows, np.ndarray):
    rows = _from_lists(rows, name)
  if rows.ndim != 2 or not np.issubdtype(rows.dtype, np.integer):
    raise InputError(
      f'{name} has shape {rows.shape} and dtype {rows.dtype}; allowed are '
      'integers (Q, L), the rows of each query, padded with -1: or pass a list '
      'of lists'
    )
  return rows


def _from_lists(lists, name):
  try:
    arrays = [np.asarray(row) for row in lists]
  except TypeError as error:
    raise InputError(
      f'{name} is {type(lists).__name__}; allowed is an array (Q, L) or a list '
      'of lists of rows'
    ) from error
  width = max((array.size for array in arrays), default=0)
  padded = np.full((len(arrays), max(width, 1)), -1, np.int64)
  for row, array in zip(padded, arrays, strict=True):
    if array.size and (
      array.ndim != 1 or not np.issubdtype(array.dtype, np.integer)
    ):
      raise InputError(
        f'{name} has {array.tolist()!r}; allowed are lists of integers, the '
        'rows of each query'
      )
    row[: array.size] = array.astype(np.int64)
  return padded
