"""From images to an index: embedded once each, in bounded memory, resumable."""

import collections
import contextlib
import dataclasses
import logging
import os
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

import numpy as np

from retrieval_jax import data, neighbors
from retrieval_jax.core.errors import InputError
from retrieval_jax.core.strings import Strings, printable
from retrieval_jax.data.formats import image_lists
from retrieval_jax.neighbors import index as index_lib
from retrieval_jax.neighbors import index_files, index_writer
from retrieval_jax.training import index_lists

_log = logging.getLogger(__name__)

_MAX_LOGGED = 10


class Model(Protocol):
  """What embeds: `retrieval_jax.load` returns one."""

  preprocessing: data.Preprocessing
  embedding_dim: int
  description: dict[str, Any]

  def embed_prepared(self, images: np.ndarray) -> Any:
    """Returns [m, D] for [n, H, W, C] uint8, m >= n."""


class Part(NamedTuple):
  """Some images of a source, embedded.

  Attributes:
    rows: [n] int64 of the images that could be read.
    embeddings: [n, D] float32, theirs.
    unreadable: {row: why} of the others.
  """

  rows: np.ndarray
  embeddings: np.ndarray
  unreadable: dict[int, str]


def embed_source(
  model: Model, source: data.Source, batch_size: int = 64
) -> Iterator[Part]:
  """Embeds images in order, reading the next ones beside the network.

  At most five batches of prepared images are in memory, and as many undecoded
  files and decoded pictures as there are threads.

  Args:
    model: that embeds.
    source: [N] images; the labels are not looked at.
    batch_size: images at a time.

  Yields:
    Every image in one part, in order.
  """

  def read(start):
    rows = np.arange(start, min(start + batch_size, len(source)))
    loaded = source.load(rows)
    images = loaded.images
    if start and len(rows) < batch_size:
      # The last one has the size of the others, which is compiled already.
      images = np.zeros((batch_size, *images.shape[1:]), np.uint8)
      images[: len(rows)] = loaded.images
    return rows, images, loaded.errors

  def finished(rows, embeddings, errors):
    readable = np.ones(len(rows), bool)
    readable[list(errors)] = False
    return Part(
      rows[readable],
      np.asarray(embeddings)[: len(rows)][readable],
      {int(rows[i]): reason for i, reason in errors.items()},
    )

  ahead = collections.deque()
  batches = data.prefetch(read, range(0, len(source), batch_size))
  with contextlib.closing(batches):
    for rows, images, errors in batches:
      ahead.append((rows, model.embed_prepared(images), errors))
      if len(ahead) > 1:
        yield finished(*ahead.popleft())
  for block in ahead:
    yield finished(*block)


def file_source(
  model: Model, paths: Strings, num_threads: int = 0
) -> data.Source:
  """Returns image files, by absolute paths, as the model sees them."""
  return data.Source(
    data.ImageFiles('', paths),
    np.zeros(len(paths), np.int32),
    model.preprocessing,
    num_threads=num_threads,
  )


@dataclasses.dataclass
class Summary:
  """What became of the images that were listed.

  Attributes:
    num_images: in the index, in all.
    num_added: embedded now.
    num_present: in the index already.
    skipped: (path, why) of those that could not be read.
    duplicates: (path, path of the first file of the same content) of all in the
      index.
  """

  num_images: int = 0
  num_added: int = 0
  num_present: int = 0
  skipped: list[tuple[str, str]] = dataclasses.field(default_factory=list)
  duplicates: list[tuple[str, str]] = dataclasses.field(default_factory=list)


class Output(NamedTuple):
  """What an index that is to be written is at the start.

  Attributes:
    folder: of the index.
    manifest: of the index that is gone on with; None: a new one is begun.
    replaces: the manifest that the new one takes the place of, if any.
  """

  folder: str
  manifest: neighbors.Manifest | None = None
  replaces: neighbors.Manifest | None = None


def resolve_output(
  folder: str, source: str, *, add: bool = False, overwrite: bool = False
) -> Output:
  """Says what is to be done with an output, before any work.

  Args:
    folder: of the index.
    source: of the images, as in `ImageList`; an index of the same source is
      gone on with.
    add: whether images of another source may come into the index.
    overwrite: whether an index is replaced.

  Raises:
    InputError: the folder holds something else, or a damaged index.
  """
  if index_writer.is_free(folder):
    if add:
      raise InputError(
        f'--add is given, but --output is {folder!r}, where there is no index; '
        'allowed is it with an index: leave --add out to make one'
      )
    return Output(folder)
  if not os.path.exists(os.path.join(folder, index_files.MANIFEST)):
    # Whatever the flags: what this is, nobody knows.
    raise InputError(
      f'--output is {folder!r}, which exists and is not an index; allowed is a '
      'new or empty folder, or an index: choose another'
    )
  if overwrite:
    return Output(folder, replaces=index_writer.current_manifest(folder))
  manifest = index_files.read_manifest(folder, '--output')
  if not add and source not in manifest.sources:
    others = ', '.join(map(repr, manifest.sources[:3])) or 'nothing'
    raise InputError(
      f'--output is {folder!r}, an index of {others}; allowed are the same '
      'images, of which the missing ones are embedded: give --add to add these '
      'too, --overwrite to replace the index, or another --output'
    )
  index_files.check_files(folder, manifest)
  return Output(folder, manifest, manifest)


