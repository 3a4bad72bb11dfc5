"""Classes drawn by weight: between every image and every class alike."""

import dataclasses
import functools

import numpy as np

from retrieval_jax.data.samplers.permutations import (
  Permutations,
  hashed,
  shuffled_place,
)
from retrieval_jax.data.samplers.uniform import UniformSampler

# Weights are integers, in units of 2 ** -20 draws, so that no rounding of
# floats can put a draw into one class and count it for another.
_BITS = 20


@dataclasses.dataclass(frozen=True, eq=False)
class ClassWeightedSampler:
  """Draws classes in proportion to their weights, and their images in turn.

  A round is N draws. Lay the classes side by side on a line of length N, class
  c over N w_c / sum(w); the draws of round r are the points u_r, u_r + 1, ...
  (systematic sampling), u_r uniform in [0, 1), in a random order. So, exactly:

  - in a round, class c is drawn floor or ceil of N w_c / sum(w) times, and that
    many on average;
  - the images of a class are walked through: between two draws of one image lie
    draws of the others (at most one image a round is passed over), so an image
    is in a batch twice only where a walk ends in it, or is as short as that;
  - with w_c = n_c, each image is drawn once a round, as by `UniformSampler`.

  Attributes:
    order: [N] int, rows of the training set, class by class.
    starts: [C + 1] int64, where the rows of each class begin.
    weights: [C] float64, at least 0, not all of them 0.
    batch_size: B, at most N.
    permutations: of the draws of a round (stream 0).
  """

  order: np.ndarray
  starts: np.ndarray
  weights: np.ndarray
  batch_size: int
  permutations: Permutations

  def __call__(self, step: int) -> np.ndarray:
    """Returns [B] int64, the rows of a step."""
    num_draws = len(self.order)
    draws = UniformSampler(num_draws, self.batch_size, self.permutations)
    first = int(step) * self.batch_size
    draw, rounds = draws(step), np.arange(first, first + self.batch_size)
    rounds //= num_draws
    return self._rows(draw, rounds)

  def _rows(self, draw: np.ndarray, rounds: np.ndarray) -> np.ndarray:
    """Returns [B] int64 rows of draws of rounds."""
    salt = np.uint64(self.permutations.salt)
    offset = hashed(rounds.astype(np.uint64) ^ salt) >> np.uint64(64 - _BITS)
    offset = offset.astype(np.int64)
    ends = self._ends
    classes = np.searchsorted(ends, (draw << _BITS) + offset, side='right')
    start = np.where(classes > 0, ends[classes - 1], 0)
    first_draw = -((offset - start) >> _BITS)
    most = -((start - ends[classes]) >> _BITS)
    visit = rounds * most + draw - first_draw
    sizes = self.starts[classes + 1] - self.starts[classes]
    walk, turn = np.divmod(visit, sizes)
    key = hashed(classes.astype(np.uint64) + salt)
    key = hashed(key ^ walk.astype(np.uint64))
    places = self.starts[classes] + shuffled_place(turn, sizes, key)
    return self.order[places].astype(np.int64)

  @functools.cached_property
  def _ends(self) -> np.ndarray:
    """[C] int64, where the share of each class ends, in 2 ** -20 draws."""
    total = np.cumsum(self.weights)
    ends = np.rint(total * (len(self.order) / total[-1]) * 2**_BITS)
    return ends.astype(np.int64)


def power_weights(sizes: np.ndarray, class_power: float) -> np.ndarray:
  """Returns n_c ** class_power, the weight of each class.

  Args:
    sizes: [C] int, n_c, the images of each class, at least 1.
    class_power: 1 draws all images alike, 0.5 is square-root sampling of a long
      tail, 0 draws all classes alike.

  Returns:
    [C] float64.

  Example:
    >>> power_weights(np.array([1, 4, 100]), 0.5).tolist()
    [1.0, 2.0, 10.0]

  References:
    Mahajan et al., Exploring the Limits of Weakly Supervised Pretraining, ECCV
    2018 (square root); Kang et al., Decoupling Representation and Classifier
    for Long-Tailed Recognition, ICLR 2020 (the powers 1, 1/2 and 0).
  """
  return np.asarray(sizes, np.float64) ** class_power
