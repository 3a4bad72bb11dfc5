"""Images in folders: a folder for each class, or for each split and class."""

import logging
import os
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from retrieval_jax.core.errors import InputError
from retrieval_jax.core.strings import Strings, StringsBuilder
from retrieval_jax.data.collection import TEST, TRAIN, VALIDATION, Collection
from retrieval_jax.data.columns import class_order
from retrieval_jax.data.sources import ImageFiles

_log = logging.getLogger(__name__)

EXTENSIONS = (
  '.jpg',
  '.jpeg',
  '.png',
  '.webp',
  '.bmp',
  '.tif',
  '.tiff',
  '.gif',
)
# Folder -> (split, is_query, is_gallery).
_SPLITS = {
  'train': (TRAIN, False, False),
  'validation': (VALIDATION, True, True),
  'val': (VALIDATION, True, True),
  'test': (TEST, True, True),
  'query': (TEST, True, False),
  'gallery': (TEST, False, True),
}
_NO_IMAGE, _NO_FILE, _EMPTY, _OUTSIDE = (
  'file without the extension of an image',
  'link to nothing, pipe or device',
  'class folder without images',
  'image outside of a class folder',
)


def folder(*, dir: str) -> Collection:
  """Reads a folder of images, whose sub-folders are the classes.

  `dir/cat/1.jpg` is of class 'cat', as is everything in folders below it. If
  the sub-folders of `dir` are called train, validation (val), test, query and
  gallery, they are splits, and the classes are one level below; a class may
  occur in several. Without test, query and gallery, validation is the test set.
  Hidden files and folders are passed over.

  Args:
    dir: the folder, on disk.

  Returns:
    A collection of JPEG, PNG, WebP, BMP, TIFF and GIF files, by class and then
    by path. Classes are in the order of `columns.class_order`.

  Raises:
    InputError: if there is no folder, no image, or one class only.

  Example:
    >>> import pathlib, tempfile
    >>> root = pathlib.Path(tempfile.mkdtemp())
    >>> for name in ('cat/1.jpg', 'cat/2.jpg', 'dog/1.png'):
    ...   (root / name).parent.mkdir(exist_ok=True)
    ...   (root / name).touch()
    >>> collection = folder(dir=root)
    >>> collection.class_names, collection.labels.tolist()
    (('cat', 'dog'), [0, 0, 1])
  """
  root = check_folder('data.dir', dir)
  top, skipped = _list(root), {}
  splits = _split_folders(root, top.folders)
  stray = sum(_is_image(name) for name in top.files)
  _count(skipped, _NO_IMAGE, len(top.files) - stray)
  _count(skipped, _NO_FILE, len(top.others))
  places = []  # (split folder or '', class) of every class folder.
  for split in splits or ['']:
    inside = _list(os.path.join(root, split)) if split else top
    places += [(split, name) for name in inside.folders]
    if split:
      images = sum(map(_is_image, inside.files))
      stray += images
      _count(skipped, _NO_IMAGE, len(inside.files) - images)
      _count(skipped, _NO_FILE, len(inside.others))
  _count(skipped, _OUTSIDE, stray)
  names = sorted({name for _, name in places})
  order = class_order(names)
  label_of = {names[i]: label for label, i in enumerate(order.tolist())}
  places.sort(key=lambda place: (label_of[place[1]], place[0]))

  paths, counts, empty = StringsBuilder(), [], []
  for split, name in places:
    count = 0
    for below, listing in _walk(root, os.path.join(split, name)):
      images = sorted(filter(_is_image, listing.files))
      paths.add(Strings.of(os.path.join(below, file) for file in images))
      count += len(images)
      _count(skipped, _NO_IMAGE, len(listing.files) - len(images))
      _count(skipped, _NO_FILE, len(listing.others))
    counts.append(count)
    if not count:
      empty.append(os.path.join(split, name))
  _count(skipped, _EMPTY, len(empty))
  _check_images(root, sum(counts), stray, splits)
  for what, number in skipped.items():
    example = f', the first {empty[0]!r}' if what == _EMPTY else ''
    _log.warning('%s: %d left out: %s%s', root, number, what, example)

  # A class without images has no label.
  filled = sorted(
    {label_of[p[1]] for p, n in zip(places, counts, strict=True) if n}
  )
  if len(filled) == 1:
    only = names[order[filled[0]]]
    raise InputError(
      f'data.dir {root!r} holds images of one class only, {only!r}: retrieval '
      'is impossible where every image is a right answer; allowed are at '
      'least two class folders with images'
    )
  dense = {label: i for i, label in enumerate(filled)}
  labels = [dense.get(label_of[name], -1) for _, name in places]
  facts = {}
  if splits:
    codes, asked, searched = zip(*(_SPLITS[s] for s, _ in places), strict=True)
    codes = np.repeat(np.array(codes, np.int8), counts)
    facts['split'] = held_out_is_test(codes, root)
    if {'query', 'gallery'} & set(splits):
      facts['is_query'] = np.repeat(np.array(asked, bool), counts)
      facts['is_gallery'] = np.repeat(np.array(searched, bool), counts)
  return Collection(
    name=os.path.basename(root),
    images=ImageFiles(root, paths.finish()),
    labels=np.repeat(np.array(labels, np.int32), counts),
    class_names=tuple(names[order[label]] for label in filled),
    num_skipped=skipped,
    **facts,
  )


