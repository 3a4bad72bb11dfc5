"""Label-aware re-ranking: what the training set knows of query and gallery."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from retrieval_jax.core import relations
from retrieval_jax.core.errors import InputError
from retrieval_jax.neighbors import options as options_lib
from retrieval_jax.neighbors import search
from retrieval_jax.neighbors.lists import RankedLists, check_lists, empty_lists
from retrieval_jax.neighbors.options import Limit, Sizes

OPTIONS = {'k': options_lib.COUNT, 'threshold': options_lib.ANY_NUMBER}


def limits(sizes: Sizes, *, k: int, **options) -> Iterator[Limit]:
  """Yields what bounds the options."""
  del options
  yield Limit('k', k, sizes.train, 'the training images')


class Predictions(NamedTuple):
  """A label for each row, and how sure it is.

  Attributes:
    labels: [N] int64.
    scores: [N] float32, in [-1, 1].
  """

  labels: np.ndarray
  scores: np.ndarray


def predict_labels(
  embeddings,
  train_embeddings,
  train_labels,
  *,
  k: int = 3,
  memory_budget_mb: float = 128,
) -> Predictions:
  """Returns the label of each row by soft voting of its nearest training rows.

      score(c) = (1 / k) sum over the k nearest with label c of their cosine,

  the largest wins; of equal ones the label that comes first in the list.

  Args:
    embeddings: [N, D] any float dtype, normalised inside.
    train_embeddings: [T, D] likewise.
    train_labels: [T] int.
    k: neighbours that vote, at most T.
    memory_budget_mb: MiB beyond the inputs and the results to stay within.

  Returns:
    Predictions [N].

  Raises:
    InputError: for arrays that cannot be searched, labels that are no ints, or
      a k out of range.

  Example:
    >>> train = np.array([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]])
    >>> predict_labels(np.array([[1.0, 0.0]]), train, np.array([7, 7, 9]), k=2)
    Predictions(labels=array([7]), scores=array([0.9], dtype=float32))
  """
  train_labels = relations.check_labels(train_labels, 'train_labels')
  if len(train_labels) != len(train_embeddings):
    raise InputError(
      f'train_labels have {len(train_labels)} rows but the train_embeddings '
      f'{len(train_embeddings)}; allowed is one label a row: check how they '
      'were gathered'
    )
  similarities, indices = search.top_k(
    embeddings, train_embeddings, k, memory_budget_mb=memory_budget_mb
  )
  voted = train_labels[indices]
  # k is small: the sum of each place's label, over its own places.
  sums = np.zeros_like(similarities)
  for place in range(voted.shape[1]):
    sums[:, place] = np.sum(
      similarities, axis=1, where=voted == voted[:, place, None]
    )
  winner = sums.argmax(axis=1)[:, None]
  return Predictions(
    np.take_along_axis(voted, winner, axis=1)[:, 0],
    np.take_along_axis(sums, winner, axis=1)[:, 0] / voted.shape[1],
  )


def rerank_by_labels(
  lists,
  queries: Predictions,
  gallery: Predictions,
  *,
  threshold: float = 0.6,
  exclude_self: bool = False,
) -> RankedLists:
  """Returns lists with what has the label of the query first.

  First come the entries of the list that have the predicted label of the
  query, in their order; then the gallery rows with that label which the list
  missed, if score_query + score_row is above the threshold, the largest first;
  then the other entries, in their order. What no longer fits is cut off.

  Args:
    lists: (scores [Q, k], indices [Q, k]), such as of `top_k`.
    queries: the predictions of the queries, Q of them.
    gallery: the predictions of the gallery, N of them.
    threshold: of the sum of two scores, each in [-1, 1]; 2 inserts nothing.
    exclude_self: whether the gallery is the queries, and row i of it is left
      out for query i.

  Returns:
    Lists [Q, k]. One number did not make this order, so the scores are
    1 / rank.

  Raises:
    InputError: for lists and predictions that do not fit, or another threshold.

  Example:
    >>> lists = np.array([[0.9, 0.8, 0.7]]), np.array([[0, 1, 2]])
    >>> query = Predictions(np.array([5]), np.array([0.9]))
    >>> gallery = Predictions(np.array([4, 5, 4, 5]), np.full(4, 0.5))
    >>> rerank_by_labels(lists, query, gallery).indices.tolist()
    [[1, 3, 0]]

  References:
    Ozaki and Yokoo, Large-scale Landmark Retrieval/Recognition under a Noisy
    and Diverse Dataset, 2019 (first place in Google Landmark Retrieval 2019).
  """
  options_lib.check('label_aware', {'threshold': threshold}, OPTIONS)
  lists = check_lists(lists)
  num_queries, k = lists.indices.shape
  if len(queries.labels) != num_queries:
    raise InputError(
      f'queries have {len(queries.labels)} predictions but there are '
      f'{num_queries} lists; allowed is one a list: predict for the same rows'
    )
  if lists.indices.max() >= len(gallery.labels):
    raise InputError(
      f'lists have the index {lists.indices.max()} but gallery has '
      f'{len(gallery.labels)} predictions; allowed is one for each gallery row'
    )
  # The rows of a label, the surest first, and of equal ones the lower index.
  order = np.lexsort(
    (np.arange(len(gallery.labels)), -gallery.scores, gallery.labels)
  )
  ordered = gallery.labels[order]
  starts = np.searchsorted(ordered, queries.labels, side='left')
  stops = np.searchsorted(ordered, queries.labels, side='right')
  reranked = empty_lists(num_queries, k)
  for query in range(num_queries):
    listed = lists.indices[query][lists.indices[query] >= 0]
    alike = gallery.labels[listed] == queries.labels[query]
    of_label = order[starts[query] : stops[query]]
    surest = queries.scores[query] + gallery.scores[of_label] > threshold
    missed = ~np.isin(of_label, listed)
    if exclude_self:
      missed &= of_label != query
    ranked = np.concatenate(
      [listed[alike], of_label[surest & missed], listed[~alike]]
    )[:k]
    reranked.indices[query, : len(ranked)] = ranked
    reranked.scores[query, : len(ranked)] = 1 / np.arange(1, len(ranked) + 1)
  return reranked


def label_aware_reranking(
  lists,
  queries,
  gallery,
  train_embeddings,
  train_labels,
  *,
  k: int = 3,
  threshold: float = 0.6,
  exclude_self: bool = False,
  memory_budget_mb: float = 128,
) -> RankedLists:
  """Returns lists re-ranked by the labels that training images vote for.

  `predict_labels` of queries and gallery, then `rerank_by_labels`. It helps
  where the gallery shows the classes that were trained on.

  Args:
    lists: (scores [Q, k], indices [Q, k]), such as of `top_k`.
    queries: [Q, D] any float dtype, normalised inside.
    gallery: [N, D] likewise.
    train_embeddings: [T, D] likewise.
    train_labels: [T] int.
    k: training rows that vote.
    threshold: see `rerank_by_labels`.
    exclude_self: whether the gallery is the queries.
    memory_budget_mb: MiB beyond the inputs and the results to stay within.

  Returns:
    Lists of the same width; the scores are 1 / rank.

  Raises:
    InputError: see `predict_labels` and `rerank_by_labels`.

  Example:
    >>> x = np.array([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]])
    >>> train = np.array([[1.0, 0.1], [0.1, 1.0]])
    >>> lists = np.array([[0.8, 0.6]]), np.array([[1, 0]])
    >>> label_aware_reranking(lists, x[:1], x, train, np.array([0, 1]),
    ...                       k=1).indices.tolist()
    [[1, 0]]
  """
  given = {'k': k, 'threshold': threshold}
  options_lib.check('label_aware', given, OPTIONS)
  of_gallery, of_queries = (
    predict_labels(
      rows,
      train_embeddings,
      train_labels,
      k=k,
      memory_budget_mb=memory_budget_mb,
    )
    for rows in (gallery, queries)
  )
  return rerank_by_labels(
    lists,
    of_queries,
    of_gallery,
    threshold=threshold,
    exclude_self=exclude_self,
  )
