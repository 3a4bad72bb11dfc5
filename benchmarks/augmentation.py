r"""Augmentation of a batch of images, against torchvision's v2 transforms.

  python benchmarks/augmentation.py [--peer-python=PYTHON] [--clock=cpu]

Both sides have the batch in memory as bytes and return float32 images, each
image with draws of its own; the compiled step of this project takes the batch
at once, torchvision an image at a time, as in a DataLoader's worker. The last
of each set of cases is every operation on one image after another.
"""

import numpy as np
import paired

_CROP = {'crop_scale': (0.08, 1.0)}
_JITTER = {'brightness': 0.4, 'contrast': 0.4, 'saturation': 0.4, 'hue': 0.1}
_SETS = {
  'crop, flip': _CROP | {'flip': 0.5},
  'crop, flip, erase': _CROP | {'flip': 0.5, 'erase': 0.5},
  'rotation 15': {'rotation': 15.0},
  'color jitter': _JITTER,
  'blur': {'blur': 1.0},
  'all': _CROP
  | {'flip': 0.5, 'rotation': 15.0, 'blur': 0.5, 'erase': 0.5}
  | _JITTER,
}


def _images(batch, side, channels):
  generator = np.random.default_rng(0)
  shape = (batch, side, side, channels)
  return generator.integers(0, 256, shape, np.uint8)


def ours(batch, canvas_size, size, channels, options):
  import jax

  from retrieval_jax.data import augmentation

  options = augmentation.Augmentation.from_options(options)
  side = canvas_size if options.needs_canvas else size
  images = jax.device_put(_images(batch, side, channels))
  aspect_ratios = jax.numpy.ones(batch) if options.needs_canvas else None
  rows = jax.numpy.arange(batch)

  @jax.jit
  def run(images, step):
    key = jax.random.fold_in(jax.random.key(0), step)
    return augmentation.augment(
      images, aspect_ratios, key, rows, (size, size, channels), options
    )

  compiled = run.lower(images, 0).compile()
  step = 0

  def call():
    nonlocal step
    step += 1
    compiled(images, step).block_until_ready()

  return call


def peer(batch, canvas_size, size, channels, options):
  import torch
  from torchvision.transforms import v2

  torch.set_num_threads(1)
  needs_canvas = 'crop_scale' in options
  side = canvas_size if needs_canvas else size
  images = torch.from_numpy(
    _images(batch, side, channels).transpose(0, 3, 1, 2).copy()
  )
  steps = []
  if needs_canvas:
    scale = tuple(options['crop_scale'])
    steps.append(v2.RandomResizedCrop(size, scale=scale, antialias=True))
  if 'flip' in options:
    steps.append(v2.RandomHorizontalFlip(options['flip']))
  if 'rotation' in options:
    bilinear = v2.InterpolationMode.BILINEAR
    steps.append(v2.RandomRotation(options['rotation'], bilinear))
  jitter = {key: options[key] for key in _JITTER if key in options}
  if jitter:
    steps.append(v2.ColorJitter(**jitter))
  if 'blur' in options:
    blur = v2.GaussianBlur(13, (0.1, 2.0))
    steps.append(v2.RandomApply([blur], options['blur']))
  steps.append(v2.ToDtype(torch.float32))
  if 'erase' in options:
    steps.append(v2.RandomErasing(options['erase'], value=127.5))
  transform = v2.Compose(steps)

  def call():
    torch.stack([transform(image) for image in images])

  return call


def _cases():
  for batch, canvas_size, size, channels in (
    (32, 336, 224, 3),
    (256, 48, 32, 3),
    (256, 28, 28, 1),
  ):
    for name, options in _SETS.items():
      sizes = {
        'batch': batch,
        'canvas_size': canvas_size,
        'size': size,
        'channels': channels,
      }
      yield paired.Case(
        f'{name}, {batch} of {size}x{size}x{channels}',
        ours,
        peer,
        sizes | {'options': options},
      )


CASES = list(_cases())

if __name__ == '__main__':
  paired.main(__file__, CASES, 'torchvision')
