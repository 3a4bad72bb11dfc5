r"""Batches of small images in memory, against torch's DataLoader.

  python benchmarks/loader.py [--peer-python=PYTHON]

A call makes 200 batches, sampler included; the peer's epoch and its shuffling
run on through the calls, as ours do. Uniform sampling meets
`DataLoader(TensorDataset, shuffle=True)`, P classes x K images meet the same
with pytorch-metric-learning's `MPerClassSampler`. No batch may take more than
a millisecond: 200 ms in the column of this project.
"""

import numpy as np
import paired

_BATCHES = 200
_BATCH_SIZE = 256


def _arrays(num_images, num_classes):
  """Returns images [N, 28, 28, 1] uint8 and labels [N] int32."""
  generator = np.random.default_rng(0)
  images = generator.integers(0, 256, (num_images, 28, 28, 1), np.uint8)
  labels = np.arange(num_images, dtype=np.int32) % num_classes
  return images, generator.permutation(labels)


def ours(num_images, num_classes, classes_per_batch):
  from retrieval_jax import data

  source = data.Source.of_array(*_arrays(num_images, num_classes))
  sampler = data.make_sampler(
    source.labels,
    seed=0,
    batch_size=_BATCH_SIZE,
    classes_per_batch=classes_per_batch,
  )
  load_batch = data.TrainLoader(source, sampler)
  step = 0

  def call():
    nonlocal step
    loaded = 0
    for _ in range(_BATCHES):
      loaded += len(load_batch(step)['images'])
      step += 1
    return loaded

  return call


def peer(num_images, num_classes, classes_per_batch):
  import torch
  from torch.utils import data

  images, labels = _arrays(num_images, num_classes)
  dataset = data.TensorDataset(
    torch.from_numpy(images), torch.from_numpy(labels)
  )
  options = {'shuffle': True}
  if classes_per_batch:
    from pytorch_metric_learning import samplers

    options = {
      'sampler': samplers.MPerClassSampler(
        labels,
        m=_BATCH_SIZE // classes_per_batch,
        batch_size=_BATCH_SIZE,
        length_before_new_iter=num_images,
      )
    }
  loader = data.DataLoader(
    dataset, batch_size=_BATCH_SIZE, drop_last=True, **options
  )

  def endless():
    while True:
      yield from loader

  batches = endless()

  def call():
    return sum(len(next(batches)[0]) for _ in range(_BATCHES))

  return call


def _case(name, num_images, num_classes, classes_per_batch):
  return paired.Case(
    f'{_BATCHES} batches of {_BATCH_SIZE}: {name}',
    ours,
    peer,
    {
      'num_images': num_images,
      'num_classes': num_classes,
      'classes_per_batch': classes_per_batch,
    },
  )


CASES = [
  _case('uniform, 60,000 images', 60_000, 10, 0),
  _case('8 x 32, 60,000 images, 10 classes', 60_000, 10, 8),
  _case('64 x 4, 240,000 images, 12,000 classes', 240_000, 12_000, 64),
]

if __name__ == '__main__':
  paired.main(__file__, CASES, 'torch')
