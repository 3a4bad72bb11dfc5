"""Contrastive loss on the pairs that violate the margins."""

import ml_collections

from configs import default


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
  """Returns the config; `arg` names another data set."""
  config = default.get_config(arg)
  config.data.classes_per_batch = 8
  config.loss.name = 'contrastive'
  config.loss.pos_margin = 0.0
  config.loss.neg_margin = 1.0
  return config
