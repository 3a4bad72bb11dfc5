"""A trained run as an object that embeds images."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from retrieval_jax.data import preprocessing
from retrieval_jax.training import checkpoint, steps
from retrieval_jax.training import config as config_lib


class RetrievalModel:
  """Embeds images with the weights and the preprocessing of one run.

  Made by `retrieval_jax.load`.

  Attributes:
    config: of the run.
    preprocessing: how a picture becomes what the network sees, the same way as
      when the run was measured.
  """

  def __init__(self, workdir: str, step: int | None = None):
    """Restores a run.

    Args:
      workdir: of the run.
      step: a checkpointed step; None: the one that the results are of, the
        best on the validation set, else the latest.

    Raises:
      InputError: not a run, or no such checkpoint.
    """
    self.config = checkpoint.read_config(workdir)
    info = checkpoint.read_dataset_info(workdir)
    self.preprocessing = preprocessing.Preprocessing.from_dict(
      info['preprocessing']
    )
    task = steps.make_task(
      self.config,
      config_lib.Classes(info['num_classes']),
      self.preprocessing.image_shape,
      axis_name=None,
    )
    variables = checkpoint.restore_variables(workdir, step)
    self._variables = jax.device_put(
      {
        'params': variables['params']['embedder'],
        'batch_stats': variables['batch_stats'],
      }
    )
    self._embed = jax.jit(
      functools.partial(steps.embed_step, task=task, axis_name=None)
    )

  def embed(self, images: Sequence[Any], batch_size: int = 64) -> np.ndarray:
    """Embeds images.

    Args:
      images: paths, PIL images, or uint8 arrays [H, W] or [H, W, C], mixed as
        they come; or one uint8 array [n, H, W, C]. Other sizes are resized and
        cropped as in the evaluation.
      batch_size: how many at a time.

    Returns:
      [n, D] float32, unit rows: their inner product is the cosine.

    Raises:
      InputError: an image that cannot be read, or of another kind.
    """
    rows, shape = [], self.preprocessing.image_shape
    for start in range(0, len(images), batch_size):
      batch = preprocessing.read_images(
        images[start : start + batch_size], self.preprocessing
      )
      # Batches of a power of two, so that few sizes are ever compiled.
      size = 1 << (len(batch) - 1).bit_length()
      padded = np.zeros((size, *shape), np.uint8)
      padded[: len(batch)] = batch
      rows.append(
        np.asarray(self._embed(self._variables, padded))[: len(batch)]
      )
    if not rows:
      return np.zeros((0, self.config.model.embedding_dim), np.float32)
    return np.concatenate(rows)
