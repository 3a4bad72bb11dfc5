"""Triplet margin loss over all triplets of a batch (Schroff et al., 2015).

For semi-hard mining: `--config.miner.name=triplet_margin`.
"""

import ml_collections

from configs import default


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
  """Returns the config; `arg` names another data set."""
  config = default.get_config(arg)
  config.loss.name = 'triplet_margin'
  config.loss.margin = 0.05
  # Used with --config.miner.name=triplet_margin.
  config.miner.type_of_triplets = 'semihard'
  config.miner.margin = 0.2
  return config
