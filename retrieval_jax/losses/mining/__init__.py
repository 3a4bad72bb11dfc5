"""Which pairs and triplets a loss looks at.

A miner of pairs takes masks and returns masks. A miner of triplets returns
`Triplets`, which a triplet loss uses as they are and a pair loss through
`triplets_to_masks`. None of them carries a gradient; what is random is a
function of `row_keys`.
"""

from retrieval_jax.core.distances import Distance
from retrieval_jax.core.hyperparameters import Choice, Number
from retrieval_jax.losses.mining.angular import RAW, angular_miner
from retrieval_jax.losses.mining.bounds import (
  TYPES_OF_TRIPLETS,
  triplet_margin_miner,
)
from retrieval_jax.losses.mining.hard_cluster import hard_cluster_miner
from retrieval_jax.losses.mining.hardest import (
  STRATEGIES,
  batch_easy_hard_miner,
  batch_hard_miner,
  hdc_miner,
  n_hard_miner,
)
from retrieval_jax.losses.mining.hyperparameters import Range, Ranks
from retrieval_jax.losses.mining.pairs import (
  multi_similarity_miner,
  packaged_triplets_miner,
  pair_margin_miner,
)
from retrieval_jax.losses.mining.sampled import (
  distance_weighted_miner,
  uniform_histogram_miner,
)
from retrieval_jax.losses.mining.triplets import (
  Bounds,
  Listed,
  Selected,
  Triplets,
  list_triplets,
  pair_counts,
  triplets_to_masks,
)
from retrieval_jax.losses.rows import Miner

__all__ = [
  'MINERS',
  'Bounds',
  'Listed',
  'Selected',
  'Triplets',
  'angular_miner',
  'batch_easy_hard_miner',
  'batch_hard_miner',
  'distance_weighted_miner',
  'hard_cluster_miner',
  'hdc_miner',
  'list_triplets',
  'multi_similarity_miner',
  'n_hard_miner',
  'packaged_triplets_miner',
  'pair_counts',
  'pair_margin_miner',
  'triplet_margin_miner',
  'triplets_to_masks',
  'uniform_histogram_miner',
]

_RANGES = {'allowed_pos_range': Range(), 'allowed_neg_range': Range()}
_PER_BIN = Number(least=1, closed=True, integer=True)

MINERS: dict[str, Miner] = {
  'angular': Miner(
    angular_miner,
    kind='triplet',
    hyperparameters={'angle': Number(most=89.0, unit='degrees')},
    distance=RAW,
    distances=('lp',),
    needs=('candidates', 'distance'),
  ),
  'batch_easy_hard': Miner(
    batch_easy_hard_miner,
    kind='pair',
    hyperparameters={
      'pos_strategy': Choice(STRATEGIES),
      'neg_strategy': Choice(STRATEGIES),
      **_RANGES,
    },
    one_each=lambda hyper: (
      'all' not in (hyper.get('pos_strategy'), hyper.get('neg_strategy'))
    ),
    needs=('inverted',),
  ),
  'batch_hard': Miner(
    batch_hard_miner,
    kind='pair',
    hyperparameters=_RANGES,
    one_each=lambda hyper: True,
    needs=('inverted',),
  ),
  'distance_weighted': Miner(
    distance_weighted_miner,
    kind='triplet',
    hyperparameters={
      'cutoff': Number(most=2.0, unit='distance on the unit sphere'),
      'nonzero_loss_cutoff': Number(unit='distance on the unit sphere'),
    },
    distances=('lp',),
    needs=('candidates', 'distance', 'row_keys'),
  ),
  'hard_cluster': Miner(
    hard_cluster_miner,
    kind='pair',
    hyperparameters={},
    distances=('lp',),
    needs=('candidates', 'labels', 'candidate_labels', 'distance'),
  ),
  'hdc': Miner(
    hdc_miner,
    kind='pair',
    hyperparameters={'filter_percentage': Number(most=1.0)},
    whole_batch=True,
    needs=('inverted',),
  ),
  'multi_similarity': Miner(
    multi_similarity_miner,
    kind='pair',
    hyperparameters={'epsilon': Number(closed=True)},
    distance=Distance('cosine'),
    needs=('inverted',),
  ),
  'n_hard': Miner(
    n_hard_miner,
    kind='pair',
    hyperparameters={'n_positive': Ranks(), 'n_negative': Ranks()},
    needs=('inverted',),
  ),
  'packaged_triplets': Miner(
    packaged_triplets_miner,
    kind='triplet',
    hyperparameters={},
    needs=('ids', 'candidate_ids'),
  ),
  'pair_margin': Miner(
    pair_margin_miner,
    kind='pair',
    hyperparameters={
      'pos_margin': Number(least=float('-inf')),
      'neg_margin': Number(least=float('-inf')),
    },
    needs=('inverted',),
  ),
  'triplet_margin': Miner(
    triplet_margin_miner,
    kind='triplet',
    hyperparameters={
      'margin': Number(unit='of the distance'),
      'type_of_triplets': Choice(TYPES_OF_TRIPLETS),
    },
    needs=('distance',),
  ),
  'uniform_histogram': Miner(
    uniform_histogram_miner,
    kind='pair',
    hyperparameters={
      'num_bins': Number(most=65536, least=1, closed=True, integer=True),
      'pos_per_bin': _PER_BIN,
      'neg_per_bin': _PER_BIN,
    },
    whole_batch=True,
    needs=('row_keys',),
  ),
}
