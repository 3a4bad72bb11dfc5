"""Streams query blocks against gallery tiles: exact, in bounded memory.

Rankings and searches both need every similarity of a query, and neither can
hold [Q, N]. Here the gallery is cut into tiles of one shape, padded, and a
block of queries meets one tile at a time. The one shape is what makes ties
reliable: all columns take the same path through the matrix product, so equal
gallery rows give equal similarities, bit for bit, wherever they stand.

Inputs are whole arrays on the host (on many hosts: gathered before, each host
then computes the same). Queries are split over the local devices, tiles are
copied to each.
"""

import math
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from retrieval_jax.core.errors import InputError

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

  No copy is made of a host array.

  Args:
    embeddings: [N, D] any float dtype, N and D at least 1.
    name: how the message calls them.
    dim: the D that is expected, if one is.

  Raises:
    InputError: for another rank or dtype, an empty array, another width, or a
      value that is not finite in float32 (the first such row is named).

  Example:
    >>> check_embeddings([[0.5, 1.0]]).shape
    (1, 2)
  """
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
      f'{name} has {embeddings.shape[1]} columns but the queries have {dim}; '
      'allowed is the same width: embed both with the same model'
    )
  for start in range(0, len(embeddings), TILE_ROWS):
    finite = np.isfinite(_float32(embeddings[start : start + TILE_ROWS]))
    if not finite.all():
      row = start + int(np.argmin(finite.all(axis=1)))
      raise InputError(
        f'{name} row {row} has NaN or infinite values; allowed are finite '
        'float32 numbers: look for divergence in training, or a broken image'
      )
  return embeddings


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


def count_zero_rows(embeddings: np.ndarray) -> int:
  """Returns how many rows of [N, D] are zero, and so have no direction."""
  return sum(
    int((~embeddings[start : start + TILE_ROWS].any(axis=1)).sum())
    for start in range(0, len(embeddings), TILE_ROWS)
  )


class Tiles:
  """The gallery as unit rows in tiles of one shape, on all local devices.

  `tiles[i]` is (rows [T, D] float32 of unit length, columns: a tuple of [T]
  int32). The tiles stay on the devices if they fit; else each is put there
  when asked for.

  Attributes:
    tile_rows: T, the rows of every tile; the last is padded with zero rows.
    num_rows: N, without padding.
    devices: the devices.
    mesh: the same, along an axis named `rows`.
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
  ):
    """Cuts the gallery into tiles.

    Args:
      embeddings: [N, D] any float dtype, finite.
      columns: arrays [N] int32 >= 0, already in the order of the tiles, that
        are cut alike and padded with -1.
      order: [N] int, which row comes i-th; as given, if None.
      budget: bytes that resident tiles may take.
      devices: the local devices, if None.
    """
    self.devices = list(devices or jax.local_devices())
    self.num_rows, self._dim = embeddings.shape
    # As few tiles as can be, with little padding in the last.
    num_tiles = math.ceil(self.num_rows / TILE_ROWS)
    self.tile_rows = 64 * math.ceil(self.num_rows / num_tiles / 64)
    self._embeddings, self._columns, self._order = embeddings, columns, order
    self.mesh = Mesh(np.array(self.devices), ('rows',))
    # CPU devices share the memory of the host, so each copy counts.
    on_cpu = self.devices[0].platform == 'cpu'
    tile_bytes = 4 * self.tile_rows * self._dim
    copies = len(self.devices) if on_cpu else 1
    self.resident = tile_bytes * len(self) * copies <= budget
    self.num_bytes = tile_bytes * (len(self) * copies if self.resident else 3)
    self._kept = (
      [self._put(i) for i in range(len(self))] if (self.resident) else None
    )

  def __len__(self) -> int:
    """Returns the number of tiles."""
    return math.ceil(self.num_rows / self.tile_rows)

  def __getitem__(self, index: int) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    """Returns the tile (rows [T, D], columns ([T], ...)) on the devices."""
    return self._kept[index] if self.resident else self._put(index)

  def _put(self, index):
    start = index * self.tile_rows
    stop = min(start + self.tile_rows, self.num_rows)
    picked = slice(start, stop)
    rows = self._embeddings[
      picked if self._order is None else (self._order[picked])
    ]
    columns = tuple(
      _pad(np.asarray(column[picked], np.int32), self.tile_rows, -1)
      for column in self._columns
    )
    everywhere = NamedSharding(self.mesh, P())
    return jax.device_put(
      (_pad(unit_rows(rows), self.tile_rows, 0), columns), everywhere
    )

  def put_queries(
    self,
    embeddings: np.ndarray,
    columns: Sequence[np.ndarray],
    block_rows: int,
  ) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    """Puts a block of queries on the devices, split by rows.

    Args:
      embeddings: [B, D] any float dtype, B at most `block_rows`.
      columns: arrays [B, ...] int32 to split alike, padded with -1.
      block_rows: rows to pad to, a multiple of the number of devices.

    Returns:
      (unit rows [block_rows, D], columns), as in `tiles[i]`.
    """
    columns = tuple(
      _pad(np.asarray(column, np.int32), block_rows, -1) for column in columns
    )
    return self.put_rows((_pad(unit_rows(embeddings), block_rows, 0), columns))

  def put_rows(self, arrays):
    """Puts arrays [block_rows, ...] on the devices, split like the queries."""
    return jax.device_put(arrays, NamedSharding(self.mesh, P('rows')))

  def block_rows(self, num_queries: int, row_bytes: int, budget: int) -> int:
    """Returns how many queries to take at once, padding included.

    Args:
      num_queries: Q, no more than these are needed.
      row_bytes: memory that one query of a block needs.
      budget: bytes that the block may take.

    Returns:
      A power of two, from 8 to 512, times the number of devices.
    """
    wanted = min(
      budget // row_bytes // len(self.devices),
      power_of_two(math.ceil(num_queries / len(self.devices))),
      MAX_BLOCK_ROWS,
    )
    rows = MIN_BLOCK_ROWS
    while 2 * rows <= wanted:
      rows *= 2
    return rows * len(self.devices)


def blocks(num_rows: int, block_rows: int) -> Iterator[slice]:
  """Yields slices that cover `num_rows`, each of at most `block_rows`.

  Example:
    >>> list(blocks(5, 3))
    [slice(0, 3, None), slice(3, 5, None)]
  """
  for start in range(0, num_rows, block_rows):
    yield slice(start, min(start + block_rows, num_rows))


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
