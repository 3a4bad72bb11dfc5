"""Several data sets as one: a mixture to train on, each measured by itself."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from retrieval_jax.core.errors import InputError
from retrieval_jax.data.dataset import Dataset
from retrieval_jax.data.sources import Images, Source


class JoinedImages:
  """Stores of images one after the other."""

  def __init__(self, stores: Sequence[Images]):
    """Joins them without a copy."""
    self._stores = tuple(stores)
    self.starts = np.cumsum([0] + [len(store) for store in stores])

  def __len__(self) -> int:
    """Returns how many images all of them have."""
    return int(self.starts[-1])

  def read(self, row: int) -> bytes | np.ndarray:
    """Returns the content of an image."""
    store, inner = self._find(row)
    return store.read(inner)

  def describe(self, row: int) -> str:
    """Returns how messages call an image."""
    store, inner = self._find(row)
    return store.describe(inner)

  def identify(self, row: int) -> str:
    """Returns what tells an image from others of its store."""
    store, inner = self._find(row)
    return store.identify(inner)

  def _find(self, row):
    index = int(np.searchsorted(self.starts, row, side='right')) - 1
    return self._stores[index], int(row - self.starts[index])


def join_sources(sources: Sequence[Source]) -> Source:
  """Returns the rows of several sources, one source after the other.

  Args:
    sources: with one preprocessing.
  """
  store = JoinedImages([source.store for source in sources])
  rows, boxes = [], []
  for source, start in zip(sources, store.starts[:-1], strict=True):
    own = np.arange(len(source)) if source.rows is None else source.rows
    rows.append(own + start)
    boxes.append(
      np.full((len(source), 4), np.nan, np.float32)
      if source.boxes is None
      else source.boxes
    )
  has_boxes = any(source.boxes is not None for source in sources)
  return dataclasses.replace(
    sources[0],
    store=store,
    labels=np.concatenate([source.labels for source in sources]),
    rows=np.concatenate(rows),
    boxes=np.concatenate(boxes) if has_boxes else None,
  )


def mix_datasets(members: Mapping[str, Dataset]) -> Dataset:
  """Joins data sets into one training set; each keeps its own tests.

  Args:
    members: by the names that they are reported by, with images of one shape.

  Returns:
    The data set whose classes are those of all members, and whose tests and
    validations are theirs, as '<member>/<set>'.
  """
  name = ' + '.join(members)
  if len(members) < 2:
    raise InputError(
      f'data.members has {len(members)} data sets; allowed are at least two: '
      'set data.name to the one'
    )
  # The training classes of all members come first, then the others of all.
  first_known = np.cumsum([0] + [m.num_classes for m in members.values()])
  first_other = first_known[-1] + np.cumsum(
    [0] + [len(m.class_names) - m.num_classes for m in members.values()]
  )
  # With a member of label sets, all are: its L is that of the widest.
  width = max(
    m.train.labels.shape[1] if m.is_multi_label else 0 for m in members.values()
  )
  first_category = 0
  sources, categories, tests, validations = [], [], {}, {}
  known_names, other_names = [], []
  for index, (key, member) in enumerate(members.items()):
    shift = np.where(
      np.arange(len(member.class_names)) < member.num_classes,
      first_known[index],
      first_other[index] - member.num_classes,
    )

    def shifted(labels, shift=shift):
      return np.where(labels < 0, -1, labels + shift[labels]).astype(np.int32)

    def relabelled(source, shifted=shifted):
      labels = source.labels
      if width:
        labels = labels.reshape(len(labels), -1)
        missing = width - labels.shape[1]
        labels = np.pad(labels, ((0, 0), (0, missing)), constant_values=-1)
      return dataclasses.replace(source, labels=shifted(labels))

    def relabelled_set(group, relabelled=relabelled, shifted=shifted):
      return dataclasses.replace(
        group,
        query=relabelled(group.query),
        gallery=group.gallery and relabelled(group.gallery),
        answers=None if group.answers is None else shifted(group.answers),
      )

    sources.append(relabelled(member.train))
    tests |= {
      f'{key}/{part}': relabelled_set(group)
      for part, group in member.tests.items()
    }
    validations |= {
      f'{key}/{part}': relabelled_set(group)
      for part, group in member.validations.items()
    }
    names = [f'{key}/{name}' for name in member.class_names]
    known_names += names[: member.num_classes]
    other_names += names[member.num_classes :]
    own = member.categories
    if own is None:  # A member without categories is one.
      own = np.zeros(len(member.train), np.int32)
    categories.append(own + first_category)
    first_category = int(categories[-1].max()) + 1
  return Dataset(
    name=name,
    train=join_sources(sources),
    tests=tests,
    validations=validations,
    num_classes=int(first_known[-1]),
    class_names=tuple(known_names + other_names),
    categories=np.concatenate(categories),
    parts=np.cumsum([0] + [len(source) for source in sources]),
  )
