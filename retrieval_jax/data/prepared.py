"""Data sets of TensorFlow Datasets (TFDS), read at random, without TensorFlow.

The files are `array_record`, the one format of TFDS with random access that
keeps the data whole. What is not prepared yet is downloaded and prepared where
there is a network.
"""

import hashlib
import io
import json
import logging
import urllib.error
import urllib.request
from typing import Any

import numpy as np
import PIL.Image
from etils import epath

from retrieval_jax.core.errors import InputError
from retrieval_jax.data.cache import cached_arrays
from retrieval_jax.data.sources import Dataset, Source

_log = logging.getLogger(__name__)

_FORMAT = 'array_record'
_CURE = (
  'give the directory of a prepared copy by `--config.data.dir=DIR`, or use '
  "the digits that need no download, data.name 'mnist_5k' "
  '(`--config=configs/circle.py`)'
)
_CHUNK = 4096


def load_prepared(name: str, data_dir: str | None = None) -> Dataset:
  """Loads an image classification set of TFDS whose images have one size.

  Args:
    name: of the TFDS builder; its features are `image` and `label`, its splits
      `train`, which becomes training set and gallery, and `test`, the queries.
    data_dir: the TFDS data directory, which holds or will hold
      `<name>/<version>/`; None is TFDS's own default.

  Returns:
    The data set, decoded in memory. The decoded arrays are cached.

  Raises:
    InputError: for a directory that is missing, half prepared, damaged or in
      another format, and for data that are not there and cannot be downloaded.
  """
  directory = _existing_directory(data_dir)
  builder = _open_builder(name, directory)
  if not _is_prepared(builder):
    _prepare(builder)
    # What is known of the files is read when a builder is made.
    builder = _open_builder(name, directory)
  _check_files(builder)
  where = hashlib.sha256(str(builder.data_path).encode()).hexdigest()[:12]
  arrays = cached_arrays(
    f'{name}-{builder.version}-{where}',
    _fingerprint(builder),
    lambda: _decode_splits(builder, ('train', 'test')),
  )
  train = Source(arrays['train_images'], arrays['train_labels'])
  label = builder.info.features['label']
  return Dataset(
    name=name,
    train=train,
    gallery=train,
    query=Source(arrays['test_images'], arrays['test_labels']),
    num_classes=label.num_classes,
    image_shape=train.images.shape[1:],
    class_names=tuple(label.names),
  )


def _existing_directory(data_dir: str | None) -> str | None:
  """Returns the TFDS data directory, or None for the default."""
  if not data_dir:
    return None
  path = epath.Path(data_dir).expanduser()
  if not path.is_dir():
    what = 'is a file' if path.exists() else 'does not exist'
    raise InputError(
      f'data.dir is {str(data_dir)!r}, which {what}; allowed is a TFDS data '
      'directory with a prepared copy, or an empty one to download to: correct '
      'the path, or create it'
    )
  if (path / 'dataset_info.json').exists():
    raise InputError(
      f'data.dir is {str(data_dir)!r}, the directory of one version; allowed '
      f'is the TFDS data directory two above, {str(path.parent.parent)!r}'
    )
  return str(path)


def _open_builder(name: str, directory: str | None) -> Any:
  """Returns the TFDS builder, with what it knows of prepared files."""
  # Imported here: it takes half a second, and the embedded data do without.
  import tensorflow_datasets as tfds

  try:
    return tfds.builder(name, data_dir=directory)
  except Exception as error:
    raise InputError(
      f'{name} in {directory or "the default directory of TFDS"!r} cannot be '
      f'opened ({_reason(error)}); {_CURE}'
    ) from error


def _prepare(builder: Any) -> None:
  """Downloads and prepares a data set that is not there."""
  path = builder.data_path
  if path.exists():
    raise InputError(
      f'{builder.name} in {str(path)!r} is half prepared (dataset_info.json is '
      f'missing); delete that directory and start again, or {_CURE}'
    )
  missing = f'{builder.name} is not prepared in {str(path)!r}'
  # 'https://host' of 'https://host/path/file'.
  servers = {'/'.join(url.split('/')[:3]) for url in builder.url_infos}
  # Asked first because TFDS itself tries for minutes, with a warning a try.
  if servers and not any(_reachable(server) for server in servers):
    raise InputError(
      f'{missing} and cannot be downloaded ({min(servers)} is out of reach); '
      f'{_CURE}'
    )
  _log.info('Downloading and preparing %s in %s.', builder.name, path)
  try:
    builder.download_and_prepare(file_format=_FORMAT)
  except Exception as error:
    # Another process of this run may have been first.
    if not _is_prepared(builder):
      raise InputError(
        f'{missing} and preparing it failed ({_reason(error)}); {_CURE}'
      ) from error


