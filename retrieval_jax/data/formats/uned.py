"""UnED, Universal Embeddings: eight domains that one embedding is to serve."""

import json
import logging
import os

import numpy as np

from retrieval_jax.core import relations
from retrieval_jax.core.errors import InputError
from retrieval_jax.core.strings import Strings, StringsBuilder
from retrieval_jax.data.collection import TEST, Collection, Task
from retrieval_jax.data.formats import folders
from retrieval_jax.data.sources import ImageFiles

_log = logging.getLogger(__name__)

_LAYOUT = 'info_files/ with a folder for each domain, and images/'
# Domain -> (test images that ask, images of an index of its own).
_COUNTS = {
  'cars': (8131, None),
  'sop': (60502, None),
  'inshop': (14218, 12612),
  'inat': (136093, None),
  'met': (1003, 397121),
  'gldv2': (1129, 761757),
  'food2k': (9979, None),
  'rp2k': (10931, None),
}


def uned(*, dir: str) -> Collection:
  """Reads the test images of UnED.

  Of each domain the images of test.json ask, and those of index.json, or where
  there is none the former themselves, are searched in. The tasks are
  '<domain>/separate', in the domain's own index, and '<domain>/merged', in
  those of all domains, where nothing of another domain is relevant. An image
  with several classes is right with each of them.

  Args:
    dir: the folder with the info files as their authors give them out,
      info_files/<domain>/test.json and index.json, and the images of the
      domains in images/.

  Returns:
    A collection of the queries and the index of each domain, the domains in
    alphabetical order.

  Raises:
    InputError: if files are missing or damaged.

  References:
    Ypsilantis et al., "Towards Universal Image Embeddings", ICCV 2023.
  """
  root = folders.check_folder('data.dir', dir)
  info, images = os.path.join(root, 'info_files'), os.path.join(root, 'images')
  names = [
    name
    for name in (sorted(os.listdir(info)) if os.path.isdir(info) else [])
    if os.path.isfile(os.path.join(info, name, 'test.json'))
  ]
  if not names or not os.path.isdir(images):
    missing = 'images/' if names else 'info_files/<domain>/test.json'
    raise InputError(
      f'data.dir is {root!r}, where {missing} is missing; the folder should '
      f'hold {_LAYOUT}: complete the download, or correct data.dir'
    )
  paths, rows, labels, class_names = StringsBuilder(), {}, [], []
  num_images, answers = 0, {}
  for name in names:
    files = [os.path.join(info, name, 'test.json')]
    if os.path.isfile(index := os.path.join(info, name, 'index.json')):
      files.append(index)
    parts = [_read(file, images) for file in files]
    _warn_of_counts(name, [len(sets) for _, sets in parts])
    sets, known = _number([sets for _, sets in parts], len(class_names), files)
    class_names += [f'{name}/{number}' for number in known]
    rows[name] = []
    for (own_paths, _), own_sets in zip(parts, sets, strict=True):
      paths.add(own_paths)
      rows[name].append(np.arange(num_images, num_images + len(own_sets)))
      num_images += len(own_sets)
      labels.append(own_sets[:, 0])
    if sets[0].shape[1] > 1:
      answers[name] = sets[0]
  merged = np.concatenate([own[-1] for own in rows.values()])
  tasks = {
    f'{name}/{kind}': Task(own[0], gallery, 'uned', answers=answers.get(name))
    for kind in ('separate', 'merged')
    for name, own in rows.items()
    for gallery in [own[-1] if kind == 'separate' else merged]
  }
  is_query, is_gallery = np.zeros((2, num_images), bool)
  is_query[np.concatenate([own[0] for own in rows.values()])] = True
  is_gallery[merged] = True
  all_paths = paths.finish()
  for own in rows.values():
    for part in own:
      folders.check_first_images(
        images, all_paths.take(part[:100]), 'unpack the images there'
      )
  return Collection(
    name='uned',
    images=ImageFiles(images, all_paths),
    labels=np.concatenate(labels),
    class_names=tuple(class_names),
    split=np.full(num_images, TEST, np.int8),
    is_query=is_query,
    is_gallery=is_gallery,
    domain=np.repeat(
      np.arange(len(names), dtype=np.int32),
      [sum(map(len, own)) for own in rows.values()],
    ),
    domain_names=tuple(names),
    tasks=tasks,
  )


