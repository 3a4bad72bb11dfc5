"""Image classification sets of TensorFlow Datasets (TFDS), any of its builders.

Nothing here imports TensorFlow: records are read at random from the files.
"""

import dataclasses
import hashlib
import json
import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from retrieval_jax.core.errors import InputError, unknown_name
from retrieval_jax.data import decoding
from retrieval_jax.data.cache import cached_arrays
from retrieval_jax.data.collection import TEST, TRAIN, Collection
from retrieval_jax.data.prepared import builders, records
from retrieval_jax.data.prepared.features import Keys, find_keys, is_text
from retrieval_jax.data.sources import ImageArray

_log = logging.getLogger(__name__)

# Images of one size are decoded once and kept if they take no more than this.
_MAX_BYTES = 1 << 30
_GALLERIES = ('auto', 'train', 'test')


def load_prepared(
  name: str,
  *,
  dir: str | None = None,
  train_split: str | None = None,
  test_split: str | None = None,
  gallery: str | None = None,
  image_feature: str | None = None,
  label_feature: str | None = None,
  use_boxes: bool = False,
) -> Collection:
  """Loads an image classification set of TFDS.

  The rows are the training records and then the test records, in the order of
  the files. What is known of them is read once, records and all, and cached.
  Images of one size that take at most 1 GiB are decoded then; others are read
  from their records when they are needed.

  Args:
    name: 'builder', 'builder/config' or with a version, 'builder:3.*.*'.
    dir: the TFDS data directory, which holds or will hold `builder/version/`,
      or that of the builder or the version; None: TFDS's own default.
    train_split: splits of the builder, parts or sums of them: 'train[:80%]',
      'train+validation', 'all'. None: 'train'.
    test_split: likewise. None: 'test' if `train_split` is None too and there is
      such a split; otherwise the rows come without a split.
    gallery: what the test records are searched in. 'train': the training
      records, as in classification by neighbors. 'test': each other, as in
      zero-shot retrieval. 'auto' or None: 'train' if every class of the test
      records occurs in the training records, else 'test'.
    image_feature: name of the feature that is the image, see
      `features.find_keys`.
    label_feature: name of the feature that is the class.
    use_boxes: whether to cut the object out, by the builder's `bbox`.

  Returns:
    The rows, with `category` where the builder has a super-class.

  Raises:
    InputError: for data that cannot be had or read, features or splits that are
      not there, and records that are in both splits.

  Example:
    `load_prepared('cars196', dir='/data/tfds', train_split='all')` has all
    16,185 cars and no split, to be divided by classes.
  """
  if gallery not in (None, *_GALLERIES):
    raise unknown_name('data.gallery', gallery, _GALLERIES)
  builder = builders.find_builder(name, dir)
  keys = find_keys(
    name,
    dict(builder.info.features.items()),
    builder.info.supervised_keys,
    image_feature=image_feature,
    label_feature=label_feature,
  )
  if use_boxes and keys.box is None:
    raise InputError(
      f'{name} has no box for each image; leave data.use_boxes out'
    )
  if not use_boxes:
    keys = dataclasses.replace(keys, box=None)
  builder = builders.ensure_prepared(builder)
  parts = builders.resolve_splits(builder, train_split, test_split)
  if len(parts) == 1 and gallery not in (None, 'auto'):
    raise InputError(
      f'data.gallery is {gallery!r}, but there are no test records; give '
      'data.test_split, or leave data.gallery out'
    )
  ranges = [files for part in parts.values() for files in part]
  lengths = [sum(files.take for files in part) for part in parts.values()]
  titles = [f'{name} {part}' for part in parts]
  shape = _decoded_shape(builder.info.features[keys.image].shape)
  in_memory = (
    shape is not None and sum(lengths) * math.prod(shape) <= _MAX_BYTES
  )
  arrays = _cached_facts(builder, ranges, keys, shape if in_memory else None)
  features = builder.info.features
  labels, class_names = _classes(features[keys.label], arrays['label'])
  _check_labels(builder, keys.label, labels, class_names)
  category, category_names = None, ()
  if keys.category:
    category, category_names = _classes(
      features[keys.category], arrays['category']
    )
  split = is_query = is_gallery = None
  if len(parts) == 2:
    split = np.repeat(np.array([TRAIN, TEST], np.int8), lengths)
    if _is_gallery_train(gallery, labels, split):
      is_query, is_gallery = split == TEST, split == TRAIN
  return Collection(
    name=name,
    images=ImageArray(arrays['images'], f'{name} record')
    if in_memory
    else records.ImageRecords(
      _open_records(builder, ranges, arrays.get('offsets')),
      keys.image,
      list(zip(titles, lengths, strict=True)),
    ),
    labels=labels,
    class_names=class_names,
    split=split,
    is_query=is_query,
    is_gallery=is_gallery,
    boxes=arrays.get('boxes'),
    category=category,
    category_names=category_names,
    image_shape=shape,
  )


