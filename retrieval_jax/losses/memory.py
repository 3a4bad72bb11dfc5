"""Cross-batch memory: the rows of past batches, as further candidates.

A ring of fixed size in the train state. Its rows carry no gradient, are alike
on all devices, and are saved with the checkpoint whole.

References:
  Wang et al., Cross-Batch Memory for Embedding Learning, CVPR 2020.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

State = dict[str, jax.Array]


def empty(size: int, embedding_dim: int, labels_per_row: int = 0) -> State:
  """Returns a memory without rows.

  Args:
    size: rows that it keeps.
    embedding_dim: D.
    labels_per_row: L of label sets, 0 for one int a row.
  """
  shape = (size, labels_per_row) if labels_per_row else (size,)
  return {
    'embeddings': jnp.zeros((size, embedding_dim), jnp.float32),
    'labels': jnp.full(shape, -1, jnp.int32),
    'image_ids': jnp.full((size,), -1, jnp.int32),
    'position': jnp.zeros((), jnp.int32),
    'steps': jnp.zeros((), jnp.int32),
  }


def enqueue(
  state: State, embeddings: jax.Array, labels: jax.Array, image_ids: jax.Array
) -> State:
  """Returns the memory after a batch: its rows replace the oldest.

  Args:
    state: of before.
    embeddings: [G, D] of the whole batch; of more rows than the memory has,
      the last are kept.
    labels: [G] int32 (or [G, L]); negative marks padding.
    image_ids: [G] int32.

  Example:
    >>> state = empty(3, 1)
    >>> for step in range(2):
    ...   ids = 2 * step + jnp.arange(2)
    ...   state = enqueue(state, ids[:, None] * 1.0, ids, ids)
    >>> state['labels'].tolist()
    [3, 1, 2]
  """
  size = state['embeddings'].shape[0]
  rows = {
    'embeddings': lax.stop_gradient(embeddings).astype(jnp.float32)[-size:],
    'labels': labels.astype(jnp.int32)[-size:],
    'image_ids': image_ids.astype(jnp.int32)[-size:],
  }
  count = rows['embeddings'].shape[0]
  places = (state['position'] + jnp.arange(count)) % size
  next_state: dict[str, Any] = {
    name: state[name].at[places].set(values) for name, values in rows.items()
  }
  next_state['position'] = (state['position'] + count) % size
  next_state['steps'] = state['steps'] + 1
  return next_state
