"""Proxy Anchor (Kim et al., CVPR 2020)."""

import ml_collections

from configs import default


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
  """Returns the config; `arg` names another data set."""
  config = default.get_config(arg)
  config.loss.name = 'proxy_anchor'
  config.loss.margin = 0.1
  config.loss.alpha = 32.0
  # The authors train the proxies a hundred times as fast.
  config.optimizer.head_learning_rate_multiplier = 100.0
  return config
