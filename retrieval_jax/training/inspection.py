"""Which queries are worth a look: a fair sample, the worst, the confusions."""

import dataclasses

import numpy as np

# A float32 average precision of 1 may come out a rounding below.
PERFECT = 1.0 - 1e-6


def sample_queries(
  labels: np.ndarray, lone: np.ndarray, num_queries: int
) -> np.ndarray:
  """Chooses queries at random (seed 0), of as many classes as possible.

  Args:
    labels: [Q] int.
    lone: [Q] bool, queries that are chosen only if all are lone.
    num_queries: how many at most.

  Returns:
    [n] int64 indices, ordered by label.

  Example:
    >>> labels = np.array([0, 0, 0, 0, 1, 2])
    >>> labels[sample_queries(labels, labels == 2, 3)].tolist()
    [0, 0, 1]
  """
  candidates = np.flatnonzero(~lone | lone.all())
  candidates = np.random.default_rng(0).permutation(candidates)
  # The first of every class comes before the second of any.
  by_label = np.argsort(labels[candidates], kind='stable')
  _, counts = np.unique(labels[candidates], return_counts=True)
  turns = np.empty(len(candidates), int)
  turns[by_label] = np.concatenate([np.arange(count) for count in counts])
  chosen = candidates[np.argsort(turns, kind='stable')][:num_queries]
  return chosen[np.lexsort((chosen, labels[chosen]))]


def worst_queries(scores: np.ndarray, num_queries: int) -> np.ndarray:
  """Returns the queries of the lowest scores, the lowest first.

  Args:
    scores: [Q] float, NaN for a lone query; 1 is perfect.
    num_queries: how many at most.

  Returns:
    [n] int64 indices of imperfect queries; equal scores by index.

  Example:
    >>> worst_queries(np.array([1.0, 0.5, np.nan, 0.2, 0.5]), 2).tolist()
    [3, 1]
  """
  order = np.argsort(scores, kind='stable')  # NaN is sorted to the end.
  return order[scores[order] < PERFECT][:num_queries]


@dataclasses.dataclass(frozen=True)
class Confusion:
  """Queries of one class whose nearest gallery image is of another.

  Attributes:
    query_class: label of the queries.
    nearest_class: label of their nearest gallery images.
    count: how many such queries there are.
    total: how many queries the class has, lone ones left out.
    example: the query among them that is most similar to its nearest image.
  """

  query_class: int
  nearest_class: int
  count: int
  total: int
  example: int


def confused_pairs(
  query_labels: np.ndarray,
  nearest_labels: np.ndarray,
  similarities: np.ndarray,
  lone: np.ndarray,
) -> list[Confusion]:
  """Counts which class is taken for which by the nearest gallery image.

  Args:
    query_labels: [Q] int.
    nearest_labels: [Q] int, the class of the nearest gallery image.
    similarities: [Q] float, the similarity to it.
    lone: [Q] bool, queries left out.

  Returns:
    The ordered pairs that occur, most frequent first, equal ones by label.

  Example:
    >>> y, nearest = np.array([4, 4, 4, 9]), np.array([4, 9, 9, 9])
    >>> pairs = confused_pairs(y, nearest, np.array([1, 0.5, 0.7, 1]), y < 0)
    >>> [(p.query_class, p.nearest_class, p.count, p.total) for p in pairs]
    [(4, 9, 2, 3)]
    >>> pairs[0].example
    2
  """
  wrong = np.flatnonzero((query_labels != nearest_labels) & ~lone)
  # The most similar first, so that the first of a pair is its example.
  wrong = wrong[np.argsort(-similarities[wrong], kind='stable')]
  pairs, first, counts = np.unique(
    np.stack([query_labels[wrong], nearest_labels[wrong]], axis=1),
    axis=0,
    return_index=True,
    return_counts=True,
  )
  classes, totals = np.unique(query_labels[~lone], return_counts=True)
  total_of = dict(zip(classes.tolist(), totals.tolist(), strict=True))
  return [
    Confusion(
      query_class=int(pairs[i, 0]),
      nearest_class=int(pairs[i, 1]),
      count=int(counts[i]),
      total=total_of[int(pairs[i, 0])],
      example=int(wrong[first[i]]),
    )
    for i in np.argsort(-counts, kind='stable')
  ]
