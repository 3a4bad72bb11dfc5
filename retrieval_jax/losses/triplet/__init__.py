"""Losses over the triplets of an anchor."""

import dataclasses

from retrieval_jax.core.distances import Distance
from retrieval_jax.losses.rows import FLAG, Loss, Number
from retrieval_jax.losses.triplet.triplet_margin import triplet_margin


@dataclasses.dataclass(frozen=True)
class _AllOr(Number):
  """A number, or 'all'."""

  def complaint(self, value: object) -> str | None:
    """Returns what is allowed, if the value is not."""
    if value == 'all':
      return None
    allowed = super().complaint(value)
    return None if allowed is None else f"{allowed}, or 'all'"


LOSSES: dict[str, Loss] = {
  'triplet_margin': Loss(
    triplet_margin,
    kind='pair',
    hyperparameters={
      'margin': Number(closed=True, unit='of the distance'),
      'swap': FLAG,
      'smooth_loss': FLAG,
      'triplets_per_anchor': _AllOr(least=1, closed=True, integer=True),
    },
    reducer='nonzero_mean',
    distance=Distance('lp'),
    distances=('cosine', 'dot', 'lp', 'snr'),
    triplets=True,
    ordered=True,
    needs=('candidates', 'distance', 'row_keys'),
  ),
}
