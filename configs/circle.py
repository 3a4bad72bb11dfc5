"""Circle loss over the pairs of a batch (Sun et al., CVPR 2020)."""

import ml_collections

from configs import default


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
  """Returns the config; `arg` names another data set."""
  config = default.get_config(arg)
  config.loss.name = 'circle'
  config.loss.margin = 0.4
  config.loss.scale = 80.0
  return config
