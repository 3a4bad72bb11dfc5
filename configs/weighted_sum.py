"""A weighted sum: ArcFace on the classes, SupCon on the pairs."""

import ml_collections

from configs import default


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
  """Returns the config; `arg` names another data set."""
  config = default.get_config(arg)
  config.data.classes_per_batch = 8
  config.loss.name = 'weighted_sum'
  config.loss.parts = {
    'classes': {'name': 'arcface', 'weight': 1.0},
    'pairs': {'name': 'supcon', 'weight': 0.5},
  }
  return config
