"""Builders of TensorFlow Datasets (TFDS): found, prepared and checked.

What is not prepared yet is downloaded and prepared where there is a network, as
`array_record`, the one format of TFDS that is read at random and keeps the data
whole. Copies in `tfrecord`, the default of TFDS, are read as they are.
"""

import difflib
import errno
import logging
import re
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import Any

from etils import epath

from retrieval_jax.core.errors import InputError, unknown_name
from retrieval_jax.data.prepared.records import FileRange, reason

_log = logging.getLogger(__name__)

# What is read, the better one first.
FORMATS = ('array_record', 'tfrecord')
CURE = (
  'give the directory of a prepared copy by `--config.data.dir=DIR`, or use '
  "the digits that need no download, data.name 'mnist_5k' "
  '(`--config=configs/circle.py`)'
)
_NAME = re.compile(
  r'(?P<builder>[a-z][a-z0-9_]*)(/(?P<config>[^/:=,\s]+))?'
  r'(:(?P<version>\d+(\.(\d+|\*)){2}))?'
)
_VERSION = re.compile(r'\d+\.\d+\.\d+')
_DESCRIPTION = 'dataset_info.json'


def find_builder(name: str, data_dir: str | None = None) -> Any:
  """Returns a TFDS builder, prepared or not.

  Args:
    name: 'builder', 'builder/config' or with a version, 'builder:3.*.*'.
    data_dir: the TFDS data directory, which holds or will hold
      `builder/version/` or `builder/config/version/`, or one of these; None is
      TFDS's own default.

  Returns:
    A `tfds.core.DatasetBuilder`.

  Raises:
    InputError: for an unknown name, and a directory that is missing, damaged or
      of another data set.
  """
  parts = _NAME.fullmatch(name)
  if not parts:
    raise InputError(
      f"data.name is {'tfds/' + name!r}; allowed is 'tfds/' with the name of a "
      'TFDS builder, its config and its version, the last two optional: '
      "'tfds/cars196', 'tfds/emnist/letters', 'tfds/cifar10:3.*.*'"
    )
  directory = _existing_directory(data_dir, parts)
  if directory is not None and (directory / _DESCRIPTION).exists():
    return _open_version(name, parts, directory)
  return _open_name(name, directory)


def ensure_prepared(builder: Any) -> Any:
  """Returns a builder whose files are there and can be read here.

  Args:
    builder: from `find_builder`.

  Returns:
    A `tfds.core.DatasetBuilder` whose `info.file_format` is one of `FORMATS`.

  Raises:
    InputError: for data that are half prepared or in another format, and for
      data that are not there and cannot be downloaded.
  """
  if not _is_prepared(builder):
    _prepare(builder)
  # What is known of the files is read when a builder is made; one made by its
  # code does not see a second format beside the first.
  if (builder.data_path / 'features.json').exists():
    builder = _open_directory(builder.name, builder.data_path)
  _choose_format(builder)
  return builder


def resolve_splits(
  builder: Any, train_split: str | None, test_split: str | None
) -> dict[str, Sequence[FileRange]]:
  """Returns the records of the training and, if any, of the test split.

  Args:
    builder: from `ensure_prepared`.
    train_split: an expression of TFDS, 'train+validation' or 'train[:80%]';
      None: 'train'.
    test_split: likewise; None: 'test' if `train_split` is None too and there is
      such a split, otherwise none.

  Returns:
    {expression: what it takes of which files}, the training split first.

  Raises:
    InputError: for an unknown split, one without records, and for a record that
      is taken twice.
  """
  if not train_split and not test_split and 'test' in builder.info.splits:
    test_split = 'test'
  train_split = train_split or 'train'
  parts = {train_split: _resolve(builder, 'data.train_split', train_split)}
  if test_split:
    if test_split == train_split:
      raise _leak(f'data.train_split and data.test_split are {test_split!r}')
    parts[test_split] = _resolve(builder, 'data.test_split', test_split)
  taken = sorted(
    (files.filename, files.skip, files.skip + files.take, part)
    for part, ranges in parts.items()
    for files in ranges
  )
  for (file, _, stop, part), (next_file, start, _, next_part) in zip(
    taken, taken[1:], strict=False
  ):
    if file == next_file and start < stop:
      raise _leak(
        f'{part!r} and {next_part!r} have records in common'
        if part != next_part
        else f'{part!r} has some records twice'
      )
  return parts


