"""Supervised contrastive learning (Khosla et al., NeurIPS 2020)."""

import ml_collections

from configs import default


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
  """Returns the config; `arg` names another data set."""
  config = default.get_config(arg)
  config.data.classes_per_batch = 8
  config.loss.name = 'supcon'
  config.loss.temperature = 0.1
  return config
