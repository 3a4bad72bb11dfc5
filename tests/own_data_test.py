"""One recipe on a folder, a table and a TFDS set, by `data.*` alone."""

import csv
import json
import pathlib
import subprocess
import sys

import numpy as np
import PIL.Image
import pytest

import retrieval_jax
from retrieval_jax import check_data, main

pytestmark = pytest.mark.usefixtures('no_drawings')

ROOT = pathlib.Path(__file__).parents[1]
CLASSES, IMAGES = 12, 6

_WRITE_TFDS = """
import sys
import numpy as np
import tensorflow_datasets as tfds

colors = np.random.default_rng(0).integers(0, 256, (10, 1, 1, 3))

def examples(rows):
  for row in rows:
    rng = np.random.default_rng(row)
    noise = rng.integers(-20, 20, (32, 32, 3))
    image = np.clip(colors[row % 10] + noise, 0, 255).astype(np.uint8)
    yield row, {'id': f'{row}', 'image': image, 'label': row % 10}

builder = tfds.builder('cifar10')
tfds.dataset_builders.store_as_tfds_dataset(
  name='cifar10', version=str(builder.version),
  features=builder.info.features,
  split_datasets={
    'train': examples(range(80)), 'test': examples(range(80, 90))},
  data_dir=sys.argv[1], file_format='array_record')
"""


def _write_images(folder):
  """A JPEG or PNG of another size for each image; one cannot be read."""
  rng = np.random.default_rng(0)
  colors = rng.integers(0, 256, (CLASSES, 1, 1, 3))
  for label in range(CLASSES):
    (folder / f'{label:02}').mkdir(parents=True)
    for i in range(IMAGES):
      size = (40 + 3 * i, 60 - 2 * label, 3)
      noise = rng.integers(-20, 20, size)
      image = np.clip(colors[label] + noise, 0, 255).astype(np.uint8)
      name = f'{i}.jpg' if i % 2 else f'{i}.png'
      PIL.Image.fromarray(image).save(folder / f'{label:02}' / name)


@pytest.fixture(scope='module')
def images(tmp_path_factory):
  folder = tmp_path_factory.mktemp('images')
  _write_images(folder)
  return folder


@pytest.fixture(scope='module')
def table(images):
  """The same pictures in a table, the first half of the classes to train."""
  path = images.parent / 'items.csv'
  with open(path, 'w', newline='') as file:
    writer = csv.writer(file)
    writer.writerow(['path', 'label', 'split', 'is_query', 'is_gallery'])
    for i, picture in enumerate(sorted(images.glob('*/*'))):
      label = picture.parent.name
      is_train = int(label) < CLASSES // 2
      writer.writerow(
        [
          picture.relative_to(images),
          f'thing, {label}',
          'train' if is_train else 'validation',
          '' if is_train else i % IMAGES == 0,
          '' if is_train else i % IMAGES > 0,
        ]
      )
  return path


@pytest.fixture(scope='module')
def tfds_folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp('tfds')
  written = subprocess.run(
    [sys.executable, '-c', _WRITE_TFDS, str(folder)],
    capture_output=True,
    text=True,
  )
  assert not written.returncode, written.stderr
  return folder


def _train(workdir, *flags):
  return main.main(
    [
      f'--config={ROOT / "configs/zero_shot.py"}',
      f'--workdir={workdir}',
      '--config.num_train_steps=2',
      '--config.data.batch_size=8',
      '--config.data.classes_per_batch=2',
      '--config.data.validation_folds=2',
      '--config.eval.batch_size=8',
      *flags,
    ]
  )


def _protocol(workdir):
  results = json.loads((workdir / 'results.json').read_text())
  protocol = results['evaluations']['test']['protocol']
  return tuple(
    protocol[key] for key in ('num_queries', 'gallery_size', 'self_excluded')
  )


@pytest.mark.slow
def test_a_folder(images, tmp_path):
  assert not _train(
    tmp_path,
    '--config.data.name=folder',
    f'--config.data.dir={images}',
    '--config.data.image_size=16',
    '--config.augment.crop_scale=(0.5, 1.0)',
    '--config.augment.flip=0.5',
  )
  assert _protocol(tmp_path) == (36, 36, True)