def _read(file: str, images: str) -> tuple[Strings, np.ndarray]:
  """Reads an info file.

  Args:
    file: a list of {'path': ..., 'class_id': a number or a list of them}.
    images: the folder of the paths.

  Returns:
    (paths, [N, L] int64 class numbers, padded with -1).
  """

  def check(condition, what):
    if not condition:
      raise InputError(
        f'{file!r}: {what}; allowed is a list of '
        "{'path': ..., 'class_id': ...}, the info file of the download: "
        'download it again'
      )

  try:
    with open(file, encoding='utf-8') as content:
      entries = json.load(content)
  except (OSError, ValueError, RecursionError) as error:
    raise InputError(
      f'{file!r} cannot be read ({error}); allowed is the info file of the '
      'download: download it again'
    ) from error
  check(isinstance(entries, list) and entries, 'it is no list of images')
  sets = []
  for number, entry in enumerate(entries):
    check(
      isinstance(entry, dict) and {'path', 'class_id'} <= entry.keys(),
      f'entry {number} is {str(entry)[:80]!r}',
    )
    path, own = entry['path'], entry['class_id']
    own = own if isinstance(own, list) else [own]
    check(isinstance(path, str) and path, f'entry {number}: path is {path!r}')
    check(
      own and all(type(value) is int and value >= 0 for value in own),
      f'entry {number}: class_id is {entry["class_id"]!r}',
    )
    sets.append(own)
  padded = np.full((len(sets), max(map(len, sets))), -1, np.int64)
  for row, own in zip(padded, sets, strict=True):
    row[: len(own)] = own
  paths = Strings.of(_unpacked(entry['path'], images) for entry in entries)
  return paths, relations.pack_label_sets(padded)


def _unpacked(path: str, images: str) -> str:
  """Returns what a path is called on the disk.

  RP2K has names in Chinese, which `unzip` writes as '#U4e2d' where it does not
  know the encoding.
  """
  if path.isascii() or os.path.exists(os.path.join(images, path)):
    return path
  spelt = ''.join(
    letter if letter.isascii() else f'#U{ord(letter):04x}' for letter in path
  )
  return spelt if os.path.exists(os.path.join(images, spelt)) else path


def _number(
  sets: list[np.ndarray], first: int, files: list[str]
) -> tuple[list[np.ndarray], list[int]]:
  """Numbers the classes of a domain anew, from a first number on.

  Args:
    sets: [N, L] class numbers of the test images, and of the index if there
      is one.
    first: of the new numbers.
    files: that they are of.

  Returns:
    The same with new numbers, int32, and the old number of each.
  """
  if sets[-1].shape[1] > 1:
    row = int((sets[-1] >= 0).sum(axis=1).argmax())
    raise InputError(
      f'{files[-1]!r}: entry {row} has several classes; allowed is one for '
      'each image that is searched in: download it again'
    )
  known = np.unique(np.concatenate([own[own >= 0] for own in sets]))
  return [
    np.where(own < 0, -1, np.searchsorted(known, own) + first).astype(np.int32)
    for own in sets
  ], known.tolist()


def _warn_of_counts(name: str, found: list[int]) -> None:
  """Says if a domain is not as large as the official one."""
  official = [n for n in _COUNTS.get(name, ()) if n is not None]
  if found != official:
    _log.warning(
      'uned: %s has %s images (to ask, and to be searched in if that is '
      'another set); the official numbers are %s.',
      *(name, found, official or 'not known'),
    )
