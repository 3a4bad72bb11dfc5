"""Every image as often as every other."""

import dataclasses
from collections.abc import Callable

import numpy as np

from retrieval_jax.data.samplers.permutations import Permutations

Sampler = Callable[[int], np.ndarray]
"""sampler(step) -> [batch_size] int64, rows of the training set."""


@dataclasses.dataclass(frozen=True)
class UniformSampler:
  """Cuts an endless row of permutations of all examples into batches.

  Step s takes the positions [s B, (s + 1) B) of permutation 0, permutation 1,
  and so on. No remainder is dropped: after any number of steps, the numbers of
  times that two examples were seen differ by at most one. (Where two
  permutations meet in a batch, an example can be in it twice.)

  Attributes:
    num_examples: N.
    batch_size: B, at most N.
    permutations: of the examples.
  """

  num_examples: int
  batch_size: int
  permutations: Permutations

  def __call__(self, step: int) -> np.ndarray:
    """Returns [B] int64, the rows of a step."""
    epoch, start = divmod(int(step) * self.batch_size, self.num_examples)
    rows = self.permutations(0, epoch, self.num_examples)
    batch = rows[start : start + self.batch_size]
    missing = self.batch_size - len(batch)
    if missing:
      following = self.permutations(0, epoch + 1, self.num_examples)
      batch = np.concatenate([batch, following[:missing]])
    return batch.astype(np.int64)
