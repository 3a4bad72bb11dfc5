"""Retrieval metrics.

To add one: its row in `definitions.METRICS`, or in `METRICS_AT_K` if its name
has a number; a line in the loop of `tests/metrics/loops.py`, by which it is
tested in all orders of ties; and a row with an example in docs/metrics.md.
One of a whole set: a row in `SET_METRICS` of `set_metrics.py`, and a row in
docs/verification.md.
"""

from retrieval_jax.metrics.averages import GroupMeans
from retrieval_jax.metrics.curves import Curve, RankingCurves
from retrieval_jax.metrics.definitions import (
  METRICS,
  METRICS_AT_K,
  Metric,
  get_metric,
)
from retrieval_jax.metrics.ignored import Ignored
from retrieval_jax.metrics.listed import evaluate_listed
from retrieval_jax.metrics.lists import evaluate_lists
from retrieval_jax.metrics.rankings import evaluate_rankings
from retrieval_jax.metrics.results import RetrievalResult
from retrieval_jax.metrics.retrieval import (
  DEFAULT_METRICS,
  check_metrics,
  evaluate_retrieval,
  retrieval_metrics,
)
from retrieval_jax.metrics.set_metrics import SET_METRICS, bounds, goodness
from retrieval_jax.metrics.verification import Verification

__all__ = [
  'DEFAULT_METRICS',
  'METRICS',
  'METRICS_AT_K',
  'Curve',
  'GroupMeans',
  'Ignored',
  'Metric',
  'RankingCurves',
  'RetrievalResult',
  'SET_METRICS',
  'Verification',
  'bounds',
  'check_metrics',
  'evaluate_listed',
  'evaluate_lists',
  'evaluate_rankings',
  'evaluate_retrieval',
  'get_metric',
  'goodness',
  'retrieval_metrics',
]
