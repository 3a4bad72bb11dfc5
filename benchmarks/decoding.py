r"""JPEG files to arrays of 224 x 224, against Pillow and torchvision.

  python benchmarks/decoding.py [--peer-python=PYTHON]

The two photographs of scikit-learn (640 x 427), cut and mirrored into 64
different ones of 500 x 375, quality 90, 4:2:0. A call takes each once. The
value is the mean of some pixels, which antialiased resizings share but for
rounding.

'view' is the shorter side to 256 and the centre 224 x 224; 'squash' the whole
to a square, as it is held for crops on the device. Pillow resizes bilinearly,
which antialiases. Its `draft`, like our decoder, takes a JPEG at a fraction of
its size where that is enough: not here, but at 2000 x 1500, to which the same
photographs are enlarged. torchvision reads files by `datasets.ImageFolder` with
its default loader, in a DataLoader: without workers on one core, and with as
many workers as we have threads on two.

With `--clock=cpu` other programs disturb less, but the processes of a
DataLoader are not counted: take the wall clock for two cores.
"""

import io
import os
import pathlib
import tempfile

import numpy as np
import paired
import PIL.Image

_NUM_IMAGES = 64
_BATCH_SIZE = 32


def _jpegs(width=500):
  """Returns the bytes of 64 JPEG files, width x 3/4 width."""
  from sklearn import datasets

  generator = np.random.default_rng(0)
  files = []
  for i in range(_NUM_IMAGES):
    photograph = datasets.load_sample_images().images[i % 2]
    # 560 x 420 has the aspect ratio of 500 x 375.
    left, top = generator.integers(0, (640 - 560 + 1, 427 - 420 + 1))
    cut = photograph[top : top + 420, left : left + 560][
      :, :: 1 - 2 * (i % 4 > 1)
    ]
    picture = PIL.Image.fromarray(np.ascontiguousarray(cut)).resize(
      (width, width * 3 // 4), PIL.Image.Resampling.LANCZOS
    )
    file = io.BytesIO()
    picture.save(file, 'JPEG', quality=90, subsampling='4:2:0')
    files.append(file.getvalue())
  return files


def _folder():
  """Writes the files into a folder with one class; returns it, to be kept."""
  folder = tempfile.TemporaryDirectory()
  path = pathlib.Path(folder.name) / 'photographs'
  path.mkdir()
  for i, content in enumerate(_jpegs()):
    (path / f'{i:02}.jpg').write_bytes(content)
  return folder


def ours_prepare(width, side):
  from retrieval_jax.data import preprocessing

  files = _jpegs(width)
  prepare = preprocessing.Preprocessing(
    (224, 224, 3), resize_size=256, canvas_size=side
  ).prepare
  return lambda: _mean(prepare(f, canvas=side > 0)[0] for f in files)


def pillow_prepare(width, side):
  files = _jpegs(width)

  def prepare(file):
    picture = PIL.Image.open(io.BytesIO(file))
    picture.draft('RGB', (side or 256,) * 2)
    picture = picture.convert('RGB')
    size = (side, side)
    if not side:
      size = (int(256 * picture.width / picture.height), 256)
    image = np.asarray(picture.resize(size, PIL.Image.Resampling.BILINEAR))
    if side:
      return image
    top, left = (size[1] - 224) // 2, (size[0] - 224) // 2
    return image[top : top + 224, left : left + 224]

  return lambda: _mean(prepare(f) for f in files)


def _mean(images):
  """Returns the mean of some pixels of all images, which costs little."""
  return float(np.mean([image[::8, ::8].mean() for image in images]))


def ours_load(cores):
  from retrieval_jax.core.strings import Strings
  from retrieval_jax.data import preprocessing, sources

  _use(cores)
  folder = _folder()
  names = Strings.of(f'photographs/{i:02}.jpg' for i in range(_NUM_IMAGES))
  source = sources.Source(
    sources.ImageFiles(folder.name, names),
    np.zeros(_NUM_IMAGES, np.int32),
    preprocessing.Preprocessing((224, 224, 3), resize_size=256),
    num_threads=cores,
  )

  def call():
    rows = np.arange(_NUM_IMAGES).reshape(-1, _BATCH_SIZE)
    assert folder
    return _mean(image for r in rows for image in source.images_at(r))

  return call


def torchvision_load(cores):
  import torch
  from torchvision import datasets
  from torchvision.transforms import v2

  _use(cores)
  folder = _folder()
  transform = v2.Compose([v2.Resize(256), v2.CenterCrop(224), v2.PILToTensor()])
  loader = torch.utils.data.DataLoader(
    datasets.ImageFolder(folder.name, transform),
    batch_size=_BATCH_SIZE,
    num_workers=0 if cores == 1 else cores,
    persistent_workers=cores > 1,
  )

  def call():
    assert folder
    return _mean(
      image
      for batch, _ in loader
      for image in batch.numpy().transpose(0, 2, 3, 1)
    )

  return call


def _use(cores):
  """Lets this process run on so many cores, the last ones of the machine."""
  last = os.cpu_count()
  os.sched_setaffinity(0, range(last - cores, last))


CASES = [
  paired.Case(
    f'{_NUM_IMAGES} JPEG of width {width}, {name}, Pillow',
    ours_prepare,
    pillow_prepare,
    {'width': width, 'side': side},
    bar=0.5 if width == 500 else None,
  )
  for width, name, side in (
    (500, 'view', 0),
    (500, 'squash to 224', 224),
    (500, 'squash to 336', 336),
    (2000, 'view', 0),
  )
] + [
  paired.Case(
    f'{_NUM_IMAGES} files, view, torchvision, cores: {cores}',
    ours_load,
    torchvision_load,
    {'cores': cores},
    bar=1,
  )
  for cores in (1, 2)
]

if __name__ == '__main__':
  paired.main(__file__, CASES, 'peer')
