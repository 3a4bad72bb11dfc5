"""Sub-center ArcFace (Deng et al., ECCV 2020)."""

import ml_collections

from configs import default


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
  """Returns the config; `arg` names another data set."""
  config = default.get_config(arg)
  config.loss.name = 'subcenter_arcface'
  config.loss.margin_deg = 28.6
  config.loss.scale = 64.0
  config.loss.sub_centers = 3
  return config
