"""Embeds query and gallery, ranks, and measures."""

import collections
import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np

from retrieval_jax import data, metrics, neighbors
from retrieval_jax.core import collectives, relations
from retrieval_jax.metrics import protocols
from retrieval_jax.training import ablation as ablation_lib
from retrieval_jax.training import config as config_lib
from retrieval_jax.training import embedding, steps, tasks
from retrieval_jax.training import state as state_lib


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


class Evaluator:
  """Embeds and measures with a step that is compiled once."""

  def __init__(
    self,
    config: ml_collections.ConfigDict,
    task: tasks.Task,
    class_categories: np.ndarray | None = None,
  ):
    """Compiles nothing yet.

    Args:
      config: `eval` and `data.max_unreadable_share` are read.
      task: what is trained.
      class_categories: [C] int, the category of each class, for
        `eval.same_category_grade`.
    """
    self._config = config.eval
    self._postprocessing = config_lib.postprocessing(config)
    self._grades = config_lib.grades(config, class_categories)
    self._ignored = functools.partial(config_lib.ignored, config)
    self._max_unreadable_share = config.data.max_unreadable_share
    self._task = task
    self._p_embed = _pmap_embed(task)

  def embed(
    self, replicated_variables: Any, source: data.Source, name: str = 'given'
  ) -> tuple[np.ndarray, np.ndarray]:
    """Embeds every image of a source once, in order.

    Args:
      replicated_variables: of the embedder.
      source: [N] images.
      name: how messages call the set.

    Returns:
      ([N, D] float32, [N] bool, whether an image could be read).

    Raises:
      InputError: if too many cannot.
    """
    return self._embed_by(self._p_embed, replicated_variables, source, name)

  def _embed_by(self, p_embed, replicated_variables, source, name):
    batches = data.padded_batches(
      source,
      self._config.batch_size,
      process_index=jax.process_index(),
      process_count=jax.process_count(),
    )
    embedded, ahead = [], collections.deque()
    for batch in batches:
      images, mask = state_lib.shard((batch['images'], batch['mask']))
      # Each device returns the rows of all, so the first has them all.
      block = p_embed(replicated_variables, images, mask)
      ahead.append([array.addressable_data(0) for array in block])
      # One batch stays under way; more would only pile up on the devices.
      if len(ahead) > 1:
        embedded.append([np.asarray(a)[0] for a in ahead.popleft()])
    embedded.extend([np.asarray(a)[0] for a in block] for block in ahead)
    rows, readable = (
      np.concatenate(parts)[: len(source)]
      for parts in zip(*embedded, strict=True)
    )
    num_unreadable = int((~readable).sum())
    if num_unreadable > self._max_unreadable_share * len(source):
      raise data.too_many_unreadable(
        name,
        num_unreadable,
        len(source),
        source.describe(int(np.flatnonzero(~readable)[-1])),
      )
    return rows, readable

  def measure(
    self,
    replicated_variables: Any,
    groups: Mapping[str, data.EvaluationSet],
    *,
    curves: bool = False,
  ) -> dict[str, Evaluation]:
    """Measures a model on all queries and the whole gallery of each set.

    An image is embedded once, in however many sets it is. Memory: the
    embeddings of all sets.

    Args:
      replicated_variables: of the embedder.
      groups: the sets, by the names that messages call them.
      curves: whether the results have curves over the rankings.
    """
    embedded = embedding.EmbeddedOnce(
      functools.partial(self.embed, replicated_variables)
    )
    return {
      name: self._measure(group, name, embedded, curves)
      for name, group in groups.items()
    }

  def _measure(self, group, name, embedded, curves):
    group, query_rows, gallery_rows, unreadable = _read(group, name, embedded)
    ignored = self._ignored(group)
    result = self._rank(group, query_rows, gallery_rows, ignored, curves)
    if unreadable:
      result.protocol['num_unreadable_images'] = unreadable
    grades = None if group.benchmark else self._grades
    return Evaluation(result, group, query_rows, gallery_rows, grades, ignored)

  def _rank(self, group, query_rows, gallery_rows, ignored, curves):
    """Returns the metrics of a set, those of its benchmark if it has one."""
    budget = self._config.memory_budget_mb
    if group.benchmark == 'recognition':
      return _recognize(
        group,
        query_rows,
        gallery_rows,
        k=self._config.label_aware.k,
        memory_budget_mb=budget,
      )
    names = protocols.METRICS.get(group.benchmark, tuple(self._config.metrics))
    if group.relevant is not None:
      return metrics.evaluate_listed(
        query_rows,
        None if group.gallery is None else gallery_rows,
        group.relevant,
        metrics=names,
        ignored=ignored,
        memory_budget_mb=budget,
        all_processes=True,
        curves=curves,
      )
    query_labels, gallery_labels = relevance_labels(group)
    against = ()
    if group.gallery is not None:
      against = gallery_rows, gallery_labels
    return metrics.evaluate_retrieval(
      query_rows,
      query_labels,
      *against,
      metrics=names,
      grades=None if group.benchmark else self._grades,
      categories=group.categories,
      ignored=ignored,
      own_rows=group.own_rows,
      memory_budget_mb=budget,
      all_processes=True,
      curves=curves,
    )

  def ablate(
    self,
    replicated_variables: Any,
    found: Mapping[str, Evaluation],
    train: data.Source | None,
  ) -> dict[str, tuple[ablation_lib.Variant, ...]]:
    """Measures lists of what was embedded, with and without post-processing.

    Where an image has several views (`eval.flip`, `eval.scales`), everything is
    embedded once more with one of them, and with each kind if there are both:
    what the views change stands before what is done to them. A whitening in the
    model stays that of all views. Memory: then the embeddings of all sets, once
    more.

    Args:
      replicated_variables: of the embedder that was measured.
      found: what was measured, by the name of the set.
      train: what whitening is fitted on and labels are learned from; embedded
        if a step needs it; None: if none does.

    Returns:
      The variants of each set, {} without post-processing.
    """
    steps = self._postprocessing
    if not steps:
      return {}
    found = {n: own for n, own in found.items() if _has_lists(own.group)}
    *fewer, views = self._task.views.compared()
    variants = {name: () for name in found}
    for label in fewer:
      seen = self._seen_by(label, replicated_variables, found)
      for name, measured in seen:
        variants[name] += self._ablate(measured, [()], label)
    rows = labels = None
    if neighbors.needs(steps, 'train'):
      rows, readable = self.embed(replicated_variables, train, 'train')
      rows, labels = rows[readable], train.labels[readable]
    for name, measured in found.items():
      variants[name] += self._ablate(
        measured, ablation_lib.chains(steps), views, rows, labels
      )
    return variants

  def _ablate(self, measured, chains, views, train=None, train_labels=None):
    return ablation_lib.ablate(
      chains,
      neighbors.Embedded(
        queries=measured.query_embeddings,
        gallery=measured.gallery_embeddings,
        exclude_self=measured.group.gallery is None,
        train=train,
        train_labels=train_labels,
      ),
      functools.partial(_evaluate_lists, measured),
      list_length=self._config.list_length,
      views=views,
      left_out=measured.removed,
      memory_budget_mb=self._config.memory_budget_mb,
    )

  def _seen_by(self, label, replicated_variables, found):
    """Yields (name, what was measured), with the embeddings of other views."""
    views = self._task.views.compared()[label]
    p_embed = _pmap_embed(self._task._replace(views=views))
    embedded = embedding.EmbeddedOnce(
      functools.partial(self._embed_by, p_embed, replicated_variables)
    )
    for name, measured in found.items():
      group, queries, gallery, _ = _read(measured.group, name, embedded)
      yield (
        name,
        measured._replace(
          group=group,
          query_embeddings=queries,
          gallery_embeddings=gallery,
          ignored=self._ignored(group),
        ),
      )


