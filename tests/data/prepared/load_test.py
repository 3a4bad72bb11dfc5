import errno
import io
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import unittest
from unittest import mock

import numpy as np
import PIL.Image
from absl.testing import absltest, parameterized

from retrieval_jax.core.errors import InputError
from retrieval_jax.data.collection import TEST, TRAIN
from retrieval_jax.data.prepared import builders, records
from retrieval_jax.data.prepared import load as prepared
from retrieval_jax.data.sources import ImageArray

# Writing imports TensorFlow, which is why another process does it: this one
# shows that reading does not. The features are those of the real builders.
_WRITE = """
import sys
import numpy as np
import tensorflow_datasets as tfds

def store(name, train, test, file_format='array_record', **splits):
  name, _, config = name.partition('/')
  builder = tfds.builder(f'{name}/{config}' if config else name)
  features = builder.info.features
  shape = features['image'].shape
  height, width, channels = [d or 0 for d in shape]
  with tfds.testing.mock_data(num_examples=4):
    source = builder.as_data_source('train')
    mocked = [source[i] for i in range(4)]

  def examples(rows):
    for row in rows:
      example = dict(mocked[row % 4])
      size = (height or 20 + row % 5, width or 30, channels)
      example['image'] = np.full(size, row, np.uint8)
      if 'class_id' in features:
        example['class_id'] = row // 2
        example['super_class_id'] = row // 10
      elif name == 'lfw':
        example['label'] = 'person ' + 'cab'[row % 3]
      else:
        example['label'] = row % 4
      if 'alphabet' in features:
        example['alphabet'] = row % 2
      if 'bbox' in features:
        example['bbox'] = tfds.features.BBox(
          ymin=0.25, xmin=0.1, ymax=0.5, xmax=0.9)
      yield row, example

  splits = {'train': train, 'test': test, **splits}
  tfds.dataset_builders.store_as_tfds_dataset(
    name=name,
    version=str(builder.version),
    config=config or None,
    features=features,
    split_datasets={
      key: examples(rows) for key, rows in splits.items() if rows is not None},
    data_dir=f'{sys.argv[1]}/{file_format}',
    file_format=file_format,
  )

for file_format in 'array_record', 'tfrecord':
  store('mnist', range(30), range(100, 120), file_format)
for name in ('omniglot', 'cifar10', 'cars196', 'caltech_birds2011',
             'oxford_flowers102', 'emnist/letters', 'lfw'):
  store(name, range(12), range(100, 108))
store('stanford_online_products', range(12), range(100, 108))
store('tf_flowers', range(12), None)
"""


def setUpModule():
  global written
  written = pathlib.Path(
    unittest.enterModuleContext(tempfile.TemporaryDirectory())
  )
  result = subprocess.run(
    [sys.executable, '-c', _WRITE, str(written)], capture_output=True, text=True
  )
  if result.returncode:
    raise AssertionError(result.stderr)


def values(images):
  """Returns the value that all pixels of each picture have."""
  result = []
  for row in range(len(images)):
    content = images.read(row)
    if isinstance(content, bytes):
      content = np.asarray(PIL.Image.open(io.BytesIO(content)))
    assert (content == content.flat[0]).all()
    result.append(int(content.flat[0]))
  return np.array(result)


class PreparedTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.parent = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    self.cache = self.parent / 'cache'
    self.enterContext(
      mock.patch.dict(os.environ, {'RETRIEVAL_JAX_CACHE': str(self.cache)})
    )
    # Whatever happens, no test looks for a network.
    self.enterContext(
      mock.patch.object(builders, '_reachable', lambda _: False)
    )

  def load(self, name, file_format='array_record', **options):
    options = {'dir': str(written / file_format)} | options
    return prepared.load_prepared(name, **options)

  def copy(self, file_format='array_record'):
    folder = self.parent / 'data'
    shutil.copytree(written / file_format / 'mnist', folder / 'mnist')
    return folder, folder / 'mnist' / '3.0.1'

  def check_mnist(self, rows):
    self.assertEqual(rows.name, 'mnist')
    self.assertEqual(rows.image_shape, (28, 28, 1))
    self.assertEqual(rows.class_names, tuple('0123456789'))
    self.assertEqual(rows.labels.dtype, np.int32)
    self.assertIsInstance(rows.images, ImageArray)
    pixels = values(rows.images)
    # TFDS shuffles what it writes.
    self.assertCountEqual(pixels[:30].tolist(), range(30))
    self.assertCountEqual(pixels[30:].tolist(), range(100, 120))
    np.testing.assert_array_equal(rows.labels, pixels % 4)
    self.assertEqual(rows.split.tolist(), [TRAIN] * 30 + [TEST] * 20)

  @parameterized.parameters('array_record', 'tfrecord')
  def test_reads_and_caches(self, file_format):
    self.check_mnist(self.load('mnist', file_format))
    self.assertLen(list(self.cache.glob('*.npz')), 1)
    with mock.patch.object(prepared, '_read_facts', side_effect=KeyError):
      self.check_mnist(self.load('mnist', file_format))

  @parameterized.parameters('', 'mnist', 'mnist/3.0.1')
  def test_takes_the_directory_of_builder_or_version_too(self, path):
    folder = str(written / 'array_record' / path)
    self.check_mnist(self.load('mnist', dir=folder))

  def test_takes_a_version(self):
    rows = self.load('mnist:3.*.*')
    self.assertLen(rows, 50)
    self.refused('mnist:9.9.9', 'cannot be opened', 'only: 3.0.1')

  def test_other_files_in_the_same_place_are_read_anew(self):
    folder, version = self.copy()
    self.load('mnist', dir=folder)
    os.utime(next(version.glob('mnist-test*')), (1, 1))
    with mock.patch.object(
      prepared, '_read_facts', wraps=prepared._read_facts
    ) as read:
      self.check_mnist(self.load('mnist', dir=folder))
    read.assert_called_once()
    self.assertLen(list(self.cache.glob('*.npz')), 1)

  def test_does_not_import_tensorflow(self):
    program = (
      'import sys; from retrieval_jax.data import prepared\n'
      'for name in "mnist", "cars196":\n'
      '  rows = prepared.load_prepared(name, '
      f'dir={str(written / "array_record")!r})\n'
      '  rows.images.read(1)\n'
      'print("tensorflow" in sys.modules)'
    )
    result = subprocess.run(
      [sys.executable, '-c', program], capture_output=True, text=True, cwd=_ROOT
    )
    self.assertEqual(result.stdout.strip(), 'False', result.stderr)

  @parameterized.parameters(
    # name, (H, W, C), in memory, classes, a class name
    ('omniglot', (105, 105, 3), True, 1623, None),
    ('cifar10', (32, 32, 3), True, 10, '9'),
    ('cars196', None, False, 196, 'AM General Hummer SUV 2000'),
    ('caltech_birds2011', None, False, 200, None),
    ('oxford_flowers102', None, False, 102, 'pink primrose'),
    ('emnist/letters', (28, 28, 1), True, 37, None),
    ('stanford_online_products', None, False, 22634, None),
    ('lfw', (250, 250, 3), True, 3, 'person a'),
  )
  def test_reads_the_builder(self, name, shape, in_memory, n, class_name):
    rows = self.load(name)
    self.assertEqual(rows.name, name)
    self.assertEqual(rows.image_shape, shape)
    self.assertIsInstance(
      rows.images, ImageArray if in_memory else records.ImageRecords
    )
    self.assertLen(rows.class_names, n)
    if class_name:
      self.assertIn(class_name, rows.class_names)
    pixels = values(rows.images)
    self.assertCountEqual(pixels[:12].tolist(), range(12))
    self.assertCountEqual(pixels[12:].tolist(), range(100, 108))
    if name == 'lfw':
      named = np.array(rows.class_names)[rows.labels]
      self.assertEqual(
        named.tolist(), [f'person {"cab"[value % 3]}' for value in pixels]
      )
    elif name == 'stanford_online_products':
      np.testing.assert_array_equal(rows.labels, pixels // 2)
      np.testing.assert_array_equal(rows.category, pixels // 10)
      self.assertLen(rows.category_names, 12)
    else:
      np.testing.assert_array_equal(rows.labels, pixels % 4)
    if name == 'omniglot':
      np.testing.assert_array_equal(rows.category, pixels % 2)
      self.assertLen(rows.category_names, 50)
    self.assertIsNone(rows.boxes)

  def test_what_was_kept_in_records_is_read_from_memory_and_files_alike(self):
    in_memory = values(self.load('cifar10').images)
    with mock.patch.object(prepared, '_MAX_BYTES', 20 * 32 * 32 * 3 - 1):
      rows = self.load('cifar10')
    self.assertIsInstance(rows.images, records.ImageRecords)
    self.assertEqual(rows.image_shape, (32, 32, 3))
    np.testing.assert_array_equal(values(rows.images), in_memory)
    with mock.patch.object(prepared, '_MAX_BYTES', 20 * 32 * 32 * 3):
      self.assertIsInstance(self.load('cifar10').images, ImageArray)

  def test_tfrecords_are_read_at_random_from_cached_offsets(self):
    with mock.patch.object(prepared, '_MAX_BYTES', 0):
      with self.assertLogs('retrieval_jax', 'INFO') as logs:
        first = self.load('mnist', 'tfrecord')
      self.assertIn('tfds convert_format --dataset_version_dir=', str(logs))
      with mock.patch.object(records, '_offsets', side_effect=KeyError):
        rows = self.load('mnist', 'tfrecord')
    self.assertIsInstance(rows.images, records.ImageRecords)
    pixels = values(rows.images)
    np.testing.assert_array_equal(pixels, values(first.images))
    np.testing.assert_array_equal(rows.labels, pixels % 4)

  def test_describes_a_picture_by_its_place_in_its_split(self):
    images = self.load(
      'cars196', train_split='train[2:]', test_split='test'
    ).images
    self.assertEqual(images.describe(9), 'cars196 train[2:] record 9')
    self.assertEqual(images.describe(10), 'cars196 test record 0')

  def test_boxes_are_in_pixels(self):
    rows = self.load('cars196', use_boxes=True)
    for row, box in enumerate(rows.boxes):
      width, height = PIL.Image.open(io.BytesIO(rows.images.read(row))).size
      np.testing.assert_allclose(
        box, [0.1 * width, 0.25 * height, 0.9 * width, 0.5 * height], rtol=1e-6
      )
    self.refused('cifar10', 'no box', use_boxes=True)

  # Who is asked and searched.

  def test_shared_classes_are_searched_in_the_training_records(self):
    for gallery in None, 'auto', 'train':
      rows = self.load('cifar10', gallery=gallery)
      np.testing.assert_array_equal(rows.is_gallery, rows.split == TRAIN)
      np.testing.assert_array_equal(rows.is_query, rows.split == TEST)
    rows = self.load('cifar10', gallery='test')
    self.assertIsNone(rows.is_query)
    self.assertIsNone(rows.is_gallery)

  def test_other_classes_are_searched_among_themselves(self):
    rows = self.load('stanford_online_products')
    self.assertIsNone(rows.is_query)
    self.assertIsNone(rows.is_gallery)
    self.assertEqual(rows.split.tolist(), [TRAIN] * 12 + [TEST] * 8)
    self.refused(
      'stanford_online_products', 'no query has an answer', gallery='train'
    )

  def test_a_class_of_the_test_records_alone_makes_them_their_own_gallery(self):
    for gallery, expected in (None, False), ('train', True):
      # Of 4 classes, one training record has one.
      rows = self.load(
        'cifar10', train_split='train[:1]', test_split='test', gallery=gallery
      )
      self.assertEqual(rows.is_gallery is not None, expected)

  def test_unknown_gallery(self):
    self.refused('mnist', "did you mean 'train'", gallery='trian')
    self.refused(
      'mnist', 'no test records', gallery='train', train_split='train'
    )

  # Splits.

  def test_parts_and_sums_of_splits(self):
    everything = values(self.load('mnist').images)
    rows = self.load(
      'mnist', train_split='train[50%:]+test[:5]', test_split='train[:4]'
    )
    np.testing.assert_array_equal(
      values(rows.images), everything[[*range(15, 35), *range(4)]]
    )
    self.assertEqual(rows.split.tolist(), [TRAIN] * 20 + [TEST] * 4)

  def test_parts_may_touch(self):
    rows = self.load('mnist', train_split='train[:24]', test_split='train[24:]')
    self.assertEqual(rows.split.tolist(), [TRAIN] * 24 + [TEST] * 6)

  def test_a_training_split_alone_is_not_split(self):
    for name, options, n in (
      ('mnist', {'train_split': 'all'}, 50),
      ('mnist', {'train_split': 'train'}, 30),
      ('tf_flowers', {}, 12),
    ):
      rows = self.load(name, **options)
      self.assertLen(rows, n)
      self.assertIsNone(rows.split)
      self.assertIsNone(rows.is_query)

  @parameterized.parameters(
    ('train[:80%]', 'train[70%:]', "'train[:80%]' and 'train[70%:]' have rec"),
    ('train[:24]', 'train[23:]', "'train[:24]' and 'train[23:]' have rec"),
    ('all', 'test', "'all' and 'test' have records"),
    ('train', 'train', "are 'train'"),
    ('train+train[3:4]', 'test', "'train+train[3:4]' has some records twice"),
  )
  def test_a_leak_is_refused(self, train, test, message):
    self.refused('mnist', message, train_split=train, test_split=test)

  @parameterized.parameters(
    ('tset', "data.test_split is 'tset'; did you mean 'test'"),
    ('train[', "is 'train[' (Unrecognized split format"),
    ('test[:900]', 'incompatible with 20 examples'),
    ('test[:0]', "is 'test[:0]', which is no record"),
    ('test[9:3]', 'which is no record'),
    ('all[:3]', 'does not support slice'),
  )
  def test_a_split_that_is_none(self, split, message):
    self.refused('mnist', message, test_split=split)

  # Mistakes and damage.

  def refused(self, name, *messages, **options):
    with self.assertRaises(InputError) as caught:
      self.load(name, **options)
    message = str(caught.exception)
    self.assertNotIn('\n', message)
    for expected in messages:
      self.assertIn(expected, message)

  @parameterized.parameters(
    ('cars169', "data.name is 'tfds/cars169'; did you mean 'tfds/cars196'"),
    ('emnist/leters', "did you mean 'tfds/emnist/letters'"),
    ('mnist/letters', 'Known: tfds/mnist'),
    ('huggingface:mnist', "allowed is 'tfds/' with the name"),
    ('', "allowed is 'tfds/' with the name"),
  )
  def test_unknown_names(self, name, message):
    self.refused(name, message)

  def test_builders_without_pictures_are_not_even_downloaded(self):
    self.refused('imdb_reviews', 'no image feature', 'no image classification')
    self.refused('pass', 'no label feature')

  def test_records_without_a_label(self):
    with mock.patch.object(
      prepared, '_read_facts', return_value=self.facts(label=[0, 1, -1])
    ):
      self.refused(
        'mnist',
        '1 of 3 records of mnist/3.0.1 have no label',
        train_split='train[:3]',
      )

  def facts(self, label):
    images = np.zeros((len(label), 28, 28, 1), np.uint8)
    return {'label': np.array(label), 'images': images}

  def test_without_a_network_names_both_ways_out(self):
    self.refused(
      'mnist',
      'mnist is not prepared in',
      'https://storage.googleapis.com is out of reach',
      'mnist_5k',
      '--config=configs/circle.py',
      '--config.data.dir=DIR',
      dir=self.parent,
    )

  def test_downloads_where_there_is_a_network(self):
    folder = self.parent / 'data'
    folder.mkdir()

    def prepare(builder, file_format):
      self.assertEqual(file_format, 'array_record')
      shutil.copytree(written / 'array_record', folder, dirs_exist_ok=True)

    with self.with_network(prepare):
      self.check_mnist(self.load('mnist', dir=folder))

  def test_another_process_may_prepare_first(self):
    def prepare(builder, file_format):
      shutil.copytree(written / 'array_record', self.parent, dirs_exist_ok=True)
      raise OSError(errno.ENOTEMPTY, 'Directory not empty')

    with self.with_network(prepare):
      self.check_mnist(self.load('mnist', dir=self.parent))

  def test_a_builder_may_have_no_list_of_what_it_downloads(self):
    from tensorflow_datasets.core import dataset_builder

    def prepare(builder, file_format):
      raise AssertionError('Manual directory does not exist. Create it.\nHow:')

    with (
      self.with_network(prepare),
      mock.patch.object(dataset_builder.DatasetBuilder, 'url_infos', None),
    ):
      self.refused('mnist', 'Manual directory does not', dir=self.parent)

  @parameterized.parameters(
    (OSError('Not enough disk space.\nNeeded: 3 TB'), 'Not enough disk space.'),
    (OSError(errno.ENOSPC, 'No space left on device'), 'free some space'),
  )
  def test_a_failed_download_is_one_line(self, error, message):
    def prepare(builder, file_format):
      raise error

    with self.with_network(prepare):
      self.refused('mnist', message, 'data.dir', dir=self.parent)

  def with_network(self, prepare):
    from tensorflow_datasets.core import dataset_builder

    self.enterContext(mock.patch.object(builders, '_reachable', lambda _: True))
    return mock.patch.object(
      dataset_builder.DatasetBuilder, 'download_and_prepare', prepare
    )

  def test_directory_that_is_missing(self):
    self.refused('mnist', 'which does not exist', dir=self.parent / 'none')

  def test_directory_that_is_a_file(self):
    (self.parent / 'file').touch()
    self.refused('mnist', 'which is a file', dir=self.parent / 'file')

  def test_directory_of_another_data_set(self):
    folder = written / 'array_record' / 'cifar10' / '3.0.2'
    self.refused('mnist', "holds 'cifar10/3.0.2'", "'mnist'", dir=folder)
    folder = written / 'array_record' / 'mnist' / '3.0.1'
    self.refused('mnist:3.1.*', "asks for 'mnist:3.1.*'", dir=folder)

  def test_another_version_is_named(self):
    folder, version = self.copy()
    description = version / 'dataset_info.json'
    content = json.loads(description.read_text()) | {'version': '3.0.0'}
    description.write_text(json.dumps(content))
    version.rename(version.with_name('3.0.0'))
    self.refused('mnist', "data.name 'tfds/mnist:3.0.0'", dir=folder)
    self.check_mnist_rows(self.load('mnist:3.0.0', dir=folder))

  def check_mnist_rows(self, rows):
    np.testing.assert_array_equal(rows.labels, values(rows.images) % 4)

  def test_other_formats_are_refused(self):
    folder, version = self.copy()
    description = version / 'dataset_info.json'
    content = json.loads(description.read_text()) | {'fileFormat': 'riegeli'}
    description.write_text(json.dumps(content))
    self.refused(
      'mnist', 'stored as riegeli', 'array_record and tfrecord', dir=folder
    )

  def test_both_formats_side_by_side_are_read_as_array_record(self):
    folder, version = self.copy('tfrecord')
    for file in (written / 'array_record/mnist/3.0.1').glob('mnist-*'):
      shutil.copy(file, version)
    description = version / 'dataset_info.json'
    content = json.loads(description.read_text())
    content['alternativeFileFormats'] = ['array_record']
    description.write_text(json.dumps(content))
    with mock.patch.object(records, '_offsets', side_effect=KeyError):
      self.check_mnist(self.load('mnist', dir=folder))

  @parameterized.parameters('dataset_info.json', 'mnist-test*')
  def test_half_prepared(self, pattern):
    folder, version = self.copy()
    next(version.glob(pattern)).unlink()
    self.refused(
      'mnist', 'is half prepared', str(version), 'delete', dir=folder
    )
    self.refused('mnist', 'half prepared', 'delete', dir=version)

  @parameterized.product(
    damage=('truncated', 'overwritten'),
    file_format=('array_record', 'tfrecord'),
  )
  def test_damaged_records(self, damage, file_format):
    folder, version = self.copy(file_format)
    file = next(version.glob('mnist-train*'))
    content = file.read_bytes()
    record = content.index(b'IHDR')
    file.write_bytes(
      {
        'truncated': content[:record],
        'overwritten': content[:record] + b'x' * 99 + content[record + 99 :],
      }[damage]
    )
    self.refused('mnist', 'cannot be read', 'delete that', dir=folder)

  def test_damaged_description(self):
    folder, version = self.copy()
    for file in 'features.json', 'dataset_info.json':
      (version / file).write_text('{"name":')
      self.refused('mnist', 'cannot be opened', 'mnist_5k', dir=folder)
      self.refused('mnist', 'cannot be opened', dir=version)


_ROOT = pathlib.Path(__file__).parents[3]

if __name__ == '__main__':
  absltest.main()
