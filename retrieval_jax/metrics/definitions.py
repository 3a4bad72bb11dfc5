"""What each metric is: its definition in words, and its values by query.

A metric is a function of where the positives of a query stand. Its value is the
expectation over random orders within ties, exactly, and it comes with the
lowest and the highest value that an order can give (`ties`).
"""

import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from retrieval_jax.core import errors
from retrieval_jax.metrics import average_precision, gains, ties
from retrieval_jax.metrics.ranks import Ranks
from retrieval_jax.metrics.ties import Block, Terms, Values


class Metric(NamedTuple):
  """A metric: one row of the registry.

  Attributes:
    definition: one sentence, with the denominator.
    values: of the queries of a block: a `Terms`, or another function.
    is_graded: whether it asks how relevant a positive is, and not only whether.
  """

  definition: str
  values: Callable[[Block], Values]
  is_graded: bool = False


# -- hits ---------------------------------------------------------------------


def _hits(depth, denominator) -> Terms:
  """Returns the hits among the first `depth(R)` ranks, over a denominator."""
  return Terms(
    lambda positives: (
      positives.ranks <= depth(positives.num_positives)
    ).astype(float),
    lambda groups: ties.expected_hits(
      groups, groups.places(depth(groups.num_positives))
    ),
    denominator=denominator,
  )


def precision_at(k: int) -> Metric:
  """Returns `precision_at_<k>`: the share of positives in the first k."""
  return Metric(
    f'mean over queries of the share of positives among the first {k} ranks, '
    f'denominator {k}',
    _hits(lambda num_positives: k, lambda num_positives: k),
  )


def mean_modified_precision_at(k: int) -> Metric:
  """Returns `mean_modified_precision_at_<k>`, UnED's mMP@k."""

  def depth(num_positives):
    return np.minimum(num_positives, k)

  return Metric(
    f'mean over queries of the share of positives among the first min(R, {k}) '
    f'ranks, denominator min(R, {k})',
    _hits(depth, depth),
  )


def recall_at(k: int) -> Metric:
  """Returns `recall_at_<k>` (CMC): is there a positive in the first k?"""

  def expected(positives, size, places):
    missed = ties.all_missed(positives, size)
    return 1.0 - missed[places] if places < len(missed) else 1.0

  return Metric(
    f'share of queries with at least one positive in the first {k} ranks',
    Terms(
      lambda positives: (positives.ranks <= k).astype(float),
      lambda groups: ties.per_distinct(
        expected, groups.positives, groups.size, groups.places(k)
      ),
      of='first',
    ),
  )


def _expected_reciprocal_rank(before, positives, size):
  # The first hit is the i-th tied item if i - 1 are missed and i are not.
  missed = ties.all_missed(positives, size)
  first_hit = missed - np.append(missed[1:], 0.0)
  return np.sum(first_hit / (before + np.arange(1, len(missed) + 1)))


# -- average precision --------------------------------------------------------


def _mean_average_precision_at(k: int) -> Metric:
  return Metric(
    'mean over queries of the sum over the positives within the first '
    f'{k} ranks of the precision at their rank, denominator min(R, {k})',
    average_precision.at(k, lambda num_positives: np.minimum(num_positives, k)),
  )


def _mean_average_precision_over_r(k: int) -> Metric:
  return Metric(
    'mean over queries of the sum over the positives within the first '
    f'{k} ranks of the precision at their rank, denominator R',
    average_precision.at(k, average_precision.over_all),
  )


def _mean_average_precision_over_hits(k: int) -> Metric:
  return Metric(
    'mean over queries of the sum over the positives within the first '
    f'{k} ranks of the precision at their rank, denominator the number of '
    'these positives; 0 without any',
    average_precision.over_hits(k),
  )


# -- as the code of Revisited Oxford and Paris counts -------------------------


def _revisited_precision_at(k: int) -> Metric:
  """Returns hits in the first q ranks over q = min(rank of the last hit, k).

  With the last hit at W: if W < k all R positives are within the first k, so
  the value is (hits within k) / k + R (1 / min(W, k) - 1 / k).
  """
  hits = precision_at(k).values

  def rest(num_positives, last_rank):
    return num_positives * (1 / np.minimum(last_rank, k) - 1 / k)

  def expected(before, positives, size, num_positives):
    # The last of r positives is at place w in C(w - 1, r - 1) of C(n, r) ways:
    # seen from the end it is the first hit.
    missed = ties.all_missed(positives, size)
    probability = missed - np.append(missed[1:], 0.0)
    return probability @ rest(
      num_positives, before + size - np.arange(len(missed))
    )

  last = Terms(
    lambda positives: rest(positives.num_positives, positives.ranks),
    lambda groups: ties.per_distinct(
      expected,
      groups.before,
      groups.positives,
      groups.size,
      groups.num_positives,
    ),
    of='last',
  )

  def values(block: Block) -> Values:
    return Values(
      *(x + y for x, y in zip(hits(block), last(block), strict=True))
    )

  return Metric(
    'mean over queries of the share of positives among the first q ranks, '
    f'denominator q = min({k}, the rank of the last positive)',
    values,
  )


