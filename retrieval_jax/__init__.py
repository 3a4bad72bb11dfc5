"""Image retrieval in JAX: trained, measured, searchable embeddings.

losses     circle, triplet_margin, arcface, cosface, ... and `compute`
metrics    `retrieval_metrics`: exact, tie-aware, bounded in memory
neighbors  `top_k`: exact search; `Index`: images on disk to search in
models     embedders and proxy heads
data       data sets, samplers, batches
load       a trained run as an object that embeds images
"""

from retrieval_jax import data, losses, metrics, models, neighbors
from retrieval_jax.core.errors import InputError

__version__ = '0.1.0'

__all__ = [
  'InputError',
  'data',
  'load',
  'losses',
  'metrics',
  'models',
  'neighbors',
]


def load(workdir: str, step: int | None = None):
  """Loads a trained run as an object that embeds images.

  Args:
    workdir: the folder of a run of `retrieval_jax.main`.
    step: a checkpointed step; None: the latest.

  Returns:
    A `retrieval_jax.inference.RetrievalModel`; its `embed(images)` takes
    arrays, files and PIL images and returns unit rows [n, D].

  Raises:
    InputError: the folder is not a run, or has no such checkpoint.

  Example:
    >>> model = load('runs/circle')
    >>> gallery = model.embed(['a.png', 'b.png', 'c.png'])
    >>> queries = model.embed(['query.png'])
    >>> similarities, indices = neighbors.top_k(queries, gallery, k=2)
    >>> gallery.shape, similarities.shape
    ((3, 50), (1, 2))
  """
  # Imported here: losses and metrics do not need a checkpoint library.
  from retrieval_jax import inference

  return inference.RetrievalModel(workdir, step)