def find_images(root: str) -> tuple[Strings, list[tuple[str, str]]]:
  """Finds the images of a folder and of all folders below it.

  Hidden files and folders are passed over, and so are files without the
  extension of an image. What has it and is no file, such as a link to nothing,
  is listed: whoever reads it says so.

  Args:
    root: the folder.

  Returns:
    (paths that begin with the root, sorted within each folder, (folder, why)
    of what cannot be read).

  Example:
    >>> import pathlib, tempfile
    >>> root = pathlib.Path(tempfile.mkdtemp())
    >>> for name in ('b.JPG', 'cat/1.png', 'notes.txt'):
    ...   (root / name).parent.mkdir(exist_ok=True)
    ...   (root / name).touch()
    >>> paths, unreadable = find_images(str(root))
    >>> [os.path.relpath(path, root) for path in paths], unreadable
    (['b.JPG', 'cat/1.png'], [])
  """
  paths, unreadable = StringsBuilder(), []
  for below, listing in _walk(root, '', unreadable):
    images = sorted(filter(_is_image, listing.files + listing.others))
    folder = os.path.join(root, below)
    paths.add(Strings.of(os.path.join(folder, name) for name in images))
  return paths.finish(), unreadable


def check_folder(key: str, path: str | os.PathLike) -> str:
  """Returns a folder's absolute path.

  Args:
    key: that it was given for.
    path: of the folder; `~` is the home directory.

  Raises:
    InputError: unless it is a folder.
  """
  root = os.path.abspath(os.path.expanduser(os.fspath(path)))
  if os.path.isdir(root):
    return root
  if os.path.exists(root):
    raise InputError(
      f'{key} is {root!r}, which is a file; allowed is a folder: give the '
      'folder, or read a table by data.name=table and data.file'
    )
  parent = root
  while not os.path.isdir(parent):
    parent = os.path.dirname(parent)
  raise InputError(
    f'{key} is {root!r}, which does not exist; the nearest folder that does is '
    f'{parent!r}: correct {key}'
  )


def find_file(root: str, places: Sequence[str], layout: str) -> str:
  """Returns the path of a file of an official layout.

  Args:
    root: the folder of `data.dir`.
    places: where the file may be, relative to the root.
    layout: what the folder should hold, for the message.

  Raises:
    InputError: if it is in no place; says so if `data.dir` is a level too high
      or too low.
  """
  for place in places:
    if os.path.isfile(path := os.path.join(root, place)):
      return path
  others = [
    os.path.dirname(root),
    *(f'{root}/{n}' for n in _list(root).folders),
  ]
  for other in others:
    for place in places:
      if os.path.isfile(os.path.join(other, place)):
        raise InputError(
          f'data.dir is {root!r}, but {place} is in {other!r}, which is the '
          f'folder to give: set --config.data.dir={other}'
        )
  raise InputError(
    f'data.dir is {root!r}, where {" or ".join(places)} is missing; the folder '
    f'should hold {layout}: complete the download, or correct data.dir'
  )


def check_first_images(
  root: str, paths: Strings, cure: str = 'correct data.dir', num: int = 100
) -> None:
  """Raises `InputError` if none of the first images exists: a wrong root.

  Single files that are missing are found where they are read.
  """
  for row in range(min(num, len(paths))):
    if os.path.exists(os.path.join(root, paths[row])):
      return
  tried = os.path.join(root, paths[0])
  hint = ' with / instead of \\ in the paths' if '\\' in paths[0] else ''
  raise InputError(
    f'none of the first {min(num, len(paths))} images exists, tried '
    f'{tried!r}; paths are relative to {root!r}: {cure}{hint}'
  )


def held_out_is_test(split: np.ndarray, name: str) -> np.ndarray:
  """Returns the splits, validation being the test set if there is no other.

  Many tables and folders of the field know `train` and `validation` alone, and
  report what they measure on the latter.
  """
  is_validation = split == VALIDATION
  if (split == TEST).any() or not is_validation.any():
    return split
  _log.info('%s has no test rows: its validation rows are the test set', name)
  return np.where(is_validation, TEST, split).astype(np.int8)


