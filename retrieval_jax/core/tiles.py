"""Streams query blocks against gallery tiles: exact, in bounded memory.

Rankings and searches both need every similarity of a query, and neither can
hold [Q, N]. Here the gallery is cut into tiles of one shape, padded, and a
block of queries meets one tile at a time. The one shape is what makes ties
reliable: all columns take the same path through the matrix product, so equal
gallery rows give equal similarities, bit for bit, wherever they stand.

Each device holds its part of every tile, and all devices see all queries. On
several hosts each may hold its share of the tiles; what they find is then put
together (`gather_from_processes`). Inputs are arrays that every host can read:
in its memory, or memory maps, whose rows are read from the file and never all
at once.
"""

import functools
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent import futures
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from retrieval_jax.core import row_files
from retrieval_jax.core.errors import InputError

_Item = TypeVar('_Item')
_Result = TypeVar('_Result')

MIB = 2**20
# Wide enough that the matrix product dominates the call, small enough that a
# block of results stays in the cache.
TILE_ROWS = 4096
MAX_BLOCK_ROWS = 512
# A single row would go through a matrix-vector kernel, which rounds
# differently.
MIN_BLOCK_ROWS = 8


def check_embeddings(
  embeddings, name: str = 'embeddings', dim: int | None = None
) -> np.ndarray:
  """Returns embeddings as a [N, D] float array of the host, or says why not.

  Args and errors are those of `scan_embeddings`.

  Example:
    >>> check_embeddings([[0.5, 1.0]]).shape
    (1, 2)
  """
  return scan_embeddings(embeddings, name, dim)[0]


def scan_embeddings(
  embeddings, name: str = 'embeddings', dim: int | None = None
) -> tuple[np.ndarray, int]:
  """Checks embeddings and counts zero rows, which have no direction.

  No copy is made of a host array, and a memory map is read from its file.

  Args:
    embeddings: [N, D] any float dtype, N and D at least 1; or the path of an
      .npy file of such.
    name: how the message calls them.
    dim: the D that is expected, if one is.

  Returns:
    (the [N, D] array of the host, its rows that are zero in float32).

  Raises:
    InputError: for another rank or dtype, an empty array, another width, or a
      value that is not finite in float32 (the first such row is named).

  Example:
    >>> scan_embeddings(np.array([[0.5, 1.0], [0.0, 0.0]]))[1]
    1
  """
  if isinstance(embeddings, (str, os.PathLike)):
    embeddings = row_files.map_array(embeddings, name)
  embeddings = np.asarray(embeddings)
  if embeddings.ndim != 2:
    raise InputError(
      f'{name} has shape {embeddings.shape}; allowed is (N, D), one vector a '
      'row: pass embeddings.reshape(len(embeddings), -1)'
    )
  if not jnp.issubdtype(embeddings.dtype, jnp.floating):
    raise InputError(
      f'{name} has dtype {embeddings.dtype}; allowed are floats: '
      "pass embeddings.astype('float32')"
    )
  if 0 in embeddings.shape:
    raise InputError(
      f'{name} has shape {embeddings.shape}; allowed is at least one row and '
      'one column: check that the data set is not empty'
    )
  if dim is not None and embeddings.shape[1] != dim:
    raise InputError(
      f'{name} has {embeddings.shape[1]} columns, what it is compared with has '
      f'{dim}; allowed is the same width: embed both with the same model'
    )
  return embeddings, _scan(embeddings, name)


def _scan(embeddings, name):
  """Returns how many rows are zero, or says which is not finite."""
  rows = row_files.RowReader(embeddings)
  num_zero = 0
  for block in blocks(len(rows), TILE_ROWS):
    part = _float32(rows[block])
    finite = np.isfinite(part)
    if not finite.all():
      row = block.start + int(np.argmin(finite.all(axis=1)))
      raise InputError(
        f'{name} row {row} has NaN or infinite values; allowed are finite '
        'float32 numbers: look for divergence in training, or a broken image'
      )
    num_zero += len(part) - int(part.any(axis=1).sum())
  return num_zero


def count_zero_rows(embeddings: np.ndarray) -> int:
  """Returns how many rows of [N, D] are zero, and so have no direction."""
  return _scan(embeddings, 'embeddings')


def check_memory_budget(memory_budget_mb: float) -> int:
  """Returns the budget in bytes, or raises `InputError` if it is no budget."""
  if (
    isinstance(memory_budget_mb, bool)
    or not isinstance(memory_budget_mb, (int, float, np.integer, np.floating))
    or not 0 < memory_budget_mb < float('inf')
  ):
    raise InputError(
      f'memory_budget_mb is {memory_budget_mb!r}; allowed is a number of MiB '
      'above 0: leave it out for the default'
    )
  return int(memory_budget_mb * MIB)


