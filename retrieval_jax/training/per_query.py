"""What a run keeps of each query, so that two runs can be compared.

One file beside `results.json`, with the values of every query under every
metric that is a mean over queries or over groups of them, and what a query is:
a name that does not depend on where the data lie, its class, and its groups.
"""

import collections
import hashlib
import io
import json
import os
import zipfile
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np

from retrieval_jax.core.errors import InputError
from retrieval_jax.core.strings import printable
from retrieval_jax.metrics import averages
from retrieval_jax.metrics.averages import Groups

FILE = 'per_query.npz'
RESULTS_FILE = 'results.json'


class QueryValues(NamedTuple):
  """The queries of a set.

  Attributes:
    names: [Q] what a query is known by, each once.
    classes: [Q] the name of its class, or of its label set.
    values: metric -> [Q] float64, NaN for lone queries.
    groups: 'class' and 'category' -> which queries are in which, if a metric is
      a mean over them.
  """

  names: list[str]
  classes: list[str]
  values: dict[str, np.ndarray]
  groups: dict[str, Groups]


def unique_names(names: Iterable[str]) -> list[str]:
  """Returns names in which later copies are numbered.

  Example:
    >>> unique_names(['a.png', 'b.png', 'a.png'])
    ['a.png', 'b.png', 'a.png #2']
    >>> unique_names(['a.png', 'a.png', 'a.png #2'])
    ['a.png', 'a.png #3', 'a.png #2']
  """
  names = list(names)
  # A number that makes the name of another image is passed over.
  taken, numbers = set(names), collections.Counter()
  unique = []
  for name in names:
    numbers[name] += 1
    if numbers[name] == 1:
      unique.append(name)
      continue
    while (numbered := f'{name} #{numbers[name]}') in taken:
      numbers[name] += 1
    taken.add(numbered)
    unique.append(numbered)
  return unique


def to_bytes(sets: Mapping[str, QueryValues]) -> bytes:
  """Returns the content of the file, of the queries of each set."""
  arrays = {}
  for name, queries in sets.items():
    arrays[f'{name}/names'] = _pack(queries.names)
    arrays[f'{name}/classes'] = _pack(queries.classes)
    for metric, values in queries.values.items():
      arrays[f'{name}/values/{metric}'] = values
    for over, groups in queries.groups.items():
      for field, rows in groups._asdict().items():
        arrays[f'{name}/groups/{over}/{field}'] = rows
  buffer = io.BytesIO()
  np.savez_compressed(buffer, **arrays)
  return buffer.getvalue()


def checksum(content: bytes) -> str:
  """Returns what `results.json` knows the file by."""
  return hashlib.sha256(content).hexdigest()


def read(workdir: str, set_name: str, expected: str | None) -> QueryValues:
  """Reads the queries of a set of a run.

  Args:
    workdir: of the run.
    set_name: that was measured.
    expected: the checksum in `results.json`.

  Raises:
    InputError: if the file is missing, or not the one of these results.
  """
  path = os.path.join(workdir, FILE)
  shown = printable(path)
  cure = 'measure the run again with --mode=evaluate'
  try:
    with open(path, 'rb') as file:
      content = file.read()
  except OSError as error:
    raise InputError(
      f'{shown} cannot be read ({error.strerror}); it holds the values of each '
      f'query: {cure}'
    ) from error
  if checksum(content) != expected:
    raise InputError(
      f'{shown} is damaged, or of other results than the results.json beside '
      f'it: {cure}'
    )
  try:
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
      prefix, groups = f'{set_name}/values/', f'{set_name}/groups'
      return QueryValues(
        _unpack(arrays[f'{set_name}/names']),
        _unpack(arrays[f'{set_name}/classes']),
        {
          key.removeprefix(prefix): arrays[key]
          for key in arrays.files
          if key.startswith(prefix)
        },
        {
          over: Groups(
            *(arrays[f'{groups}/{over}/{field}'] for field in Groups._fields)
          )
          for over in averages.PREFIXES.values()
          if f'{groups}/{over}/ids' in arrays.files
        },
      )
  except (zipfile.BadZipFile, ValueError, KeyError) as error:
    raise InputError(f'{shown} cannot be read ({error}): {cure}') from error


def _pack(strings):
  # As ASCII: file names may hold bytes that are no UTF-8.
  return np.frombuffer(json.dumps(strings).encode('ascii'), np.uint8)


def _unpack(array):
  return json.loads(array.tobytes())
