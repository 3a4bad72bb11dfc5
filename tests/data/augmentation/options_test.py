from absl.testing import absltest, parameterized

from retrieval_jax.core.errors import InputError
from retrieval_jax.data.augmentation.options import Augmentation


class AugmentationTest(parameterized.TestCase):
  def test_is_off_by_default(self):
    options = Augmentation.from_options({})
    self.assertTrue(options.is_off)
    self.assertFalse(options.changes_images)
    self.assertFalse(options.needs_canvas)
    self.assertFalse(options.mixes_labels)

  @parameterized.parameters(
    # option, value, changes images, needs a canvas, mixes labels
    ('crop_scale', (0.2, 1.0), True, True, False),
    ('flip', 0.5, True, False, False),
    ('rotation', 15, True, False, False),
    ('brightness', 0.4, True, False, False),
    ('contrast', 0.4, True, False, False),
    ('saturation', 0.4, True, False, False),
    ('hue', 0.1, True, False, False),
    ('blur', 1, True, False, False),
    ('erase', 0.5, True, False, False),
    ('mixup', 0.2, False, False, True),
    ('cutmix', 1.0, False, False, True),
  )
  def test_knows_what_it_does(self, key, value, changes, canvas, mixes):
    options = Augmentation.from_options({key: value})
    self.assertFalse(options.is_off)
    self.assertEqual(options.changes_images, changes)
    self.assertEqual(options.needs_canvas, canvas)
    self.assertEqual(options.mixes_labels, mixes)

  def test_lists_become_tuples_so_that_it_can_be_hashed(self):
    listed = Augmentation.from_options(
      {'crop_scale': [0.2, 1], 'blur_sigma': [1, 2]}
    )
    self.assertEqual(listed.crop_scale, (0.2, 1))
    self.assertEqual(
      hash(listed), hash(Augmentation(crop_scale=(0.2, 1), blur_sigma=(1, 2)))
    )

  @parameterized.parameters(
    ('crop_scale', (0.0, 1.0)),
    ('crop_scale', (0.5, 0.2)),
    ('crop_scale', (0.5, 1.1)),
    ('crop_scale', (0.5,)),
    ('crop_scale', 0.5),
    ('crop_scale', '12'),
    ('crop_ratio', (0, 1)),
    ('crop_ratio', None),
    ('flip', -0.1),
    ('flip', 1.1),
    ('flip', True),
    ('flip', None),
    ('rotation', 181),
    ('rotation', (-10, 10)),
    ('brightness', -1),
    ('contrast', float('nan')),
    ('saturation', float('inf')),
    ('hue', 0.6),
    ('blur', '0.5'),
    ('blur_sigma', (0, 1)),
    ('blur_sigma', (True, 2)),
    ('erase', 2),
    ('erase_scale', (0.1, 1.5)),
    ('erase_ratio', (0.3, 0.2)),
    ('erase_fill', 'gray'),
    ('erase_fill', 0),
    ('mixup', -0.2),
    ('cutmix', [1.0]),
  )
  def test_refuses(self, key, value):
    with self.assertRaises(InputError) as caught:
      Augmentation.from_options({key: value})
    message = str(caught.exception)
    self.assertStartsWith(message, f'augment.{key} is {value!r}; allowed is ')
    self.assertIn(f'--config.augment.{key}', message)
    self.assertNotIn('\n', message)

  def test_refuses_unknown_keys_with_the_nearest(self):
    with self.assertRaisesRegex(InputError, "did you mean 'augment.rotation'"):
      Augmentation.from_options({'rotations': 10})


if __name__ == '__main__':
  absltest.main()
