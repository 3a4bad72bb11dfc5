"""The rows of the losses with proxies that are not margin softmaxes."""

from retrieval_jax.core.hyperparameters import Number
from retrieval_jax.losses.proxy import uniface as uniface_lib
from retrieval_jax.losses.proxy.p2s_grad import p2s_grad
from retrieval_jax.losses.proxy.proxy_anchor import proxy_anchor
from retrieval_jax.losses.proxy.proxy_nca import (
  normalized_softmax,
  proxy_nca,
  proxy_nca_pp,
)
from retrieval_jax.losses.proxy.soft_triple import soft_triple
from retrieval_jax.losses.proxy.softmax import LABEL_SMOOTHING
from retrieval_jax.losses.rows import Loss

_MARGIN = Number(most=1.0, unit='cosine')

LOSSES: dict[str, Loss] = {
  'normalized_softmax': Loss(
    normalized_softmax,
    kind='proxy',
    hyperparameters={
      'temperature': Number(),
      'label_smoothing': LABEL_SMOOTHING,
    },
    needs=('shard',),
  ),
  'p2s_grad': Loss(
    p2s_grad, kind='proxy', hyperparameters={}, needs=('shard',)
  ),
  'proxy_anchor': Loss(
    proxy_anchor,
    kind='proxy',
    hyperparameters={'margin': _MARGIN, 'alpha': Number()},
    needs=('axis_name', 'shard'),
    of_classes=True,
  ),
  'proxy_nca': Loss(
    proxy_nca,
    kind='proxy',
    hyperparameters={'softmax_scale': Number()},
    needs=('shard',),
  ),
  'proxy_nca_pp': Loss(
    proxy_nca_pp,
    kind='proxy',
    hyperparameters={'temperature': Number()},
    needs=('shard',),
  ),
  'soft_triple': Loss(
    soft_triple,
    kind='proxy',
    hyperparameters={'la': Number(), 'gamma': Number(), 'margin': _MARGIN},
    needs=('shard',),
    centers=('centers_per_class', 10),
    separate_centers=True,
  ),
  'uniface': Loss(
    uniface_lib.uniface,
    kind='proxy',
    hyperparameters={
      'margin': _MARGIN,
      'scale': Number(),
      'negative_weight': Number(),
    },
    needs=('shard',),
    params=uniface_lib.init_params,
  ),
}
