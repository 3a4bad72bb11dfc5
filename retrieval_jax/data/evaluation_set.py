"""One task of retrieval: who asks, what is searched in, what is right."""

import dataclasses

import numpy as np

from retrieval_jax.data.sources import Source


@dataclasses.dataclass(frozen=True, eq=False)
class EvaluationSet:
  """One task of retrieval: ask `query`, search in `gallery`.

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
  """

  query: Source
  gallery: Source | None = None
  categories: np.ndarray | None = None
  sequences: tuple[np.ndarray, np.ndarray] | None = None
  domains: tuple[np.ndarray, np.ndarray] | None = None

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

    def both(pair):
      return pair and (pair[0][query_rows], pair[1][gallery_rows])

    return EvaluationSet(
      self.query.subset(query_rows),
      self.gallery and self.gallery.subset(gallery_rows),
      None if self.categories is None else self.categories[query_rows],
      both(self.sequences),
      both(self.domains),
    )
