"""Queries and gallery by class, for rankings that are made class by class."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Classes:
  """Queries and gallery by class, the classes in order of their size.

  So the queries of a block have about the same number of positives, and these
  are a run of the ordered gallery.

  Attributes:
    order: [N] the gallery rows by class.
    of_gallery: [N] the class of each gallery row.
    of_queries: [Q] of each query.
    num_positives: [Q].
    first: [C] where each class begins in the order.
    sizes: [C] ascending, rows of each class in the gallery.
    own_place: [Q] where the query is in the order itself; -1 if it is left in.
  """

  order: np.ndarray
  of_gallery: np.ndarray
  of_queries: np.ndarray
  num_positives: np.ndarray
  first: np.ndarray
  sizes: np.ndarray
  own_place: np.ndarray

  @classmethod
  def of(
    cls,
    query_labels: np.ndarray,
    gallery_labels: np.ndarray,
    own_rows: np.ndarray | None,
  ) -> 'Classes':
    """Orders the classes.

    Args:
      query_labels: [Q] int64.
      gallery_labels: [N] int64.
      own_rows: [Q] int64, the gallery row, of its class, that is the query
        itself and is left out for it, -1 for none; None: none.
    """
    labels, sizes = np.unique(gallery_labels, return_counts=True)
    by_size = np.argsort(sizes, kind='stable')
    rank = np.argsort(by_size)
    sizes = sizes[by_size]
    of_gallery = rank[np.searchsorted(labels, gallery_labels)]
    order = np.argsort(of_gallery, kind='stable')
    found = np.minimum(np.searchsorted(labels, query_labels), len(labels) - 1)
    own_place = np.full(len(query_labels), -1)
    if own_rows is not None:
      place = np.empty(len(order) + 1, np.int64)
      place[order], place[-1] = np.arange(len(order)), -1
      own_place = place[own_rows]
    num_positives = np.where(
      labels[found] == query_labels, sizes[rank[found]] - (own_place >= 0), 0
    )
    return cls(
      order,
      of_gallery,
      rank[found],
      num_positives,
      np.cumsum(sizes) - sizes,
      sizes,
      own_place,
    )

  def split(self, most: float) -> tuple[np.ndarray, np.ndarray]:
    """Returns the queries with a positive, by class, in two parts.

    Args:
      most: how many positives those of the first part may have.
    """
    queries = np.argsort(self.of_queries, kind='stable')
    num_positives = self.num_positives[queries]
    queries, num_positives = (
      of[num_positives > 0] for of in (queries, num_positives)
    )
    edge = np.searchsorted(num_positives, most, side='right')
    return queries[:edge], queries[edge:]
