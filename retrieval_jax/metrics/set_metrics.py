"""Metrics of a whole set: one number, which is no mean over queries.

They stand in the same lists as the metrics of rankings. Those that are found
from the same pass over the data share it. To add one: a row in `SET_METRICS`
(or, if its name ends with a number, in `FAMILIES`), read from what a pass of
`_PASSES` returns.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from retrieval_jax.metrics import (
  clustering,
  embedding_health,
  open_set,
  pairs,
  verification,
)

_SLACK = 1e-9


class SetMetric(NamedTuple):
  """A metric of a whole set: one row of the registry.

  Attributes:
    definition: one sentence.
    source: the pass that it is read from, a key of `_PASSES`.
    read: what the pass returns -> the value, or None if it has none.
    low: the smallest value that there can be of any data.
    high: the largest.
    limits: what the pass returns -> (low, high) of these data, where they are
      narrower.
    at: the rate that the pass has to find a threshold for, if any.
    higher_is_better: whether it is; None: neither way.
    threshold: what the pass returns -> the similarity that the value is found
      at, if it is at one.
  """

  definition: str
  source: str
  read: Callable[[Any], float]
  low: float = 0.0
  high: float = 1.0
  limits: Callable[[Any], tuple[float, float]] | None = None
  at: float | None = None
  higher_is_better: bool | None = True
  threshold: Callable[[Any], float] | None = None


SET_METRICS = {
  'auroc': SetMetric(
    'probability that a positive pair is more similar than a negative pair, '
    'ties as a half',
    'pairs',
    lambda found: found.roc.auroc,
  ),
  'equal_error_rate': SetMetric(
    'share of negative pairs that are accepted where it equals the share of '
    'positive pairs that are not',
    'pairs',
    lambda found: found.roc.equal_error_rate,
    higher_is_better=False,
  ),
  'micro_average_precision': SetMetric(
    'area under the precision-recall curve of all pairs under one threshold',
    'pairs',
    lambda found: found.roc.average_precision,
  ),
  'best_f1': SetMetric(
    'largest F1 of accepting pairs by one threshold',
    'pairs',
    lambda found: found.roc.best_f1.f1,
    threshold=lambda found: found.roc.best_f1.threshold,
  ),
  'best_accuracy': SetMetric(
    'largest share of pairs that one threshold decides rightly',
    'pairs',
    lambda found: found.roc.best_accuracy.accuracy,
    threshold=lambda found: found.roc.best_accuracy.threshold,
  ),
  'uniformity': SetMetric(
    'log of the mean over all pairs of exp(-2 d^2), d the Euclidean distance '
    'of unit rows; -8 to 0, lower is more uniform',
    'pairs',
    lambda found: found.uniformity,
    low=-8.0,
    high=0.0,
    higher_is_better=None,
  ),
  'alignment': SetMetric(
    'mean over positive pairs of the squared Euclidean distance of unit rows; '
    '0 to 4, lower is more compact',
    'pairs',
    lambda found: found.alignment,
    high=4.0,
    higher_is_better=None,
  ),
  'open_set_auroc': SetMetric(
    'probability that the nearest similarity of a known query exceeds that of '
    'an unknown query, ties as a half',
    'open_set',
    lambda found: found.roc.auroc,
  ),
  'effective_rank': SetMetric(
    'exp of the entropy of the normalised singular values of the unit gallery '
    'rows; 1 to D',
    'spectrum',
    lambda found: embedding_health.effective_rank(
      np.sqrt(found.second_moments)
    ),
    low=1.0,
    high=np.inf,
    limits=lambda found: (1.0, len(found.second_moments)),
    higher_is_better=None,
  ),
  'covariance_effective_rank': SetMetric(
    'exp of the entropy of the normalised eigenvalues of the covariance of the '
    'unit gallery rows; 1 to D',
    'spectrum',
    lambda found: embedding_health.effective_rank(found.variances),
    low=1.0,
    high=np.inf,
    limits=lambda found: (1.0, len(found.variances)),
    higher_is_better=None,
  ),
  'hubness': SetMetric(
    'skewness over gallery rows of how often each is among the 10 nearest of a '
    'query; 0: no hubs',
    'occurrences',
    embedding_health.hubness,
    low=-np.inf,
    high=np.inf,
    limits=embedding_health.hubness_limits,
    higher_is_better=False,
  ),
  'antihub_share': SetMetric(
    'share of gallery rows that are among the 10 nearest of no query',
    'occurrences',
    embedding_health.antihub_share,
    higher_is_better=False,
  ),
  'nmi': SetMetric(
    'normalised mutual information of classes and k-means clusters of the '
    'queries, arithmetic mean of the entropies',
    'clusters',
    lambda found: found.nmi,
  ),
  'ami': SetMetric(
    'adjusted mutual information of classes and k-means clusters of the '
    'queries; 0 by chance',
    'clusters',
    lambda found: found.ami,
    low=-1.0,
  ),
}


def _tpr_at_fpr(rate):
  return SetMetric(
    f'share of positive pairs accepted by the lowest threshold that accepts at '
    f'most {rate:g} of the negative pairs',
    'pairs',
    lambda found: found.roc.at_fpr[rate].recall,
    at=rate,
    threshold=lambda found: found.roc.at_fpr[rate].threshold,
  )


def _fnmr_at_fmr(rate):
  return SetMetric(
    f'share of positive pairs not accepted by the lowest threshold that '
    f'accepts at most {rate:g} of the negative pairs',
    'pairs',
    lambda found: found.roc.at_fpr[rate].false_non_match_rate,
    at=rate,
    threshold=lambda found: found.roc.at_fpr[rate].threshold,
    higher_is_better=False,
  )


def _open_set_tpr_at_fpr(rate):
  return SetMetric(
    f'share of known queries whose nearest similarity reaches the lowest '
    f'threshold that at most {rate:g} of the unknown queries reach',
    'open_set',
    lambda found: found.roc.at_fpr[rate].recall,
    at=rate,
    threshold=lambda found: found.roc.at_fpr[rate].threshold,
  )


def _dir_at_far(rate):
  return SetMetric(
    f'share of known queries whose nearest row is relevant and reaches the '
    f'lowest threshold that at most {rate:g} of the unknown queries reach',
    'open_set',
    lambda found: found.identified[rate],
    at=rate,
    threshold=lambda found: found.roc.at_fpr[rate].threshold,
  )


def _pcf(share):
  return SetMetric(
    f'principal components that hold {share:g} of the variance of the unit '
    'gallery rows, divided by D',
    'spectrum',
    lambda found: embedding_health.component_share(found.variances, share),
    limits=lambda found: (1 / len(found.variances), 1.0),
    higher_is_better=None,
  )


# The share of the variance is the default of open-metric-learning.
SET_METRICS['pcf'] = _pcf(0.5)

# What comes before the number, with what a metric is made of it.
FAMILIES = {
  'tpr_at_fpr': _tpr_at_fpr,
  'fnmr_at_fmr': _fnmr_at_fmr,
  'open_set_tpr_at_fpr': _open_set_tpr_at_fpr,
  'dir_at_far': _dir_at_far,
  'pcf': _pcf,
}

# As messages list them.
NAMES = (*SET_METRICS, *(f'{family}_<x>' for family in FAMILIES))


def find_metric(name: str) -> SetMetric | None:
  """Returns the metric of a name, or None if it is none of a whole set.

  Args:
    name: a key of `SET_METRICS`, or one of `FAMILIES` and a number in (0, 1],
      as in `tpr_at_fpr_0.001`.

  Example:
    >>> find_metric('fnmr_at_fmr_0.01').at
    0.01
    >>> find_metric('precision_at_1') is None
    True
  """
  if name in SET_METRICS:
    return SET_METRICS[name]
  match = re.fullmatch(r'(\w+)_(0?\.[0-9]+|1(?:\.0*)?|[0-9]+e-[0-9]+)', name)
  if match and match[1] in FAMILIES and 0 < float(match[2]) <= 1:
    return FAMILIES[match[1]](float(match[2]))
  return None


def check_metric(name: str) -> bool:
  """Returns whether a name is that of a metric of a whole set.

  Raises:
    InputError: if it is, and a package that it needs is missing.
  """
  metric = find_metric(name) if isinstance(name, str) else None
  if metric and metric.source == 'clusters':
    clustering.check_installed(name)
  return metric is not None


# -- the passes ---------------------------------------------------------------


def _pairs(task, rates):
  return verification.verify(task, at_fpr=rates)


def _open_set(task, rates):
  return open_set.evaluate(task, at_far=rates)


def _spectrum(task, _):
  return embedding_health.spectrum(task.gallery)


def _occurrences(task, _):
  return embedding_health.k_occurrences(task)


def _clusters(task, _):
  return clustering.cluster(task)


_PASSES = {
  'pairs': _pairs,
  'open_set': _open_set,
  'spectrum': _spectrum,
  'occurrences': _occurrences,
  'clusters': _clusters,
}


class SetValues(NamedTuple):
  """Metrics of a whole set.

  Attributes:
    metrics: name -> value, of those that have one.
    definitions: name -> sentence, likewise.
    facts: what they were computed on, for the protocol.
    thresholds: name -> the similarity from which on is accepted, of those that
      are found at one; None: nothing is accepted, as JSON has no infinity.
    warnings: a sentence for each pass that has no value.
    pairs: what all pairs say, if a metric needed them.
  """

  metrics: dict[str, float]
  definitions: dict[str, str]
  facts: dict[str, int]
  thresholds: dict[str, float | None]
  warnings: list[str]
  pairs: verification.Verification | None


def measure(names: Sequence[str], task: pairs.Task) -> SetValues:
  """Returns the metrics of a whole set.

  Args:
    names: of metrics; those of rankings are passed over.
    task: what is measured.

  Returns:
    The values. A metric that has none for these data, such as one of unknown
    queries where all are known, is left out, and a warning says why.

  Raises:
    InputError: if the memory budget is too small.

  Example:
    >>> x, y = np.eye(2)[[0, 0, 1]], np.array([0, 0, 1])
    >>> task = pairs.Task(x, y, x, y, self_excluded=True)
    >>> measure(['auroc', 'alignment'], task).metrics
    {'auroc': 1.0, 'alignment': 0.0}
  """
  rows = {name: find_metric(name) for name in names}
  rows = {name: row for name, row in rows.items() if row is not None}
  found, values, warnings = {}, {}, []
  for source in dict.fromkeys(row.source for row in rows.values()):
    here = {name: row for name, row in rows.items() if row.source == source}
    rates = {row.at for row in here.values() if row.at is not None}
    undefined = {}
    try:
      found[source] = _PASSES[source](task, sorted(rates))
    except pairs.UndefinedError as error:
      undefined = dict.fromkeys(here, str(error))
    for name in here.keys() - undefined.keys():
      try:
        values[name] = _within_bounds(name, here[name], found[source])
      except pairs.UndefinedError as error:
        undefined[name] = str(error)
    for reason in sorted(set(undefined.values())):
      without = ', '.join(n for n in here if undefined.get(n) == reason)
      warnings.append(f'no value of {without}: {reason}')
  values = {name: values[name] for name in rows if name in values}
  return SetValues(
    values,
    {name: rows[name].definition for name in values},
    _facts(found),
    {
      name: _finite(rows[name].threshold(found[rows[name].source]))
      for name in values
      if rows[name].threshold
    },
    warnings,
    found.get('pairs'),
  )


def _within_bounds(name, row, found):
  """Returns the value; an impossible one is a defect, not a user's mistake."""
  value = float(row.read(found))
  low, high = row.limits(found) if row.limits else (row.low, row.high)
  slack = _SLACK * max(1.0, abs(low), abs(high))
  if not low - slack <= value <= high + slack:
    raise AssertionError(f'{name} is {value}, outside [{low}, {high}]')
  return float(min(max(value, low), high))