def _is_prepared(builder: Any) -> bool:
  """Returns whether TFDS finished: it writes this file last."""
  return (builder.data_path / 'dataset_info.json').exists()


def _reachable(server: str) -> bool:
  """Returns whether a server answers, through the user's proxies if any."""
  request = urllib.request.Request(f'{server}/', method='HEAD')
  try:
    urllib.request.urlopen(request, timeout=10).close()
  except urllib.error.HTTPError:
    return True
  except OSError:
    return False
  return True


def _check_files(builder: Any) -> None:
  """Raises if the files are of another format or not all there."""
  path = str(builder.data_path)
  formats = sorted(f.value for f in builder.info.available_file_formats())
  if _FORMAT not in formats:
    raise InputError(
      f'{builder.name} in {path!r} is stored as {", ".join(formats)}; allowed '
      f'is {_FORMAT}, for random access: set data.dir to an empty directory, '
      f'where it is prepared anew, or {_CURE}'
    )
  if builder.info.file_format.value != _FORMAT:
    builder.info.set_file_format(
      _FORMAT, override=True, override_if_initialized=True
    )
  for split in ('train', 'test'):
    if split not in builder.info.splits:
      raise InputError(
        f'{builder.name} in {path!r} has no split {split!r}; delete that '
        'directory and prepare it again'
      )
    for file in builder.info.splits[split].filepaths:
      if not file.exists():
        raise InputError(
          f'{builder.name} in {path!r} is half prepared ({file.name} is '
          f'missing); delete that directory and start again, or {_CURE}'
        )


def _fingerprint(builder: Any) -> str:
  """Returns what changes when the files of a data set do."""
  description = [(builder.data_path / 'dataset_info.json').read_text()]
  for split in ('train', 'test'):
    for file in builder.info.splits[split].filepaths:
      stat = file.stat()
      description.append([file.name, stat.length, stat.mtime])
  return hashlib.sha256(json.dumps(description).encode()).hexdigest()


def _decode_splits(
  builder: Any, splits: tuple[str, ...]
) -> dict[str, np.ndarray]:
  """Decodes splits: {split}_images [N, H, W, C], {split}_labels [N] int32."""
  _log.info('Decoding %s once.', builder.info.full_name)
  arrays = {}
  for split in splits:
    try:
      images, labels = _decode_split(builder, split)
    # A damaged file makes the reader, the parser or Pillow raise.
    except Exception as error:
      raise InputError(
        f'{builder.name} in {str(builder.data_path)!r}: split {split!r} '
        f'cannot be read ({_reason(error)}); delete that directory and start '
        f'again, or {_CURE}'
      ) from error
    arrays |= {f'{split}_images': images, f'{split}_labels': labels}
  return arrays


def _decode_split(builder: Any, split: str) -> tuple[np.ndarray, np.ndarray]:
  """Decodes a split with Pillow, a chunk of records at a time."""
  import tensorflow_datasets as tfds

  source = builder.as_data_source(
    split, decoders={'image': tfds.decode.SkipDecoding()}
  )
  shape = builder.info.features['image'].shape
  images = np.empty((len(source), *shape), np.uint8)
  labels = np.empty(len(source), np.int32)
  for start in range(0, len(source), _CHUNK):
    rows = range(start, min(start + _CHUNK, len(source)))
    for row, example in zip(rows, source.__getitems__(rows), strict=True):
      with PIL.Image.open(io.BytesIO(example['image'])) as image:
        images[row] = np.asarray(image).reshape(shape)
      labels[row] = example['label']
  return images, labels


def _reason(error: Exception) -> str:
  """Returns the kind and the first line of an error, shortened."""
  lines = str(error).splitlines() or ['']
  return f'{type(error).__name__}: {lines[0][:120]}'.rstrip(': ')