def test_a_table(images, table, tmp_path):
  assert not _train(
    tmp_path,
    '--config.data.name=table',
    f'--config.data.file={table}',
    f'--config.data.dir={images}',
    '--config.data.image_size=16',
    '--config.data.resize_size=20',
  )
  assert _protocol(tmp_path) == (6, 30, False)
  # A file is embedded as the evaluation saw it.
  pictures = sorted(map(str, images.glob('*/*')))[:3]
  model = retrieval_jax.load(str(tmp_path))
  assert model.preprocessing.resize_size == 20
  one_by_one = [model.embed([picture]) for picture in pictures]
  np.testing.assert_allclose(
    model.embed(pictures), np.concatenate(one_by_one), atol=1e-6
  )


@pytest.mark.slow
def test_a_tfds_set(tfds_folder, tmp_path):
  assert not _train(
    tmp_path,
    '--config.data.name=tfds/cifar10',
    f'--config.data.dir={tfds_folder}',
    '--config.data.image_size=16',
  )
  assert _protocol(tmp_path) == (10, 80, False)


def test_the_validator_reads_what_training_reads(images, table, capsys):
  flags = [f'--data={table}', f'--root={images}', '--near_duplicates=off']
  assert check_data.main(flags) == 0
  assert '72' in capsys.readouterr().out


def test_an_unreadable_image_is_reported_and_training_goes_on(
  images, table, tmp_path, caplog
):
  torn = tmp_path / 'images'
  torn.mkdir()
  for picture in images.glob('*/*'):
    copy = torn / picture.relative_to(images)
    copy.parent.mkdir(exist_ok=True)
    content = picture.read_bytes()
    is_torn = picture.relative_to(images).as_posix() in ('08/0.png', '09/1.jpg')
    copy.write_bytes(content[: len(content) // 2] if is_torn else content)
  flags = (
    '--config.data.name=table',
    f'--config.data.file={table}',
    f'--config.data.dir={torn}',
    '--config.data.image_size=16',
  )
  assert not _train(
    tmp_path / 'run', *flags, '--config.data.max_unreadable_share=0.2'
  )
  assert _protocol(tmp_path / 'run') == (5, 29, False)
  assert '08/0.png' in caplog.text
  page = (tmp_path / 'run' / 'report.html').read_text()
  assert 'Images that cannot be read, left out' in page
  assert check_data.main([f'--data={table}', f'--root={torn}']) == 1


def test_too_many_unreadable_images_are_one_line(
  images, table, tmp_path, capsys
):
  torn = tmp_path / 'images'
  for picture in images.glob('*/*'):
    copy = torn / picture.relative_to(images)
    copy.parent.mkdir(exist_ok=True, parents=True)
    copy.write_bytes(b'')
  status = _train(
    tmp_path / 'run',
    '--config.data.name=table',
    f'--config.data.file={table}',
    f'--config.data.dir={torn}',
    '--config.data.image_size=16',
  )
  assert status == 2
  errors = capsys.readouterr().err.splitlines()
  (line,) = [line for line in errors if line.startswith('retrieval_jax: ')]
  assert 'max_unreadable_share' in line


@pytest.mark.slow
def test_five_million_rows_take_less_than_a_gibibyte():
  # The script fails above that, and if TensorFlow was imported.
  script = ROOT / 'benchmarks' / 'table_memory.py'
  measured = subprocess.run(
    [sys.executable, str(script)], capture_output=True, text=True
  )
  assert not measured.returncode, measured.stderr
  assert '5,000,000 rows, 200,000 classes' in measured.stdout


@pytest.mark.parametrize(
  'flags, words',
  [
    (['--config.data.name=folder'], 'data.dir is missing'),
    (
      ['--config.data.name=folder', '--config.data.dir=no_such_folder'],
      'no_such_folder',
    ),
    (['--config.data.fonts=no_such_folder'], 'data.fonts'),
    (['--config.data.split=disjoint'], 'data.split'),
    (['--config.data.sampler=unifrom'], "did you mean 'uniform'"),
    (['--config.data.dir=somewhere'], "data.name 'glyphs' does not take it"),
    (['--config.augment.flip=2'], 'augment.flip is 2'),
    (['--config.augment.mixup=0.2'], 'losses against proxies'),
    (
      ['--config.data.image_size=16', '--config.data.resize_size=8'],
      'at least',
    ),
  ],
)
def test_a_mistake_is_one_line(flags, words, tmp_path, capsys):
  assert _train(tmp_path / 'run', *flags) == 2
  errors = capsys.readouterr().err.splitlines()
  (line,) = [line for line in errors if line.startswith('retrieval_jax: ')]
  assert words in line
  assert not (tmp_path / 'run').exists()
