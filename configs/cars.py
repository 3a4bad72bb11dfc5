"""Cars-196: 98 models trained on, 98 others asked; all else as `cub.py`.

  ./launch.sh --config=configs/cars.py:proxy_anchor --config.data.dir=CARS

Published R@1 of ResNet-50 with 512 dimensions, not run here:

  normalised softmax  84.2      HIER               88.2
  ProxyNCA++          86.5      Recall@k           80.7, with SiMix 88.3
  Proxy Anchor        87.7      PFML               92.7
"""

import ml_collections

from configs import cub


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
  """Returns the config; `arg` names the loss, circle by default."""
  return cub.get_config(arg, 'cars')
