"""ArcFace with the classes shared out over the devices (Partial FC)."""

import ml_collections

from configs import default


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
  """Returns the config; `arg` names another data set."""
  config = default.get_config(arg)
  config.loss.name = 'arcface'
  config.loss.margin_deg = 28.6
  config.loss.scale = 64.0
  config.head.sharded = True
  # Below 1, as 0.1 for millions of classes, a step looks at a sample of them.
  config.head.sample_rate = 1.0
  return config
