"""CosFace: an additive cosine margin (Wang et al., CVPR 2018)."""

import ml_collections

from configs import default


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
  """Returns the config; `arg` names another data set."""
  config = default.get_config(arg)
  config.loss.name = 'cosface'
  config.loss.margin = 0.35
  config.loss.scale = 64.0
  return config
