"""The objective of a run: from embeddings and labels to one number.

It holds what a config says of the loss (parts, miners, distances, reducers,
regularizers, memory) and no weights: what it learns and what it keeps between
steps are arguments. The same object computes the loss at a prompt, in a test,
in a step on one device, and in one on many.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from retrieval_jax.core import arrays, class_shards, collectives, relations
from retrieval_jax.losses import class_terms as class_terms_lib
from retrieval_jax.losses import memory as memory_lib
from retrieval_jax.losses import pair_terms as pair_terms_lib
from retrieval_jax.losses.class_terms import ClassRows
from retrieval_jax.losses.options import INVERSE_LOG, Part
from retrieval_jax.losses.pair_terms import Extras, Rows
from retrieval_jax.losses.regularizers import REGULARIZERS
from retrieval_jax.losses.terms import Terms


class Batch(NamedTuple):
  """What an objective sees of this device's part of a batch.

  Attributes:
    embeddings: [B, D] any float dtype, as the model gives them; with several
      views of an image, all first views come before all second ones.
    labels: [B] int32, or [B, L] label sets; negative marks padding.
    second_labels: [B] int32 where images are mixed, or None.
    first_weights: [B] float32 in [0, 1], the share of the first label, or None.
    references: [G, D], what the anchors are compared with; None: each other,
      over all devices.
    reference_labels: [G], with `references`.
    step: int32 scalar, for ids that differ from step to step.
  """

  embeddings: jax.Array
  labels: jax.Array
  second_labels: jax.Array | None = None
  first_weights: jax.Array | None = None
  references: jax.Array | None = None
  reference_labels: jax.Array | None = None
  step: Any = 0


class Outcome(NamedTuple):
  """What a step gets of the loss.

  Attributes:
    loss: float32 scalar, alike on every device.
    state: the next state.
    scalars: {name: float32 scalar} to be shown, alike on every device.
  """

  loss: jax.Array
  state: Any
  scalars: dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Objective:
  """The loss of a run, without weights.

  Attributes:
    parts: the losses that are added, from `options.parse`.
    num_classes: C, of losses that know their classes.
    embedding_dim: D.
    class_counts: [C] training images of each class, or None.
    labels_per_row: L of label sets, 0 for ints.
    num_views: of each image in a batch.
    memory_size: rows of past batches that are candidates too.
    memory_warmup_steps: steps before they are.
    axis_name: of the devices, or None.
    shards_classes: whether each device holds the proxies of its classes alone.
    sample_rate: share of the other classes that a sharded head looks at.
  """

  parts: tuple[Part, ...]
  num_classes: int = 0
  embedding_dim: int = 0
  class_counts: np.ndarray | None = None
  labels_per_row: int = 0
  num_views: int = 1
  memory_size: int = 0
  memory_warmup_steps: int = 0
  axis_name: str | None = None
  shards_classes: bool = False
  sample_rate: float = 1.0

  @property
  def centers(self) -> int:
    """The proxies of a class, 0 without a loss against proxies."""
    return max(
      (part.centers for part in self.parts if part.row.kind == 'proxy'),
      default=0,
    )

  def init_params(self, key: jax.Array) -> dict[str, Any]:
    """Returns what the losses learn besides proxies, {} for nothing."""
    return {
      _name(part): part.row.params(
        part.hyper,
        self.num_classes,
        self.embedding_dim,
        jax.random.fold_in(key, index),
      )
      for index, part in enumerate(self.parts)
      if part.row.params is not None
    }

  def init_state(self) -> dict[str, Any]:
    """Returns what the losses keep between steps, {} for nothing."""
    made = {
      _name(part): part.row.state(
        part.hyper, self.num_classes, self.embedding_dim
      )
      for part in self.parts
      if part.row.state is not None
    }
    if self.memory_size:
      made['memory'] = memory_lib.empty(
        self.memory_size, self.embedding_dim, self.labels_per_row
      )
    return made

  def __call__(
    self,
    params: Mapping[str, Any],
    state: Mapping[str, Any],
    batch: Batch,
    *,
    proxies: jax.Array | None = None,
    key: jax.Array | None = None,
  ) -> Outcome:
    """Computes the loss of a batch.

    Args:
      params: of `init_params`.
      state: of `init_state`, or of the step before.
      batch: this device's rows.
      proxies: [C * K, D], or this device's shard of them.
      key: of the step, equal on all devices; None takes a fixed one.

    Returns:
      The loss, differentiable in params, embeddings, references and proxies.
    """
    key = jax.random.key(0) if key is None else key
    class_rows, scalars = None, {}
    if self.centers:
      class_rows = self._class_rows(batch, proxies, jax.random.fold_in(key, 0))
      scalars |= _accuracies(class_rows)
    anchors, candidates, next_state = self._rows(batch, state)
    loss, shares = jnp.zeros((), jnp.float32), {}
    for index, part in enumerate(self.parts):
      name = _name(part)
      extras = Extras(
        key=jax.random.fold_in(key, 1 + index),
        class_counts=None
        if self.class_counts is None
        else jnp.asarray(self.class_counts),
        axis_name=self.axis_name,
        given={
          kind: tree.get(name, {})
          for kind, tree, row in (
            ('params', params, part.row.params),
            ('state', state, part.row.state),
          )
          if row is not None
        },
      )
      terms, kept = self._terms(part, anchors, candidates, class_rows, extras)
      if part.class_weights is not None:
        labels = (
          class_rows.class_labels
          if part.row.kind == 'proxy'
          else anchors.labels
        )
        terms = _weighted(terms, self._class_weights(part), labels)
      if kept is not None:
        next_state[name] = kept
      value, found = reduce_terms(
        terms,
        None if self._is_alike(part) else self.axis_name,
        is_sum=part.reducer.name == 'sum',
      )
      extra, extra_found = reduce_terms(
        self._regularizers(part, batch, proxies), self.axis_name
      )
      loss += part.weight * (value + extra)
      found |= extra_found
      if len(found) > 1:
        shares |= {
          f'{part.label}_{k}' if part.label else k: v for k, v in found.items()
        }
      elif part.label:
        shares[part.label] = value
    scalars |= {f'loss_{name}': share for name, share in shares.items()}
    return Outcome(loss, next_state, scalars)

  def _class_weights(self, part):
    """Returns the weights [C] of the classes."""
    if part.class_weights == INVERSE_LOG:
      return inverse_log_weights(self.class_counts)
    return part.class_weights

  def _is_alike(self, part):
    """Returns whether every device has the same terms, of all rows."""
    return part.row.alike or (part.row.kind == 'proxy' and self.shards_classes)

  def _terms(self, part, anchors, candidates, class_rows, extras):
    """Returns (terms, next state or None) of a part."""
    if part.row.kind == 'proxy':
      return class_terms_lib.class_terms(part, class_rows, extras)
    if part.row.kind == 'pair':
      return pair_terms_lib.pair_terms(part, anchors, candidates, extras), None
    if part.row.views == 2:
      first, second = self._two_views(anchors, candidates)
      return pair_terms_lib.view_terms(part, first, second, extras), None
    return pair_terms_lib.batch_terms(part, anchors, candidates, extras)

  def _rows(self, batch, state):
    """Returns anchors, candidates, and the next state of the memory."""
    images = batch.labels.shape[0] // self.num_views
    image_ids = collectives.row_ids(images, self.axis_name)
    num_images = images * collectives.axis_size(self.axis_name)
    views = jnp.arange(self.num_views, dtype=jnp.int32)
    # The same id for the same row on any number of devices.
    ids = (views[:, None] * num_images + image_ids[None, :]).reshape(-1)
    # Images of other steps get other numbers; these come round again when
    # they have long left any memory.
    image_ids = (image_ids + batch.step * num_images) % 2**30
    anchors = Rows(
      batch.embeddings, batch.labels, jnp.tile(image_ids, self.num_views), ids
    )
    if batch.references is not None:
      count = batch.references.shape[0]
      candidates = Rows(
        batch.references,
        batch.reference_labels,
        jnp.arange(count, dtype=jnp.int32),
        jnp.full((count,), -1, jnp.int32),
      )
      return anchors, candidates, {}
    candidates = collectives.all_gather_rows(anchors, self.axis_name)
    if not self.memory_size:
      return anchors, candidates, {}
    past = state['memory']
    ready = past['steps'] >= self.memory_warmup_steps
    remembered = Rows(
      past['embeddings'].astype(candidates.embeddings.dtype),
      jnp.where(ready, past['labels'], -1),
      past['image_ids'],
      jnp.full_like(past['image_ids'], -1),
    )
    next_memory = memory_lib.enqueue(
      past, candidates.embeddings, candidates.labels, candidates.image_ids
    )
    candidates = jax.tree.map(
      lambda *leaves: jnp.concatenate(leaves), candidates, remembered
    )
    return anchors, candidates, {'memory': next_memory}

  def _two_views(self, anchors, candidates):
    """Returns the first and the second views of the whole batch."""
    if self.num_views == 1:  # The references are the second views.
      return anchors, candidates._replace(image_ids=anchors.image_ids)
    images = len(anchors.ids) // self.num_views
    return tuple(
      collectives.all_gather_rows(
        jax.tree.map(lambda leaf, part=part: leaf[part], anchors),
        self.axis_name,
      )
      for part in (slice(images), slice(images, 2 * images))
    )

  def _class_rows(self, batch, proxies, key):
    """Returns what losses against proxies see; see `ClassRows`."""
    axis_name, shard = self.axis_name, None
    labels, second = batch.labels, batch.second_labels
    rows = {
      'embeddings': batch.embeddings,
      'class_labels': labels,
      'ids': collectives.row_ids(len(labels), axis_name),
      'second_class_labels': second,
      'first_weights': batch.first_weights,
    }
    if self.shards_classes:
      rows = collectives.all_gather_rows(rows, axis_name)
      labels, second = rows['class_labels'], rows['second_class_labels']
      both = labels if second is None else jnp.stack([labels, second], axis=1)
      proxies, both, shard = class_shards.select_columns(
        proxies,
        both,
        axis_name=axis_name,
        num_classes=self.num_classes,
        sub_centers=self.centers,
        rate=self.sample_rate,
        key=key,
      )
      labels, second = (
        (both, None) if second is None else (both[:, 0], both[:, 1])
      )
      axis_name = None
    return ClassRows(
      cosines=arrays.proxy_cosines(rows['embeddings'], proxies, self.centers),
      proxies=proxies,
      labels=labels,
      second_labels=second,
      axis_name=axis_name,
      shard=shard,
      **rows,
    )

  def _regularizers(self, part, batch, proxies):
    """Returns the terms that regularizers add, their weights in them."""
    terms = {}
    regularizer = part.embedding_regularizer
    if regularizer is not None:
      values, counts = REGULARIZERS[regularizer.name].function(
        batch.embeddings,
        valid=~relations.is_padding(batch.labels),
        axis_name=self.axis_name,
        **regularizer.hyper,
      )
      terms['embedding_regularizer'] = (regularizer.weight * values, counts)
    regularizer = part.weight_regularizer
    if regularizer is not None:
      hyper = dict(regularizer.hyper)
      if 'centers_per_class' in REGULARIZERS[regularizer.name].needs:
        hyper['centers_per_class'] = self.centers
      values, counts = REGULARIZERS[regularizer.name].function(proxies, **hyper)
      terms['weight_regularizer'] = (regularizer.weight * values, counts)
    return terms


def _name(part: Part) -> str:
  return part.label or part.name


def inverse_log_weights(class_counts: jax.Array) -> jax.Array:
  """Returns weights that fall with the images of a class.

    w_c = a / log(1 + n_c),  a such that the mean over all images is 1

  so that on long-tailed data the many classes of few images have more of a say
  than by their images, and less than by their number.

  Args:
    class_counts: n, [C], the training images of each class; a class of none has
      a weight of 0.

  Returns:
    [C] float32.

  Example:
    >>> weights = inverse_log_weights(jnp.array([1, 100, 10000]))
    >>> [f'{weight:.1f}' for weight in weights]
    ['13.1', '2.0', '1.0']

  References:
    Jeon, 1st Place Solution to Google Landmark Retrieval 2020, whose code
    divides by log(n_c).
  """
  counts = jnp.asarray(class_counts, jnp.float32)
  occurs = counts > 0
  weights = occurs / jnp.log1p(jnp.where(occurs, counts, 1.0))
  return weights * (jnp.sum(counts) / jnp.sum(weights * counts))


def _weighted(terms, class_weights, labels):
  """Returns the terms with each anchor's value times the weight of its class.

  The counts stay: it is PML's ClassWeightedReducer, mean(value * weight).
  """
  weights = jnp.asarray(class_weights, jnp.float32)[labels]
  return {name: (values * weights, n) for name, (values, n) in terms.items()}


def _accuracies(rows):
  return {
    f'top_{k}_accuracy': collectives.pmean(
      class_shards.top_k_accuracy(rows.cosines, rows.labels, k, rows.shard),
      rows.axis_name,
    )
    for k in (1, 5)
  }


def reduce_terms(
  terms: Terms, axis_name: str | None = None, is_sum: bool = False
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Divides each term over rows and devices, and adds the terms.

  Args:
    terms: of a loss.
    axis_name: the axis of the devices, or None.
    is_sum: whether the values are added and not divided.

  Returns:
    (loss, {term: its share}), float32 scalars, alike on every device. A term
    that counts nothing is 0 with a zero gradient.

  Example:
    >>> values, counts = jnp.array([2.0, 4.0]), jnp.array([1.0, 2.0])
    >>> loss, parts = reduce_terms({'loss': (values, counts)})
    >>> loss.item(), sorted(parts)
    (2.0, ['loss'])
  """
  reduce = collectives.masked_sum if is_sum else collectives.masked_mean
  parts = {
    name: reduce(values, counts, axis_name)
    for name, (values, counts) in terms.items()
  }
  return sum(parts.values(), jnp.zeros((), jnp.float32)), parts