def _pmap_embed(task):
  return jax.pmap(
    functools.partial(_embed_batch, task=task), axis_name=state_lib.AXIS
  )


def _read(group, name, embedded):
  """Embeds a set, and leaves out what cannot be read.

  Returns:
    (the set, query embeddings, gallery embeddings, images left out).
  """
  query_rows, can_ask = embedded(group.query, name)
  gallery_rows, can_be_found = query_rows, can_ask
  if group.gallery is not None:
    gallery_rows, can_be_found = embedded(group.gallery, name)
  unreadable = int((~can_ask).sum())
  if group.gallery is not None:
    unreadable += int((~can_be_found).sum())
  if unreadable:
    group = group.subset(np.flatnonzero(can_ask), np.flatnonzero(can_be_found))
    query_rows, gallery_rows = query_rows[can_ask], gallery_rows[can_be_found]
  return group, query_rows, gallery_rows, unreadable


def _has_lists(group: data.EvaluationSet) -> bool:
  """Returns whether a set is one of retrieval, whose lists can be measured."""
  return group.benchmark != 'recognition' and group.own_rows is None


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


def _recognize(group, query_rows, gallery_rows, *, k, memory_budget_mb):
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


def _embed_batch(variables, images, mask, *, task):
  """Returns (embeddings, mask) of all devices, in order."""
  embeddings = steps.embed_step(variables, images, task=task)
  return embeddings, collectives.all_gather_rows(mask, state_lib.AXIS)
