"""Measures embedded sets: rankings, recognition, and post-processed lists.

Pure functions of what was embedded; `evaluation` embeds it.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from retrieval_jax import data, metrics, neighbors
from retrieval_jax.core import relations
from retrieval_jax.metrics import protocols
from retrieval_jax.training import ablation


class Evaluation(NamedTuple):
  """What an evaluation found, and what it was found from.

  Attributes:
    result: the metrics with their definitions.
    group: the queries and the gallery, without what cannot be read.
    query_embeddings: [Q, D] float32, unit rows.
    gallery_embeddings: [N, D] likewise, of `group.searched`.
    grades: [C, C] float32, the relevance of each class to each; None: a class
      is relevant to itself alone.
    ignored: what the queries were not judged by.
  """

  result: metrics.RetrievalResult
  group: data.EvaluationSet
  query_embeddings: np.ndarray
  gallery_embeddings: np.ndarray
  grades: np.ndarray | None = None
  ignored: metrics.Ignored | None = None

  @property
  def removed(self) -> np.ndarray | None:
    """[Q, R] int64 gallery rows in no ranking, padded with -1; None: none."""
    if self.group.own_rows is not None:
      return self.group.own_rows[:, None]
    if self.ignored is None:
      return None
    labels = self.group.query.labels, self.group.searched.labels
    return self.ignored.rows_of_all(*labels, self.grades)

  def are_relevant(self, indices: np.ndarray) -> np.ndarray:
    """Returns [Q, K] bool, whether gallery rows [Q, K] are to be found."""
    if self.group.relevant is not None:
      pairs = zip(indices, self.group.relevant, strict=True)
      return np.stack([np.isin(row, wanted) for row, wanted in pairs])
    queries, gallery = relevance_labels(self.group)
    return relations.are_related(queries, gallery[indices], self.grades)


def measure(
  group: data.EvaluationSet,
  query_embeddings: np.ndarray,
  gallery_embeddings: np.ndarray,
  *,
  names: Sequence[str],
  grades: np.ndarray | None = None,
  ignored: metrics.Ignored | None = None,
  num_voters: int = 3,
  memory_budget_mb: float = 128,
  curves: bool = False,
) -> Evaluation:
  """Measures an embedded set, by the metrics of its benchmark if it has one.

  Args:
    group: the set.
    query_embeddings: [Q, D] float32, unit rows.
    gallery_embeddings: [N, D] likewise; the queries where they are the gallery.
    names: of the metrics, where no benchmark says them.
    grades: [C, C], see `Evaluation`; likewise.
    ignored: what the queries are not judged by.
    num_voters: neighbours that vote for a class, where that is measured.
    memory_budget_mb: MiB, see `metrics.evaluate_retrieval`.
    curves: whether the result has curves over the rankings.

  Raises:
    InputError: if no query has anything to find.
  """
  embedded = query_embeddings, gallery_embeddings
  grades = None if group.benchmark else grades
  if group.benchmark == 'recognition':
    result = _recognize(group, *embedded, num_voters, memory_budget_mb)
  else:
    result = _rank(
      group,
      *embedded,
      grades,
      metrics=protocols.METRICS.get(group.benchmark, tuple(names)),
      ignored=ignored,
      memory_budget_mb=memory_budget_mb,
      all_processes=True,
      curves=curves,
    )
  return Evaluation(result, group, *embedded, grades, ignored)


def ablate(
  measured: Evaluation,
  chains: Sequence[ablation.Chain],
  *,
  list_length: int,
  views: str,
  train: np.ndarray | None = None,
  train_labels: np.ndarray | None = None,
  memory_budget_mb: float = 128,
) -> tuple[ablation.Variant, ...]:
  """Measures the lists of a set after each chain of post-processing.

  Args:
    measured: the set and its embeddings; one that `has_lists`.
    chains: see `ablation.ablate`.
    list_length: of the lists.
    views: of an image that were embedded.
    train: [M, D] embeddings of the training images, if a chain needs them.
    train_labels: [M] int, likewise.
    memory_budget_mb: MiB of each step.
  """
  return ablation.ablate(
    chains,
    neighbors.Embedded(
      queries=measured.query_embeddings,
      gallery=measured.gallery_embeddings,
      exclude_self=measured.group.gallery is None,
      train=train,
      train_labels=train_labels,
    ),
    functools.partial(_evaluate_lists, measured),
    list_length=list_length,
    views=views,
    left_out=measured.removed,
    memory_budget_mb=memory_budget_mb,
  )


def has_lists(group: data.EvaluationSet) -> bool:
  """Returns whether a set is one of retrieval, whose lists can be measured."""
  return group.benchmark != 'recognition' and group.own_rows is None


def relevance_labels(
  group: data.EvaluationSet,
) -> tuple[np.ndarray, np.ndarray]:
  """Returns labels of queries and gallery by which rows are relevant."""
  if group.answers is None:
    return group.query.labels, group.searched.labels
  # One label a row, as a label set.
  sets = np.full((len(group.searched), 2), -1, np.int32)
  sets[:, 0] = group.searched.labels
  return group.answers, sets


def _rank(group, query_rows, gallery_rows, grades, **options):
  """Returns the metrics of rankings by cosine."""
  if group.relevant is not None:
    return metrics.evaluate_listed(
      query_rows,
      None if group.gallery is None else gallery_rows,
      group.relevant,
      **options,
    )
  query_labels, gallery_labels = relevance_labels(group)
  against = ()
  if group.gallery is not None:
    against = gallery_rows, gallery_labels
  return metrics.evaluate_retrieval(
    query_rows,
    query_labels,
    *against,
    grades=grades,
    categories=_categories(group),
    own_rows=group.own_rows,
    **options,
  )


def _categories(group):
  """Returns the category of each query, of none if they are unknown.

  Of several data sets some may have categories: a mean by category is left out
  for the others, with a warning.
  """
  if group.categories is None:
    return np.full(len(group.query), -1, np.int32)
  return group.categories


def _recognize(group, query_rows, gallery_rows, k, memory_budget_mb):
  """Returns how well the classes of queries are told by their neighbours."""
  predicted = neighbors.predict_labels(
    query_rows,
    gallery_rows,
    group.searched.labels,
    k=min(k, len(gallery_rows)),
    memory_budget_mb=memory_budget_mb,
  )
  names = [group.query.identify(row) for row in range(len(group.query))]
  answers = [row[row >= 0].tolist() for row in group.answers]
  found = protocols.google_landmarks.recognition(
    {
      name: (label, score)
      for name, label, score in zip(
        names, predicted.labels.tolist(), predicted.scores.tolist(), strict=True
      )
    },
    dict(zip(names, answers, strict=True)),
  )
  right = (group.answers == predicted.labels[:, None]).any(axis=1)
  return found.as_retrieval_result(
    np.where((group.answers >= 0).any(axis=1), right, np.nan),
    {
      'similarity': 'cosine',
      'relevance': f'the class that the {k} nearest vote for',
      'gallery_size': len(gallery_rows),
      'self_excluded': False,
    },
  )


def _evaluate_lists(
  measured: Evaluation, indices: np.ndarray
) -> metrics.RetrievalResult:
  """Returns the metrics of ranked lists of a set."""
  group = measured.group
  if group.relevant is not None:
    return metrics.evaluate_rankings(
      indices,
      group.relevant,
      ignored=group.ignored,
      metrics=protocols.METRICS[group.benchmark],
      gallery_size=len(group.searched) - (group.gallery is None),
    )
  query_labels, gallery_labels = relevance_labels(group)
  return metrics.evaluate_lists(
    indices,
    query_labels,
    None if group.gallery is None else gallery_labels,
    grades=measured.grades,
    ignored=measured.ignored,
  )
