import numpy as np
from absl.testing import absltest, parameterized

from retrieval_jax import data
from retrieval_jax.core.errors import InputError
from retrieval_jax.data import shaping


def _collection(image_shape):
  return data.Collection(
    name='toy',
    images=data.ImageArray(np.zeros((1, 2, 2, 1), np.uint8)),
    labels=np.zeros(1, np.int32),
    class_names=('a',),
    image_shape=image_shape,
  )


class ShapingTest(parameterized.TestCase):
  @parameterized.parameters(
    ((28, 28, 1), {}, (28, 28, 1), 28, 28),
    ((28, 28, 1), {'channels': 3}, (28, 28, 3), 28, 28),
    ((30, 20, 3), {}, (30, 20, 3), 20, 45),
    (None, {'image_size': 224}, (224, 224, 3), 224, 336),
    (None, {'image_size': 224, 'resize_size': 256}, (224, 224, 3), 256, 336),
    (
      None,
      {'image_size': 8, 'canvas_size': 10, 'channels': 1},
      (8, 8, 1),
      8,
      10,
    ),
  )
  def test_sizes(self, own, options, shape, resize, canvas):
    collection = _collection(own)
    chosen = shaping.choose_preprocessing(collection, **options)
    self.assertEqual(chosen.image_shape, shape)
    self.assertEqual(chosen.resize_size, resize)
    self.assertEqual(chosen.canvas_size, canvas)

  @parameterized.parameters(
    ({}, 'data.image_size is None'),
    ({'image_size': 224, 'resize_size': 200}, 'data.resize_size is 200'),
  )
  def test_sizes_that_do_not_fit(self, options, message):
    collection = _collection(None)
    with self.assertRaisesRegex(InputError, message):
      shaping.choose_preprocessing(collection, **options)


if __name__ == '__main__':
  absltest.main()
