"""Revisited Oxford and Paris: mAP and mP@k of Easy, Medium and Hard.

70 queries each search in 4,993 (Oxford) or 6,322 (Paris) images, or in these
and a million distractors. The ground truth calls images easy, hard or junk for
a query; what is a positive and what is ignored depends on the setup:

| setup | positives | ignored |
|---|---|---|
| easy | easy | junk, hard |
| medium | easy, hard | junk |
| hard | hard | junk, easy |

Ignored images are taken out of the ranking and what stood below moves up;
queries without positives in a setup are left out of it. Average precision is
trapezoidal and mP@k divides by min(k, rank of the last positive): see
`revisited_mean_average_precision` and `revisited_precision_at_<k>`.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from retrieval_jax.core import safe_pickle
from retrieval_jax.core.errors import InputError
from retrieval_jax.metrics.ignored import Ignored
from retrieval_jax.metrics.listed import evaluate_listed
from retrieval_jax.metrics.rankings import evaluate_rankings
from retrieval_jax.metrics.results import RetrievalResult

METRICS = (
  'revisited_mean_average_precision',
  'revisited_precision_at_1',
  'revisited_precision_at_5',
  'revisited_precision_at_10',
)

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


def evaluate(
  query_embeddings,
  gallery_embeddings,
  ground_truth: GroundTruth,
  *,
  metrics: tuple[str, ...] = METRICS,
  memory_budget_mb: float = 128,
) -> dict[str, RetrievalResult]:
  """Returns the metrics of each setup.

  Args:
    query_embeddings: [Q, D] of the queries, cut to their boxes, in the order of
      the ground truth.
    gallery_embeddings: [N, D] in its order; further rows are distractors, such
      as the million of R1M.
    ground_truth: from `read_ground_truth`.
    metrics: names, see `retrieval_metrics`.
    memory_budget_mb: see `retrieval_metrics`.

  Returns:
    'easy', 'medium', 'hard' -> result; a setup in which no query has a positive
    is missing.

  Raises:
    InputError: for embeddings that do not fit the ground truth.

  References:
    Radenović et al., "Revisiting Oxford and Paris: large-scale image retrieval
    benchmarking", CVPR 2018, section 3.
  """
  numbers = len(query_embeddings), len(gallery_embeddings)
  known = len(ground_truth.query_names), len(ground_truth.gallery_names)
  if numbers[0] != known[0] or numbers[1] < known[1]:
    raise InputError(
      f'there are {numbers[0]} query and {numbers[1]} gallery embeddings; '
      f'allowed are {known[0]} and at least {known[1]}, as the ground truth '
      'has: embed its lists in their order'
    )

  def of_setup(positives, ignored):
    return evaluate_listed(
      query_embeddings,
      gallery_embeddings,
      positives,
      ignored=Ignored(rows=ignored),
      metrics=metrics,
      memory_budget_mb=memory_budget_mb,
    )

  return _by_setup(ground_truth, of_setup)


def evaluate_ranks(
  ranks: np.ndarray,
  ground_truth: GroundTruth,
  *,
  metrics: tuple[str, ...] = METRICS,
) -> dict[str, RetrievalResult]:
  """Returns the metrics of each setup for given rankings.

  Args:
    ranks: [N, Q] int rows of the gallery, a column for each query, best first,
      as the authors' code takes them. Shorter columns leave what they do not
      have unfound.
    ground_truth: from `read_ground_truth`.
    metrics: names, see `retrieval_metrics`.
  """
  ranks = np.asarray(ranks)
  number = len(ground_truth.query_names)
  if ranks.ndim != 2 or ranks.shape[1] != number:
    raise InputError(
      f'ranks has shape {ranks.shape}; allowed is (N, {number}), a column for '
      'each query of the ground truth: transpose it'
    )

  def of_setup(positives, ignored):
    return evaluate_rankings(
      ranks.T, positives, ignored=ignored, metrics=metrics
    )

  return _by_setup(ground_truth, of_setup)


def _by_setup(ground_truth, of_setup):
  results = {}
  for setup in SETUPS:
    positives, ignored = ground_truth.rows(setup)
    if any(map(len, positives)):
      results[setup] = of_setup(positives, ignored)
  if not results:
    raise InputError(
      'the ground truth has no positives at all; allowed is at least one: '
      'download it again'
    )
  return results


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
