"""A trained run as an object that embeds images."""

import functools
import hashlib
import json
import os
from collections.abc import Sequence
from typing import Any

import jax
import jax.export
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from retrieval_jax import neighbors
from retrieval_jax.core.errors import InputError
from retrieval_jax.data import preprocessing
from retrieval_jax.training import checkpoint, steps, tasks, whitening
from retrieval_jax.training import config as config_lib

# That an exported program may be for, by JAX's names.
PLATFORMS = ('cpu', 'cuda', 'rocm', 'tpu')


class RetrievalModel:
  """Embeds images with the weights and the preprocessing of one run.

  Made by `retrieval_jax.load`.

  Attributes:
    config: of the run.
    preprocessing: how a picture becomes what the network sees, the same way as
      when the run was measured.
    description: what the model is known by, as an index keeps it
      (`neighbors.Manifest.model`).
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
    task = tasks.make_task(
      self.config,
      config_lib.Classes(info['num_classes']),
      self.preprocessing.image_shape,
      axis_name=None,
    )
    step = checkpoint.selected_step(workdir) if step is None else step
    restored = checkpoint.restore_variables(workdir, step)
    variables = {
      'params': restored['params']['embedder'],
      'batch_stats': restored['batch_stats'],
    }
    if self.config.eval.get('whiten'):
      variables['whitening'] = whitening.load(workdir, step)
    self.description = {
      'run': os.path.basename(os.path.abspath(workdir)),
      'workdir': os.path.abspath(workdir),
      'step': step,
      'config_sha256': _config_sha256(self.config, self.preprocessing),
      'weights_sha256': checkpoint.sha256(variables),
      'preprocessing': self.preprocessing.to_dict(),
    }
    mesh = Mesh(np.array(jax.local_devices()), ('rows',))
    self._by_rows = NamedSharding(mesh, P('rows'))
    self._variables = jax.device_put(variables, NamedSharding(mesh, P()))
    self._step = functools.partial(steps.embed_step, task=task, axis_name=None)
    self._embed = jax.jit(self._step)

  @property
  def embedding_dim(self) -> int:
    """D."""
    layer = self._variables.get('whitening')
    if layer is not None:
      return layer['projection'].shape[1]
    return self.config.model.embedding_dim

  @property
  def variables(self) -> dict[str, Any]:
    """{'params': of the embedder, 'batch_stats'}, on the host.

    With 'whitening' if the model ends with one.
    """
    return jax.device_get(self._variables)

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
    rows = []
    for start in range(0, len(images), batch_size):
      batch = preprocessing.read_images(
        images[start : start + batch_size], self.preprocessing
      )
      rows.append(np.asarray(self.embed_prepared(batch))[: len(batch)])
    if not rows:
      return np.zeros((0, self.embedding_dim), np.float32)
    return np.concatenate(rows)

  def embed_prepared(self, images: np.ndarray) -> jax.Array:
    """Embeds images that `preprocessing` has made, on all local devices.

    Returns before the devices are done, so that the next images can be read
    meanwhile.

    Args:
      images: [n, H, W, C] uint8, n at least 1.

    Returns:
      [m, D] float32, unit rows, the first n of which are those of the images.
    """
    # Batches of a power of two a device, so that few sizes are ever compiled.
    devices = self._by_rows.mesh.size
    size = devices << (-(-len(images) // devices) - 1).bit_length()
    if len(images) < size:
      padded = np.zeros((size, *images.shape[1:]), np.uint8)
      padded[: len(images)] = images
      images = padded
    return self._embed(self._variables, jax.device_put(images, self._by_rows))

  def export(
    self,
    batch_size: int | None = None,
    platforms: Sequence[str] = ('cpu', 'cuda', 'tpu'),
  ) -> jax.export.Exported:
    """Returns the embedder as a StableHLO program that needs JAX alone.

    The weights are constants of it, and it does on any of the platforms what
    `embed_prepared` does: uint8 [n, H, W, C] to float32 [n, D], unit rows.

    Args:
      batch_size: n; None: any n of at least 1.
      platforms: that it can run on, whatever this machine has.

    Raises:
      InputError: another platform than those of `PLATFORMS`.
    """
    unknown = set(platforms) - set(PLATFORMS)
    if unknown or not platforms:
      raise InputError(
        f'platforms are {", ".join(platforms) or "none"}; allowed are some of '
        f'{", ".join(PLATFORMS)}'
      )
    size = (
      jax.export.symbolic_shape('n')[0] if batch_size is None else batch_size
    )
    shape = (size, *self.preprocessing.image_shape)
    embed = jax.jit(functools.partial(self._step, self.variables))
    images = jax.ShapeDtypeStruct(shape, np.uint8)
    return jax.export.export(embed, platforms=platforms)(images)


def load_model_of(
  index: neighbors.Index, workdir: str | None = None
) -> RetrievalModel:
  """Loads the model that an index was made with.

  Args:
    index: that is to be searched.
    workdir: of the run; None: where it was when the index was made.

  Raises:
    InputError: the run or its checkpoint is gone, or is another model.
  """
  about = index.manifest.model
  workdir = workdir or about.get('workdir', '')
  if not os.path.isdir(workdir):
    raise InputError(
      f'the run of {index.folder} is looked for in {workdir!r}, which is not '
      'there; allowed is the run that embedded the index: say where it is by '
      '--workdir'
    )
  try:
    model = RetrievalModel(workdir, about.get('step'))
  except InputError as error:
    raise InputError(
      f'{index.folder} needs step {about.get("step")} of its run: {error}; '
      'allowed is the model that embedded it: correct --workdir, or embed the '
      'images again with --overwrite'
    ) from error
  index.check_model(model.description)
  return model


def _config_sha256(
  config: Any, preprocessing: preprocessing.Preprocessing
) -> str:
  """Returns a hash of all that an embedding depends on beside the weights."""
  relevant = {
    'model': config_lib.measured_model_options(config)
    | {'embedding_dim': config.model.embedding_dim},
    'mean': list(config.data.mean),
    'std': list(config.data.std),
    'flip': bool(config.eval.flip),
    'scales': list(config.eval.scales),
    'preprocessing': preprocessing.to_dict(),
  }
  if config.eval.get('scale_pooling', 'mean') != 'mean':
    relevant['scale_pooling'] = config.eval.scale_pooling
  text = json.dumps(relevant, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()
