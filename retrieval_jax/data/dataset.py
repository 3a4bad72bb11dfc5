"""What a run trains and is measured on."""

import dataclasses

import numpy as np

from retrieval_jax.data.evaluation_set import EvaluationSet
from retrieval_jax.data.preprocessing import Preprocessing
from retrieval_jax.data.sources import Source


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
  """What a run trains, selects an epoch and is measured on.

  Attributes:
    name: of the data, for people.
    train: the training set; None: there are tests alone.
    tests: what the results are measured on, by name; never looked at to choose
      anything.
    validations: what the epoch is selected on, by name, none of it trained on
      or tested on; empty: the last epoch counts.
    num_classes: the labels of the training set are 0 .. num_classes - 1.
    class_names: a name for each class, those of the training set first.
    categories: [N] int32, the category of each training image; None: unknown.
    parts: [M + 1] int64, where each of the M data sets that the training set is
      a mixture of begins; [0, N] for one.
    class_categories: [C'] int32, the category of each class of `class_names`,
      -1 for none, as `relations.category_grades` takes them; None: unknown, or
      not one for each class.
  """

  name: str
  train: Source | None
  tests: dict[str, EvaluationSet]
  validations: dict[str, EvaluationSet]
  num_classes: int
  class_names: tuple[str, ...]
  categories: np.ndarray | None = None
  parts: np.ndarray | None = None
  class_categories: np.ndarray | None = None

  @property
  def is_multi_label(self) -> bool:
    """Whether images have label sets [N, L], of which proxies know nothing."""
    return self._any_source.labels.ndim == 2

  def display_classes(
    self, *labels: np.ndarray
  ) -> tuple[list[np.ndarray], tuple[str, ...]]:
    """Returns labels as pages show them: one int an image, with its name.

    Args:
      *labels: of sources, [N] ints or [N, L] label sets.

    Returns:
      ([N] ints of each, a name for each int). Ints come back as they are, with
      `class_names`. Of label sets, each set that occurs is a class, called
      'dog | beach': whether two are relevant to each other is not for these
      ints to say.
    """
    if not self.is_multi_label:
      return list(labels), self.class_names
    sets, found = np.unique(
      np.sort(np.concatenate(labels), axis=1), axis=0, return_inverse=True
    )
    names = (
      ' | '.join(self.class_names[label] for label in row if label >= 0)
      for row in sets.tolist()
    )
    ends = np.cumsum([len(array) for array in labels])[:-1]
    return np.split(found.reshape(-1), ends), tuple(names)

  @property
  def preprocessing(self) -> Preprocessing:
    """How pictures become arrays."""
    return self._any_source.preprocessing

  @property
  def image_shape(self) -> tuple[int, int, int]:
    """(H, W, C) of the images that the model sees."""
    return self._any_source.image_shape

  @property
  def _any_source(self) -> Source:
    if self.train is not None:
      return self.train
    return next(iter(self.tests.values())).query


def describe(dataset: Dataset) -> str:
  """Returns what is trained and measured on, as one line for the log."""
  parts = [f'{dataset.name}: {_describe_training(dataset)}']
  for name, group in (dataset.validations | dataset.tests).items():
    against = (
      'each against the others'
      if group.gallery is None
      else f'against {len(group.gallery):,} images'
    )
    parts.append(f'{name}: {len(group.query):,} queries, {against}')
  return '; '.join(parts)


def _describe_training(dataset):
  if dataset.train is None:
    return 'no training images'
  labels, count = dataset.train.labels, f'{len(dataset.train):,}'
  if not dataset.is_multi_label:
    return f'{count} training images of {dataset.num_classes:,} classes'
  mean = (labels >= 0).sum() / len(labels)
  return (
    f'multi-label: {count} training images, {dataset.num_classes:,} labels, '
    f'mean {mean:.2f} labels an image'
  )
