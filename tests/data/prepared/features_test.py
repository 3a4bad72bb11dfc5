import numpy as np
import tensorflow_datasets as tfds
from absl.testing import absltest, parameterized

from retrieval_jax.core.errors import InputError
from retrieval_jax.data.prepared.features import Keys, find_keys

_IMAGE = tfds.features.Image(shape=(None, None, 3))
_CLASS = tfds.features.ClassLabel(num_classes=5)
_BOX = tfds.features.BBoxFeature()


class FindKeysTest(parameterized.TestCase):
  @parameterized.parameters(
    ({'image': _IMAGE, 'label': _CLASS}, None, Keys('image', 'label')),
    # The order of lfw, and the three keys of places365_small.
    (
      {'label': tfds.features.Text(), 'image': _IMAGE},
      ('label', 'image'),
      Keys('image', 'label'),
    ),
    (
      {'a': _IMAGE, 'b': _IMAGE, 'kind': _CLASS, 'x': tfds.features.Text()},
      ('b', 'kind', 'x'),
      Keys('b', 'kind'),
    ),
    # Stanford Online Products has no supervised keys.
    (
      {
        'class_id': _CLASS,
        'super_class_id/num': _CLASS,
        'super_class_id': _CLASS,
        'image': _IMAGE,
      },
      None,
      Keys('image', 'class_id', 'super_class_id'),
    ),
    # Masks are images of another type.
    (
      {
        'photo': _IMAGE,
        'mask': tfds.features.LabeledImage(labels=2, shape=(None, None, 1)),
        'kind': _CLASS,
        'head_bbox': _BOX,
      },
      None,
      Keys('photo', 'kind', None, 'head_bbox'),
    ),
    (
      {'image': _IMAGE, 'label': _CLASS, 'coarse_label': _CLASS, 'bbox': _BOX},
      None,
      Keys('image', 'label', 'coarse_label', 'bbox'),
    ),
  )
  def test_finds_the_keys(self, features, supervised, expected):
    self.assertEqual(find_keys('x', features, supervised), expected)

  def test_named_features_go_first(self):
    features = {
      'image': _IMAGE,
      'image2': _IMAGE,
      'label': _CLASS,
      'alphabet': _CLASS,
      'instance': tfds.features.Scalar(np.int64),
      'caption': tfds.features.Text(),
    }
    for label in 'alphabet', 'instance', 'caption':
      keys = find_keys(
        'x',
        features,
        ('image', 'label'),
        image_feature='image2',
        label_feature=label,
      )
      self.assertEqual((keys.image, keys.label), ('image2', label))
      # No row has its own class for a super-class.
      self.assertEqual(
        keys.category, None if label == 'alphabet' else 'alphabet'
      )

  @parameterized.parameters(
    ({'text': tfds.features.Text(), 'label': _CLASS}, {}, 'no image feature'),
    ({'image': _IMAGE}, {}, 'no label feature'),
    (
      {'image': _IMAGE, 'labels': tfds.features.Sequence(_CLASS)},
      {},
      'no label feature',
    ),
    # A caption is not taken for a class, but may be.
    (
      {'image': _IMAGE, 'caption': tfds.features.Text()},
      {},
      'data.label_feature may be caption',
    ),
    (
      {'a': _IMAGE, 'b': _IMAGE, 'label': _CLASS},
      {},
      'several image features (a, b); name one by data.image_feature',
    ),
    (
      {'image': _IMAGE, 'x': _CLASS, 'y': _CLASS},
      {},
      'several label features (x, y); name one by data.label_feature',
    ),
    (
      {'image': _IMAGE, 'label': _CLASS},
      {'label_feature': 'lable'},
      "data.label_feature is 'lable'; did you mean 'label'",
    ),
    (
      {'image': _IMAGE, 'label': _CLASS},
      {'image_feature': 'label'},
      'that is no image; allowed: image',
    ),
    (
      {'image': _IMAGE, 'score': tfds.features.Scalar(np.float32)},
      {'label_feature': 'score'},
      'that is no label; allowed: none',
    ),
    (
      {
        'image': tfds.features.Image(shape=(9, 9, 1), dtype=np.uint16),
        'label': _CLASS,
      },
      {},
      'are of uint16; allowed is uint8',
    ),
  )
  def test_refuses(self, features, options, message):
    with self.assertRaises(InputError) as caught:
      find_keys('x', features, None, **options)
    self.assertIn(message, str(caught.exception))
    self.assertNotIn('\n', str(caught.exception))


if __name__ == '__main__':
  absltest.main()