def build_index(
  model: Model,
  images: image_lists.ImageList,
  output: Output,
  *,
  batch_size: int = 64,
  num_threads: int = 0,
  commit_seconds: float = 2.0,
  progress: Callable[[int], None] | None = None,
) -> Summary:
  """Embeds those images that an index does not have yet, and adds them.

  What was embedded is committed every few seconds. Stopped in any way, the same
  call goes on from there. Images that cannot be read are logged, listed in
  `skipped.csv` of the index, and tried again by the next call. Files of the
  same content are all embedded, and listed in `duplicates.csv`.

  Args:
    model: that embeds.
    images: to be in the index.
    output: see `resolve_output`.
    batch_size: images at a time.
    num_threads: that read and decode; 0: as many as there are cores.
    commit_seconds: between two commits.
    progress: is told the number of images that were dealt with since it was
      told last.

  Raises:
    InputError: another model than the index's, no image that can be read, or an
      output that cannot be written.
  """
  folder, manifest, _ = output
  progress = progress or (lambda count: None)
  summary = Summary(skipped=list(images.unreadable))
  for path, reason in summary.skipped:
    _log.warning('%s: %s; skipped', printable(path), reason)
  if manifest is None:
    manifest = neighbors.Manifest(model.embedding_dim, model.description)
    missing = images.paths
  else:
    index_lib.check_same_model(folder, manifest, model.description)
    present = np.isin(
      images.paths.fingerprints(),
      neighbors.Index(folder, manifest).paths.fingerprints(),
    )
    summary.num_present = int(present.sum())
    missing = images.paths.take(np.flatnonzero(~present))
  progress(summary.num_present)
  sources = dict.fromkeys([*manifest.sources, images.source])
  source = file_source(model, missing, num_threads)
  with neighbors.IndexWriter(folder, manifest, output.replaces) as writer:
    is_done, last = False, time.monotonic()
    try:
      for part in embed_source(model, source, batch_size):
        writer.add(part.embeddings, missing.take(part.rows))
        summary.num_added += len(part.rows)
        for row, reason in part.unreadable.items():
          _skip(summary, missing[row], reason)
        progress(len(part.rows) + len(part.unreadable))
        if summary.num_added and time.monotonic() - last >= commit_seconds:
          writer.commit(complete=False, sources=tuple(sources))
          last = time.monotonic()
      is_done = True
    finally:
      if summary.num_added or (is_done and summary.num_present):
        writer.commit(complete=is_done, sources=tuple(sources))
        summary.num_images = writer.manifest.num_images
        index_lists.update_skipped(folder, images.paths, summary.skipped)
    if summary.num_images:
      index = neighbors.Index(folder, writer.manifest)
      summary.duplicates = index_lists.write_duplicates(index)
      _log_duplicates(summary.duplicates)
  if not summary.num_added + summary.num_present:
    raise InputError(
      f'--images is {images.source!r}, of whose {len(images.paths):,} images '
      'none can be read, so that there is nothing to do; allowed is at least '
      f'one: see above, the first is {printable(missing[0])}'
    )
  return summary


def find_rows(index: neighbors.Index, images: str) -> np.ndarray:
  """Returns the rows of an index that a user names.

  The files themselves may be gone.

  Args:
    index: that is looked through.
    images: a folder, with all below it; an image; or a table of paths.

  Raises:
    InputError: if there is none.
  """
  path = os.path.abspath(os.path.expanduser(images))
  if image_lists.is_table(path):
    listed = image_lists.read_paths(path, '--remove').fingerprints()
    rows = np.flatnonzero(np.isin(index.paths.fingerprints(), listed))
  else:
    below = path.rstrip(os.sep) + os.sep
    rows = np.array(
      [
        row
        for row, name in enumerate(index.paths)
        if name == path or name.startswith(below)
      ],
      np.int64,
    )
  if not len(rows):
    raise InputError(
      f'--remove is {images!r}, but {index.folder} has no image of it, the '
      f'first it has is {printable(index.paths[0]) if len(index) else "-"}'
      '; allowed are a folder, an image and a table of images that are in the '
      'index: correct --remove'
    )
  return rows


def _skip(summary: Summary, path: str, reason: str) -> None:
  """Counts an image that cannot be read; the first ones are logged."""
  summary.skipped.append((path, reason.removeprefix(f'{path}: ')))
  if len(summary.skipped) <= _MAX_LOGGED:
    _log.warning('%s; skipped', printable(reason))
  if len(summary.skipped) == _MAX_LOGGED:
    _log.warning('further images that cannot be read are only listed')


def _log_duplicates(found: list[tuple[str, str]]) -> None:
  """Logs the first ones."""
  for path, same in found[:_MAX_LOGGED]:
    _log.info('%s: the same file as %s', printable(path), printable(same))
  if len(found) > _MAX_LOGGED:
    _log.info('further files that are the same as others are only listed')
