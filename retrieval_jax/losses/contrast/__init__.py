"""Softmax over pairs, and losses of whole batches."""

from retrieval_jax.core.distances import NAMES, Distance
from retrieval_jax.core.hyperparameters import FLAG, Number
from retrieval_jax.losses.contrast.angular import angular
from retrieval_jax.losses.contrast.instance import instance
from retrieval_jax.losses.contrast.manifold import init_manifold, manifold
from retrieval_jax.losses.contrast.n_pairs import n_pairs
from retrieval_jax.losses.contrast.ntxent import decoupled_contrastive, ntxent
from retrieval_jax.losses.contrast.supcon import (
  multi_label_supcon,
  nca,
  supcon,
)
from retrieval_jax.losses.contrast.vicreg import vicreg
from retrieval_jax.losses.rows import Loss

_TEMPERATURE = Number(unit='of the similarities')

LOSSES: dict[str, Loss] = {
  'angular': Loss(
    angular,
    kind='batch',
    hyperparameters={
      'alpha': Number(most=89.0, unit='degrees'),
      'normalize_negatives': FLAG,
    },
    needs=('labels',),
  ),
  'decoupled_contrastive': Loss(
    decoupled_contrastive,
    kind='pair',
    hyperparameters={'temperature': _TEMPERATURE},
    distance=Distance('cosine'),
    distances=NAMES,
    needs=('inverted',),
  ),
  'instance': Loss(
    instance,
    kind='pair',
    hyperparameters={'scale': Number()},
    distance=Distance('cosine'),
    distances=('cosine',),
    needs=('labels', 'candidate_labels'),
    masked=False,
  ),
  'manifold': Loss(
    manifold,
    kind='batch',
    hyperparameters={
      'K': Number(least=1, closed=True, integer=True),
      'lambdaC': Number(closed=True),
      'alpha': Number(most=0.999),
      'margin': Number(closed=True),
    },
    needs=('labels',),
    params=init_manifold,
    masked=False,
  ),
  'multi_label_supcon': Loss(
    multi_label_supcon,
    kind='pair',
    hyperparameters={
      'temperature': _TEMPERATURE,
      'threshold': Number(closed=True, unit='relevance'),
    },
    reducer='nonzero_mean',
    distance=Distance('cosine'),
    distances=NAMES,
    needs=('inverted', 'relevance'),
  ),
  'n_pairs': Loss(
    n_pairs,
    kind='batch',
    hyperparameters={},
    distance=Distance('dot'),
    distances=NAMES,
    needs=('labels', 'ids', 'candidate_ids'),
  ),
  'nca': Loss(
    nca,
    kind='pair',
    hyperparameters={'softmax_scale': Number()},
    distance=Distance('lp', power=2),
    distances=NAMES,
    needs=('inverted',),
  ),
  'ntxent': Loss(
    ntxent,
    kind='pair',
    hyperparameters={'temperature': _TEMPERATURE},
    distance=Distance('cosine'),
    distances=NAMES,
    needs=('inverted',),
  ),
  'supcon': Loss(
    supcon,
    kind='pair',
    hyperparameters={'temperature': _TEMPERATURE},
    reducer='nonzero_mean',
    distance=Distance('cosine'),
    distances=NAMES,
    needs=('inverted',),
  ),
  'vicreg': Loss(
    vicreg,
    kind='batch',
    hyperparameters={
      'invariance_lambda': Number(closed=True),
      'variance_mu': Number(closed=True),
      'covariance_v': Number(closed=True),
      'eps': Number(),
    },
    views=2,
    masked=False,
  ),
}
