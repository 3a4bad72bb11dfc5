"""Zero-shot retrieval: half of the classes are trained on, the others asked.

The embedded set `glyphs` has many classes of few images: characters, each drawn
in some fonts. A third kind of class, one fold of the training classes, selects
the epoch; the test classes have no say. The same recipe runs on one's own
images by changing `data.*` alone:

  --config=configs/zero_shot.py --config.data.name=folder \
      --config.data.dir=FOLDER --config.data.image_size=64
"""

import ml_collections

from configs import default

# The hyperparameters that the field knows these losses by; any other loss comes
# with its own defaults.
_LOSSES = {
  'circle': {'margin': 0.4, 'scale': 80.0},
  'triplet_margin': {'margin': 0.05},
  'arcface': {'margin_deg': 28.6, 'scale': 64.0},
  'cosface': {'margin': 0.35, 'scale': 64.0},
}


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
  """Returns the config; `arg` names the loss, circle by default."""
  name = arg or 'circle'
  config = default.get_config('glyphs')
  config.num_epochs = 10
  config.data.validation = 'classes'
  # Pairs of a class are rare in a uniform batch of so many classes.
  config.data.batch_size = 128
  config.data.classes_per_batch = 32
  config.data.mean = (0.5,)
  config.data.std = (0.5,)
  config.model.embedding_dim = 128
  config.model.normalization = 'batch'
  config.loss.name = name
  config.loss.update(_LOSSES.get(name, {}))
  return config
