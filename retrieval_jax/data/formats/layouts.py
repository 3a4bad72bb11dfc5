"""Data sets of the field in the folders that their authors give out.

Each is split as the papers that compare on it do. The images are read whole,
which is how the results are reported, unless `use_boxes` is set.
"""

import logging
import os
from collections.abc import Sequence

import numpy as np

from retrieval_jax.core.errors import InputError
from retrieval_jax.core.strings import Strings
from retrieval_jax.data.collection import TEST, TRAIN, Collection
from retrieval_jax.data.columns import class_order
from retrieval_jax.data.formats import folders
from retrieval_jax.data.formats.layout_files import (
  as_numbers,
  join,
  read_mat,
  read_words,
)
from retrieval_jax.data.sources import ImageFiles

_log = logging.getLogger(__name__)

_CUB = 'images.txt, image_class_labels.txt, classes.txt and images/'
_CARS = (
  'cars_annos.mat and car_ims/, or devkit/ with cars_meta.mat, '
  'cars_train_annos.mat and cars_test_annos_withlabels.mat, and cars_train/ '
  'and cars_test/'
)
_CARS_META = 'devkit/cars_meta.mat'
_SOP = 'Ebay_train.txt, Ebay_test.txt and the folders *_final'
_IN_SHOP = 'Eval/list_eval_partition.txt and Img/img/'


def cub(*, dir: str, use_boxes: bool = False) -> Collection:
  """Reads CUB-200-2011: birds, 11,788 images of 200 species.

  Zero-shot: the classes 1 to 100 are trained on (5,864 images), 101 to 200 are
  the test set (5,924), each image of which is a query against the others.

  Args:
    dir: the folder CUB_200_2011 of the download "Caltech-UCSD Birds-200-2011",
      with images.txt, image_class_labels.txt, classes.txt and images/.
    use_boxes: whether to cut out the birds, by bounding_boxes.txt.

  Returns:
    A collection in the order of images.txt.

  Raises:
    InputError: if files are missing or do not fit together.

  References:
    Wah et al., The Caltech-UCSD Birds-200-2011 Dataset, 2011.
    Split: Oh Song et al., CVPR 2016.
  """
  root = folders.check_folder('data.dir', dir)

  def read(name, num_fields):
    return read_words(folders.find_file(root, [name], _CUB), num_fields)

  images, classes = read('images.txt', 2), read('classes.txt', 2)
  labels = join(images[:, 0], read('image_class_labels.txt', 2), root)
  labels = as_numbers(labels[:, 0], np.int64, f'{root}/image_class_labels.txt')
  numbers = as_numbers(classes[:, 0], np.int64, f'{root}/classes.txt')
  boxes = None
  if use_boxes:
    boxes = join(images[:, 0], read('bounding_boxes.txt', 5), root)
    boxes = as_numbers(boxes, np.float32, f'{root}/bounding_boxes.txt')
    boxes[:, 2:] += boxes[:, :2]
  return _zero_shot(
    'cub',
    root,
    [f'images/{name}' for name in images[:, 1]],
    labels,
    dict(zip(numbers.tolist(), classes[:, 1].tolist(), strict=True)),
    boxes,
    (5864, 5924),
  )


