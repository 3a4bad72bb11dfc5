"""Means over queries (micro), over classes and over categories (macro).

With query values v_q, the mean over queries is (1 / Q) sum_q v_q, in which a
class counts as often as it is asked. A macro average is the mean over groups of
the mean of each group's queries: (1 / G) sum_g (1 / |Q_g|) sum_{q in g} v_q.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from retrieval_jax.core import relations

# What stands before the name of a metric, and whose mean it is.
PREFIXES = {'macro_': 'class', 'category_macro_': 'category'}
PLURALS = {'query': 'queries', 'class': 'classes', 'category': 'categories'}


class Groups(NamedTuple):
  """Which groups the queries are in; a query may be in several, or in none.

  Attributes:
    queries: [M] int64, the query of each membership.
    ids: [M] int64, its group.
  """

  queries: np.ndarray
  ids: np.ndarray

  @classmethod
  def of_labels(cls, labels: np.ndarray) -> 'Groups':
    """Returns the groups by label; of label sets, a query is in each label's.

    Args:
      labels: [Q] int, of which a negative one is as good a class as any
        other; or [Q, L] label sets, in which it is no label.
    """
    return cls(*relations.incidences(labels))

  @classmethod
  def of_categories(cls, categories: np.ndarray) -> 'Groups':
    """Returns the groups by category.

    Args:
      categories: [Q] int; negative: in no group.
    """
    queries = np.flatnonzero(categories >= 0)
    return cls(queries, categories[queries])

  def take(self, rows: np.ndarray, num_queries: int) -> 'Groups':
    """Returns the groups of some queries, numbered in the order given.

    Args:
      rows: [R] int, the queries, each once.
      num_queries: Q.

    Example:
      >>> groups = Groups.of_labels(np.array([7, 7, 9]))
      >>> [x.tolist() for x in groups.take(np.array([2, 0]), 3)]
      [[1, 0], [7, 9]]
    """
    places = np.full(num_queries, -1)
    places[rows] = np.arange(len(rows))
    places = places[self.queries]
    return Groups(places[places >= 0], self.ids[places >= 0])

  def members(self) -> set[tuple[int, ...]]:
    """Returns the queries of each group, whatever the groups are called.

    Example:
      >>> sorted(Groups.of_labels(np.array([7, 9, 7])).members())
      [(0, 2), (1,)]
    """
    order = np.lexsort((self.queries, self.ids))
    ends = np.flatnonzero(np.diff(self.ids[order])) + 1
    parts = np.split(self.queries[order], ends)
    return {tuple(part.tolist()) for part in parts}


class GroupMeans(NamedTuple):
  """A metric by group, of the groups with a query that has a value.

  Attributes:
    ids: [G] int64, ascending: the class labels, or the categories.
    means: [G] float64.
    counts: [G] int64, the queries of each that have a value.
  """

  ids: np.ndarray
  means: np.ndarray
  counts: np.ndarray


def split_name(name: str) -> tuple[str, str]:
  """Returns what the mean is over, and the name of the metric.

  Example:
    >>> split_name('macro_recall_at_1'), split_name('r_precision')
    (('class', 'recall_at_1'), ('query', 'r_precision'))
  """
  for prefix, over in PREFIXES.items():
    if isinstance(name, str) and name.startswith(prefix):
      return over, name.removeprefix(prefix)
  return 'query', name


def group_means(values: np.ndarray, groups: Groups) -> GroupMeans:
  """Returns the mean of each group's queries.

  Args:
    values: [Q] float64, NaN of what has none.
    groups: of the queries.

  Example:
    >>> values = np.array([1.0, 0.5, 0.0, np.nan])
    >>> found = group_means(values, Groups.of_labels(np.array([7, 7, 9, 9])))
    >>> found.ids.tolist(), found.means.tolist(), found.counts.tolist()
    ([7, 9], [0.75, 0.0], [2, 1])
  """
  own = values[groups.queries]
  has_value = ~np.isnan(own)
  ids, which = np.unique(groups.ids[has_value], return_inverse=True)
  counts = np.bincount(which, minlength=len(ids))
  sums = np.bincount(which, own[has_value], len(ids))
  return GroupMeans(ids, sums / counts, counts)


def averaged_values(
  name: str, values: np.ndarray, groups: Mapping[str, Groups]
) -> np.ndarray:
  """Returns what a metric is the plain mean of: its sample.

  Args:
    name: of the metric.
    values: [Q] float64, of the queries, NaN of what has none.
    groups: 'class' and 'category' -> of the queries, if the name asks for them.

  Returns:
    The values; or of a name with a prefix the means of the groups, [G].

  Example:
    >>> groups = {'class': Groups.of_labels(np.array([7, 7, 9]))}
    >>> values = np.array([1.0, 0.5, 0.0])
    >>> averaged_values('macro_recall_at_1', values, groups).tolist()
    [0.75, 0.0]
  """
  over, _ = split_name(name)
  return values if over == 'query' else group_means(values, groups[over]).means


def mean(values: np.ndarray, groups: Groups | None = None) -> float:
  """Returns the mean over queries, or over groups of their means.

  Args:
    values: [Q] float64, NaN of what has none, at least one has.
    groups: None: over queries; else of these at least one has a value.

  Returns:
    In [0, 1], as the values are up to the last digit.
  """
  if groups is None:
    average = np.mean(values[~np.isnan(values)])
  else:
    average = np.mean(group_means(values, groups).means)
  return float(np.clip(average, 0.0, 1.0))


def definition(over: str, sentence: str) -> str:
  """Returns the definition of a metric's average, in words."""
  if over == 'query':
    return sentence
  return f'mean over {PLURALS[over]} of, for the queries of each: {sentence}'
