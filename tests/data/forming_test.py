import numpy as np
from absl.testing import absltest, parameterized

from retrieval_jax import data
from retrieval_jax.core.errors import InputError
from retrieval_jax.data import forming, shaping
from retrieval_jax.data import roles as roles_lib
from retrieval_jax.data.collection import NO_SPLIT, TEST, TRAIN, VALIDATION


def _collection(labels, **columns):
  """A collection whose image `row` shows the number `row`."""
  labels = np.asarray(labels, np.int32)
  images = np.zeros((len(labels), 2, 2, 1), np.uint8)
  images += np.arange(len(labels), dtype=np.uint8).reshape(-1, 1, 1, 1)
  return data.Collection(
    name='toy',
    images=data.ImageArray(images),
    labels=labels,
    class_names=tuple(f'class {c}' for c in range(labels.max() + 1)),
    image_shape=(2, 2, 1),
    **columns,
  )


def _shown(source):
  """The rows of the collection that a source has."""
  return source.images_at(np.arange(len(source)))[:, 0, 0, 0].tolist()


def _form(collection, *, roles=None, **options):
  collection = roles_lib.resolve_roles(collection, **(roles or {}))
  preprocessing = shaping.choose_preprocessing(collection)
  return forming.make_dataset(collection, preprocessing, **options)


class RolesTest(parameterized.TestCase):
  def test_given_splits_are_kept(self):
    formed = _form(
      _collection([0, 0, 1, 1, 1], split=np.array([0, 0, 2, 2, -1], np.int8))
    )
    self.assertEqual(_shown(formed.train), [0, 1])
    self.assertEqual(_shown(formed.tests['test'].query), [2, 3])
    self.assertIsNone(formed.tests['test'].gallery)
    self.assertEmpty(formed.validations)

  def test_facts_of_queries_and_gallery(self):
    formed = _form(
      _collection(
        [0, 0, 1, 1, 2],
        split=np.array([0, 0, 2, 2, 2], np.int8),
        is_query=np.array([0, 0, 1, 0, 0], bool),
        is_gallery=np.array([0, 0, 0, 1, 1], bool),
        category=np.array([0, 0, 5, 6, -1], np.int32),
        sequence=np.array([-1, 0, 7, 7, 8], np.int32),
        domain=np.array([0, 1, 0, 1, 0], np.int32),
      )
    )
    group = formed.tests['test']
    self.assertEqual(group.categories.tolist(), [5])
    self.assertEqual([x.tolist() for x in group.sequences], [[7], [7, 8]])
    self.assertEqual([x.tolist() for x in group.domains], [[0], [1, 0]])
    part = group.subset(np.array([0]), np.array([1]))
    self.assertEqual(_shown(part.gallery), [4])
    self.assertEqual([x.tolist() for x in part.sequences], [[7], [8]])
    self.assertIsNone(_form(_collection([0, 0, 1, 1])).tests['test'].sequences)

  def test_training_images_can_be_the_gallery(self):
    split = np.array([TRAIN, TRAIN, TEST], np.int8)
    formed = _form(
      _collection(
        [0, 1, 1], split=split, is_query=split == TEST, is_gallery=split == 0
      )
    )
    self.assertIs(formed.tests['test'].gallery, formed.train)
    self.assertEqual(_shown(formed.tests['test'].query), [2])

  def test_query_and_gallery_of_their_own(self):
    formed = _form(
      _collection(
        [0, 0, 1, 1, 2],
        split=np.array([0, 0, 2, 2, 2], np.int8),
        is_query=np.array([0, 0, 1, 0, 0], bool),
        is_gallery=np.array([0, 0, 0, 1, 1], bool),
      )
    )
    self.assertEqual(_shown(formed.tests['test'].query), [2])
    self.assertEqual(_shown(formed.tests['test'].gallery), [3, 4])

  def test_without_splits_some_classes_are_held_out(self):
    labels = np.repeat(np.arange(10), 3)
    with self.assertLogs('retrieval_jax', 'INFO') as logs:
      collection = roles_lib.resolve_roles(_collection(labels))
    self.assertIn('class_disjoint', logs.output[0])
    held_out = set(labels[collection.split == TEST])
    self.assertLen(held_out, 5)
    self.assertNoCommonElements(held_out, labels[collection.split == TRAIN])
    np.testing.assert_array_equal(collection.is_query, collection.is_gallery)

  def test_stratified_queries_search_in_the_training_set(self):
    formed = _form(
      _collection(np.repeat(np.arange(4), 4)),
      roles={'split': 'stratified', 'test_fraction': 0.25},
    )
    self.assertLen(formed.train, 12)
    self.assertEqual(np.bincount(formed.tests['test'].query.labels).max(), 1)
    self.assertIs(formed.tests['test'].gallery, formed.train)

  def test_one_domain_asks_the_others(self):
    formed = _form(
      _collection(
        [0, 1, 0, 1, 0],
        domain=np.array([0, 0, 1, 1, 2], np.int32),
        domain_names=('serif', 'sans', 'mono'),
      ),
      roles={'split': 'leave_one_domain_out', 'test_domain': 'sans'},
    )
    self.assertEqual(_shown(formed.tests['test'].query), [2, 3])
    self.assertEqual(_shown(formed.tests['test'].gallery), [0, 1, 4])

  def test_query_fraction_parts_the_test_images(self):
    formed = _form(
      _collection(np.repeat(np.arange(4), 4)),
      roles={'split': 'class_disjoint', 'query_fraction': 0.5},
    )
    group = formed.tests['test']
    self.assertLen(group.query, 4)
    self.assertLen(group.gallery, 4)
    self.assertNoCommonElements(_shown(group.query), _shown(group.gallery))

  @parameterized.parameters(
    ({'split': 'zero_shot'}, "data.split is 'zero_shot'"),
    ({'split': 'leave_one_domain_out'}, 'knows no domains'),
  )
  def test_bad_split_is_named(self, roles, message):
    with self.assertRaisesRegex(InputError, message):
      roles_lib.resolve_roles(_collection([0, 0, 1, 1]), **roles)

  def test_unknown_domain_gets_the_nearest(self):
    collection = _collection(
      [0, 1], domain=np.array([0, 1], np.int32), domain_names=('serif', 'mono')
    )
    with self.assertRaisesRegex(InputError, "did you mean 'serif'"):
      roles_lib.resolve_roles(
        collection, split='leave_one_domain_out', test_domain='serf'
      )


