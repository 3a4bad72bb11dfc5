"""Retrieval metrics.

To add one: a `Metric` in `definitions.py` and its row in `METRICS`.
"""

from retrieval_jax.metrics.definitions import METRICS, Metric, get_metric
from retrieval_jax.metrics.retrieval import (
  DEFAULT_METRICS,
  RetrievalResult,
  check_metrics,
  evaluate_retrieval,
  retrieval_metrics,
)

__all__ = [
  'DEFAULT_METRICS',
  'METRICS',
  'Metric',
  'RetrievalResult',
  'check_metrics',
  'evaluate_retrieval',
  'get_metric',
  'retrieval_metrics',
]
