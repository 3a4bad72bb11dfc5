"""The terms of losses that compare embeddings with each other."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from retrieval_jax.core import collectives, relations
from retrieval_jax.losses import mining
from retrieval_jax.losses.options import Part
from retrieval_jax.losses.terms import Terms

# Anchors are taken in chunks, so that a matrix of pairs has at most so many
# entries: 16 MiB, small enough for a batch of thousands to fit anywhere, large
# enough to be one chunk at the usual batch of hundreds.
MAX_PAIRS = 2**22


class Rows(NamedTuple):
  """Rows that are compared: anchors, or candidates.

  Attributes:
    embeddings: [B, D] any float dtype, as the model gives them.
    labels: [B] int32, or [B, L] label sets; negative marks padding.
    image_ids: [B] int32, the image that the row is a view of.
    ids: [B] int32, equal only for a row and itself.
  """

  embeddings: jax.Array
  labels: jax.Array
  image_ids: jax.Array
  ids: jax.Array


class Extras(NamedTuple):
  """What some losses look at besides the rows.

  Attributes:
    key: random, of the step and the loss, equal on all devices.
    class_counts: [C] float32 training images of each class, or None.
    axis_name: of the devices that share the batch, or None.
    given: `params` and `state` of the loss, those that it has.
  """

  key: jax.Array
  class_counts: jax.Array | None
  axis_name: str | None
  given: Mapping[str, Any]


def pair_terms(
  part: Part, anchors: Rows, candidates: Rows, extras: Extras
) -> Terms:
  """Returns the terms of a pair loss, one row for each anchor.

  Memory is O(chunk G): anchors are taken in chunks, and each chunk is computed
  again for its gradient, as soon as all pairs are more than `MAX_PAIRS`.

  Args:
    part: of kind 'pair'.
    anchors: of this device.
    candidates: what they are compared with; a row of the same id is left out.
    extras: see there.
  """
  if part.row.ordered and candidates.labels.ndim == 1:
    order = jnp.argsort(candidates.labels)
    candidates = jax.tree.map(lambda leaf: leaf[order], candidates)
  fixed = {}
  if part.miner is not None and part.miner.row.whole_batch:
    fixed['mined'] = _mine_whole_batch(part, anchors, candidates, extras)

  def chunk_terms(chunk):
    return _chunk_terms(part, chunk['rows'], candidates, chunk, extras)

  chunked = {'rows': anchors, **fixed}
  num_rows, num_columns = len(anchors.ids), len(candidates.ids)
  num_chunks = -(-num_rows * num_columns // MAX_PAIRS)
  if num_chunks <= 1 or num_rows <= 1:
    return chunk_terms(chunked)
  chunk_rows = -(-num_rows // num_chunks)
  missing = -num_rows % chunk_rows
  padded = jax.tree.map(
    lambda leaf: jnp.pad(
      leaf, [(0, missing)] + [(0, 0)] * (leaf.ndim - 1)
    ).reshape(-1, chunk_rows, *leaf.shape[1:]),
    chunked,
  )
  present = (jnp.arange(num_rows + missing) < num_rows).reshape(-1, chunk_rows)
  rows = padded['rows']
  padded['rows'] = rows._replace(
    labels=jnp.where(
      present.reshape(present.shape + (1,) * (rows.labels.ndim - 2)),
      rows.labels,
      -1,
    ),
    image_ids=jnp.where(present, rows.image_ids, -1),
  )
  terms = lax.map(jax.checkpoint(chunk_terms), padded)
  return jax.tree.map(lambda leaf: leaf.reshape(-1)[:num_rows], terms)


def batch_terms(
  part: Part, anchors: Rows, candidates: Rows, extras: Extras
) -> tuple[Terms, Any]:
  """Returns the terms of a loss of the whole batch, alike on every device.

  Args:
    part: of kind 'batch'.
    anchors: of this device; they are gathered.
    candidates: what they are compared with.
    extras: see there.

  Returns:
    (terms, next state or None).
  """
  anchors = collectives.all_gather_rows(anchors, extras.axis_name)
  positives, negatives = masks(part, anchors, candidates)
  found = part.row.function(
    anchors.embeddings,
    candidates.embeddings,
    positives,
    negatives,
    reducer=part.reducer,
    **_distance_of(part),
    **part.hyper,
    **_needs(part.row.needs, part, anchors, candidates, extras),
    **extras.given,
  )
  return found if part.row.state is not None else (found, None)


def view_terms(part: Part, first: Rows, second: Rows, extras: Extras) -> Terms:
  """Returns the terms of a loss of two views of the same images.

  Args:
    part: of kind 'batch' with `views=2`.
    first: the whole batch, first views.
    second: the second views, row by row of the same images.
    extras: see there.
  """
  same = first.image_ids[:, None] == second.image_ids[None, :]
  valid = ~relations.is_padding(first.labels)
  both = valid[:, None] & valid[None, :]
  return part.row.function(
    first.embeddings,
    second.embeddings,
    same & both,
    ~same & both,
    reducer=part.reducer,
    **part.hyper,
    **_needs(part.row.needs, part, first, second, extras),
  )


def masks(
  part: Part, anchors: Rows, candidates: Rows
) -> tuple[jax.Array, jax.Array]:
  """Returns (positives, negatives), [B, G] bool, of classes or of images."""
  if part.positives == 'class':
    a, b = anchors.labels, candidates.labels
  else:
    a, b = (
      jnp.where(relations.is_padding(rows.labels), -1, rows.image_ids)
      for rows in (anchors, candidates)
    )
  return relations.pair_masks(a, b, anchors.ids, candidates.ids)


def _chunk_terms(part, anchors, candidates, fixed, extras):
  positives, negatives = masks(part, anchors, candidates)
  matrix = part.distance.matrix(anchors.embeddings, candidates.embeddings)
  more = {}
  if part.miner is not None:
    mined = fixed.get('mined')
    if mined is None:
      mined = _mine(
        part, matrix, positives, negatives, anchors, candidates, extras
      )
    if part.miner.row.kind == 'pair':
      positives, negatives = mined
      if part.row.triplets and part.miner.row.one_each(part.miner.hyper):
        more['triplets'] = mining.list_triplets(positives, negatives)
    elif part.row.triplets:
      more['triplets'] = mined
    else:
      positives, negatives = mining.triplets_to_masks(
        mined, positives, negatives
      )
  return part.row.function(
    matrix,
    positives,
    negatives,
    reducer=part.reducer,
    **part.hyper,
    **more,
    **_needs(part.row.needs, part, anchors, candidates, extras),
    **extras.given,
  )


def _mine(part, matrix, positives, negatives, anchors, candidates, extras):
  """Returns masks or triplets, free of gradients."""
  miner = part.miner
  if matrix is None or miner.distance != part.distance:
    matrix = miner.distance.matrix(anchors.embeddings, candidates.embeddings)
  extras = extras._replace(key=jax.random.fold_in(extras.key, 1))
  return miner.row.function(
    lax.stop_gradient(matrix),
    positives,
    negatives,
    **miner.hyper,
    **_needs(miner.row.needs, miner, anchors, candidates, extras),
  )


def _mine_whole_batch(part, anchors, candidates, extras):
  """Mines over the anchors of all devices; returns the rows of this one."""
  axis_name = extras.axis_name
  everyone = collectives.all_gather_rows(anchors, axis_name)
  positives, negatives = masks(part, everyone, candidates)
  mined = _mine(part, None, positives, negatives, everyone, candidates, extras)
  places = collectives.row_ids(len(anchors.ids), axis_name)
  return jax.tree.map(lambda leaf: leaf[places], mined)


def _distance_of(part):
  return {} if part.row.distance is None else {'distance': part.distance}


def _needs(needs, owner, anchors, candidates, extras):
  """Returns what a loss or a miner asks for besides its matrix and masks."""
  makers = {
    'inverted': lambda: owner.distance.inverted,
    'labels': lambda: anchors.labels,
    'candidate_labels': lambda: candidates.labels,
    'ids': lambda: anchors.ids,
    'candidate_ids': lambda: candidates.ids,
    'relevance': lambda: _relevance(anchors, candidates),
    'anchors': lambda: anchors.embeddings,
    'candidates': lambda: candidates.embeddings,
    'distance': lambda: owner.distance,
    'row_keys': lambda: row_keys(extras.key, anchors.ids),
  }
  return {name: makers[name]() for name in needs}


def _relevance(anchors, candidates):
  """Returns [B, G] float32, 0 where a pair is not looked at."""
  found = relations.relevance(anchors.labels, candidates.labels)
  valid = ~relations.is_padding(anchors.labels)[:, None]
  valid &= ~relations.is_padding(candidates.labels)[None, :]
  valid &= anchors.ids[:, None] != candidates.ids[None, :]
  return jnp.where(valid, found, 0.0)


def row_keys(key: jax.Array, ids: jax.Array) -> jax.Array:
  """Returns [B] keys, functions of the step's key and the row alone."""
  return jax.vmap(lambda i: jax.random.fold_in(key, i))(ids)