class DatasetTest(parameterized.TestCase):
  def test_training_classes_come_first_in_their_order(self):
    formed = _form(
      _collection(
        [0, 0, 1, 1, 2, 2, 3, 3],
        split=np.array([2, 2, 0, 0, 2, 2, 0, 0], np.int8),
      )
    )
    self.assertEqual(formed.num_classes, 2)
    self.assertEqual(formed.train.labels.tolist(), [0, 0, 1, 1])
    self.assertEqual(formed.tests['test'].query.labels.tolist(), [2, 2, 3, 3])
    self.assertEqual(
      formed.class_names, ('class 1', 'class 3', 'class 0', 'class 2')
    )

  def test_validation_classes_are_not_trained_on(self):
    labels = np.repeat(np.arange(12), 3)
    split = np.where(labels < 10, TRAIN, TEST).astype(np.int8)
    seen = []
    for fold in range(5):
      formed = _form(
        _collection(labels, split=split),
        validation='classes',
        validation_folds=5,
        validation_fold=fold,
      )
      group = formed.validations['validation']
      self.assertIsNone(group.gallery)
      self.assertEqual(formed.num_classes, 8)
      self.assertLen(group.query, 6)
      self.assertNoCommonElements(_shown(group.query), _shown(formed.train))
      self.assertEqual(_shown(formed.tests['test'].query), list(range(30, 36)))
      seen += _shown(group.query)
    self.assertCountEqual(seen, range(30))

  def test_validation_images_ask_the_other_training_images(self):
    labels = np.repeat(np.arange(4), 5)
    split = np.where(np.arange(20) % 5 < 4, TRAIN, TEST).astype(np.int8)
    formed = _form(
      _collection(
        labels, split=split, is_query=split == TEST, is_gallery=split == TRAIN
      ),
      validation='images',
      validation_folds=4,
    )
    group = formed.validations['validation']
    self.assertLen(group.query, 4)
    self.assertIs(group.gallery, formed.train)
    # What was taken from training stays in the gallery of the test images.
    self.assertLen(formed.tests['test'].gallery, 16)

  def test_validation_rows_of_the_data_are_used(self):
    formed = _form(
      _collection(
        [0, 0, 1, 1, 2, 2],
        split=np.array([0, 0, VALIDATION, VALIDATION, 2, 2], np.int8),
      )
    )
    self.assertEqual(_shown(formed.validations['validation'].query), [2, 3])

  def test_rows_of_no_split_are_nowhere(self):
    formed = _form(
      _collection(
        [0, 0, 1, 1, 1],
        split=np.array([0, 0, 2, 2, NO_SPLIT], np.int8),
        is_query=np.ones(5, bool),
        is_gallery=np.array([0, 0, 1, 1, 1], bool),
      )
    )
    self.assertEqual(_shown(formed.tests['test'].searched), [2, 3])

  @parameterized.named_parameters(
    ('no training rows', [2, 2, 2, 2], {}, 'no image is in the training set'),
    ('no test rows', [0, 0, 0, 0], {}, 'the test set has no queries'),
    (
      'unknown validation',
      [0, 0, 2, 2],
      {'validation': 'class'},
      "did you mean 'classes'",
    ),
    (
      'fold out of range',
      [0, 0, 2, 2],
      {'validation': 'classes', 'validation_folds': 2, 'validation_fold': 2},
      'data.validation_fold is 2; allowed are 0 to 1',
    ),
  )
  def test_bad_sets_are_refused(self, split, options, message):
    collection = _collection([0, 1, 2, 3], split=np.array(split, np.int8))
    with self.assertRaisesRegex(InputError, message):
      _form(collection, **options)

  def test_queries_in_a_larger_gallery_are_refused(self):
    collection = _collection(
      [0, 0, 1, 1, 1],
      split=np.array([0, 0, 2, 2, 2], np.int8),
      is_query=np.array([0, 0, 1, 0, 0], bool),
    )
    with self.assertRaisesRegex(InputError, 'some queries of the test set'):
      _form(collection)


if __name__ == '__main__':
  absltest.main()
