import numpy as np
from absl.testing import absltest, parameterized

from retrieval_jax import data
from retrieval_jax.core.errors import InputError
from retrieval_jax.data import forming, mixing, shaping
from retrieval_jax.data import roles as roles_lib
from retrieval_jax.data.collection import TEST, TRAIN


def _member(labels, split, first, **columns):
  """A data set whose image `row` shows the number `first + row`."""
  labels = np.asarray(labels, np.int32)
  images = np.zeros((len(labels), 2, 2, 1), np.uint8)
  images += np.arange(len(labels), dtype=np.uint8).reshape(-1, 1, 1, 1)
  collection = data.Collection(
    name='toy',
    images=data.ImageArray(images + np.uint8(first)),
    labels=labels,
    class_names=tuple(f'class {c}' for c in range(labels.max() + 1)),
    split=np.asarray(split, np.int8),
    image_shape=(2, 2, 1),
    **columns,
  )
  return forming.make_dataset(
    roles_lib.resolve_roles(collection),
    shaping.choose_preprocessing(collection),
  )


def _shown(source):
  return source.images_at(np.arange(len(source)))[:, 0, 0, 0].tolist()


class MixtureTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    # Class 0 is tested and class 1 trained on, so labels change places.
    self.one = _member([0, 0, 1, 1, 1], [TEST] * 2 + [TRAIN] * 3, first=10)
    self.two = _member([0, 0, 1, 2, 2], [TRAIN] * 3 + [TEST] * 2, first=20)
    self.mixed = mixing.mix_datasets({'one': self.one, 'two': self.two})

  def test_training_sets_are_joined_in_order(self):
    self.assertEqual(_shown(self.mixed.train), [12, 13, 14, 20, 21, 22])
    self.assertEqual(self.mixed.parts.tolist(), [0, 3, 6])
    self.assertEqual(self.mixed.num_classes, 3)
    self.assertEqual(self.mixed.train.labels.tolist(), [0, 0, 0, 1, 1, 2])

  def test_no_class_is_shared(self):
    self.assertEqual(
      self.mixed.class_names,
      (
        'one/class 1',
        'two/class 0',
        'two/class 1',
        'one/class 0',
        'two/class 2',
      ),
    )
    tests = self.mixed.tests
    self.assertEqual(tests['one/test'].query.labels.tolist(), [3, 3])
    self.assertEqual(tests['two/test'].query.labels.tolist(), [4, 4])

  def test_each_keeps_its_own_tests(self):
    self.assertEqual(list(self.mixed.tests), ['one/test', 'two/test'])
    self.assertEqual(_shown(self.mixed.tests['one/test'].query), [10, 11])
    self.assertEqual(_shown(self.mixed.tests['two/test'].query), [23, 24])

  def test_member_without_categories_is_one_category(self):
    two = _member(
      [0, 0, 1, 1],
      [TRAIN, TRAIN, TEST, TEST],
      first=20,
      category=np.array([0, 1, 0, 0], np.int32),
      category_names=('a', 'b'),
    )
    mixed = mixing.mix_datasets({'one': self.one, 'two': two})
    self.assertEqual(mixed.categories.tolist(), [0, 0, 0, 1, 2])

  def test_boxes_of_one_member_leave_the_others_whole(self):
    boxes = np.array([[0, 0, 1, 1]] * 4, np.float32)
    two = _member(
      [0, 0, 1, 1], [TRAIN, TRAIN, TEST, TEST], first=20, boxes=boxes
    )
    mixed = mixing.mix_datasets({'one': self.one, 'two': two})
    self.assertEqual(
      np.isnan(mixed.train.boxes[:, 0]).tolist(), [True] * 3 + [False] * 2
    )

  def test_names_are_those_of_the_own_store(self):
    names = [self.mixed.train.describe(row) for row in (0, 5)]
    self.assertEqual(names, ['image 2', 'image 2'])

  def test_one_member_is_no_mixture(self):
    with self.assertRaisesRegex(InputError, 'data.members has 1'):
      mixing.mix_datasets({'one': self.one})


if __name__ == '__main__':
  absltest.main()
