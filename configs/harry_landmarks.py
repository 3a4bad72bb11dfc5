"""Harry: landmarks, from pretrained weights, in stages of growing images.

ResNet-50, GeM, dense and BatchNorm to 512 dimensions, three sub-centres a class
on proxies that are shared out over the devices, and ArcFace with larger margins
for the classes with fewer images. It learns the 1,580,470 images of 81,313
landmarks of GLDv2-clean, at 224, 384 and 512 pixels:

  ./launch.sh --config=configs/harry_landmarks.py --config.data.dir=GLDV2

`:circle` takes the class-level Circle loss. All is measured at 512 pixels.

Batches are for four devices of 24 GB; none was at hand, so that neither memory
nor time nor what comes out is measured. Half the `batch_size` and twice the
`accumulate_steps` of a stage (--config.stages.0.batch_size=256) needs half of
the memory and is the same but for BatchNorm.

Published, not run here, mAP@100 of the GLDv2 retrieval test, private part:
30.59 of a ResNet-50 at 256 pixels (2021, 2nd place), 47.8 of the winner's best
convolutional network alone, at 768 pixels.
"""

import ml_collections

from configs import default

LOSSES = {
  # Margins from 0.05 of the largest class to 0.5, with the scale of the winners
  # of 2021 in place of ArcFace's 64.
  'arcface': {
    'name': 'dynamic_margin',
    'margin_min': 0.05,
    'margin_max': 0.5,
    'scale': 45.0,
  },
  # Pulls harder than ArcFace at the start and less near the optimum.
  'circle': {'name': 'circle_classification', 'margin': 0.4, 'scale': 80.0},
}


def recipe(loss: str = 'arcface') -> ml_collections.ConfigDict:
  """Returns what every Harry has, whatever its backbone, data and size.

  Args:
    loss: one of `LOSSES`.
  """
  if loss not in LOSSES:
    raise ValueError(f'{loss!r} is no loss of Harry: {", ".join(LOSSES)}')
  config = default.get_config()
  config.model.pooling = 'gem'
  config.model.neck = 'dense_batch_norm'
  config.loss = ml_collections.ConfigDict(LOSSES[loss])
  # A landmark has sides, a digit ways to write it.
  config.loss.sub_centers = 3
  config.head.sharded = True
  # Random proxies have nothing to teach a pretrained backbone: docs/harry.md.
  config.head.init = 'class_mean'
  # What is new learns ten times as fast as what is pretrained.
  config.optimizer.learning_rate = 1e-3
  config.optimizer.backbone_learning_rate_multiplier = 0.1
  config.optimizer.clip_norm = 5.0
  config.optimizer.ema_decay = 0.9999
  return config


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
  """Returns the config.

  Args:
    arg: the loss, arcface or circle.
  """
  config = recipe(arg or 'arcface')
  data, model = config.data, config.model

  data.name = 'gldv2'
  data.subset = 'clean'
  # Of ImageNet, for which the weights are.
  data.mean = (0.485, 0.456, 0.406)
  data.std = (0.229, 0.224, 0.225)
  # Images of a class are drawn as often as it has them: P x K batches cost the
  # 2nd place of 2021 three points.
  data.classes_per_batch = 0
  config.augment.crop_scale = (0.25, 1.0)
  config.augment.flip = 0.5
  config.augment.erase = 0.5
  model.name = 'resnet50'
  model.pretrained = 'timm/resnet50.a1_in1k'
  model.embedding_dim = 512
  model.dtype = 'bfloat16'
  # For rankings of the index, 761,757 images.
  config.eval.memory_budget_mb = 1024

  config.optimizer.warmup_steps = 1000
  # Each update sees 512 images, in parts of as many pixels in every stage.
  config.stages = (
    {'image_size': 224, 'num_epochs': 8, 'batch_size': 512},
    {
      'image_size': 384,
      'num_epochs': 5,
      'batch_size': 256,
      'accumulate_steps': 2,
      'learning_rate': 3e-4,
    },
    {
      'image_size': 512,
      'num_epochs': 2,
      'batch_size': 128,
      'accumulate_steps': 4,
      'learning_rate': 1e-4,
    },
  )
  return config