def _decoded_shape(
  shape: Sequence[int | None],
) -> tuple[int, int, int] | None:
  """Returns (H, W, C) of the decoded images, C = 1 or 3; None if they differ.

  Args:
    shape: of the feature; transparency, a fourth channel, is left out.
  """
  if None in shape:
    return None
  return int(shape[0]), int(shape[1]), 1 if shape[2] == 1 else 3


def _cached_facts(
  builder: Any,
  ranges: Sequence[records.FileRange],
  keys: Keys,
  shape: tuple[int, int, int] | None,
) -> dict[str, np.ndarray]:
  """Returns what is read of all N records, from the cache if it is there.

  Args:
    builder: of the records.
    ranges: the N records.
    keys: of the features.
    shape: of the images, if they are decoded now.

  Returns:
    `label` and `category`, [N] int64 numbers or [N] bytes of texts; `boxes`
    [N, 4] float32 in pixels; `images` [N, H, W, C] uint8; `offsets` [N] int64
    of tfrecord files.
  """
  where = f'{builder.info.full_name} in {str(builder.data_path)!r}'
  cure = f'delete that directory and start again, or {builders.CURE}'
  description = [(builder.data_path / 'dataset_info.json').read_text()]
  description.append([builder.info.file_format.value, shape])
  description.append(dataclasses.asdict(keys))
  for files in ranges:
    path = epath.Path(files.filename)
    if not path.exists():
      raise InputError(
        f'{where} is half prepared ({path.name} is missing); {cure}'
      )
    stat = path.stat()
    description.append([stat.length, stat.mtime, files.skip, files.take])
  # Of several copies and choices of splits, each has its file.
  place = [str(builder.data_path), dataclasses.asdict(keys)]
  place += [[files.filename, files.skip, files.take] for files in ranges]

  def read() -> dict[str, np.ndarray]:
    _log.info('Reading the records of %s once.', where)
    try:
      return _read_facts(builder, ranges, keys, shape)
    except records.DAMAGE as error:
      raise InputError(
        f'{where} cannot be read ({records.reason(error)}); {cure}'
      ) from error

  return cached_arrays(
    f'{builder.info.full_name.replace("/", "-")}-{_digest(place)[:12]}',
    _digest(description),
    read,
  )


def _digest(description: Any) -> str:
  """Returns a hash of what can be written as JSON."""
  return hashlib.sha256(json.dumps(description).encode()).hexdigest()


