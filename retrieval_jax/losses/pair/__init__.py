"""Losses over the pairs of an anchor: thresholds and weights of pairs."""

from retrieval_jax.core.distances import NAMES, Distance
from retrieval_jax.core.hyperparameters import FLAG, Number
from retrieval_jax.losses.pair.circle import circle
from retrieval_jax.losses.pair.contrastive import (
  contrastive,
  threshold_consistent_margin,
)
from retrieval_jax.losses.pair.dynamic_soft_margin import (
  dynamic_soft_margin,
  init_dynamic_soft_margin,
)
from retrieval_jax.losses.pair.intra_pair_variance import intra_pair_variance
from retrieval_jax.losses.pair.lifted_structure import (
  generalized_lifted_structure,
  lifted_structure,
)
from retrieval_jax.losses.pair.margin import init_margin, margin
from retrieval_jax.losses.pair.multi_similarity import multi_similarity
from retrieval_jax.losses.pair.ranked_list import ranked_list
from retrieval_jax.losses.pair.sigmoid import init_sigmoid, sigmoid
from retrieval_jax.losses.pair.tuplet_margin import tuplet_margin
from retrieval_jax.losses.rows import Loss

_ANY = Number(least=float('-inf'))
_NOT_NEGATIVE = Number(closed=True)
_SHARE = Number(most=1.0, closed=True)
_MATRIX = Number(least=float('-inf'), unit='of the distance')
_COSINE = Number(least=-1.0, most=1.0, closed=True, unit='cosine')
_COSINES = ('cosine', 'dot')

LOSSES: dict[str, Loss] = {
  'circle': Loss(
    circle,
    kind='pair',
    hyperparameters={
      'margin': Number(most=1.0, unit='cosine'),
      'scale': Number(),
    },
    reducer='nonzero_mean',
    distance=Distance('cosine'),
    distances=_COSINES,
  ),
  'contrastive': Loss(
    contrastive,
    kind='pair',
    hyperparameters={'pos_margin': _MATRIX, 'neg_margin': _MATRIX},
    reducer='nonzero_mean',
    distance=Distance('lp'),
    distances=NAMES,
    needs=('inverted',),
  ),
  'dynamic_soft_margin': Loss(
    dynamic_soft_margin,
    kind='batch',
    hyperparameters={
      'min_val': Number(least=-2.0, most=-0.01, closed=True),
      'num_bins': Number(least=1, most=1000, closed=True, integer=True),
      'momentum': Number(most=1.0),
    },
    distance=Distance('lp'),
    distances=('lp',),
    state=init_dynamic_soft_margin,
  ),
  'generalized_lifted_structure': Loss(
    generalized_lifted_structure,
    kind='pair',
    hyperparameters={'neg_margin': _MATRIX, 'pos_margin': _MATRIX},
    distance=Distance('lp'),
    distances=NAMES,
    needs=('inverted', 'labels'),
  ),
  'intra_pair_variance': Loss(
    intra_pair_variance,
    kind='batch',
    hyperparameters={'pos_eps': _NOT_NEGATIVE, 'neg_eps': _NOT_NEGATIVE},
    distance=Distance('cosine'),
    distances=NAMES,
  ),
  'lifted_structure': Loss(
    lifted_structure,
    kind='batch',
    hyperparameters={'neg_margin': _MATRIX, 'pos_margin': _MATRIX},
    distance=Distance('lp'),
    distances=('cosine', 'dot', 'lp'),
  ),
  'margin': Loss(
    margin,
    kind='pair',
    hyperparameters={
      'margin': _NOT_NEGATIVE,
      'nu': _NOT_NEGATIVE,
      'beta': _ANY,
      'learn_beta': FLAG,
      'beta_per_class': FLAG,
      'triplets_per_anchor': Number(
        least=1, closed=True, integer=True, words=('all',)
      ),
    },
    reducer='nonzero_mean',
    distance=Distance('lp'),
    distances=NAMES,
    triplets=True,
    needs=('inverted', 'labels', 'row_keys'),
    params=init_margin,
  ),
  'multi_similarity': Loss(
    multi_similarity,
    kind='pair',
    hyperparameters={'alpha': Number(), 'beta': Number(), 'base': _MATRIX},
    distance=Distance('cosine'),
    distances=NAMES,
    needs=('inverted', 'labels'),
  ),
  'ranked_list': Loss(
    ranked_list,
    kind='pair',
    hyperparameters={
      'margin': Number(),
      'negative_temperature': _NOT_NEGATIVE,
      'imbalance': _SHARE,
      'alpha': Number(optional=True),
      'positive_temperature': _NOT_NEGATIVE,
    },
    distance=Distance('lp'),
    distances=('lp', 'snr'),
    needs=('labels',),
  ),
  'sigmoid': Loss(
    sigmoid,
    kind='pair',
    hyperparameters={'temperature': Number(), 'bias': _ANY},
    distance=Distance('cosine'),
    distances=_COSINES,
    needs=('labels',),
    params=init_sigmoid,
  ),
  'signal_to_noise_ratio_contrastive': Loss(
    contrastive,
    kind='pair',
    hyperparameters={'pos_margin': _MATRIX, 'neg_margin': _MATRIX},
    reducer='nonzero_mean',
    distance=Distance('snr'),
    distances=('snr',),
    needs=('inverted',),
  ),
  'threshold_consistent_margin': Loss(
    threshold_consistent_margin,
    kind='pair',
    hyperparameters={
      'lambda_plus': _NOT_NEGATIVE,
      'lambda_minus': _NOT_NEGATIVE,
      'margin_plus': _COSINE,
      'margin_minus': _COSINE,
    },
    reducer='nonzero_mean',
    distance=Distance('cosine'),
    distances=_COSINES,
  ),
  'tuplet_margin': Loss(
    tuplet_margin,
    kind='pair',
    hyperparameters={
      'margin_deg': Number(most=90.0, closed=True, unit='degrees'),
      'scale': Number(),
    },
    distance=Distance('cosine'),
    distances=('cosine',),
  ),
}
