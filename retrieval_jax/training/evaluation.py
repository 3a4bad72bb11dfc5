"""Embeds queries and galleries, and has them measured."""

import collections
import functools
from collections.abc import Mapping
from typing import Any

import jax
import ml_collections
import numpy as np

from retrieval_jax import data, neighbors
from retrieval_jax.core import collectives
from retrieval_jax.training import ablation as ablation_lib
from retrieval_jax.training import config as config_lib
from retrieval_jax.training import embedding, measuring, steps, tasks
from retrieval_jax.training import state as state_lib


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
  ) -> dict[str, measuring.Evaluation]:
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
    found = measuring.measure(
      group,
      query_rows,
      gallery_rows,
      names=tuple(self._config.metrics),
      grades=self._grades,
      ignored=self._ignored(group),
      num_voters=self._config.label_aware.k,
      memory_budget_mb=self._config.memory_budget_mb,
      curves=curves,
    )
    if unreadable:
      found.result.protocol['num_unreadable_images'] = unreadable
    return found

  def ablate(
    self,
    replicated_variables: Any,
    found: Mapping[str, measuring.Evaluation],
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
    found = {
      name: own for name, own in found.items() if measuring.has_lists(own.group)
    }
    ablate = functools.partial(
      measuring.ablate,
      list_length=self._config.list_length,
      memory_budget_mb=self._config.memory_budget_mb,
    )
    *fewer, views = self._task.views.compared()
    variants = {name: () for name in found}
    for label in fewer:
      seen = self._seen_by(label, replicated_variables, found)
      for name, measured in seen:
        variants[name] += ablate(measured, [()], views=label)
    rows = labels = None
    if neighbors.needs(steps, 'train'):
      rows, readable = self.embed(replicated_variables, train, 'train')
      rows, labels = rows[readable], train.labels[readable]
    for name, measured in found.items():
      variants[name] += ablate(
        measured,
        ablation_lib.chains(steps),
        views=views,
        train=rows,
        train_labels=labels,
      )
    return variants

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


def _embed_batch(variables, images, mask, *, task):
  """Returns (embeddings, mask) of all devices, in order."""
  embeddings = steps.embed_step(variables, images, task=task)
  return embeddings, collectives.all_gather_rows(mask, state_lib.AXIS)
