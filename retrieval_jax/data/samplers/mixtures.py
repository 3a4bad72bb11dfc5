"""Batches of a mixture of data sets, each with a sampler of its own."""

import dataclasses

import numpy as np

from retrieval_jax.core.errors import InputError
from retrieval_jax.data.samplers.uniform import Sampler


@dataclasses.dataclass(frozen=True, eq=False)
class BalancedMixture:
  """Takes an equal share of each batch from each of M data sets.

  The sets are interleaved (set 0, 1, ..., M - 1, 0, ...), so that the parts of
  a batch that go to processes and devices are mixtures too.

  Attributes:
    samplers: of the sets, each of B / M rows a step.
    starts: [M] int64, the row at which each set begins.
    block_size: rows that stay together: the K images of a class, or 1.
  """

  samplers: tuple[Sampler, ...]
  starts: np.ndarray
  block_size: int = 1

  def __call__(self, step: int) -> np.ndarray:
    """Returns [B] int64, the rows of a step."""
    parts = [
      sampler(step) + start
      for sampler, start in zip(self.samplers, self.starts, strict=True)
    ]
    blocks = np.stack(parts).reshape(len(parts), -1, self.block_size)
    return blocks.swapaxes(0, 1).reshape(-1)


@dataclasses.dataclass(frozen=True, eq=False)
class RoundRobinMixture:
  """Takes the batch of step s from data set s mod M alone.

  All devices thus see one set a step, each set every M steps, whatever its
  size.

  Attributes:
    samplers: of the sets, each of B rows a step.
    starts: [M] int64, the row at which each set begins.

  References:
    Ypsilantis et al., Towards Universal Image Embeddings, ICCV 2023.
  """

  samplers: tuple[Sampler, ...]
  starts: np.ndarray

  def __call__(self, step: int) -> np.ndarray:
    """Returns [B] int64, the rows of a step."""
    visit, member = divmod(int(step), len(self.samplers))
    return self.samplers[member](visit) + self.starts[member]


def check_parts(parts: np.ndarray | None, num_rows: int) -> np.ndarray:
  """Returns the rows at which data sets begin, and N; [0, N] for None.

  Raises:
    InputError: for a data set without rows.

  Example:
    >>> check_parts(None, 5).tolist()
    [0, 5]
  """
  parts = np.array([0, num_rows]) if parts is None else np.asarray(parts)
  is_row = parts.ndim == 1 and len(parts) >= 2
  if not is_row or parts[0] != 0 or parts[-1] != num_rows:
    raise ValueError(f'parts {parts} do not lead from 0 to {num_rows}')
  if num_rows and (np.diff(parts) < 1).any():
    empty = int(np.argmin(np.diff(parts))) + 1
    raise InputError(
      f'data set {empty} of the mixture has no training images; allowed is at '
      'least one: leave it out'
    )
  return parts.astype(np.int64)
