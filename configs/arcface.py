"""ArcFace: an additive angular margin (Deng et al., CVPR 2019)."""

import ml_collections

from configs import default


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
  """Returns the config; `arg` names another data set."""
  config = default.get_config(arg)
  config.loss.name = 'arcface'
  config.loss.margin_deg = 28.6
  config.loss.scale = 64.0
  return config
