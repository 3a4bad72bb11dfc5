"""The pairs of a query and a gallery row, streamed in bounded memory.

What is measured of all pairs (verification), of a query's nearest rows
(hubness) or of its nearest row (open set) sees the same similarities, rounded
to the same resolution, with the same pairs left out.

A level is a similarity in units of `ranks.RESOLUTION`, round(2 ** 22 s): an
integer of at most 2 ** 22, up to rounding, which float32 holds exactly.
"""

import functools
import math
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from retrieval_jax.core import relations, row_files, tiles
from retrieval_jax.core.errors import InputError
from retrieval_jax.metrics import ranks

# Of a query and a gallery row that are no pair.
NO_LEVEL = -np.inf


class UndefinedError(InputError):
  """A metric has no value for these data; the message says why."""


class Task(NamedTuple):
  """What is measured, checked before.

  Attributes:
    queries: [Q, D] any float dtype, finite.
    labels: [Q] int, or [Q, L] int label sets, padded with -1.
    gallery: [N, D] likewise; the queries themselves if `self_excluded`.
    gallery_labels: [N] int, or [N, M] likewise.
    self_excluded: whether row i of the gallery is query i, and no pair with it.
    grades: [C, C] of int labels, see `core.relations`; None: a class is
      relevant to itself alone.
    budget: bytes of memory to stay within.
    devices: all local devices, if None.
    has_ignored: whether some pairs are not judged, which is known to rankings
      alone.
    process: (which, of how many) share the gallery; all of them measure, and
      find the same.
  """

  queries: np.ndarray
  labels: np.ndarray
  gallery: np.ndarray
  gallery_labels: np.ndarray
  self_excluded: bool
  grades: np.ndarray | None = None
  budget: int = 128 * tiles.MIB
  devices: tuple[jax.Device, ...] | None = None
  has_ignored: bool = False
  process: tuple[int, int] = (0, 1)

  def of_processes(self, array: np.ndarray) -> np.ndarray:
    """Returns what each process found, [P, ...]; all of them call this."""
    if self.process[1] == 1:
      return array[None]
    return tiles.gather_from_processes(array)

  @property
  def is_one_class(self) -> bool:
    """Whether what is to be found is the query's class alone."""
    return self.labels.ndim == 1 and self.grades is None


class Block(NamedTuple):
  """Queries on the devices, and the gallery that they meet.

  Attributes:
    rows: which of the Q queries.
    queries: (unit rows [B, D], (labels, row [B] int32)); padding has row -1.
    gallery: tiles of (unit rows [T, D], (labels, row [T] int32)), those of this
      process.
    grades: of the task, on the devices.
  """

  rows: slice
  queries: tuple
  gallery: tiles.Tiles
  grades: jax.Array | None


def blocks(task: Task, *, pair_bytes: int, fixed: int = 0) -> Iterator[Block]:
  """Yields all queries, block by block.

  Args:
    task: what is measured.
    pair_bytes: memory that a pair of a block and a tile needs.
    fixed: bytes of the budget that are taken already.

  Raises:
    UndefinedError: if some pairs are not judged.
    InputError: if the budget does not hold the smallest block.
  """
  if task.has_ignored:
    raise UndefinedError('only rankings leave out ignored rows')
  labels, gallery_labels = task.labels, task.gallery_labels
  if task.grades is None:  # Else they are rows of the grades.
    labels, gallery_labels = relations.number_labels(labels, gallery_labels)
  left = task.budget - fixed
  gallery = tiles.Tiles(
    task.gallery,
    (gallery_labels, np.arange(len(task.gallery))),
    budget=max(left, 0) // 2,
    devices=task.devices,
    process=task.process,
  )
  left -= gallery.num_bytes
  row_bytes = pair_bytes * gallery.tile_rows
  smallest = tiles.MIN_BLOCK_ROWS * row_bytes
  if smallest > left:
    needed = math.ceil((fixed + gallery.num_bytes + smallest) / tiles.MIB)
    raise InputError(
      f'memory_budget_mb is too small for the pairs with a gallery of '
      f'{gallery.num_rows} rows; allowed is {needed} or more: '
      f'pass memory_budget_mb={needed}'
    )
  grades = task.grades
  if grades is not None:
    grades = jax.device_put(grades, NamedSharding(gallery.mesh, P()))
  block_rows = gallery.block_rows(len(task.queries), row_bytes, left)
  query_rows = row_files.RowReader(task.queries)
  for rows in tiles.blocks(len(task.queries), block_rows):
    columns = labels[rows], np.arange(rows.start, rows.stop)
    queries = gallery.put_queries(query_rows[rows], columns, block_rows)
    yield Block(rows, queries, gallery, grades)


def levels(queries, tile, *, pairs: str) -> jax.Array:
  """Returns the levels of the pairs of a block and a tile.

  Args:
    queries: of a `Block`, B rows.
    tile: of its gallery, T rows.
    pairs: 'all', 'others' (a row of another index) or 'later' (of a larger
      index, so that each unordered pair comes once).

  Returns:
    [B, T] float32, `NO_LEVEL` for what is no pair.
  """
  rows, (_, row) = queries
  tile_rows, (_, gallery_row) = tile
  # Apart, so that no fusion changes how similarities are summed.
  similarities = ranks.similarities(rows, tile_rows)
  return _levels(similarities, row, gallery_row, pairs=pairs)


@functools.partial(jax.jit, static_argnames='pairs')
def _levels(similarities, row, gallery_row, *, pairs):
  is_pair = (row >= 0)[:, None] & (gallery_row >= 0)[None, :]
  if pairs == 'others':
    is_pair &= gallery_row[None, :] != row[:, None]
  elif pairs == 'later':
    is_pair &= gallery_row[None, :] > row[:, None]
  rounded = jnp.round(similarities / ranks.RESOLUTION)
  return jnp.where(is_pair, rounded, NO_LEVEL)
