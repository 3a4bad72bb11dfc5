"""Harry on digits: pooling, neck and head on the small network, dimension 50.

It starts from the seed, so that nothing is trained first and all at one rate.
`:circle` takes the class-level Circle loss; --config.data.name=mnist is full
MNIST.
"""

import ml_collections

from configs import harry_landmarks

# Ten classes of equally many images have one margin. That of landmarks shrinks
# with the images of a class, to 0.15 rad of 400, and then mAP@R is 0.92.
_ARCFACE = {'name': 'arcface', 'margin_deg': 28.6, 'scale': 45.0}


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
  """Returns the config; `arg` names the loss, arcface or circle."""
  loss = arg or 'arcface'
  config = harry_landmarks.recipe(loss)
  if loss == 'arcface':
    config.loss = ml_collections.ConfigDict(_ARCFACE)
  config.loss.sub_centers = 1
  config.data.name = 'mnist_5k'
  config.model.name = 'convnet'
  config.model.normalization = 'batch'
  config.model.embedding_dim = 50
  config.optimizer.learning_rate = 3e-3
  config.optimizer.backbone_learning_rate_multiplier = 1.0
  config.optimizer.ema_decay = 0.99
  return config
