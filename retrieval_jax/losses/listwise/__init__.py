"""Losses over the whole ranking of an anchor."""

import math

from retrieval_jax.core.hyperparameters import Choice, Number, Numbers
from retrieval_jax.losses.listwise.average_precision import roadmap, smooth_ap
from retrieval_jax.losses.listwise.histograms import (
  COSINE,
  SQUARED_LP,
  fast_ap,
  histogram,
)
from retrieval_jax.losses.listwise.pnp import VARIANTS, pnp
from retrieval_jax.losses.listwise.recall_at_k import recall_at_k
from retrieval_jax.losses.rows import Loss

_TEMPERATURE = Number(unit='cosine')

LOSSES: dict[str, Loss] = {
  'fast_ap': Loss(
    fast_ap,
    kind='pair',
    hyperparameters={'num_bins': Number(integer=True)},
    distance=SQUARED_LP,
    distances=('lp',),
    needs=('distance',),
  ),
  'histogram': Loss(
    histogram,
    kind='batch',
    hyperparameters={
      'n_bins': Number(integer=True, optional=True),
      'delta': Number(most=2.0, unit='cosine', optional=True),
    },
    distance=COSINE,
    distances=('cosine',),
    needs=('ids', 'candidate_ids'),
  ),
  'pnp': Loss(
    pnp,
    kind='pair',
    hyperparameters={
      'b': Number(),
      'alpha': Number(),
      'anneal': _TEMPERATURE,
      'variant': Choice(VARIANTS),
    },
    distance=COSINE,
    distances=('cosine',),
    ordered=True,
    needs=('ids', 'candidate_ids'),
  ),
  'recall_at_k': Loss(
    recall_at_k,
    kind='pair',
    hyperparameters={
      'ks': Numbers(Number(integer=True)),
      'temperature': _TEMPERATURE,
      'rank_temperature': Number(unit='ranks'),
    },
    distance=COSINE,
    distances=('cosine',),
    ordered=True,
  ),
  'roadmap': Loss(
    roadmap,
    kind='pair',
    hyperparameters={
      'temperature': _TEMPERATURE,
      'rho': Number(unit='ranks a unit of cosine'),
      'delta': Number(most=2.0, closed=True, unit='cosine'),
      'offset': Number(least=-math.inf, optional=True),
      'pos_margin': Number(least=-1.0, most=1.0, closed=True, unit='cosine'),
      'neg_margin': Number(least=-1.0, most=1.0, closed=True, unit='cosine'),
      'calibration_weight': Number(closed=True),
    },
    distance=COSINE,
    distances=('cosine',),
    ordered=True,
    needs=('ids', 'candidate_ids'),
  ),
  'smooth_ap': Loss(
    smooth_ap,
    kind='pair',
    hyperparameters={'temperature': _TEMPERATURE},
    distance=COSINE,
    distances=('cosine',),
    ordered=True,
    needs=('ids', 'candidate_ids'),
  ),
}
