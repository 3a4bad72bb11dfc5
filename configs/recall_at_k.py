"""Recall@k surrogate on large batches (Patel et al., CVPR 2022)."""

import ml_collections

from configs import default


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
  """Returns the config; `arg` names another data set."""
  config = default.get_config(arg)
  config.data.batch_size = 512
  config.data.classes_per_batch = 10
  config.gradient_cache.chunk_size = 128
  config.loss.name = 'recall_at_k'
  return config
