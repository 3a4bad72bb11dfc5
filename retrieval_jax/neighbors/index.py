"""A searchable index of images: embeddings and paths, mapped from files."""

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from retrieval_jax.core.errors import InputError
from retrieval_jax.core.strings import Strings
from retrieval_jax.neighbors import index_files
from retrieval_jax.neighbors.index_files import Manifest
from retrieval_jax.neighbors.search import Searcher

# What a model is known by.
_HASHES = ('config_sha256', 'weights_sha256')


class Index:
  """Embeddings and paths of N images, read from an index when they are needed.

  Other processes may add and remove images meanwhile: an index that is open
  stays what it was when it was opened.

  Attributes:
    folder: of the index.
    manifest: what the index says of itself.
    embeddings: [N, D] float32, unit rows, mapped from the file.
    paths: of the N images, absolute.

  Example:
    >>> import tempfile
    >>> from retrieval_jax.neighbors.index_writer import IndexWriter
    >>> folder = tempfile.mkdtemp()
    >>> with IndexWriter(folder, Manifest(2, {'run': 'circle'})) as writer:
    ...   writer.add(np.eye(2, dtype=np.float32), Strings.of(['/a', '/b']))
    ...   _ = writer.commit(complete=True)
    >>> index = Index.open(folder)
    >>> similarities, rows = index.search(np.array([[3.0, 0.0]]), k=1)
    >>> similarities.tolist(), index.paths[int(rows[0, 0])]
    ([[1.0]], '/a')
  """

  def __init__(self, folder: str, manifest: Manifest):
    """Maps the files of a manifest; `open` checks them."""
    self.folder, self.manifest = folder, manifest
    n, dim = manifest.num_images, manifest.embedding_dim
    self.embeddings = self._map('embeddings', '<f4', (n, dim))
    self.paths = Strings(
      self._map('paths', np.uint8, (manifest.arrays['paths'].num_bytes,)),
      self._map('offsets', '<i8', (n + 1,)),
    )
    self._searcher = None, None

  @classmethod
  def open(
    cls,
    folder: str | os.PathLike,
    *,
    verify: bool = True,
    key: str = '--index',
  ) -> 'Index':
    """Opens an index.

    Args:
      folder: of the index.
      verify: whether checksums are compared, for which every file is read
        once; else sizes alone.
      key: that the folder was given for, for messages.

    Raises:
      InputError: not an index, of a later version, or with a file that is
        missing, truncated or damaged.
    """
    folder = os.fspath(folder)
    manifest = index_files.read_manifest(folder, key)
    while True:
      try:
        index_files.check_files(folder, manifest, verify)
        return cls(folder, manifest)
      except (InputError, OSError):
        # Its files go when another process has replaced the manifest.
        current = index_files.read_manifest(folder, key)
        if current == manifest:
          raise
        manifest = current

  def __len__(self) -> int:
    """Returns N."""
    return self.manifest.num_images

  @property
  def threshold(self) -> float | None:
    """The least similarity of an answer; None: every query has one."""
    threshold = self.manifest.threshold
    return None if threshold is None else threshold['value']

  def search(
    self, queries: np.ndarray, k: int, *, memory_budget_mb: float = 128
  ) -> tuple[np.ndarray, np.ndarray]:
    """Returns the k images with the largest cosine, best first; exact.

    The first call makes a `Searcher` of the index, which is kept for the calls
    that follow with the same budget.

    Args:
      queries: [Q, D] any float dtype, normalised inside.
      k: images a query, at most N.
      memory_budget_mb: MiB beyond the results to stay within. With twice the
        size of the embeddings, these are read once and stay on the devices.

    Returns:
      (similarities [Q, k] float32, rows [Q, k] int32): `paths[row]` is the
      image's path.

    Raises:
      InputError: an index without images, queries of another width, or a k out
        of range.
    """
    if not len(self):
      raise InputError(
        f'{self.folder} holds no images; allowed is an index of at least one: '
        'add images by `python -m retrieval_jax.embed --add`'
      )
    queries, dim = np.asarray(queries), self.manifest.embedding_dim
    if queries.ndim == 2 and queries.shape[1] != dim:
      raise InputError(
        f'the queries have {queries.shape[1]} dimensions, but the index '
        f'{self.folder} has {dim}; allowed is the same number: embed both with '
        'the same model'
      )
    budget, searcher = self._searcher
    if budget != memory_budget_mb:
      searcher = Searcher(self.embeddings, memory_budget_mb=memory_budget_mb)
      self._searcher = memory_budget_mb, searcher
    return searcher.top_k(queries, k)

  def check_model(self, model: Mapping[str, Any]) -> None:
    """Raises unless a model is the one that the index was made with.

    Args:
      model: as `Manifest.model`.

    Raises:
      InputError: another model.
    """
    check_same_model(self.folder, self.manifest, model)

  def _map(self, array, dtype, shape):
    """Returns an array of the index, mapped from its file."""
    if 0 in shape:
      return np.zeros(shape, dtype)
    return np.memmap(
      self.manifest.file(self.folder, array), dtype, 'r', shape=shape
    )


def check_same_model(
  folder: str, manifest: Manifest, model: Mapping[str, Any]
) -> None:
  """Raises `InputError` unless a model made the embeddings of an index."""
  own = manifest.model
  differing = [name for name in _HASHES if own.get(name) != model.get(name)]
  if not differing:
    return
  what = {
    'weights_sha256': 'other weights',
    'config_sha256': 'another network or preprocessing',
  }[differing[-1]]
  name = differing[-1]
  cure = 'correct --workdir, or embed the images again'
  if name == 'config_sha256' and all(
    own.get(key) == model.get(key) for key in ('workdir', 'step')
  ):
    cure = (
      'the run was measured anew since, with other eval options (flip, scales, '
      'pooling, whiten): measure it with those of before, or embed the images '
      'again'
    )
  raise InputError(
    f'{folder} was made with {own.get("workdir")!r}, step {own.get("step")}, '
    f'but the model is {model.get("workdir")!r}, step {model.get("step")}, '
    f'which has {what} ({name} {str(own.get(name))[:12]} and '
    f'{str(model.get(name))[:12]}); allowed is the same model: {cure}'
  )
