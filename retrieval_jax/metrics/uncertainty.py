"""How sure a mean over queries is, and whether two systems differ.

The queries are taken as a sample of those that might have been asked, and the
question is how much the mean would change with another sample. Resampled are
the queries, or whole classes where the queries of a class are alike. What
another seed of the training would change is not in these numbers.
"""

import statistics
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

from retrieval_jax.core.errors import InputError

_BYTES = 2**25  # Of the draws that are held at once.
_EXACT_FLIPS = 12  # Up to so many differences all signs are tried.
_NORMAL = statistics.NormalDist()


class Interval(NamedTuple):
  """A confidence interval of a mean."""

  low: float
  high: float


class Comparison(NamedTuple):
  """Two systems on the same queries.

  Attributes:
    mean_a: of the first.
    mean_b: of the second.
    difference: mean_b - mean_a.
    interval: of the difference.
    p_value: how often a difference as large comes about, in either direction,
      where which system gave which value is chance.
    num_queries: that both have a value of.
    num_better: of these, those that the second does better on.
    num_worse: those that it does worse on.
  """

  mean_a: float
  mean_b: float
  difference: float
  interval: Interval
  p_value: float
  num_queries: int
  num_better: int
  num_worse: int


def confidence_intervals(
  per_query: Mapping[str, np.ndarray],
  clusters: np.ndarray | None = None,
  *,
  level: float = 0.95,
  num_resamples: int = 2000,
  seed: int = 0,
) -> dict[str, Interval]:
  """Returns bootstrap intervals of means over queries (BCa).

  Each resample draws as many queries as there are, with replacement. The
  interval is between two quantiles of the resampled means, moved by the bias
  and the acceleration of the mean, so that the skewed values of a good system
  (nearly all 1) get a skewed interval within the range of the values. Where
  all values are equal it has no width: of n queries without a failure, a rate
  of failures up to 3 / n cannot be excluded.

  Time is O(Q num_resamples), memory O(Q) and 100 MiB.

  Args:
    per_query: name -> [Q] float, NaN for queries without a value; at least one
      name.
    clusters: [Q] int, the class of each query: whole classes are drawn; None:
      queries are.
    level: the share of intervals that hold the true mean, in (0, 1).
    num_resamples: at least 100.
    seed: of the draws.

  Returns:
    name -> the interval; of one query or class, it has no width.

  Raises:
    InputError: for arguments out of range or of other shapes, values that are
      infinite, or no query with a value.

  Example:
    >>> values = {'precision_at_1': np.array([1.0] * 18 + [0.0] * 2)}
    >>> confidence_intervals(values)['precision_at_1']
    Interval(low=0.7, high=1.0)

  References:
    B. Efron, "Better bootstrap confidence intervals", JASA 1987; for clusters
    A. C. Davison and D. V. Hinkley, "Bootstrap methods and their application",
    1997, section 3.8.
  """
  _check(level, num_resamples, 'num_resamples', seed)
  if not per_query:
    raise InputError(
      'per_query is empty; allowed is at least one metric with its values, '
      'such as per_query of an evaluation'
    )
  values, clusters = _check_values(per_query, clusters)
  values = np.stack(list(values.values()), axis=1)
  has_value = ~np.isnan(values)
  for name, found in zip(per_query, has_value.T, strict=True):
    if not found.any():
      raise InputError(
        f'{name}: no query has a value; allowed is at least one: check that '
        'the queries have a match in the gallery'
      )
  sums, counts = _clustered(
    np.where(has_value, values, 0.0), has_value.astype(np.float64), clusters
  )
  rng = np.random.default_rng(seed)
  means = np.concatenate(
    [
      # A resample without any value of a metric (of few queries) says nothing.
      _ratio(drawn @ sums, drawn @ counts)
      for drawn in _draws(len(sums), num_resamples, rng)
    ]
  )
  intervals = (
    _bca(means[:, i], sums[:, i], counts[:, i], level)
    for i in range(len(per_query))
  )
  return dict(zip(per_query, intervals, strict=True))


def compare(
  values_a: np.ndarray,
  values_b: np.ndarray,
  clusters: np.ndarray | None = None,
  *,
  level: float = 0.95,
  num_resamples: int = 2000,
  num_flips: int = 9999,
  seed: int = 0,
) -> Comparison:
  """Compares two systems on the same queries.

  The interval is that of `confidence_intervals` of the paired differences. The
  p-value is of a sign-flip permutation test: if the systems were the same, each
  difference could as well have the other sign. With flips f,

    p = (1 + #{f : |sum_i f_i d_i| >= |sum_i d_i|}) / (1 + num_flips),

  or, of at most 12 differences that are not 0, the share of all sign
  combinations.

  Args:
    values_a: [Q] float, NaN where there is no value.
    values_b: [Q] likewise, of the same queries in the same order.
    clusters: [Q] int, the class of each query: resampled and flipped together;
      None: each query by itself.
    level: of the interval, in (0, 1).
    num_resamples: of the bootstrap.
    num_flips: of the permutation test.
    seed: of both.

  Raises:
    InputError: for arguments out of range or of other shapes, values that are
      infinite, or no query that both have a value of.

  Example:
    >>> a, b = np.zeros(8), np.array([1.0] * 6 + [0.0, -1.0])
    >>> found = compare(a, b)
    >>> found.difference, found.p_value, found.num_better, found.num_worse
    (0.625, 0.125, 6, 1)

  References:
    M. D. Smucker, J. Allan and B. Carterette, "A comparison of statistical
    significance tests for information retrieval evaluation", CIKM 2007.
  """
  _check(level, num_flips, 'num_flips', seed)
  values, clusters = _check_values(
    {'values_a': values_a, 'values_b': values_b}, clusters
  )
  values_a, values_b = values.values()
  both = ~np.isnan(values_a) & ~np.isnan(values_b)
  values_a, values_b = values_a[both], values_b[both]
  if clusters is not None:
    clusters = clusters[both]
  differences = values_b - values_a
  interval = confidence_intervals(
    {'difference': differences},
    clusters,
    level=level,
    num_resamples=num_resamples,
    seed=seed,
  )['difference']
  sums, _ = _clustered(
    differences[:, None], np.ones((len(differences), 1)), clusters
  )
  return Comparison(
    float(values_a.mean()),
    float(values_b.mean()),
    float(differences.mean()),
    interval,
    _sign_flip_p_value(sums[:, 0], num_flips, np.random.default_rng(seed)),
    len(differences),
    int((differences > 0).sum()),
    int((differences < 0).sum()),
  )