def _leak(what: str) -> InputError:
  """Returns the error for records that are in two places."""
  return InputError(
    f'{what}, so that the measurement would know the answers; allowed are '
    "splits with no record in common, like 'train[:80%]' and 'train[80%:]'"
  )


def _resolve(builder: Any, key: str, expression: str) -> Sequence[FileRange]:
  """Returns the records that a split expression of TFDS names."""
  splits = builder.info.splits
  for term in expression.split('+'):
    split = term.partition('[')[0].strip()
    if split not in (*splits, 'all'):
      raise unknown_name(key, split, splits)
  sizes = ', '.join(f'{s} of {splits[s].num_examples}' for s in splits)
  allowed = (
    f'allowed are the splits of {builder.name} ({sizes}), parts such as '
    "'train[:80%]', and sums such as 'train+test'"
  )
  try:
    ranges = splits[expression].file_instructions
  except Exception as error:
    # TFDS puts a link in a line before the reason.
    why = str(error).splitlines()[-1]
    raise InputError(f'{key} is {expression!r} ({why}); {allowed}') from error
  # Of 'train[50:10]' TFDS makes a negative number of records.
  ranges = [files for files in ranges if files.take > 0]
  if not ranges:
    raise InputError(f'{key} is {expression!r}, which is no record; {allowed}')
  return ranges


def _existing_directory(
  data_dir: str | None, parts: re.Match
) -> epath.Path | None:
  """Returns the data directory, or that of a version; None for the default."""
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
  if (path / _DESCRIPTION).exists():
    return path
  if _VERSION.fullmatch(path.name):
    raise InputError(
      f'data.dir is {str(data_dir)!r}, the directory of a version that is half '
      f'prepared ({_DESCRIPTION} is missing); delete it and give the TFDS data '
      'directory above it, where it is prepared anew'
    )
  # The directory of the builder itself, with versions in it.
  if path.name == parts['builder'] and not (path / path.name).exists():
    versions = path / parts['config'] if parts['config'] else path
    if versions.is_dir() and _versions(versions):
      return path.parent
  return path


def _versions(path: epath.Path) -> list[str]:
  """Returns the prepared versions in the directory of a builder or config."""
  return sorted(
    child.name
    for child in path.iterdir()
    if _VERSION.fullmatch(child.name) and (child / _DESCRIPTION).exists()
  )


def _open_version(name: str, parts: re.Match, directory: epath.Path) -> Any:
  """Returns the builder of the directory of one version."""
  builder = _open_directory(name, directory)
  config = builder.builder_config.name if builder.builder_config else None
  if (
    builder.name != parts['builder']
    or parts['config'] not in (None, config)
    or not builder.version.match(parts['version'] or '*.*.*')
  ):
    raise InputError(
      f'data.dir is {str(directory)!r}, which holds {builder.info.full_name!r}'
      f'; data.name asks for {name!r}: change one of the two'
    )
  return builder


def _open_directory(name: str, directory: epath.Path) -> Any:
  """Returns the builder of a directory with prepared files."""
  # Imported here: it takes half a second, and other data do without.
  import tensorflow_datasets as tfds

  try:
    return tfds.builder_from_directory(directory)
  except Exception as error:
    raise _cannot_open(name, directory, error) from error