def _finite(threshold):
  return float(threshold) if np.isfinite(threshold) else None


def _facts(found: Mapping[str, Any]) -> dict[str, int]:
  facts = {}
  if 'pairs' in found:
    facts['num_positive_pairs'] = found['pairs'].num_positives
    facts['num_negative_pairs'] = found['pairs'].num_negatives
  if 'open_set' in found:
    facts['num_unknown_queries'] = found['open_set'].roc.num_negatives
  return facts


def join(result, values: SetValues, names: Sequence[str]):
  """Returns the result of rankings with the metrics of the set beside theirs.

  Args:
    result: a `retrieval.RetrievalResult`.
    values: of the set.
    names: the order of the metrics.
  """
  if not values.definitions and not values.warnings:
    return result
  metrics = result.metrics | values.metrics
  definitions = result.protocol['definitions'] | values.definitions
  protocol = result.protocol | values.facts
  protocol['definitions'] = {n: definitions[n] for n in names if n in metrics}
  if values.thresholds:
    protocol['thresholds'] = values.thresholds
  protocol['warnings'] = result.protocol['warnings'] + values.warnings
  return dataclasses.replace(
    result,
    metrics={name: metrics[name] for name in names if name in metrics},
    protocol=protocol,
    pairs=values.pairs,
  )


def bounds(name: str) -> tuple[float, float]:
  """Returns the smallest and the largest value that a metric can have.

  Example:
    >>> bounds('uniformity'), bounds('precision_at_1')
    ((-8.0, 0.0), (0.0, 1.0))
  """
  metric = find_metric(name)
  return (0.0, 1.0) if metric is None else (metric.low, metric.high)


def goodness(name: str, value: float) -> float:
  """Returns a value with the sign by which more is better.

  Example:
    >>> goodness('equal_error_rate', 0.1), goodness('precision_at_1', 0.9)
    (-0.1, 0.9)
  """
  metric = find_metric(name)
  is_error = metric is not None and metric.higher_is_better is False
  return -value if is_error else value