def _check(level, number, name, seed):
  if not 0 < level < 1:
    raise InputError(
      f'level is {level!r}; allowed is a number between 0 and 1, such as 0.95'
    )
  for key, value, least in ((name, number, 100), ('seed', seed, 0)):
    if not isinstance(value, int | np.integer) or value < least:
      raise InputError(
        f'{key} is {value!r}; allowed is an int of at least {least}'
      )


def _check_values(values, clusters):
  """Returns arrays [Q] of the values by name, and of the clusters if any."""
  values = {name: np.asarray(v, np.float64) for name, v in values.items()}
  first, like = next(iter(values.items()))
  if clusters is not None:
    clusters = np.asarray(clusters)
  for name, array in [*values.items(), ('clusters', clusters)]:
    if array is not None and (array.ndim != 1 or array.shape != like.shape):
      raise InputError(
        f'{name} has shape {array.shape} and {first} {like.shape}; allowed is '
        '(Q,) of all, of the same queries: match the queries first'
      )
  for name, array in values.items():
    if np.isinf(array).any():
      row = int(np.argmax(np.isinf(array)))
      raise InputError(
        f'{name} is {array[row]} of query {row}; allowed are finite numbers, '
        'and NaN where there is no value: look at how it was computed'
      )
  return values, clusters


def _clustered(sums, counts, clusters):
  """Returns the sums and counts [U, M] of what is drawn as one."""
  if clusters is None:
    return sums, counts
  _, place = np.unique(clusters, return_inverse=True)
  return tuple(
    np.stack([np.bincount(place, column) for column in array.T], axis=1)
    for array in (sums, counts)
  )


def _draws(
  num_units: int, number: int, rng: np.random.Generator
) -> Iterator[np.ndarray]:
  """Yields how often each resample has each unit, [n, U] float64."""
  at_once = max(1, _BYTES // (8 * num_units))
  for start in range(0, number, at_once):
    rows = min(at_once, number - start)
    picked = rng.integers(0, num_units, (rows, num_units))
    picked += np.arange(rows)[:, None] * num_units
    counts = np.bincount(picked.reshape(-1), minlength=rows * num_units)
    yield counts.reshape(rows, num_units).astype(np.float64)


def _ratio(sums, counts):
  return np.divide(
    sums, counts, out=np.full(sums.shape, np.nan), where=counts > 0
  )


def _bca(means, sums, counts, level) -> Interval:
  """Returns the bias-corrected and accelerated interval of a ratio of sums."""
  mean = sums.sum() / counts.sum()
  means = np.sort(means[~np.isnan(means)])
  spread = 1e-12 * max(1.0, abs(mean))
  if len(sums) < 2 or not len(means) or means[-1] - means[0] <= spread:
    return Interval(float(mean), float(mean))
  # Ties of discrete means count half, or the bias would depend on rounding.
  below = np.searchsorted(means, mean - spread)
  upto = np.searchsorted(means, mean + spread, side='right')
  share = (below + upto) / (2 * len(means))
  bias = _NORMAL.inv_cdf(min(max(share, 1e-6), 1 - 1e-6))
  # The means without one unit at a time.
  without = _ratio(sums.sum() - sums, counts.sum() - counts)
  without = without[~np.isnan(without)]
  pulls = without.mean() - without
  acceleration = np.sum(pulls**3) / (6 * max(np.sum(pulls**2), 1e-300) ** 1.5)

  def end(probability):
    z = bias + _NORMAL.inv_cdf(probability)
    share = _NORMAL.cdf(bias + z / (1 - acceleration * z))
    # The inverse of the empirical distribution, inside of what was drawn.
    place = int(np.ceil(share * len(means))) - 1
    return float(means[min(max(place, 0), len(means) - 1)])

  tail = (1 - level) / 2
  return Interval(end(tail), end(1 - tail))


def _sign_flip_p_value(differences, num_flips, rng):
  """Returns the two-sided p-value of sums of differences."""
  differences = differences[differences != 0]
  if not len(differences):
    return 1.0
  size = np.abs(differences).sum()
  observed = np.abs(differences.sum()) - 1e-12 * size
  if len(differences) <= _EXACT_FLIPS:
    numbers = np.arange(2 ** len(differences))
    bits = numbers[:, None] >> np.arange(len(differences))[None, :] & 1
    return float(np.mean(np.abs((2 * bits - 1) @ differences) >= observed))
  at_once = max(1, _BYTES // (8 * len(differences)))
  as_large = 0
  for start in range(0, num_flips, at_once):
    rows = min(at_once, num_flips - start)
    bits = rng.integers(0, 2, (rows, len(differences)), np.int8)
    sums = 2 * (bits.astype(np.float64) @ differences) - differences.sum()
    as_large += int((np.abs(sums) >= observed).sum())
  return (1 + as_large) / (1 + num_flips)
