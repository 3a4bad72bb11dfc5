"""CUB-200-2011: 100 kinds of birds trained on, 100 others asked.

The protocol that the field compares by: a ResNet-50 of ImageNet, the shorter
side to 256 and the centre of 224, random resized crops and mirroring in
training, 512 dimensions, all training classes trained on, and the last step
measured: no epoch is selected. BatchNorm is frozen, the pooling is the average
and the neck one dense layer. The loss is the argument:

  ./launch.sh --config=configs/cub.py:proxy_anchor \
      --config.data.dir=CUB_200_2011

To choose between losses or rates, --config.data.validation=classes leaves a
fifth of the training classes out of training and asks them.

Published R@1 of ResNet-50 with 512 dimensions, not run here:

  normalised softmax  61.3      Proxy Anchor  69.9 (pooling average_max)
  ROADMAP             68.5      HIER          70.1
  ProxyNCA++          69.0 (pooling max, neck layer_norm_dense)
"""

import ml_collections

from configs import zero_shot
from retrieval_jax.metrics import protocols


def get_config(
  arg: str | None = None, name: str = 'cub'
) -> ml_collections.ConfigDict:
  """Returns the config.

  Args:
    arg: the loss, circle by default.
    name: one of `protocols.zero_shot.BENCHMARKS`.
  """
  config = zero_shot.get_config(arg)
  config.data.name = name
  config.num_epochs = 60
  config.eval.metrics = (
    *protocols.zero_shot.BENCHMARKS[name].metrics,
    'r_precision',
    'mean_average_precision_at_r',
  )
  # All classes train, as in the published figures.
  config.data.validation = None
  config.data.resize_size = 256
  config.data.image_size = 224
  config.data.mean = (0.485, 0.456, 0.406)
  config.data.std = (0.229, 0.224, 0.225)
  config.augment.crop_scale = (0.16, 1.0)
  config.augment.flip = 0.5
  config.model.name = 'resnet50'
  config.model.pretrained = 'timm/resnet50.a1_in1k'
  config.model.normalization = None
  config.model.frozen_batch_norm = True
  config.model.embedding_dim = 512
  # 1e-4 for what is pretrained, ten times that for the neck and a hundred times
  # for proxies, if the loss has any.
  config.optimizer.learning_rate = 1e-3
  config.optimizer.backbone_learning_rate_multiplier = 0.1
  config.optimizer.head_learning_rate_multiplier = 10.0
  config.optimizer.head_only_steps = 100
  return config