class _Listing:
  """The visible entries of one folder."""

  def __init__(self):
    self.files: list[str] = []
    self.folders: list[str] = []
    self.others: list[str] = []


def _list(path: str) -> _Listing:
  """Reads one folder, its folders sorted."""
  listing = _Listing()
  try:
    with os.scandir(path) as entries:
      for entry in entries:
        if entry.name.startswith('.'):
          continue
        _kind(entry, listing).append(entry.name)
  except OSError as error:
    raise InputError(
      f'folder {path!r} cannot be read ({error.strerror}); allowed are folders '
      'that may be listed: correct its permissions, or data.dir'
    ) from error
  listing.folders.sort()
  return listing


def _kind(entry: os.DirEntry, listing: _Listing) -> list[str]:
  """Returns the list that an entry belongs in."""
  try:
    if entry.is_dir():
      return listing.folders
    return listing.files if entry.is_file() else listing.others
  except OSError:  # A link to itself, or to where nobody may look.
    return listing.others


def _walk(
  root: str, top: str, unreadable: list[tuple[str, str]] | None = None
) -> Iterator[tuple[str, _Listing]]:
  """Yields (folder, its entries) of `top` and all below it, sorted.

  Folders are relative to the root. A link to a folder is followed. A folder
  that cannot be read, or has no end, is an error; with a list of `unreadable`
  it is left out and put there.
  """
  # With the identities of the folders above: a link to one has no end.
  stack = [(top, (_identity(root), _identity(os.path.join(root, top))))]
  while stack:
    below, above = stack.pop()
    try:
      listing = _list(os.path.join(root, below))
    except InputError as error:
      if unreadable is None:
        raise
      reason = error.__cause__.strerror or 'cannot be read'
      unreadable.append((os.path.join(root, below), f'folder: {reason}'))
      continue
    yield below, listing
    for name in reversed(listing.folders):
      child = os.path.join(below, name)
      identity = _identity(os.path.join(root, child))
      if identity not in above:
        stack.append((child, (*above, identity)))
      elif unreadable is None:
        raise InputError(
          f'{os.path.join(root, child)!r} is a link to a folder that holds it, '
          'which has no end; allowed are links to other folders: remove it'
        )
      else:
        reason = 'folder: a link to a folder that holds it'
        unreadable.append((os.path.join(root, child), reason))


def _identity(path: str) -> tuple[int, int]:
  """Returns what tells a folder from all others, whatever its path."""
  status = os.stat(path)
  return status.st_dev, status.st_ino


def _is_image(name: str) -> bool:
  """Returns whether a file has the extension of an image."""
  return name.lower().endswith(EXTENSIONS)


def _count(counts: dict[str, int], reason: str, number: int) -> None:
  """Adds to the rows that are left out."""
  if number:
    counts[reason] = counts.get(reason, 0) + number


def _split_folders(root: str, names: Iterable[str]) -> list[str]:
  """Returns the folders of the splits; none if the folders are classes."""
  splits = [name for name in names if name in _SPLITS]
  others = [name for name in names if name not in _SPLITS]
  held_out = set(splits) - {'train'}
  if others and not ('train' in splits and held_out):
    return []
  if others:
    raise InputError(
      f'data.dir {root!r} holds the splits {", ".join(splits)} and beside them '
      f'{others[0]!r}; allowed are splits alone ({", ".join(_SPLITS)}) or '
      'classes alone: move or rename one of them'
    )
  if len({'query', 'gallery'} & held_out) == 1 and 'test' not in held_out:
    here = 'query' if 'query' in held_out else 'gallery'
    missing = 'gallery' if here == 'query' else 'query'
    raise InputError(
      f'data.dir {root!r} holds a folder {here!r} but no {missing!r}; allowed '
      f"are both, or 'test', whose images ask each other: add {missing!r}, or "
      f"rename {here!r} to 'test'"
    )
  return splits


def _check_images(root, num_images, num_stray, splits):
  """Raises if no image is in a class folder."""
  if num_images:
    return
  level = 'a split' if splits else 'the folder'
  if num_stray:
    raise InputError(
      f'data.dir {root!r} holds {num_stray} images in {level} itself and none '
      'in class folders; allowed is a sub-folder for each class: move the '
      'images there, or list them in a table (data.name=table)'
    )
  raise InputError(
    f'data.dir {root!r} holds no images; allowed are files that end in '
    f'{", ".join(EXTENSIONS)}, in a sub-folder for each class: correct data.dir'
  )
