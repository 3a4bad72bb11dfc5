"""The ground truth of Revisited Oxford and Paris, as its authors publish it.

70 queries each search in 4,993 (Oxford) or 6,322 (Paris) images. The ground
truth calls images easy, hard or junk for a query; what is a positive and what
is ignored depends on the setup:

| setup | positives | ignored |
|---|---|---|
| easy | easy | junk, hard |
| medium | easy, hard | junk |
| hard | hard | junk, easy |
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from retrieval_jax.core import safe_pickle
from retrieval_jax.core.errors import InputError

# Setup -> (positives, ignored), by what the ground truth calls them.
SETUPS = {
  'easy': (('easy',), ('junk', 'hard')),
  'medium': (('easy', 'hard'), ('junk',)),
  'hard': (('hard',), ('junk', 'easy')),
}


class GroundTruth(NamedTuple):
  """The ground truth of Revisited Oxford or Paris.

  Attributes:
    gallery_names: [N] names of the images that are searched in, in the order of
      the rows that the lists count; without '.jpg'.
    query_names: [Q] names of the images that ask.
    boxes: [Q, 4] float64 (x_1, y_1, x_2, y_2) in pixels, what is cut out of
      each query before it is embedded (the gallery is not cut); as in
      `data.Collection`, x_2 and y_2 exclusive.
    lists: 'easy', 'hard' and 'junk' -> for each query the rows [n] int64.
  """

  gallery_names: tuple[str, ...]
  query_names: tuple[str, ...]
  boxes: np.ndarray
  lists: Mapping[str, tuple[np.ndarray, ...]]

  def rows(self, setup: str) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Returns the positives of each query, and what it ignores."""
    positives, ignored = (
      [
        np.concatenate([self.lists[name][query] for name in names])
        for query in range(len(self.query_names))
      ]
      for names in SETUPS[setup]
    )
    return positives, ignored


def read_ground_truth(path: str) -> GroundTruth:
  """Reads gnd_roxford5k.pkl or gnd_rparis6k.pkl, running nothing in it.

  Args:
    path: of the file that the authors publish: a pickled dictionary with imlist
      and qimlist (names) and gnd, for each query a dictionary with bbx, easy,
      hard and junk.

  Raises:
    InputError: for a file that cannot be read, that is damaged, that would run
      code, or that holds something else.
  """
  data = safe_pickle.read(path)

  def check(condition, what, allowed):
    if not condition:
      raise InputError(
        f'{path!r}: {what}; allowed is {allowed}: download it again'
      )

  keys = ('imlist', 'qimlist', 'gnd')
  check(
    isinstance(data, dict) and all(key in data for key in keys),
    'it is no ground truth of Revisited Oxford or Paris',
    'a dictionary with imlist, qimlist and gnd',
  )
  for key in keys[:2]:
    names = data[key]
    check(
      isinstance(names, (list, tuple))
      and len(names)
      and all(isinstance(name, str) for name in names),
      f'{key} is no list of names',
      'a list of strings',
    )
    check(len(set(names)) == len(names), f'{key} repeats a name', 'each once')
  queries = data['gnd']
  check(
    isinstance(queries, (list, tuple)) and len(queries) == len(data['qimlist']),
    'gnd is not as long as qimlist',
    'an entry for each query',
  )
  boxes, lists = [], {name: [] for name in ('easy', 'hard', 'junk')}
  for number, query in enumerate(queries):
    where = f'gnd[{number}]'
    check(
      isinstance(query, dict) and {'bbx', *lists} <= set(query),
      f'{where} lacks one of bbx, easy, hard, junk',
      'a dictionary with all of them',
    )
    box = _numbers(query['bbx'], float)
    check(
      box is not None
      and box.shape == (4,)
      and np.isfinite(box).all()
      and (box[:2] < box[2:]).all(),
      f'{where}: bbx is {query["bbx"]!r}',
      'x_1, y_1, x_2, y_2 with x_1 < x_2 and y_1 < y_2',
    )
    boxes.append(box)
    for name, own in lists.items():
      rows = _numbers(query[name], np.int64)
      check(
        rows is not None and rows.ndim == 1,
        f'{where}: {name} is no list of integers',
        'rows of imlist',
      )
      check(
        not rows.size or 0 <= rows.min() <= rows.max() < len(data['imlist']),
        f'{where}: {name} has a row that imlist does not have',
        f'0 to {len(data["imlist"]) - 1}',
      )
      own.append(rows)
  return GroundTruth(
    tuple(data['imlist']),
    tuple(data['qimlist']),
    np.stack(boxes),
    {name: tuple(own) for name, own in lists.items()},
  )


def _numbers(value, dtype) -> np.ndarray | None:
  """Returns a list or an array as an array of a dtype, None if it is none."""
  if not isinstance(value, (list, tuple, np.ndarray)):
    return None
  try:
    array = np.asarray(value)
  except ValueError:
    return None
  if not array.size:
    return np.zeros(0, dtype)
  is_integer = np.issubdtype(array.dtype, np.integer)
  is_number = is_integer or np.issubdtype(array.dtype, np.floating)
  if not (is_number if dtype is float else is_integer):
    return None
  return array.astype(dtype)