def _open_name(name: str, directory: epath.Path | None) -> Any:
  """Returns the TFDS builder, with what it knows of prepared files."""
  import tensorflow_datasets as tfds

  try:
    return tfds.builder(
      name, data_dir=None if directory is None else str(directory)
    )
  except tfds.core.DatasetNotFoundError as error:
    builder = _NAME.fullmatch(name)['builder']
    known = tfds.list_builders(with_community_datasets=False)
    near = difflib.get_close_matches(builder, known, n=1)
    hint = f'did you mean {"tfds/" + near[0]!r}? ' if near else ''
    raise InputError(
      f'data.name is {"tfds/" + name!r}; {hint}TFDS knows {len(known)} names, '
      'listed at https://www.tensorflow.org/datasets/catalog, and reads those '
      'prepared in data.dir '
      f'({str(directory) if directory else "its default directory"})'
    ) from error
  except Exception as error:
    _check_config(name)
    raise _cannot_open(name, directory, error) from error


def _check_config(name: str) -> None:
  """Raises if a name has a config that its builder does not have."""
  import tensorflow_datasets as tfds

  parts = _NAME.fullmatch(name)
  try:
    configs = tfds.builder_cls(parts['builder']).builder_configs
  except tfds.core.DatasetNotFoundError:
    return
  if parts['config'] and parts['config'] not in configs:
    prefix = f'tfds/{parts["builder"]}'
    raise unknown_name(
      'data.name',
      f'tfds/{name}',
      [f'{prefix}/{config}' for config in configs] or [prefix],
    )


def _cannot_open(
  name: str, directory: epath.Path | None, error: Exception
) -> InputError:
  """Returns the error for a builder that TFDS does not make."""
  where = str(directory) if directory else 'the default directory of TFDS'
  # TFDS repeats what it was called with, a line long.
  why = re.sub(r'Failed to construct dataset .*?}": ', '', reason(error))
  return InputError(f'{name} in {where!r} cannot be opened ({why}); {CURE}')


def _is_prepared(builder: Any) -> bool:
  """Returns whether TFDS finished: it writes this file last."""
  return (builder.data_path / _DESCRIPTION).exists()


def _prepare(builder: Any) -> None:
  """Downloads and prepares a data set that is not there."""
  path = builder.data_path
  if path.exists():
    raise InputError(
      f'{builder.name} in {str(path)!r} is half prepared ({_DESCRIPTION} is '
      f'missing); delete that directory and start again, or {CURE}'
    )
  missing = f'{builder.name} is not prepared in {str(path)!r}'
  others = _versions(path.parent) if path.parent.is_dir() else []
  if others:
    raise InputError(
      f'{missing}, but version {" and ".join(others)} beside it; ask for that '
      f"by data.name 'tfds/{builder.info.full_name.rpartition('/')[0]}:"
      f"{others[-1]}', or give another data.dir to prepare "
      f'{builder.version} in'
    )
  # 'https://host' of 'https://host/path/file'; there may be no list.
  servers = {'/'.join(url.split('/')[:3]) for url in builder.url_infos or ()}
  # Asked first because TFDS itself tries for minutes, with a warning a try.
  if servers and not any(_reachable(server) for server in servers):
    raise InputError(
      f'{missing} and cannot be downloaded ({min(servers)} is out of reach); '
      f'{CURE}'
    )
  _log.info('Downloading and preparing %s in %s.', builder.name, path)
  try:
    builder.download_and_prepare(file_format=FORMATS[0])
  except Exception as error:
    # Another process may have been first: TFDS prepares in a directory of its
    # own, and renames that when it is whole.
    if not _is_prepared(builder):
      full = isinstance(error, OSError) and error.errno == errno.ENOSPC
      cure = 'free some space or set data.dir to another disk' if full else CURE
      raise InputError(
        f'{missing} and preparing it failed ({reason(error)}); {cure}'
      ) from error


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


def _choose_format(builder: Any) -> None:
  """Makes a builder name the files of a format that is read here."""
  formats = {f.value for f in builder.info.available_file_formats()}
  chosen = [f for f in FORMATS if f in formats]
  if not chosen:
    raise InputError(
      f'{builder.name} in {str(builder.data_path)!r} is stored as '
      f'{", ".join(sorted(formats))}; allowed are {" and ".join(FORMATS)}: set '
      f'data.dir to an empty directory, where it is prepared anew, or {CURE}'
    )
  if builder.info.file_format.value != chosen[0]:
    builder.info.set_file_format(
      chosen[0], override=True, override_if_initialized=True
    )