def cars(*, dir: str, use_boxes: bool = False) -> Collection:
  """Reads Cars196: 16,185 images of 196 models of cars.

  Zero-shot: the first 98 classes are trained on (8,054 images), the others are
  the test set (8,131), each image of which is a query against the others. The
  train and test images of the download, which share all classes, are mixed.

  Args:
    dir: the folder of the download "Stanford Cars": cars_annos.mat beside
      car_ims/, or devkit/ (with cars_meta.mat, cars_train_annos.mat and, there
      or beside it, cars_test_annos_withlabels.mat) beside cars_train/ and
      cars_test/.
    use_boxes: whether to cut out the cars.

  Returns:
    A collection in the order of the annotations.

  Raises:
    InputError: if files are missing or damaged.

  References:
    Krause et al., 3D Object Representations for Fine-Grained Categorization,
    3dRR 2013. Split: Oh Song et al., CVPR 2016.
  """
  root = folders.check_folder('data.dir', dir)
  first = folders.find_file(root, ['cars_annos.mat', _CARS_META], _CARS)
  names = read_mat(first, 'class_names')
  if first.endswith(_CARS_META):
    test = 'cars_test_annos_withlabels.mat'
    parts = [
      ('fname', 'cars_train', ['devkit/cars_train_annos.mat']),
      ('fname', 'cars_test', [test, f'devkit/{test}']),
    ]
    files = [folders.find_file(root, places, _CARS) for *_, places in parts]
  else:
    files = [first]
    parts = [('relative_im_path', '', [])]
  paths, labels, boxes = [], [], []
  for file, (field, folder, _) in zip(files, parts, strict=True):
    rows = read_mat(file, 'annotations')
    keys = (field, 'class', *(f'bbox_{k}' for k in ('x1', 'y1', 'x2', 'y2')))
    missing = [key for key in keys if key not in (rows.dtype.names or ())]
    if missing:
      raise InputError(
        f'{file!r}: annotations have no field {missing[0]!r}; allowed is the '
        f'file of the download "Stanford Cars", with {", ".join(keys)}: '
        'download it again'
      )
    paths += [os.path.join(folder, str(path)) for path in rows[field]]
    labels.append(rows['class'].astype(np.int64))
    corners = [rows[key].astype(np.float32) for key in keys[2:]]
    # Pixels are counted from 1 there, and the last one belongs to the box.
    boxes.append(np.stack(corners, axis=1) - np.float32([1, 1, 0, 0]))
  return _zero_shot(
    'cars',
    root,
    paths,
    np.concatenate(labels),
    {i: str(name) for i, name in enumerate(names.tolist(), 1)},
    np.concatenate(boxes) if use_boxes else None,
    (8054, 8131),
  )


def sop(*, dir: str) -> Collection:
  """Reads Stanford Online Products: 120,053 images of 22,634 products.

  11,318 products are trained on (59,551 images), the 11,316 others are the test
  set (60,502), each image of which is a query against the others. The category
  is the super-class: bicycle, cabinet, ...

  Args:
    dir: the folder of the download "Stanford_Online_Products", with
      Ebay_train.txt, Ebay_test.txt and a folder for each super-class.

  Returns:
    A collection in the order of the two files.

  Raises:
    InputError: if files are missing or damaged.

  References:
    Oh Song et al., Deep Metric Learning via Lifted Structured Feature
    Embedding, CVPR 2016.
  """
  root = folders.check_folder('data.dir', dir)
  parts = []
  for name in ('Ebay_train.txt', 'Ebay_test.txt'):
    file = folders.find_file(root, [name], _SOP)
    parts.append(read_words(file, 4, ('image_id', 'class_id')))
  rows = np.concatenate(parts)
  split = np.repeat(np.array([TRAIN, TEST], np.int8), list(map(len, parts)))
  supers = [os.path.dirname(path) for path in rows[:, 3]]
  category, categories = _number(
    [name.removesuffix('_final') for name in supers]
  )
  labels, names = _number(rows[:, 1].tolist())
  _warn_of_counts('sop', split == TRAIN, split == TEST, (59551, 60502))
  return _collection(
    'sop',
    root,
    rows[:, 3].tolist(),
    labels=labels,
    class_names=names,
    split=split,
    category=category,
    category_names=categories,
  )


