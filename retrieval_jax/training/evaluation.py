"""Embeds query and gallery, ranks, and measures."""

import collections
import functools
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np

from retrieval_jax import data, metrics
from retrieval_jax.training import state as state_lib
from retrieval_jax.training import steps


class Evaluation(NamedTuple):
  """What an evaluation found, and what it was found from.

  Attributes:
    result: the metrics with their definitions.
    query_embeddings: [Q, D] float32, unit rows.
    gallery_embeddings: [N, D] likewise.
  """

  result: metrics.RetrievalResult
  query_embeddings: np.ndarray
  gallery_embeddings: np.ndarray


class Evaluator:
  """Embeds and measures with a step that is compiled once."""

  def __init__(
    self,
    config: ml_collections.ConfigDict,
    dataset: data.Dataset,
    task: steps.Task,
  ):
    """Compiles nothing yet.

    Args:
      config: `config.eval` is read.
      dataset: with query and gallery.
      task: what is trained.
    """
    self._config = config.eval
    self._dataset = dataset
    self._p_embed = jax.pmap(
      functools.partial(steps.embed_step, task=task), axis_name=state_lib.AXIS
    )

  def embed(self, replicated_variables: Any, source: data.Source) -> np.ndarray:
    """Returns [N, D] float32, every image of the source once, in order."""

    batches = data.padded_batches(
      source,
      self._config.batch_size,
      process_index=jax.process_index(),
      process_count=jax.process_count(),
    )
    rows, ahead = [], collections.deque()
    for batch in batches:
      images = state_lib.shard(batch['images'])
      # Each device returns the rows of all, so the first has them all.
      block = self._p_embed(replicated_variables, images).addressable_data(0)
      ahead.append(block)
      # One batch stays under way; more would only pile up on the devices.
      if len(ahead) > 1:
        rows.append(np.asarray(ahead.popleft())[0])
    rows.extend(np.asarray(block)[0] for block in ahead)
    return np.concatenate(rows)[: len(source)]

  def __call__(self, replicated_state: state_lib.TrainState) -> Evaluation:
    """Measures a state on the whole query and gallery sets."""
    variables = {
      'params': replicated_state.params['embedder'],
      'batch_stats': replicated_state.batch_stats,
    }
    query = self.embed(variables, self._dataset.query)
    gallery = self.embed(variables, self._dataset.gallery)
    result = metrics.evaluate_retrieval(
      query,
      self._dataset.query.labels,
      gallery,
      self._dataset.gallery.labels,
      metrics=tuple(self._config.metrics),
      memory_budget_mb=self._config.memory_budget_mb,
    )
    return Evaluation(result, query, gallery)
