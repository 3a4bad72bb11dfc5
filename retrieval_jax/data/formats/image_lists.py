"""Images to be used without labels: a folder, a list of paths, or one file."""

import os
from typing import NamedTuple

import numpy as np

from retrieval_jax.core.errors import InputError
from retrieval_jax.core.strings import Strings, StringsBuilder
from retrieval_jax.data.formats import folders, table_columns
from retrieval_jax.data.formats.table_files import TABLE_ENDINGS, open_table


class ImageList(NamedTuple):
  """Images, and where they were found.

  Attributes:
    source: absolute path of the folder, list or file that was given.
    paths: [N] absolute, each once.
    unreadable: (folder, why) of the folders that could not be looked into.
    num_repeated: rows of a list that name an image once more.
  """

  source: str
  paths: Strings
  unreadable: list[tuple[str, str]]
  num_repeated: int = 0


def list_images(images: str, key: str = '--images') -> ImageList:
  """Lists the images of a folder, of a table with a column `path`, or one.

  Args:
    images: a folder, looked through with all folders below it; a CSV or Parquet
      file with a column `path`, relative to its folder or absolute; or an image
      file.
    key: that it was given for.

  Raises:
    InputError: nothing is there, or no image.

  Example:
    >>> import pathlib, tempfile
    >>> root = pathlib.Path(tempfile.mkdtemp())
    >>> _ = (root / 'list.csv').write_text('path\\na.jpg\\na.jpg\\n')
    >>> (root / 'a.jpg').touch()
    >>> found = list_images(str(root / 'list.csv'))
    >>> [os.path.basename(path) for path in found.paths], found.num_repeated
    (['a.jpg'], 1)
  """
  source = os.path.abspath(os.path.expanduser(images))
  if is_table(source):
    paths = read_paths(source, key)
    folders.check_first_images(
      os.path.dirname(source), paths, f'correct the paths in {key}'
    )
    _, first = np.unique(paths.fingerprints(), return_index=True)
    once = paths.take(np.sort(first))
    return ImageList(source, once, [], len(paths) - len(once))
  if os.path.lexists(source) and not os.path.isdir(source):
    return ImageList(source, Strings.of([source]), [])
  root = folders.check_folder(key, source)
  paths, unreadable = folders.find_images(root)
  if not len(paths):
    why = f' ({": ".join(unreadable[0])})' if unreadable else ''
    raise InputError(
      f'{key} is {root!r}, where there are no images{why}; allowed are files '
      f'that end in {", ".join(folders.EXTENSIONS)}, in it or below: correct '
      f'{key}'
    )
  return ImageList(source, paths, unreadable)


def is_table(path: str) -> bool:
  """Returns whether a path is that of a table, by its ending."""
  return path.lower().endswith(TABLE_ENDINGS)


def read_paths(file: str, key: str) -> Strings:
  """Returns the column `path` of a table, made absolute.

  Raises:
    InputError: for a table that cannot be read, has no such column, or cuts
      boxes out of its images.
  """
  content = open_table(file, key=key)
  if 'path' not in content.columns:
    raise InputError(
      f'{key}: {file!r} has no column "path"; its columns are '
      f'{", ".join(content.columns)[:200]}: rename one'
    )
  boxes = [n for n in table_columns.BOX_COLUMNS if n in content.columns]
  if boxes:
    raise InputError(
      f'{key}: {file!r} has the columns {", ".join(boxes)}, but whole images '
      'are embedded; allowed is a table without boxes: cut the images, or '
      'remove these columns'
    )
  place = table_columns.Place(file, 'path', content.first_row)
  root, builder, num_rows = os.path.dirname(file), StringsBuilder(), 0
  for batch in content.batches(('path',)):
    rows = table_columns.as_text(batch['path'], place).to_pylist()
    for i, path in enumerate(rows):
      if not path or '\0' in path:
        allowed = f'are paths of images, absolute or relative to {root!r}'
        raise place.error(num_rows + i, path, allowed)
    builder.add(
      Strings.of(os.path.normpath(os.path.join(root, path)) for path in rows)
    )
    num_rows += len(rows)
  if not num_rows:
    raise InputError(
      f'{key} is {file!r}, which has no rows below its header; allowed is at '
      'least one: add rows'
    )
  return builder.finish()
