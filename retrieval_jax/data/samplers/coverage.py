"""What a sampler shows of a training set, counted."""

import dataclasses

import numpy as np

from retrieval_jax.data.samplers.permutations import group_rows
from retrieval_jax.data.samplers.uniform import Sampler


@dataclasses.dataclass(frozen=True)
class Coverage:
  """What was drawn in some steps; `str` is one line for the log.

  Attributes:
    num_steps: that were looked at.
    num_draws: images of their batches, repeated ones too.
    images_seen: share of the N images that were drawn, in [0, 1].
    images_possible: the share if no draw had been a repetition.
    classes_seen: share of the C classes that were drawn, in [0, 1].
    fewest: how often the image was drawn that was drawn least.
    most: how often the image was drawn that was drawn most.
    repeats: draws of an image that was in the same batch already.
    small_classes: classes with fewer images than a batch takes of a class.
  """

  num_steps: int
  num_draws: int
  images_seen: float
  images_possible: float
  classes_seen: float
  fewest: int
  most: int
  repeats: int
  small_classes: int

  def __str__(self) -> str:
    """Returns it as one line."""
    line = (
      f'{self.num_steps:,} steps draw {self.num_draws:,} times, '
      f'{self.images_seen:.1%} of the images (of {self.images_possible:.1%} '
      f'possible) and {self.classes_seen:.1%} of the classes; an image '
      f'{self.fewest} to {self.most} times'
    )
    if self.repeats:
      line += f'; {self.repeats:,} draws repeat an image of their batch'
    if self.small_classes:
      line += f'; {self.small_classes:,} classes are smaller than their share'
    return line


def coverage(
  sampler: Sampler,
  labels: np.ndarray,
  num_steps: int,
  *,
  images_per_class: int = 1,
  max_steps: int = 1000,
) -> Coverage:
  """Counts what the first steps of a sampler draw.

  Args:
    sampler: step -> rows.
    labels: [N] int or [N, L] label sets, of the training set, N at least 1.
    num_steps: to look at, those of an epoch, say; at least 1.
    images_per_class: K of batches of P classes x K images; else 1.
    max_steps: looks at no more than these, so that the count takes a second or
      so for any training set.

  Example:
    >>> labels = np.array([4, 4, 9])
    >>> print(coverage(lambda step: np.array([0, 0, 2]), labels, num_steps=2))
    2 steps draw 6 times, 66.7% of the images (of 100.0% possible) and 100.0% \
of the classes; an image 0 to 4 times; 2 draws repeat an image of their batch
  """
  num_steps = min(num_steps, max_steps)
  batches = np.stack([sampler(step) for step in range(num_steps)])
  counts = np.bincount(batches.reshape(-1), minlength=len(labels))
  batches.sort(axis=1)
  order, starts = group_rows(np.asarray(labels))
  by_class = np.add.reduceat(counts[order], starts[:-1])
  return Coverage(
    num_steps=num_steps,
    num_draws=batches.size,
    images_seen=float((counts > 0).mean()),
    images_possible=min(1.0, batches.size / len(labels)),
    classes_seen=float((by_class > 0).mean()),
    fewest=int(counts.min()),
    most=int(counts.max()),
    repeats=int((batches[:, 1:] == batches[:, :-1]).sum()),
    small_classes=int((np.diff(starts) < images_per_class).sum()),
  )
