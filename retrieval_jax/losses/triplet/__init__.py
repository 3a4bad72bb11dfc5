"""Losses over the triplets of an anchor."""

from retrieval_jax.core.distances import Distance
from retrieval_jax.core.hyperparameters import FLAG, Number
from retrieval_jax.losses.rows import Loss
from retrieval_jax.losses.triplet.triplet_margin import triplet_margin

LOSSES: dict[str, Loss] = {
  'triplet_margin': Loss(
    triplet_margin,
    kind='pair',
    hyperparameters={
      'margin': Number(closed=True, unit='of the distance'),
      'swap': FLAG,
      'smooth_loss': FLAG,
      'triplets_per_anchor': Number(
        least=1, closed=True, integer=True, words=('all',)
      ),
    },
    reducer='nonzero_mean',
    distance=Distance('lp'),
    distances=('cosine', 'dot', 'lp', 'snr'),
    triplets=True,
    ordered=True,
    needs=('anchors', 'candidates', 'distance', 'row_keys'),
  ),
}
