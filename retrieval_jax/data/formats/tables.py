"""A table with a row for each image: CSV or Parquet, in the field's columns.

The columns are those of open-metric-learning: path, label, split, is_query,
is_gallery, category, sequence, x_1, x_2, y_1, y_2.
"""

import difflib
import logging
import os

import numpy as np

from retrieval_jax.core.errors import InputError
from retrieval_jax.core.strings import Strings
from retrieval_jax.data.collection import Collection
from retrieval_jax.data.columns import find_duplicate
from retrieval_jax.data.formats import folders, table_columns
from retrieval_jax.data.formats.table_columns import BOX_COLUMNS, Place
from retrieval_jax.data.formats.table_files import TableFile, open_table
from retrieval_jax.data.sources import ImageFiles

_log = logging.getLogger(__name__)

_REQUIRED = ('path', 'label')
_OPTIONAL = (
  'split',
  'is_query',
  'is_gallery',
  'category',
  'sequence',
  *BOX_COLUMNS,
)


def table(
  *,
  file: str,
  dir: str | None = None,
  label_separator: str | None = None,
  domain_column: str | None = None,
  encoding: str | None = None,
) -> Collection:
  """Reads a table of images, millions of rows without an object for each.

  | column | content |
  |---|---|
  | path | of the image, relative to `dir` |
  | label | its class: an integer or a name |
  | split | train, validation (val) or test |
  | is_query, is_gallery | true or false (1 or 0), empty is false |
  | category | the super-class of its class, or nothing |
  | sequence | of which it is a picture, as of one scene, or nothing |
  | x_1, y_1, x_2, y_2 | what is cut out of it, in pixels, or nothing |

  All but the first two may be missing; other columns are passed over. With
  train and validation rows alone, validation is the test set.

  Args:
    file: CSV or TSV (also with .gz) or Parquet; see `table_files.open_table`.
    dir: root of the paths; None: the folder of the file.
    label_separator: splits a label into several, as '|' does '3|17'; None: a
      label is one.
    domain_column: a column that says where a row comes from (font, vendor,
      camera).
    encoding: of a CSV file; None: UTF-8, or UTF-16 if it is marked so.

  Returns:
    A collection with a row for each of the table, in its order.

  Raises:
    InputError: for a table that cannot be read or used.

  Example:
    >>> import pathlib, tempfile
    >>> root = pathlib.Path(tempfile.mkdtemp())
    >>> (root / '1.jpg').touch()
    >>> _ = (root / 'images.csv').write_text('''path,label,split
    ... 1.jpg,dog,train
    ... 2.jpg,cat,test''')
    >>> collection = table(file=root / 'images.csv')
    >>> collection.labels.tolist(), collection.class_names
    ([1, 0], ('cat', 'dog'))
    >>> collection.split.tolist(), collection.images.paths[1]
    ([0, 2], '2.jpg')
  """
  content = open_table(file, encoding=encoding)
  root = folders.check_folder('data.dir', dir or os.path.dirname(content.file))
  if label_separator == '':
    raise InputError(
      "data.label_separator is ''; allowed is what stands between the labels "
      "of a field, such as '|': set it, or leave it out"
    )
  present = _find_columns(content, domain_column)

  def place(column):
    return Place(content.file, column, content.first_row)

  readers = {
    'path': table_columns.Paths(place('path'), root),
    'label': (
      table_columns.LabelSets(place('label'), label_separator)
      if label_separator
      else table_columns.Categories(place('label'))
    ),
    'split': table_columns.Splits(place('split')),
    'is_query': table_columns.Flags(place('is_query')),
    'is_gallery': table_columns.Flags(place('is_gallery')),
    'category': table_columns.Categories(place('category'), allow_empty=True),
    'sequence': table_columns.Categories(place('sequence'), allow_empty=True),
  }
  readers = {name: r for name, r in readers.items() if name in present}
  domains = table_columns.Categories(place(domain_column or ''))
  boxes = table_columns.Boxes(content.file, content.first_row)
  has_boxes, num_rows = BOX_COLUMNS[0] in present, 0
  for batch in content.batches(present):
    for name, reader in readers.items():
      reader.add(batch[name], num_rows)
    if domain_column:
      domains.add(batch[domain_column], num_rows)
    if has_boxes:
      boxes.add([batch[name] for name in BOX_COLUMNS], num_rows)
    num_rows += len(batch['path'])
  if not num_rows:
    raise InputError(
      f'{content.file!r} has no rows below its header; allowed is at least '
      'one: add rows, or correct data.file'
    )

  found = {name: reader.finish() for name, reader in readers.items()}
  paths = found['path']
  boxes = boxes.finish() if has_boxes else None
  _check_duplicates(content, paths, boxes)
  folders.check_first_images(root, paths)
  labels, class_names = found['label']
  facts = {'label_sets': None}
  if label_separator:
    labels, facts['label_sets'] = labels[:, 0].copy(), labels
  if 'split' in found:
    facts['split'] = folders.held_out_is_test(found['split'], content.file)
  if domain_column:
    facts['domain'], facts['domain_names'] = domains.finish()
  if 'category' in found and found['category'][1]:
    facts['category'], facts['category_names'] = found['category']
  if 'sequence' in found and found['sequence'][1]:
    facts['sequence'] = found['sequence'][0]
  return Collection(
    name=os.path.basename(content.file).split('.')[0],
    images=ImageFiles(root, paths),
    labels=labels,
    class_names=class_names,
    is_query=found.get('is_query'),
    is_gallery=found.get('is_gallery'),
    boxes=boxes,
    **facts,
  )


