"""What the loaders return: images with a row of facts for each.

A loader reads files and says what stands in them. How rows become a training
set, queries and a gallery is decided by `splits`, alike for all loaders.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from retrieval_jax.data.sources import Images

# What `Collection.split` holds.
NO_SPLIT, TRAIN, VALIDATION, TEST = -1, 0, 1, 2
SPLIT_NAMES = ('train', 'validation', 'test')


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
  """A test that a benchmark defines, on rows of its collection.

  Attributes:
    queries: [Q] int64 rows that are asked.
    gallery: [N] int64 rows that are searched in. A query that is among them is
      excluded from its own ranking.
    benchmark: whose metrics are measured, one of `metrics.protocols.METRICS`.
    relevant: for each query the places in `gallery` [n] of what is to be found;
      None: all images of its class.
    ignored: likewise, what is in no ranking; None: nothing.
    answers: [Q, L] int32, the classes that are right for a query, maybe none,
      padded with -1; None: its label alone.
  """

  queries: np.ndarray
  gallery: np.ndarray
  benchmark: str
  relevant: Sequence[np.ndarray] | None = None
  ignored: Sequence[np.ndarray] | None = None
  answers: np.ndarray | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Collection:
  """N images, and what is known of each, as arrays.

  Attributes:
    name: of the data set, for people.
    images: of the N rows, not decoded.
    labels: [N] int32 class labels in [0, C).
    class_names: [C], a name for each class, for people.
    split: [N] int8 of NO_SPLIT, TRAIN, VALIDATION and TEST; None if the data
      come without splits.
    is_query: [N] bool, whether a row is asked in its evaluation set; None: all
      rows that are not of the training set.
    is_gallery: [N] bool, whether a row is searched in; None likewise. A
      training row with True is in the gallery of the test set.
    boxes: [N, 4] float32 (x_1, y_1, x_2, y_2) in pixels of the upright image,
      x_2 and y_2 exclusive, NaN for the whole image; None: no boxes.
    domain: [N] int32, the font, vendor or camera of a row; None: unknown.
    domain_names: a name for each domain.
    category: [N] int32, the super-class of a row (category in the field's
      tables); None: unknown.
    category_names: a name for each category.
    sequence: [N] int32, rows of one sequence are pictures of one scene; -1:
      none; None: unknown.
    label_sets: [N, L] int32, all labels of a row, padded with -1, the first of
      which stands in `labels`; None: one label a row.
    tasks: the tests that the benchmark defines, by name; {}: one test, of the
      queries and the gallery above.
    image_shape: (H, W, C) of every image if they are alike; None: of any size.
    num_skipped: rows of the files left out, by reason, for people.
  """

  name: str
  images: Images
  labels: np.ndarray
  class_names: tuple[str, ...]
  split: np.ndarray | None = None
  is_query: np.ndarray | None = None
  is_gallery: np.ndarray | None = None
  boxes: np.ndarray | None = None
  domain: np.ndarray | None = None
  domain_names: tuple[str, ...] = ()
  category: np.ndarray | None = None
  category_names: tuple[str, ...] = ()
  sequence: np.ndarray | None = None
  label_sets: np.ndarray | None = None
  tasks: Mapping[str, Task] = dataclasses.field(default_factory=dict)
  image_shape: tuple[int, int, int] | None = None
  num_skipped: dict[str, int] = dataclasses.field(default_factory=dict)

  def __len__(self) -> int:
    """Returns N."""
    return len(self.labels)
