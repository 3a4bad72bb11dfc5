"""Smooth-AP (Brown et al., ECCV 2020)."""

import ml_collections

from configs import default


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
  """Returns the config; `arg` names another data set."""
  config = default.get_config(arg)
  config.data.batch_size = 64
  config.data.classes_per_batch = 8
  config.loss.name = 'smooth_ap'
  config.loss.temperature = 0.01
  return config