def in_shop(*, dir: str, use_boxes: bool = False) -> Collection:
  """Reads In-Shop Clothes Retrieval: 52,712 images of 7,982 garments.

  3,997 garments are trained on (25,882 images); of 3,985 others, 14,218 images
  are the queries and 12,612 the gallery. The category is sex and kind, as in
  'WOMEN/Dresses'.

  Args:
    dir: the folder of the download "DeepFashion: In-shop Clothes Retrieval
      Benchmark", with Eval/list_eval_partition.txt and Img/img/ (or both
      without the folder around them). Without img/, img_highres/ is read.
    use_boxes: whether to cut out the garments of img/, by
      Anno/list_bbox_inshop.txt.

  Returns:
    A collection in the order of list_eval_partition.txt.

  Raises:
    InputError: if files are missing or do not fit together.

  References:
    Liu et al., DeepFashion, CVPR 2016.
  """
  root = folders.check_folder('data.dir', dir)
  name = 'list_eval_partition.txt'
  file = folders.find_file(root, [f'Eval/{name}', name], _IN_SHOP)
  rows = read_words(file, 3, ('image_name', 'item_id'), has_count=True)
  status = rows[:, 2]
  unknown = ~np.isin(status, ['train', 'query', 'gallery'])
  if unknown.any():
    raise InputError(
      f'{file!r}: evaluation_status of {rows[unknown][0, 0]} is '
      f'{status[unknown][0]!r}; allowed are train, query, gallery: download '
      'the file again'
    )
  place = _image_folder(root)
  if place is None:
    above = os.path.dirname(root)
    cure = (
      f'set --config.data.dir={above}'
      if _image_folder(above)
      else 'unpack img.zip there'
    )
    raise InputError(
      f'data.dir is {root!r}, where Img/img/ is missing; the folder should '
      f'hold {_IN_SHOP}: {cure}'
    )
  boxes = None
  if use_boxes:
    if place.endswith('highres'):
      raise InputError(
        'data.use_boxes is True, but the boxes are of img/ and '
        f'{os.path.join(root, place)!r} holds larger images; allowed is it '
        'with img/: unpack img.zip, or leave data.use_boxes out'
      )
    name = 'list_bbox_inshop.txt'
    file = folders.find_file(root, [f'Anno/{name}', name], _IN_SHOP)
    boxes = read_words(file, 7, ('image_name', 'clothes_type'), has_count=True)
    boxes = join(rows[:, 0], boxes, root)[:, 2:]
    boxes = as_numbers(boxes, np.float32, file)
  below = [path.removeprefix('img/') for path in rows[:, 0]]
  category, categories = _number(
    [os.path.dirname(os.path.dirname(path)) for path in below]
  )
  labels, names = _number(rows[:, 1].tolist())
  is_query, is_gallery = status == 'query', status == 'gallery'
  _warn_of_counts(
    *('in_shop', status == 'train', is_query, (25882, 14218, 12612)),
    is_gallery,
  )
  return _collection(
    'in_shop',
    root,
    [f'{place}/{path}' for path in below],
    labels=labels,
    class_names=names,
    split=np.where(status == 'train', TRAIN, TEST).astype(np.int8),
    is_query=is_query,
    is_gallery=is_gallery,
    boxes=boxes,
    category=category,
    category_names=categories,
  )


def _image_folder(root: str) -> str | None:
  """Returns where the images of In-Shop are, relative to the root."""
  for place in ('Img/img', 'img', 'Img/img_highres', 'img_highres'):
    if os.path.isdir(os.path.join(root, place)):
      return place
  return None


def _zero_shot(name, root, paths, numbers, names, boxes, counts) -> Collection:
  """Returns a collection whose first half of the classes is trained on.

  Args:
    name: of the data set.
    root: of the paths.
    paths: of N images.
    numbers: [N] of their classes, from 1.
    names: {number: class name}, of all classes of the data set.
    boxes: [N, 4] or None.
    counts: official numbers of training and test images.
  """
  unknown = ~np.isin(numbers, list(names))
  if unknown.any():
    raise InputError(
      f'{root!r}: image {paths[int(unknown.argmax())]!r} is of class '
      f'{numbers[unknown][0]}; allowed are {min(names)} to {max(names)}, the '
      'classes that have a name: download the files again'
    )
  present, labels = np.unique(numbers, return_inverse=True)
  is_train = numbers <= len(names) // 2
  _warn_of_counts(name, is_train, ~is_train, counts)
  return _collection(
    name,
    root,
    paths,
    labels=labels.astype(np.int32),
    class_names=tuple(names[number] for number in present.tolist()),
    split=np.where(is_train, TRAIN, TEST).astype(np.int8),
    boxes=boxes,
  )


def _collection(name, root, paths, **facts) -> Collection:
  """Returns a collection of files; none may be missing altogether."""
  packed = Strings.of(paths)
  folders.check_first_images(root, packed)
  return Collection(name=name, images=ImageFiles(root, packed), **facts)


def _number(names: Sequence[str]) -> tuple[np.ndarray, tuple[str, ...]]:
  """Returns [N] int32 numbers of names, and the names in order."""
  unique = sorted(set(names))
  order = class_order(unique).tolist()
  number = {unique[i]: code for code, i in enumerate(order)}
  codes = np.array([number[name] for name in names], np.int32)
  return codes, tuple(unique[i] for i in order)


def _warn_of_counts(name, is_train, is_query, official, is_gallery=None):
  """Says if a data set is not as large as the official one."""
  masks = [is_train, is_query, *([] if is_gallery is None else [is_gallery])]
  found = tuple(int(mask.sum()) for mask in masks)
  if found != official:
    _log.warning(
      '%s has %s training, query%s images; the official ones are %s.',
      name,
      found,
      '' if is_gallery is None else ' and gallery',
      official,
    )