def _read_facts(
  builder: Any,
  ranges: Sequence[records.FileRange],
  keys: Keys,
  shape: tuple[int, int, int] | None,
) -> dict[str, np.ndarray]:
  """Reads every record once; see `_cached_facts`."""
  store = _open_records(builder, ranges)
  n = len(store)
  names = {'label': keys.label}
  if keys.category:
    names['category'] = keys.category
  columns = {
    column: [b''] * n
    if is_text(builder.info.features[key])
    else np.full(n, -1, np.int64)
    for column, key in names.items()
  }
  boxes = np.full((n, 4), np.nan, np.float32)
  images = np.empty((n, *shape), np.uint8) if shape else None

  def visit(row: int, features: Mapping[str, Any]) -> None:
    for column, key in names.items():
      feature = features[key]
      # No value, of a record without the feature, leaves what stands there.
      for value in feature.int64_list.value or feature.bytes_list.value:
        columns[column][row] = value
    image = b''.join(features[keys.image].bytes_list.value[:1])
    try:
      look(row, image, features[keys.box].float_list.value if keys.box else ())
    except decoding.UnreadableImageError as error:
      raise ValueError(f'record {row}: {error}') from error

  def look(row: int, image: bytes, box: Sequence[float]) -> None:
    if box:
      height, width = decoding.read_size(image)
      top, left, bottom, right = box
      boxes[row] = left * width, top * height, right * width, bottom * height
    if images is not None:
      pixels = decoding.decode(image, shape[2])
      if pixels.shape != shape:
        raise ValueError(f'record {row} is {pixels.shape}, not {shape}')
      images[row] = pixels

  records.scan(store, visit)
  arrays = {name: np.asarray(column) for name, column in columns.items()}
  if keys.box:
    arrays['boxes'] = boxes
  if images is not None:
    arrays['images'] = images
  if isinstance(store, records.TFRecords):
    arrays['offsets'] = store.offsets
  return arrays


def _open_records(
  builder: Any,
  ranges: Sequence[records.FileRange],
  offsets: np.ndarray | None = None,
) -> records.Records:
  """Returns the reader of the records."""
  if builder.info.file_format.value == 'tfrecord':
    _log.info(
      '%s in %s is stored as tfrecord, which is read by an index of its '
      'records; for array_record, which needs none, convert it: '
      '`tfds convert_format --dataset_version_dir=%s '
      '--out_file_format=array_record` (needs apache-beam and mlcroissant)',
      builder.name,
      builder.data_path,
      builder.data_path,
    )
    return records.TFRecords(ranges, offsets)
  return records.array_records(ranges)


def _classes(
  feature: Any, values: np.ndarray
) -> tuple[np.ndarray, tuple[str, ...]]:
  """Returns [N] int32 classes from 0, and a name for each class.

  The numbers of a class label stay as they are, whether or not each class has
  records; texts and other numbers are numbered in their order.
  """
  if hasattr(feature, 'num_classes'):
    return values.astype(np.int32), tuple(feature.names)
  names, values = np.unique(values, return_inverse=True)
  if is_text(feature):
    names = [name.decode('utf-8', 'replace') for name in names.tolist()]
  return values.astype(np.int32), tuple(str(name) for name in names)


def _check_labels(
  builder: Any, key: str, labels: np.ndarray, class_names: Sequence[str]
) -> None:
  """Raises if a record has no label: TFDS writes -1 for an unknown one."""
  wrong = np.flatnonzero((labels < 0) | (labels >= len(class_names)))
  if len(wrong):
    raise InputError(
      f'{len(wrong)} of {len(labels)} records of {builder.info.full_name} have '
      f'no label ({key!r} is {labels[wrong[0]]}); choose other splits by '
      'data.train_split and data.test_split'
    )


def _is_gallery_train(
  gallery: str | None, labels: np.ndarray, split: np.ndarray
) -> bool:
  """Returns whether the test records are searched in the training records."""
  seen = np.isin(labels[split == TEST], labels[split == TRAIN])
  if gallery == 'train' and not seen.any():
    raise InputError(
      "data.gallery is 'train', but no class of the test records occurs in the "
      "training records, so that no query has an answer; set it to 'test'"
    )
  return gallery == 'train' or (gallery != 'test' and bool(seen.all()))
