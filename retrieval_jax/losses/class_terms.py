"""The terms of losses that compare embeddings with proxies of the classes."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from retrieval_jax.core import arrays
from retrieval_jax.core.class_shards import Shard
from retrieval_jax.losses.options import Part
from retrieval_jax.losses.pair_terms import Extras, row_keys


class ClassRows(NamedTuple):
  """Rows and their cosines with classes: of this device, or with its classes.

  With unsharded proxies they are the rows of this device with all classes; with
  sharded proxies the rows of all devices with the classes of this one.

  Attributes:
    cosines: [B, C] float32, of each class the nearest centre.
    proxies: [C * K, D], the centres of a class adjacent.
    labels: [B] int32, columns of `cosines`; negative marks padding.
    class_labels: [B] int32, the same as ids of classes.
    embeddings: [B, D] as the model gives them.
    ids: [B] int32, of the rows in the whole batch.
    second_labels: [B] int32 or None, columns.
    second_class_labels: [B] int32 or None.
    first_weights: [B] float32 or None, the share of the first label.
    axis_name: of the devices that hold other rows, None if all are here.
    shard: how the classes are shared by devices, None if all are here.
  """

  cosines: jax.Array
  proxies: jax.Array
  labels: jax.Array
  class_labels: jax.Array
  embeddings: jax.Array
  ids: jax.Array
  second_labels: jax.Array | None
  second_class_labels: jax.Array | None
  first_weights: jax.Array | None
  axis_name: str | None
  shard: Shard | None

  def with_centers(self) -> jax.Array:
    """Returns [B, C, K] float32, the cosines with all centres."""
    found = arrays.cosine_similarities(self.embeddings, self.proxies)
    return found.reshape(*self.cosines.shape, -1)


def class_terms(part: Part, rows: ClassRows, extras: Extras):
  """Returns (terms, next state or None) of a loss against proxies.

  Args:
    part: of kind 'proxy'.
    rows: the cosines, and what they are of.
    extras: key, class counts, and the parameters and state of the loss.
  """
  separate = part.row.separate_centers
  cosines = rows.with_centers() if separate else rows.cosines

  def terms_of(labels, class_labels, weights):
    found = part.row.function(
      cosines,
      labels,
      weights=weights,
      reducer=part.reducer,
      **part.hyper,
      **_needs(part, rows, class_labels, extras),
      **extras.given,
    )
    return found if part.row.state is not None else (found, None)

  if rows.second_labels is None:
    return terms_of(rows.labels, rows.class_labels, None)
  share = rows.first_weights
  first, kept = terms_of(rows.labels, rows.class_labels, share)
  second, _ = terms_of(rows.second_labels, rows.second_class_labels, 1 - share)
  return jax.tree.map(jnp.add, first, second), kept


def _needs(part, rows, class_labels, extras):
  makers = {
    'labels': lambda: class_labels,
    'row_keys': lambda: row_keys(extras.key, rows.ids),
    'norms': lambda: arrays.norms(rows.embeddings),
    'proxy_norms': lambda: arrays.norms(rows.proxies),
    'class_counts': lambda: extras.class_counts[class_labels],
    'axis_name': lambda: rows.axis_name,
    'shard': lambda: rows.shard,
  }
  return {name: makers[name]() for name in part.row.needs}