def _find_columns(
  content: TableFile, domain_column: str | None
) -> tuple[str, ...]:
  """Returns the columns that are read; warns of names that look misspelt."""
  known = _REQUIRED + _OPTIONAL
  unknown = [name for name in content.columns if name not in known]
  needed = dict.fromkeys(_REQUIRED, 'data.file')
  if domain_column:
    needed.setdefault(domain_column, 'data.domain_column')
  for name, key in needed.items():
    if name in content.columns:
      continue
    own = unknown if key == 'data.file' else content.columns
    near = difflib.get_close_matches(name, own, n=1, cutoff=0.5)
    near += [other for other in own if name in other.lower()]
    hint = f' (did you mean {near[0]!r}?)' if near else ''
    has = ', '.join(content.columns)
    has = has if len(has) <= 200 else f'{has[:200]}...'
    cure = 'rename a column' if key == 'data.file' else f'correct {key}'
    raise InputError(
      f'{key}: {content.file!r} has no column {name!r}{hint}; its columns are '
      f'{has}: {cure}'
    )
  boxes = [name for name in BOX_COLUMNS if name in content.columns]
  if 0 < len(boxes) < len(BOX_COLUMNS):
    raise InputError(
      f'{content.file!r} has of the columns of boxes only {", ".join(boxes)}; '
      f'allowed are all of {", ".join(BOX_COLUMNS)} or none: add the others, '
      'or remove these'
    )
  for name in unknown:
    near = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.8)
    if near and near[0] not in content.columns and name != domain_column:
      _log.warning(
        '%r: column %r is passed over; did you mean %r?',
        *(content.file, name, near[0]),
      )
  present = [name for name in known if name in content.columns]
  return tuple(dict.fromkeys([*present, *filter(None, [domain_column])]))


def _check_duplicates(
  content: TableFile, paths: Strings, boxes: np.ndarray | None
) -> None:
  """Raises if an image occurs twice and no box tells the rows apart."""
  salt = None
  if boxes is not None:
    # The whole image is one box, whatever bits its NaN have.
    bits = np.where(np.isnan(boxes), np.float32(-1), boxes).view(np.uint32)
    factors = np.random.default_rng(1).integers(0, 2**64, 4, np.uint64)
    salt = (bits.astype(np.uint64) * (factors | np.uint64(1))).sum(1)
  if (pair := find_duplicate(paths, salt)) is None:
    return
  first, second = (row + content.first_row for row in pair)
  raise InputError(
    f'{content.file!r}, row {second}: path {paths[pair[1]]!r} stands in row '
    f'{first} too; allowed is an image once, or with different boxes '
    f'({", ".join(BOX_COLUMNS)}): remove one of the rows'
  )