class Tiles:
  """The gallery, as unit rows, in tiles of one shape, parts on each device.

  Devices, and processes that share the work, hold different parts of the
  gallery: `tiles[i]` is (rows [T, D] float32 of unit length, columns: a tuple
  of [T] int32), with T / devices rows on each device. The i-th tiles of all
  processes follow each other in the order of the gallery. They stay on the
  devices if they fit; else each is put there when asked for.

  Attributes:
    tile_rows: T, the rows of every tile of this process; what is behind the end
      of the gallery is zero.
    num_rows: N, without padding.
    num_padding: rows of padding, of all processes.
    devices: the devices.
    mesh: the same, along an axis named `rows`.
    process: (which, of how many) share the gallery.
    resident: whether the tiles stay on the devices.
    num_bytes: host memory that they take.
  """

  def __init__(
    self,
    embeddings: np.ndarray,
    columns: Sequence[np.ndarray] = (),
    *,
    order: np.ndarray | None = None,
    budget: int,
    devices: Sequence[jax.Device] | None = None,
    tile_rows: int = TILE_ROWS,
    process: tuple[int, int] = (0, 1),
    prepare: Callable[[np.ndarray], np.ndarray] | None = None,
  ):
    """Cuts the gallery into tiles.

    Args:
      embeddings: [N, D] any float dtype, finite; rows of a memory map are read
        from its file.
      columns: arrays [N] int32 >= 0, already in the order of the tiles, that
        are cut alike and padded with -1.
      order: [N] int, which row comes i-th; as given, if None.
      budget: bytes that resident tiles may take.
      devices: the local devices, if None.
      tile_rows: the most rows of a tile, on each device unless these share
        the memory of the host.
      process: (which, of how many) share the gallery.
      prepare: makes of rows [n, D] what the tiles hold [n, D']; `unit_rows`, if
        None.
    """
    self.devices = list(devices or jax.local_devices())
    self.num_rows = len(embeddings)
    self.process = process
    self._prepare = prepare or unit_rows
    # As few tiles as can be, with little padding in the last.
    if self.devices[0].platform != 'cpu':
      tile_rows *= len(self.devices)
    num_tiles = math.ceil(self.num_rows / tile_rows / process[1])
    smallest = 64 * len(self.devices)
    self.tile_rows = smallest * math.ceil(
      self.num_rows / num_tiles / process[1] / smallest
    )
    self.num_padding = len(self) * self.tile_rows * process[1] - self.num_rows
    self._rows = row_files.RowReader(embeddings)
    self._columns, self._order = columns, order
    self.mesh = Mesh(np.array(self.devices), ('rows',))
    one = self._prepare(self._rows[:1])
    tile_bytes = one.nbytes * self.tile_rows
    self.resident = tile_bytes * len(self) <= budget
    self.num_bytes = tile_bytes * (len(self) if self.resident else 3)
    kept = len(self) if self.resident else 0
    self._kept = [self._put(i) for i in range(kept)]

  def __len__(self) -> int:
    """Returns the number of tiles of this process."""
    return math.ceil(self.num_rows / (self.tile_rows * self.process[1]))

  def start(self, index: int) -> int:
    """Returns the place in the gallery of the first row of a tile."""
    which, processes = self.process
    return (index * processes + which) * self.tile_rows

  def __getitem__(self, index: int) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    """Returns the tile (rows [T, D], columns ([T], ...)) on the devices."""
    return self._kept[index] if self.resident else self._put(index)

  def _put(self, index):
    start = min(self.start(index), self.num_rows)
    stop = min(start + self.tile_rows, self.num_rows)
    columns = tuple(
      _pad(np.asarray(column[start:stop], np.int32), self.tile_rows, -1)
      for column in self._columns
    )
    rows = self._prepare(self._read(start, stop))
    return self.put((_pad(rows, self.tile_rows, 0), columns), P('rows'))

  def _read(self, start, stop):
    picked = slice(start, stop)
    return self._rows[picked if self._order is None else self._order[picked]]

  def rows_at(self, start: int, num_rows: int) -> jax.Array:
    """Returns a part of the gallery in its order, all of it on each device.

    What one device holds is taken from there. From several it would have to be
    collected, for which simulated devices can wait for ever, so it is read.

    Args:
      start: the place of the first row.
      num_rows: n, at most those of a tile; what is behind the end is zero.

    Returns:
      [n, D'] as in `tiles[i]`.
    """
    index, offset = divmod(start, self.tile_rows)
    last = index + (offset + num_rows > self.tile_rows)
    on_one = len(self.devices) == 1 and self.process[1] == 1
    if on_one and self.resident and last < len(self):
      return _part(self._kept[index][0], self._kept[last][0], offset, num_rows)
    rows = self._read(start, min(start + num_rows, self.num_rows))
    return self.put(_pad(self._prepare(rows), num_rows, 0))

  def put_queries(
    self,
    embeddings: np.ndarray,
    columns: Sequence[np.ndarray],
    block_rows: int,
    prepare: Callable[[np.ndarray], np.ndarray] | None = None,
  ) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    """Puts a block of queries on the devices, all of it on each.

    Args:
      embeddings: [B, D] any float dtype, B at most `block_rows`.
      columns: arrays [B, ...] int32, padded with -1.
      block_rows: rows to pad to.
      prepare: makes the rows [B, D'] of them; `unit_rows`, if None.

    Returns:
      (rows [block_rows, D'], columns), as in `tiles[i]`.
    """
    columns = tuple(
      _pad(np.asarray(column, np.int32), block_rows, -1) for column in columns
    )
    rows = (prepare or unit_rows)(embeddings)
    return self.put((_pad(rows, block_rows, 0), columns))

  def put(self, arrays, spec: P | None = None):
    """Puts a tree of arrays on the devices: on each, or split by `spec`."""
    return jax.device_put(arrays, NamedSharding(self.mesh, spec or P()))

  def block_rows(
    self,
    num_queries: int,
    row_bytes: int,
    budget: int,
    most: int = MAX_BLOCK_ROWS,
  ) -> int:
    """Returns how many queries to take at once, padding included.

    Args:
      num_queries: Q, no more than these are needed.
      row_bytes: memory that one query of a block needs.
      budget: bytes that the block may take.
      most: a power of two.

    Returns:
      A power of two, from 8 to `most`.
    """
    wanted = min(budget // row_bytes, power_of_two(num_queries), most)
    rows = MIN_BLOCK_ROWS
    while 2 * rows <= wanted:
      rows *= 2
    return rows


@functools.partial(jax.jit, static_argnames='num_rows')
def _part(tile, next_tile, start, num_rows):
  """Returns rows from `start` on, of at most a tile, in either or both."""
  rows = jnp.concatenate([tile, next_tile])
  return lax.dynamic_slice_in_dim(rows, start, num_rows)


def this_process(all_processes: bool) -> tuple[int, int]:
  """Returns (which, of how many) share a gallery: all processes, or one."""
  if all_processes:
    return jax.process_index(), jax.process_count()
  return 0, 1


def gather_from_processes(array: np.ndarray) -> np.ndarray:
  """Returns the arrays of all processes, stacked; all of them call this."""
  if jax.process_count() == 1:
    return array[None]
  # As bytes: JAX would make 32 bits of 64.
  parts = multihost_utils.process_allgather(
    np.ascontiguousarray(array).reshape(-1).view(np.uint8)
  )
  return np.asarray(parts).view(array.dtype).reshape(-1, *array.shape)


def blocks(num_rows: int, block_rows: int) -> Iterator[slice]:
  """Yields slices that cover `num_rows`, each of at most `block_rows`.

  Example:
    >>> list(blocks(5, 3))
    [slice(0, 3, None), slice(3, 5, None)]
  """
  for start in range(0, num_rows, block_rows):
    yield slice(start, min(start + block_rows, num_rows))


def map_in_order(
  function: Callable[[_Item], _Result], items: Iterable[_Item], threads: int
) -> Iterator[_Result]:
  """Maps in threads, in order, at most one item more than threads ahead.

  So a thread need not wait for what is done with a result.

  Example:
    >>> list(map_in_order(lambda x: 2 * x, [1, 2, 3], threads=2))
    [2, 4, 6]
  """
  if threads == 1:
    yield from map(function, items)
    return
  with futures.ThreadPoolExecutor(threads) as pool:
    pending = []
    for item in items:
      pending.append(pool.submit(function, item))
      if len(pending) > threads:
        yield pending.pop(0).result()
    for future in pending:
      yield future.result()


def power_of_two(number: int, at_least: int = 1) -> int:
  """Returns the next power of two, so that few shapes are compiled.

  Example:
    >>> power_of_two(5), power_of_two(8), power_of_two(3, at_least=64)
    (8, 8, 64)
  """
  return max(at_least, 1 << max(number - 1, 0).bit_length())


def unit_rows(embeddings: np.ndarray) -> np.ndarray:
  """Returns `arrays.normalize` on the host, [N, D] float32.

  Here the bits of a row depend on nothing but the row; XLA sums rows that stand
  at the edge of a vector register in another order.

  Example:
    >>> unit_rows(np.array([[3.0, 4.0], [0.0, 0.0]])).round(4).tolist()
    [[0.6000000238418579, 0.800000011920929], [0.0, 0.0]]
  """
  rows = _float32(embeddings)
  largest = np.abs(rows).max(axis=1, keepdims=True)
  rows = rows / np.where(largest > 0, largest, 1)
  norm = np.sqrt(np.sum(rows * rows, axis=1, keepdims=True))
  rows /= np.where(largest > 0, norm, 1)
  return rows


def _float32(rows: np.ndarray) -> np.ndarray:
  with np.errstate(over='ignore'):
    return rows.astype(np.float32, copy=False)


def _pad(array: np.ndarray, num_rows: int, value: int) -> np.ndarray:
  missing = num_rows - len(array)
  if not missing:
    return array
  widths = [(0, missing)] + [(0, 0)] * (array.ndim - 1)
  return np.pad(array, widths, constant_values=value)
