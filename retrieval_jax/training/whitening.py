"""The whitening that ends a model, once it is trained.

It is fitted on the embeddings of the training images (`eval.whiten`) and is a
layer of the model from then on: in measurements, indexes and exports alike. It
lies beside the checkpoint that it was fitted for.
"""

import io
import os

import jax
import jax.numpy as jnp
import numpy as np

from retrieval_jax import neighbors
from retrieval_jax.core import arrays
from retrieval_jax.core.errors import InputError
from retrieval_jax.training import checkpoint

FILE = 'whitening.npz'

Layer = dict[str, np.ndarray]


def as_layer(whitening: neighbors.Whitening) -> Layer:
  """Returns {'mean': [D], 'projection': [D, E]}, float32."""
  return {
    name: value.astype(np.float32)
    for name, value in whitening._asdict().items()
  }


def apply(embeddings: jax.Array, layer: Layer) -> jax.Array:
  """Returns whitened embeddings, L2(projection^T (x - mean)).

  Args:
    embeddings: [B, D] float32, unit rows.
    layer: see `as_layer`.

  Returns:
    [B, E] float32, unit rows.

  Example:
    >>> swap = {'mean': np.zeros(2), 'projection': np.eye(2)[::-1]}
    >>> np.asarray(apply(jnp.array([[0.6, 0.8]]), swap)).round(2).tolist()
    [[0.800000011920929, 0.6000000238418579]]
  """
  centred = embeddings - layer['mean'][None, :]
  # The last directions are multiplied by much, and so is their rounding.
  rows = jnp.matmul(centred, layer['projection'], precision='highest')
  return arrays.normalize(rows)


def save(workdir: str, step: int, layer: Layer) -> None:
  """Writes the layer of a step, in place of that of another."""
  content = io.BytesIO()
  np.savez(content, step=step, **layer)
  checkpoint.write_bytes(os.path.join(workdir, FILE), content.getvalue())


def load(workdir: str, step: int) -> Layer:
  """Reads the layer of a run.

  Args:
    workdir: of the run.
    step: whose weights it has to be for.

  Raises:
    InputError: there is none, or it is for other weights.
  """
  path = os.path.join(workdir, FILE)
  if not os.path.exists(path):
    raise InputError(
      f'{path} is not there, which eval.whiten asks for; it is made when a run '
      'ends, or by --mode=evaluate with --config.eval.whiten=True: measure the '
      'run so'
    )
  with np.load(path) as found:
    layer = {name: found[name] for name in ('mean', 'projection')}
    own = int(found['step'])
  if own != step:
    raise InputError(
      f'{path} is for the weights of step {own}, not of step {step}; allowed '
      f'is step {own} where the run is whitened'
    )
  return layer
