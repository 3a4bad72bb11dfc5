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

import numbers

import numpy as np

from retrieval_jax.core import tiles
from retrieval_jax.core.errors import InputError
from retrieval_jax.core.ground_truth.revisited import (
  SETUPS,
  GroundTruth,
  read_ground_truth,
)
from retrieval_jax.metrics.ignored import Ignored
from retrieval_jax.metrics.listed import evaluate_listed
from retrieval_jax.metrics.rankings import evaluate_rankings
from retrieval_jax.metrics.results import RetrievalResult

__all__ = [
  'METRICS',
  'SETUPS',
  'GroundTruth',
  'evaluate',
  'evaluate_ranks',
  'read_ground_truth',
]

METRICS = (
  'revisited_mean_average_precision',
  'revisited_precision_at_1',
  'revisited_precision_at_5',
  'revisited_precision_at_10',
)


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
      the ground truth; or, as the gallery, the path of an .npy file.
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
  query_embeddings = tiles.check_embeddings(
    query_embeddings, 'query_embeddings'
  )
  gallery_embeddings = tiles.check_embeddings(
    gallery_embeddings, 'gallery_embeddings', query_embeddings.shape[1]
  )
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
  num_distractors: int = 0,
  metrics: tuple[str, ...] = METRICS,
) -> dict[str, RetrievalResult]:
  """Returns the metrics of each setup for given rankings.

  Args:
    ranks: [N, Q] int rows of the gallery, a column for each query, best first,
      as the authors' code takes them. Shorter columns leave what they do not
      have unfound.
    ground_truth: from `read_ground_truth`.
    num_distractors: rows of the gallery behind those of the ground truth, such
      as the million of R1M. It is not taken from the rankings: those of Paris
      would pass for Oxford's with distractors.
    metrics: names, see `retrieval_metrics`.

  Raises:
    InputError: for rankings that do not fit the ground truth.
  """
  ranks = np.asarray(ranks)
  number = len(ground_truth.query_names)
  if ranks.ndim != 2 or ranks.shape[1] != number:
    raise InputError(
      f'ranks has shape {ranks.shape}; allowed is (N, {number}), a column for '
      'each query of the ground truth: transpose it'
    )
  if not np.issubdtype(ranks.dtype, np.integer):
    raise InputError(
      f'ranks has dtype {ranks.dtype}; allowed are integers, rows of the '
      'gallery counted from 0: convert it'
    )
  if not isinstance(num_distractors, numbers.Integral) or num_distractors < 0:
    raise InputError(
      f'num_distractors is {num_distractors!r}; allowed is an integer of at '
      'least 0: how many rows of the gallery are not in the ground truth'
    )
  num_images = len(ground_truth.gallery_names)
  last_row = num_images + num_distractors - 1
  if ranks.size and ranks.max() > last_row:
    # Of whole rankings the number is known, of cut ones it is not.
    is_whole = len(ranks) > ranks.max()
    number = str(len(ranks) - num_images) if is_whole else 'their number'
    raise InputError(
      f'ranks has row {ranks.max()}; allowed is at most {last_row}, the last '
      f'of {num_images} images of the ground truth and {num_distractors} '
      f'distractors: pass num_distractors={number} if the gallery has them '
      'behind its images, else check that the rankings are of this gallery'
    )

  def of_setup(positives, ignored):
    return evaluate_rankings(
      ranks.T,
      positives,
      ignored=ignored,
      metrics=metrics,
      gallery_size=last_row + 1,
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
