"""Multi-similarity loss with its miner (Wang et al., CVPR 2019)."""

import ml_collections

from configs import default


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
  """Returns the config; `arg` names another data set."""
  config = default.get_config(arg)
  config.data.classes_per_batch = 8
  config.loss.name = 'multi_similarity'
  config.loss.alpha = 2.0
  config.loss.beta = 50.0
  config.loss.base = 0.5
  config.miner.name = 'multi_similarity'
  config.miner.epsilon = 0.1
  return config
