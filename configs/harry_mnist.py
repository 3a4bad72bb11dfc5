"""Harry on digits: pooling, neck and head on the small network, dimension 50.

It starts from the seed, so that nothing is trained first and all at one rate.
`:circle` takes the class-level Circle loss; --config.data.name=mnist is full
MNIST.
"""

import ml_collections

from configs import harry_landmarks


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
  """Returns the config; `arg` names the loss, arcface or circle."""
  config = harry_landmarks.recipe(arg or 'arcface')
  config.data.name = 'mnist_5k'
  config.model.name = 'convnet'
  config.model.normalization = 'batch'
  config.model.embedding_dim = 50
  config.optimizer.backbone_learning_rate_multiplier = 1.0
  config.optimizer.ema_decay = 0.99
  return config
