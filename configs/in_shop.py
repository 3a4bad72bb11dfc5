"""In-shop Clothes: 3,997 items trained on, 3,985 others asked and found.

The whole pictures are taken, not the boxes (--config.data.use_boxes=True). All
else is as `cub.py` has it:

  ./launch.sh --config=configs/in_shop.py:multi_similarity \
      --config.data.dir=IN_SHOP

Published R@1 of ResNet-50 with 512 dimensions, not run here:

  normalised softmax  86.6      ProxyNCA++  90.4      HIER  92.4
"""

import ml_collections

from configs import cub


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
  """Returns the config; `arg` names the loss, circle by default."""
  config = cub.get_config(arg, 'in_shop')
  # Four times the images of CUB.
  config.num_epochs = 30
  config.optimizer.head_only_steps = 200
  return config