# -- the registry -------------------------------------------------------------

METRICS = {
  'precision_at_1': Metric(
    'share of queries whose first rank is a positive',
    Terms(
      lambda positives: (positives.ranks == 1).astype(float),
      lambda groups: ties.expected_hits(groups, groups.places(1)),
      of='first',
    ),
  ),
  'r_precision': Metric(
    'mean over queries of the share of positives among the first R ranks, '
    'denominator R',
    _hits(lambda num_positives: num_positives, average_precision.over_all),
  ),
  'mean_average_precision': Metric(
    'mean over queries of (1 / R) sum over all R positives of the precision at '
    'their rank in the full ranking',
    average_precision.within(lambda num_positives: np.inf),
  ),
  'mean_average_precision_at_r': Metric(
    'mean over queries of (1 / R) sum over the positives within the first R '
    'ranks of the precision at their rank',
    average_precision.within(lambda num_positives: num_positives),
  ),
  'mean_reciprocal_rank': Metric(
    'mean over queries of 1 / rank of the best positive in the full ranking',
    Terms(
      lambda positives: 1 / positives.ranks,
      lambda groups: ties.per_distinct(
        _expected_reciprocal_rank, groups.before, groups.positives, groups.size
      ),
      of='first',
    ),
  ),
  'ndcg': Metric(
    'mean over queries of the sum over all positives of grade / log2(rank + '
    '1), denominator the largest that an order of the gallery gives',
    gains.ndcg(),
    is_graded=True,
  ),
  'revisited_mean_average_precision': Metric(
    'mean over queries of (1 / R) sum over all R positives of the mean of the '
    'precision at their rank and at the rank before (1 before the first)',
    average_precision.TRAPEZOIDAL,
  ),
}

# Names with a number: `<k>` is from 1 to `MAX_K`.
METRICS_AT_K = {
  'precision_at_<k>': precision_at,
  'recall_at_<k>': recall_at,
  'mean_average_precision_at_<k>': _mean_average_precision_at,
  'mean_average_precision_at_<k>_over_r': _mean_average_precision_over_r,
  'mean_average_precision_at_<k>_over_hits': _mean_average_precision_over_hits,
  'mean_modified_precision_at_<k>': mean_modified_precision_at,
  'ndcg_at_<k>': lambda k: Metric(
    f'mean over queries of the sum over the positives within the first {k} '
    'ranks of grade / log2(rank + 1), denominator the largest that an order of '
    'the gallery gives',
    gains.ndcg(k),
    is_graded=True,
  ),
  'revisited_precision_at_<k>': _revisited_precision_at,
}


# No gallery is larger, and NumPy's integers hold it.
MAX_K = 2**31 - 1


def parse_k(name: str) -> tuple[str, int | None]:
  """Returns the name with `<k>` for its number, and the number.

  Example:
    >>> parse_k('recall_at_5'), parse_k('mean_average_precision_at_9_over_r')
    (('recall_at_<k>', 5), ('mean_average_precision_at_<k>_over_r', 9))
    >>> parse_k('r_precision')
    ('r_precision', None)
  """
  match = re.fullmatch(r'(.*_at_)([1-9][0-9]{0,99})(_over_.*)?', name)
  if not match:
    return name, None
  return f'{match[1]}<k>{match[3] or ""}', int(match[2])


def get_metric(
  name: str, prefix: str = 'metrics', others: Sequence[str] = ()
) -> Metric:
  """Returns the metric of a name: of `METRICS`, or of `METRICS_AT_K`.

  Args:
    name: of the metric.
    prefix: how the message calls it.
    others: names of other kinds that the message lists too.

  Raises:
    InputError: for an unknown name, with the nearest known one, or a number
      above `MAX_K`.

  Example:
    >>> get_metric('recall_at_5').definition
    'share of queries with at least one positive in the first 5 ranks'
  """
  if isinstance(name, str):
    if name in METRICS:
      return METRICS[name]
    pattern, k = parse_k(name)
    if k is not None and pattern in METRICS_AT_K:
      if k > MAX_K:
        raise errors.InputError(
          f'{prefix} has {name!r}; allowed is a number of at most {MAX_K}: no '
          'gallery is larger'
        )
      return METRICS_AT_K[pattern](k)
  raise errors.unknown_name(prefix, name, [*METRICS, *METRICS_AT_K, *others])


