import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import unittest
from unittest import mock

import numpy as np
from absl.testing import absltest, parameterized

from retrieval_jax import data
from retrieval_jax.core.errors import InputError
from retrieval_jax.data import prepared

# Writing imports TensorFlow, which is why another process does it: this one
# shows that reading does not.
_WRITE = """
import sys
import numpy as np
import tensorflow_datasets as tfds

def examples(n, first):
  for i in range(n):
    image = np.full((28, 28, 1), first + i, np.uint8)
    image[0, :3, 0] = 0, 1, 2
    yield i, {'image': image, 'label': (first + i) % 10}

for file_format in 'array_record', 'tfrecord':
  tfds.dataset_builders.store_as_tfds_dataset(
    name='mnist',
    version='3.0.1',
    features=tfds.features.FeaturesDict({
      'image': tfds.features.Image(shape=(28, 28, 1)),
      'label': tfds.features.ClassLabel(num_classes=10),
    }),
    split_datasets={'train': examples(30, 0), 'test': examples(20, 100)},
    data_dir=f'{sys.argv[1]}/{file_format}',
    file_format=file_format,
  )
"""


def setUpModule():
  global written
  written = pathlib.Path(
    unittest.enterModuleContext(tempfile.TemporaryDirectory())
  )
  subprocess.run(
    [sys.executable, '-c', _WRITE, str(written)],
    check=True,
    capture_output=True,
  )


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
      mock.patch.object(prepared, '_reachable', lambda _: False)
    )

  def copy(self, file_format='array_record'):
    folder = self.parent / 'data'
    shutil.copytree(written / file_format, folder)
    return folder, folder / 'mnist' / '3.0.1'

  def check(self, dataset):
    self.assertEqual(dataset.name, 'mnist')
    self.assertEqual(dataset.image_shape, (28, 28, 1))
    self.assertEqual(dataset.num_classes, 10)
    self.assertEqual(dataset.class_names, tuple('0123456789'))
    self.assertIs(dataset.gallery, dataset.train)
    for source, n, first in ((dataset.train, 30, 0), (dataset.query, 20, 100)):
      self.assertLen(source, n)
      images = source.images_at(np.arange(n))
      self.assertEqual(images.dtype, np.uint8)
      self.assertEqual(source.labels.dtype, np.int32)
      values = images[:, 5, 5, 0].astype(int)
      # TFDS shuffles what it writes.
      self.assertCountEqual(values.tolist(), range(first, first + n))
      np.testing.assert_array_equal(source.labels, values % 10)
      np.testing.assert_array_equal(
        images[:, 0, :3, 0], np.tile([0, 1, 2], (n, 1))
      )

  def test_reads_and_caches(self):
    folder, _ = self.copy()
    self.check(data.load_dataset('mnist', str(folder)))
    self.assertLen(list(self.cache.iterdir()), 1)
    with mock.patch.object(prepared, '_decode_splits', side_effect=KeyError):
      self.check(data.load_dataset('mnist', str(folder)))

  def test_other_files_in_the_same_place_are_read_anew(self):
    folder, version = self.copy()
    data.load_dataset('mnist', str(folder))
    file = next(version.glob('mnist-test*'))
    os.utime(file, (1, 1))
    with (
      mock.patch.object(prepared, '_decode_splits', side_effect=KeyError),
      self.assertRaises(KeyError),
    ):
      data.load_dataset('mnist', str(folder))
    self.check(data.load_dataset('mnist', str(folder)))
    self.assertLen(list(self.cache.iterdir()), 1)

  def test_does_not_import_tensorflow(self):
    program = (
      'import sys; from retrieval_jax import data; '
      f'data.load_dataset("mnist", {str(written / "array_record")!r}); '
      'print("tensorflow" in sys.modules)'
    )
    result = subprocess.run(
      [sys.executable, '-c', program], capture_output=True, text=True, cwd=_ROOT
    )
    self.assertEqual(result.stdout.strip(), 'False', result.stderr)

  def refused(self, folder, *messages):
    with self.assertRaises(InputError) as caught:
      data.load_dataset('mnist', str(folder))
    message = str(caught.exception)
    self.assertNotIn('\n', message)
    for expected in messages:
      self.assertIn(expected, message)

  def test_without_a_network_names_both_ways_out(self):
    self.refused(
      self.parent,
      'mnist is not prepared in',
      'https://storage.googleapis.com is out of reach',
      'mnist_5k',
      '--config=configs/circle.py',
      '--config.data.dir=DIR',
    )

  def test_downloads_where_there_is_a_network(self):
    folder = self.parent / 'data'
    folder.mkdir()

    def prepare(builder, file_format):
      self.assertEqual(file_format, 'array_record')
      shutil.copytree(written / 'array_record', folder, dirs_exist_ok=True)

    with self.with_network(prepare):
      self.check(data.load_dataset('mnist', str(folder)))

  def test_a_failed_download_is_one_line(self):
    def prepare(builder, file_format):
      raise OSError('Not enough disk space.\nNeeded: 3 TB')

    with self.with_network(prepare):
      self.refused(self.parent, 'OSError: Not enough disk space.', 'mnist_5k')

  def with_network(self, prepare):
    from tensorflow_datasets.core import dataset_builder

    self.enterContext(mock.patch.object(prepared, '_reachable', lambda _: True))
    return mock.patch.object(
      dataset_builder.DatasetBuilder, 'download_and_prepare', prepare
    )

  def test_directory_that_is_missing(self):
    self.refused(self.parent / 'none', 'which does not exist')

  def test_directory_that_is_a_file(self):
    (self.parent / 'file').touch()
    self.refused(self.parent / 'file', 'which is a file')

  def test_directory_of_the_version(self):
    folder, version = self.copy()
    self.refused(version, 'two above', repr(str(folder)))

  def test_tfrecord_copy(self):
    folder, _ = self.copy('tfrecord')
    self.refused(folder, 'stored as tfrecord', 'allowed is array_record')

  @parameterized.parameters('dataset_info.json', 'mnist-test*')
  def test_half_prepared(self, pattern):
    folder, version = self.copy()
    next(version.glob(pattern)).unlink()
    self.refused(folder, 'is half prepared', str(version), 'delete that')

  @parameterized.parameters('truncated', 'overwritten')
  def test_damaged_records(self, damage):
    folder, version = self.copy()
    file = next(version.glob('mnist-train*'))
    content = file.read_bytes()
    record = content.index(b'IHDR')
    file.write_bytes(
      {
        'truncated': content[:record],
        'overwritten': content[:record] + b'x' * 99 + content[record + 99 :],
      }[damage]
    )
    self.refused(folder, "split 'train' cannot be read", 'delete that')

  def test_damaged_description(self):
    folder, version = self.copy()
    (version / 'dataset_info.json').write_text('{"name":')
    self.refused(folder, 'cannot be opened', 'mnist_5k')


_ROOT = pathlib.Path(__file__).parents[2]

if __name__ == '__main__':
  absltest.main()
