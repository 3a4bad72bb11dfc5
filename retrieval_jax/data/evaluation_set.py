"""One task of retrieval: who asks, what is searched in, what is right."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from retrieval_jax.data.sources import Source


@dataclasses.dataclass(frozen=True, eq=False)
class EvaluationSet:
  """One task of retrieval: ask `query`, search in `gallery`.

  What is relevant to a query is what has its label, unless `relevant` or
  `answers` say otherwise.

  Attributes:
    query: what is asked.
    gallery: what is searched in; None: the queries, each excluded from its own
      ranking.
    categories: [Q] int32, the super-class of each query, -1 for none; None:
      unknown.
    sequences: ([Q], [N]) int32, of which sequence the queries and the gallery
      are pictures, -1 for none; None: unknown.
    domains: ([Q], [N]) int32, the camera (or font, or vendor) of each; None:
      unknown.
    benchmark: whose metrics are measured, see `Task`; '': those of the config.
    relevant: for each query the gallery rows [n] that are to be found; None.
    ignored: for each query the gallery rows [n] that are in no ranking; None.
    answers: [Q, L] int32, the labels that are right for a query, padded with
      -1; None.
    own_rows: [Q] int64, the gallery row that is the query itself and is left
      out of its ranking, -1 for none; None: none, or there is no gallery.
  """

  query: Source
  gallery: Source | None = None
  categories: np.ndarray | None = None
  sequences: tuple[np.ndarray, np.ndarray] | None = None
  domains: tuple[np.ndarray, np.ndarray] | None = None
  benchmark: str = ''
  relevant: Sequence[np.ndarray] | None = None
  ignored: Sequence[np.ndarray] | None = None
  answers: np.ndarray | None = None
  own_rows: np.ndarray | None = None

  @property
  def searched(self) -> Source:
    """What is searched in, be it the queries themselves."""
    return self.query if self.gallery is None else self.gallery

  def subset(
    self, query_rows: np.ndarray, gallery_rows: np.ndarray
  ) -> 'EvaluationSet':
    """Returns some of the queries, and some of what is searched in.

    Args:
      query_rows: of `query`.
      gallery_rows: of `searched`; the same, if there is no gallery.
    """
    place = np.full(len(self.searched) + 1, -1)  # The last stays -1.
    place[gallery_rows] = np.arange(len(gallery_rows))

    def both(pair):
      return pair and (pair[0][query_rows], pair[1][gallery_rows])

    def picked(array):
      return None if array is None else array[query_rows]

    def listed(lists):
      if lists is None:
        return None
      kept = (place[lists[row]] for row in query_rows.tolist())
      return tuple(places[places >= 0] for places in kept)

    return dataclasses.replace(
      self,
      query=self.query.subset(query_rows),
      gallery=self.gallery and self.gallery.subset(gallery_rows),
      categories=picked(self.categories),
      sequences=both(self.sequences),
      domains=both(self.domains),
      relevant=listed(self.relevant),
      ignored=listed(self.ignored),
      answers=picked(self.answers),
      own_rows=None if self.own_rows is None else place[picked(self.own_rows)],
    )
