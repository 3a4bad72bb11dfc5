"""The rows of the softmax losses with a margin."""

import math

from retrieval_jax.core.hyperparameters import FLAG, Choice, Number
from retrieval_jax.losses.proxy.adacos import adacos, adacos_state
from retrieval_jax.losses.proxy.margin_softmax import (
  arcface,
  combined_margin,
  cosface,
  subcenter_arcface,
)
from retrieval_jax.losses.proxy.multiplicative_margin import (
  large_margin_softmax,
  sphereface,
)
from retrieval_jax.losses.proxy.norm_margin import (
  adaface,
  adaface_state,
  magface,
)
from retrieval_jax.losses.proxy.reweighted import (
  circle_classification,
  curricularface,
  curricularface_state,
)
from retrieval_jax.losses.proxy.softmax import LABEL_SMOOTHING
from retrieval_jax.losses.proxy.varied_margin import dynamic_margin, elasticface
from retrieval_jax.losses.rows import Loss

_SCALE = Number()
_COSINE = Number(most=1.0, unit='cosine')
_RADIANS = Number(most=math.pi / 2, unit='radians')
_RADIANS_OR_0 = Number(most=math.pi / 2, closed=True, unit='radians')
_WHOLE = Number(most=16, least=1, closed=True, integer=True)
_DECAY = Number(most=0.999999, closed=True)
_ARCFACE = {
  'margin_deg': Number(most=90.0, unit='degrees'),
  'scale': _SCALE,
  'label_smoothing': LABEL_SMOOTHING,
}

LOSSES: dict[str, Loss] = {
  'adacos': Loss(
    adacos,
    kind='proxy',
    hyperparameters={'dynamic': FLAG},
    needs=('axis_name', 'shard'),
    state=adacos_state,
  ),
  'adaface': Loss(
    adaface,
    kind='proxy',
    hyperparameters={
      'margin': _COSINE,
      'h': Number(),
      'decay': _DECAY,
      'scale': _SCALE,
    },
    needs=('norms', 'axis_name', 'shard'),
    state=adaface_state,
  ),
  'arcface': Loss(
    arcface, kind='proxy', hyperparameters=_ARCFACE, needs=('shard',)
  ),
  'circle_classification': Loss(
    circle_classification,
    kind='proxy',
    hyperparameters={
      'margin': _COSINE,
      'scale': _SCALE,
      'stop_gradient': FLAG,
      'label_smoothing': LABEL_SMOOTHING,
    },
    needs=('shard',),
  ),
  'combined_margin': Loss(
    combined_margin,
    kind='proxy',
    hyperparameters={
      'm1': Number(),
      'm2': _RADIANS_OR_0,
      'm3': Number(most=1.0, closed=True, unit='cosine'),
      'scale': _SCALE,
      'filter_threshold': Number(most=1.0, unit='cosine', optional=True),
    },
    needs=('shard',),
  ),
  'cosface': Loss(
    cosface,
    kind='proxy',
    hyperparameters={
      'margin': _COSINE,
      'scale': _SCALE,
      'label_smoothing': LABEL_SMOOTHING,
    },
    needs=('shard',),
  ),
  'curricularface': Loss(
    curricularface,
    kind='proxy',
    hyperparameters={'margin': _RADIANS, 'decay': _DECAY, 'scale': _SCALE},
    needs=('axis_name', 'shard'),
    state=curricularface_state,
  ),
  'dynamic_margin': Loss(
    dynamic_margin,
    kind='proxy',
    hyperparameters={
      'margin_min': _RADIANS_OR_0,
      'margin_max': _RADIANS,
      'exponent': Number(),
      'label_smoothing': LABEL_SMOOTHING,
      'scale': _SCALE,
    },
    needs=('class_counts', 'shard'),
  ),
  'elasticface': Loss(
    elasticface,
    kind='proxy',
    hyperparameters={
      'base': Choice(('arc', 'cos')),
      'margin': Number(most=math.pi / 2, optional=True),
      'sigma': Number(closed=True),
      'plus': FLAG,
      'scale': _SCALE,
    },
    needs=('row_keys', 'axis_name', 'shard'),
  ),
  'large_margin_softmax': Loss(
    large_margin_softmax,
    kind='proxy',
    hyperparameters={'margin': _WHOLE, 'scale': _SCALE},
    needs=('norms', 'proxy_norms', 'shard'),
  ),
  'magface': Loss(
    magface,
    kind='proxy',
    hyperparameters={
      'margin_min': _RADIANS_OR_0,
      'margin_max': _RADIANS,
      'norm_min': Number(),
      'norm_max': Number(),
      'lambda_g': Number(closed=True),
      'scale': _SCALE,
    },
    needs=('norms', 'shard'),
  ),
  'sphereface': Loss(
    sphereface,
    kind='proxy',
    hyperparameters={'margin': _WHOLE, 'scale': _SCALE},
    needs=('norms', 'shard'),
  ),
  'subcenter_arcface': Loss(
    subcenter_arcface,
    kind='proxy',
    hyperparameters=_ARCFACE,
    needs=('shard',),
    centers=('sub_centers', 3),
  ),
}
