"""Embeds query and gallery, ranks, and measures."""

import collections
import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np

from retrieval_jax import data, metrics, neighbors
from retrieval_jax.core import collectives
from retrieval_jax.training import ablation as ablation_lib
from retrieval_jax.training import config as config_lib
from retrieval_jax.training import state as state_lib
from retrieval_jax.training import steps


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
    if self.ignored is None:
      return None
    labels = self.group.query.labels, self.group.searched.labels
    return self.ignored.rows_of_all(*labels, self.grades)


class Evaluator:
  """Embeds and measures with a step that is compiled once."""

  def __init__(
    self,
    config: ml_collections.ConfigDict,
    task: steps.Task,
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
    self._p_embed = jax.pmap(
      functools.partial(_embed_batch, task=task), axis_name=state_lib.AXIS
    )

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
      block = self._p_embed(replicated_variables, images, mask)
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

  def __call__(
    self,
    replicated_state: state_lib.TrainState,
    group: data.EvaluationSet,
    name: str = 'test',
    *,
    curves: bool = False,
  ) -> Evaluation:
    """Measures a state on all queries and the whole gallery of a set.

    Args:
      replicated_state: whose embedder is measured.
      group: the set.
      name: how messages call it.
      curves: whether the result has curves over the rankings.
    """
    variables = _variables(replicated_state)
    query_rows, can_ask = self.embed(variables, group.query, name)
    gallery_rows, can_be_found = query_rows, can_ask
    if group.gallery is not None:
      gallery_rows, can_be_found = self.embed(variables, group.gallery, name)
    unreadable = int((~can_ask).sum())
    if group.gallery is not None:
      unreadable += int((~can_be_found).sum())
    if unreadable:
      group = group.subset(
        np.flatnonzero(can_ask), np.flatnonzero(can_be_found)
      )
      query_rows, gallery_rows = query_rows[can_ask], gallery_rows[can_be_found]
    ignored = self._ignored(group)
    against = ()
    if group.gallery is not None:
      against = gallery_rows, group.gallery.labels
    result = metrics.evaluate_retrieval(
      query_rows,
      group.query.labels,
      *against,
      metrics=tuple(self._config.metrics),
      grades=self._grades,
      categories=group.categories,
      ignored=ignored,
      memory_budget_mb=self._config.memory_budget_mb,
      all_processes=True,
      curves=curves,
    )
    if unreadable:
      result.protocol['num_unreadable_images'] = unreadable
    return Evaluation(
      result, group, query_rows, gallery_rows, self._grades, ignored
    )

  def ablate(
    self,
    replicated_state: state_lib.TrainState,
    found: Mapping[str, Evaluation],
    train: data.Source,
  ) -> dict[str, tuple[ablation_lib.Variant, ...]]:
    """Measures what was embedded anew, with and without post-processing.

    Args:
      replicated_state: that was measured.
      found: what was measured, by the name of the set.
      train: what whitening is fitted on and labels are learned from; embedded
        if a step needs it.

    Returns:
      The variants of each set, {} without post-processing.
    """
    steps = self._postprocessing
    if not steps:
      return {}
    rows = labels = None
    if neighbors.needs(steps, 'train'):
      variables = _variables(replicated_state)
      rows, readable = self.embed(variables, train, 'train')
      rows, labels = rows[readable], train.labels[readable]
    return {
      name: ablation_lib.ablate(
        ablation_lib.chains(steps),
        neighbors.Embedded(
          queries=measured.query_embeddings,
          gallery=measured.gallery_embeddings,
          exclude_self=measured.group.gallery is None,
          train=rows,
          train_labels=labels,
        ),
        functools.partial(_evaluate_lists, measured),
        list_length=self._config.list_length,
        left_out=measured.removed,
        memory_budget_mb=self._config.memory_budget_mb,
      )
      for name, measured in found.items()
    }


def _variables(replicated_state):
  return {
    'params': replicated_state.params['embedder'],
    'batch_stats': replicated_state.batch_stats,
  }


def _evaluate_lists(
  measured: Evaluation, indices: np.ndarray
) -> metrics.RetrievalResult:
  """Returns the metrics of ranked lists of a set."""
  group = measured.group
  return metrics.evaluate_lists(
    indices,
    group.query.labels,
    None if group.gallery is None else group.gallery.labels,
    grades=measured.grades,
    ignored=measured.ignored,
  )


def _embed_batch(variables, images, mask, *, task):
  """Returns (embeddings, mask) of all devices, in order."""
  embeddings = steps.embed_step(variables, images, task=task)
  return embeddings, collectives.all_gather_rows(mask, state_lib.AXIS)