# -- from ranks to values -----------------------------------------------------


def evaluate(ranks: Ranks, metrics: Mapping[str, Metric]) -> dict[str, Values]:
  """Returns the values of each metric for the queries of a block.

  Args:
    ranks: of the block.
    metrics: name -> metric.

  Example:
    A query with two positives: one negative ties with the first.

    >>> one = np.array([1])
    >>> ranks = Ranks(queries=one, num_positives=one + 1,
    ...               hits=np.array([1.0, 2.0]), ranks=np.array([1.0, 3.0]),
    ...               tied=np.array([0]), num_tied=one)
    >>> values = evaluate(ranks, {'precision_at_1': precision_at(1)})
    >>> [v.tolist() for v in values['precision_at_1']]
    [[0.5], [0.0], [1.0]]
  """
  block = Block(ranks)
  return {name: metric.values(block) for name, metric in metrics.items()}


def tie_rates(ranks: Ranks, num_candidates: int) -> np.ndarray:
  """Returns how likely a positive and a negative of a query tie.

  Args:
    ranks: of the block.
    num_candidates: rows of a ranking, unless `ranks` says it of each query.

  Returns:
    [B] float64 in [0, 1], the share of (positive, negative) pairs that tie. It
    does not grow with the gallery: distinct embeddings stay near 1e-6.
  """
  if ranks.num_ranked is not None:
    num_candidates = ranks.num_ranked
  pairs = ranks.num_positives * (num_candidates - ranks.num_positives)
  tied = np.bincount(ranks.tied_rows, ranks.num_tied, len(ranks.queries))
  return tied / np.maximum(pairs, 1)


# -- what must hold -----------------------------------------------------------

# For every query and every order of ties, so for expectations too: the first is
# at most the second. `<k>` is any number, and the same one if in both.
ORDERINGS = (
  ('mean_average_precision_at_r', 'r_precision'),
  ('mean_average_precision_at_r', 'mean_average_precision'),
  ('precision_at_1', 'mean_reciprocal_rank'),
  ('precision_at_1', 'recall_at_<k>'),
  ('precision_at_<k>', 'recall_at_<k>'),
  ('mean_modified_precision_at_<k>', 'recall_at_<k>'),
  ('mean_average_precision_at_<k>_over_r', 'mean_average_precision'),
  ('mean_average_precision_at_<k>_over_r', 'mean_average_precision_at_<k>'),
  ('mean_average_precision_at_<k>', 'mean_average_precision_at_<k>_over_hits'),
  ('mean_average_precision_at_<k>_over_hits', 'recall_at_<k>'),
  ('ndcg_at_<k>', 'recall_at_<k>'),
  ('precision_at_<k>', 'revisited_precision_at_<k>'),
  ('revisited_precision_at_<k>', 'recall_at_<k>'),
)
# Those that cannot fall as k grows.
GROWING = ('recall_at_<k>', 'mean_average_precision_at_<k>_over_r')

_SLACK = 1e-9


def check_invariants(values: Mapping[str, Values]) -> None:
  """Raises if a value is impossible: that is a defect, not a user's mistake.

  It is not a number, or not 0 <= lowest <= expected <= highest <= 1, or one of
  `ORDERINGS` does not hold, up to rounding.

  Args:
    values: name -> of the queries that have a positive.
  """
  for name, (expected, lowest, highest) in values.items():
    # A comparison with NaN is false.
    if not np.all((lowest >= -_SLACK) & (highest <= 1 + _SLACK)):
      raise AssertionError(f'{name} left [0, 1]')
    inside = (expected >= lowest - _SLACK) & (expected <= highest + _SLACK)
    if not np.all(inside):
      raise AssertionError(f'{name} left the range that ties leave it')
  for smaller, larger in _ordered_pairs(values):
    for low, high in zip(values[smaller], values[larger], strict=True):
      if np.any(low > high + _SLACK):
        raise AssertionError(f'{smaller} > {larger}')


def _ordered_pairs(names):
  for smaller, larger in itertools.permutations(names, 2):
    (pattern, k), (other, other_k) = parse_k(smaller), parse_k(larger)
    if pattern == other and pattern in GROWING and k < other_k:
      yield smaller, larger
    for pair in ORDERINGS:
      is_pair = pair[0] in (smaller, pattern) and pair[1] in (larger, other)
      if is_pair and ('<k>' not in pair[0] or other_k in (k, None)):
        yield smaller, larger
