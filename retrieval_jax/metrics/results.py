"""What an evaluation returns, made of the ranks of its queries."""

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from retrieval_jax.core import tiles
from retrieval_jax.core.errors import InputError
from retrieval_jax.metrics import averages, definitions, verification
from retrieval_jax.metrics.averages import GroupMeans, Groups
from retrieval_jax.metrics.curves import CurveSums, RankingCurves
from retrieval_jax.metrics.ignored import Ignored
from retrieval_jax.metrics.ranks import RESOLUTION, Ranks
from retrieval_jax.metrics.ties import Values

# Of (positive, negative) pairs. Distinct embeddings stay near 1e-6; where a
# fifth of the rows has collapsed to a point it is about 0.2 ** 3.
COLLAPSE_TIE_RATE = 0.005


@dataclasses.dataclass(frozen=True)
class RetrievalResult:
  """Metrics with what one needs to believe and to compare them.

  Attributes:
    metrics: name -> mean over the queries that have a positive; of a name that
      begins with `macro_` or `category_macro_`, the mean over groups of theirs;
      or the value of a metric of the whole set.
    ranges: name -> (lowest, highest) mean that an order of the ties can give;
      equal to the metric where nothing ties. None of the whole set.
    protocol: similarity, relevance (unless it is the class), num_queries,
      num_lone_queries, gallery_size, self_excluded, num_zero_embeddings,
      ignored (if rows are), num_classes and num_categories (of macro averages),
      tie_rate (mean share of a query's (positive, negative) pairs that tie),
      tie_resolution (similarities that round to the same multiple tie),
      thresholds (name -> the similarity that a metric of the whole set is found
      at, None: nothing is accepted), definitions (name -> sentence) and
      warnings (sentences, usually none). JSON types only.
    per_query: name -> [Q] float64, NaN for lone queries.
    per_query_ranges: name -> ([Q], [Q]) float64, the lowest and the highest.
    groups: 'class' and 'category' -> which queries are in which, if known.
    pairs: what all pairs say, if a metric of the whole set needed them.
    curves: CMC and precision against recall, if asked for.
  """

  metrics: dict[str, float]
  ranges: dict[str, tuple[float, float]]
  protocol: dict[str, Any]
  per_query: dict[str, np.ndarray]
  per_query_ranges: dict[str, tuple[np.ndarray, np.ndarray]] = (
    dataclasses.field(default_factory=dict)
  )
  groups: Mapping[str, Groups] = dataclasses.field(default_factory=dict)
  pairs: verification.Verification | None = None
  curves: RankingCurves | None = None

  def group_means(self, name: str, over: str = 'class') -> GroupMeans:
    """Returns a metric by class or by category.

    Args:
      name: of the metric.
      over: 'class' or 'category'.

    Raises:
      InputError: if it is unknown which queries are in which.
    """
    return averages.group_means(
      self.per_query[name], find_groups(self.groups, over, name)
    )


def find_groups(groups: Mapping[str, Groups], over: str, name: str) -> Groups:
  """Returns the groups of the queries, or says that they are not known."""
  if over not in groups:
    raise InputError(
      f'{name} asks for a mean by {over}, but '
      + (
        'no categories are given; allowed are data with a category for each '
        'query: pass categories, or leave the metric out'
        if over == 'category'
        else f'the queries have no {over}; allowed are names without a prefix'
      )
    )
  return groups[over]


