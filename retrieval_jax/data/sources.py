"""What a data set is: images and labels to train on, to search in and to ask.

Anything with `len()`, `labels` and `images_at(rows)` can stand for a `Source`;
the samplers, the loader and the evaluation use no more than that.
"""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class Source:
  """Decoded images of one size, held in memory, with their labels.

  Indexing 256 random rows of 60,000 small images costs some ten microseconds
  so, where a pipeline that decodes each image anew costs milliseconds.

  Attributes:
    images: [N, H, W, C] uint8.
    labels: [N] int32 class labels from 0.

  Example:
    >>> source = Source(np.zeros((3, 8, 8, 1), np.uint8), np.arange(3))
    >>> len(source), source.images_at(np.array([2, 0])).shape
    (3, (2, 8, 8, 1))
  """

  images: np.ndarray
  labels: np.ndarray

  def __len__(self) -> int:
    """Returns N, the number of images."""
    return len(self.labels)

  def images_at(self, rows: np.ndarray) -> np.ndarray:
    """Returns a copy of the images of some rows, [n, H, W, C] uint8."""
    return self.images[rows]


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
  """One task of retrieval: train on `train`, ask `query`, search in `gallery`.

  Attributes:
    name: its name in `DATASETS`.
    train: the training set.
    gallery: what is searched in.
    query: what is asked; no row of it is in the gallery.
    num_classes: the labels of the training set are 0 .. num_classes - 1.
    image_shape: (H, W, C) of every image.
    class_names: a name for each class, for people.
  """

  name: str
  train: Source
  gallery: Source
  query: Source
  num_classes: int
  image_shape: tuple[int, int, int]
  class_names: tuple[str, ...]
