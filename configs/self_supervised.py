"""NT-Xent between two views of each image, without labels (SimCLR)."""

import ml_collections

from configs import default


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
  """Returns the config; `arg` names another data set."""
  config = default.get_config(arg)
  config.data.batch_size = 128
  config.data.views_per_image = 2
  config.augment.crop_scale = (0.4, 1.0)
  config.augment.rotation = 15.0
  config.loss.name = 'ntxent'
  config.loss.temperature = 0.2
  config.loss.positives = 'image'
  return config