def summarize(
  blocks: Iterable[Ranks],
  names: Sequence[str],
  *,
  num_queries: int,
  num_candidates: int,
  groups: Mapping[str, Groups],
  protocol: Mapping[str, Any],
  no_positive: str,
  curves: bool = False,
) -> RetrievalResult:
  """Computes the metrics of all queries.

  Args:
    blocks: the ranks of the queries that have a positive, in any order.
    names: of the metrics.
    num_queries: Q.
    num_candidates: rows of a ranking, unless the ranks say it of each query.
    groups: that the queries are in.
    protocol: what the ranks were found by; `num_zero_embeddings` is read.
    no_positive: the message if no query has a positive but metrics are asked
      for.
    curves: whether the result has them, if a query has a positive.

  Returns:
    The result. A mean over groups none of which has a query with a positive is
    left out, and a warning says so.

  Raises:
    InputError: if metrics are asked for and no query has a positive, or groups
      that are not known.
  """
  split = {name: averages.split_name(name) for name in names}
  for name, (over, _) in split.items():
    if over != 'query':
      find_groups(groups, over, name)
  rows = {base: definitions.get_metric(base) for _, base in split.values()}
  expected, lowest, highest = (
    {base: np.full(num_queries, np.nan) for base in rows} for _ in range(3)
  )
  is_ranked, tie_sum = np.zeros(num_queries, bool), 0.0
  curve_sums = CurveSums() if curves else None
  for block in blocks:
    if curve_sums is not None:
      curve_sums.add(block)
    for base, values in definitions.evaluate(block, rows).items():
      expected[base][block.queries] = values.expected
      lowest[base][block.queries] = values.lowest
      highest[base][block.queries] = values.highest
    is_ranked[block.queries] = True
    tie_sum += float(definitions.tie_rates(block, num_candidates).sum())
  num_ranked = int(is_ranked.sum())
  if names and not num_ranked:
    raise InputError(no_positive)
  definitions.check_invariants(
    {
      base: Values(*(x[base][is_ranked] for x in (expected, lowest, highest)))
      for base in rows
    }
  )
  without = [
    over
    for over in dict.fromkeys(over for over, _ in split.values())
    if over != 'query' and not is_ranked[groups[over].queries].any()
  ]
  undefined = [
    f'no value of {", ".join(n for n in split if split[n][0] == over)}: no '
    f'{over} has a query with a match'
    for over in without
  ]
  split = {n: parts for n, parts in split.items() if parts[0] not in without}
  means, ranges = {}, {}
  for name, (over, base) in split.items():
    average = functools.partial(averages.mean, groups=groups.get(over))
    means[name] = average(expected[base])
    # The ends hold by query; their means may cross in the last digit.
    ranges[name] = (
      min(average(lowest[base]), means[name]),
      max(average(highest[base]), means[name]),
    )
  tie_rate = tie_sum / max(num_ranked, 1)
  sizes = {
    f'num_{averages.PLURALS[over]}': len(
      averages.group_means(expected[base], groups[over]).ids
    )
    for over, base in split.values()
    if over != 'query'
  }
  num_zero = protocol.get('num_zero_embeddings', 0)
  return RetrievalResult(
    metrics=means,
    ranges=ranges,
    protocol={
      **protocol,
      'num_queries': num_queries,
      'num_lone_queries': num_queries - num_ranked,
      **sizes,
      'tie_rate': tie_rate,
      'definitions': {
        name: averages.definition(over, rows[base].definition)
        for name, (over, base) in split.items()
      },
      'warnings': undefined + _warnings(tie_rate, num_zero),
    },
    per_query={name: expected[base] for name, (_, base) in split.items()},
    per_query_ranges={
      name: (lowest[base], highest[base]) for name, (_, base) in split.items()
    },
    groups=groups,
    curves=curve_sums.curves() if curves and num_ranked else None,
  )


def check_not_empty(result: RetrievalResult) -> None:
  """Raises `InputError` if none of the metrics asked for has a value."""
  if not result.metrics:
    raise InputError(
      f'metrics: {"; ".join(result.protocol["warnings"])}; allowed is at least '
      'one that these data have a value of, such as precision_at_1'
    )


def describe_search(
  queries: np.ndarray,
  gallery: np.ndarray,
  *,
  self_excluded: bool,
  ignored: Ignored | None,
  relevance: str | None,
) -> dict[str, Any]:
  """Returns the protocol of rankings by embeddings, for `summarize`."""
  num_zero = tiles.count_zero_rows(queries)
  if not self_excluded:
    num_zero += tiles.count_zero_rows(gallery)
  protocol = {'similarity': 'cosine'}
  if relevance is not None:
    protocol['relevance'] = relevance
  if ignored is not None:
    protocol['ignored'] = ignored.describe()
  return protocol | {
    'gallery_size': len(gallery),
    'self_excluded': self_excluded,
    'num_zero_embeddings': num_zero,
    'tie_resolution': RESOLUTION,
  }


def _warnings(tie_rate: float, num_zero: int) -> list[str]:
  sentences = []
  if tie_rate > COLLAPSE_TIE_RATE:
    sentences.append(
      f'the embeddings may have collapsed: {tie_rate:.1%} of the pairs '
      'of a positive and a negative tie, so the metrics are partly chance; '
      'look at the ranges, the loss, the learning rate and the last layer'
    )
  if num_zero:
    sentences.append(
      f'{num_zero} embeddings are zero: they have no direction and are taken '
      'as equally far from everything'
    )
  return sentences
