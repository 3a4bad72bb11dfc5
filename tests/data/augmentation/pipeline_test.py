import functools

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from retrieval_jax.core import collectives
from retrieval_jax.core.errors import InputError
from retrieval_jax.data import augmentation
from retrieval_jax.data.augmentation import (
  Augmentation,
  color,
  geometry,
)

_EVERYTHING = {
  'crop_scale': (0.2, 1.0),
  'flip': 0.5,
  'rotation': 15.0,
  'brightness': 0.4,
  'contrast': 0.4,
  'saturation': 0.4,
  'hue': 0.1,
  'blur': 0.5,
  'erase': 0.5,
}


def _random(*shape):
  return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def _aspect_ratios(n):
  return np.random.default_rng(1).uniform(0.5, 2.0, n).astype(np.float32)


@functools.partial(jax.jit, static_argnames=('image_shape', 'options'))
def _augment(images, aspect_ratios, step, row_ids, image_shape, options):
  key = jax.random.fold_in(jax.random.key(5), step)
  return augmentation.augment(
    images, aspect_ratios, key, row_ids, image_shape, options
  )


@functools.partial(jax.jit, static_argnames='options')
def _mix(images, labels, step, options):
  key = jax.random.fold_in(jax.random.key(5), step)
  row_ids = jnp.arange(len(images))
  return augmentation.mix(images, labels, key, row_ids, options)


def _augmented(images, options, step=0):
  """Returns images of their own size, augmented, as numpy."""
  row_ids = np.arange(len(images))
  shape = images.shape[1:]
  return np.array(_augment(images, None, step, row_ids, shape, options))


class AugmentTest(parameterized.TestCase):
  def test_nothing_on_is_nothing_done(self):
    images = jnp.asarray(_random(2, 4, 4, 1))
    for options in (Augmentation(), Augmentation(mixup=1.0)):
      got = augmentation.augment(
        images, None, jax.random.key(0), jnp.arange(2), (4, 4, 1), options
      )
      self.assertIs(got, images)

  @parameterized.parameters(
    ({'brightness': 0.4}, 3),
    ({'contrast': 0.4}, 3),
    ({'saturation': 0.4}, 3),
    ({'hue': 0.1}, 3),
    ({'rotation': 15.0}, 3),
    ({'blur': 1.0}, 3),
    ({'erase': 1.0, 'erase_fill': 'noise'}, 1),
    ({'saturation': 0.4, 'hue': 0.1}, 1),
    (_EVERYTHING, 1),
    (_EVERYTHING, 3),
  )
  def test_images_stay_images_and_change(self, option, channels):
    options = Augmentation(**option)
    images = _random(8, 10, 10, channels)
    shape = (8, 9, channels) if options.needs_canvas else (10, 10, channels)
    ratios = _aspect_ratios(8) if options.needs_canvas else None
    got = _augment(images, ratios, 0, np.arange(8), shape, options)
    got = np.asarray(got)
    self.assertEqual(got.shape, (8, *shape))
    self.assertEqual(got.dtype, np.float32)
    self.assertTrue(np.isfinite(got).all())
    self.assertGreaterEqual(got.min(), 0)
    self.assertLessEqual(got.max(), 255)
    if got.shape == images.shape:
      has_none = channels == 1 and option.keys() <= {'saturation', 'hue'}
      self.assertEqual(bool((got == images).all()), has_none)

  def test_floats_are_taken_as_bytes_are(self):
    images = _random(8, 10, 10, 3)
    options = Augmentation(**_EVERYTHING)
    arguments = _aspect_ratios(8), 0, np.arange(8), (8, 9, 3), options
    got = _augment(images.astype(jnp.bfloat16), *arguments)
    np.testing.assert_allclose(got, _augment(images, *arguments), atol=1e-3)
    self.assertEqual(got.dtype, jnp.float32)

  def test_four_devices_see_the_pixels_of_one(self):
    options = Augmentation(
      crop_scale=(0.2, 1.0), flip=0.5, contrast=0.4, erase=0.5, cutmix=1.0
    )
    images, ratios = _random(8, 12, 12, 3), _aspect_ratios(8)
    labels = np.arange(8, dtype=np.int32)

    def step(images, ratios, labels, axis_name):
      key = jax.random.fold_in(jax.random.key(5), 7)
      ids = collectives.row_ids(len(images), axis_name)
      images = augmentation.augment(
        images, ratios, key, ids, (10, 10, 3), options
      )
      return augmentation.mix(images, labels, key, ids, options)

    expected = jax.jit(functools.partial(step, axis_name=None))(
      images, ratios, labels
    )
    split = functools.partial(step, axis_name='batch')
    got = jax.pmap(split, 'batch')(
      *(x.reshape(4, 2, *x.shape[1:]) for x in (images, ratios, labels))
    )
    for one, many in zip(expected, got, strict=True):
      many = np.asarray(many, np.float32).reshape(one.shape)
      scale = 255 if one.ndim == 4 else 1
      np.testing.assert_allclose(many, one, rtol=0, atol=1e-6 * scale)

  def test_a_row_depends_on_the_seed_the_step_and_its_number_alone(self):
    options = Augmentation(**_EVERYTHING)
    images = np.broadcast_to(_random(1, 10, 10, 3), (8, 10, 10, 3))
    ratios = np.ones(8, np.float32)

    def run(step, row_ids):
      arguments = step, np.array(row_ids), (8, 9, 3), options
      return np.array(_augment(images, ratios, *arguments))

    first = run(3, range(8))
    np.testing.assert_array_equal(run(3, range(8)), first)
    np.testing.assert_array_equal(run(3, range(7, -1, -1))[::-1], first)
    others = np.concatenate([first, run(4, range(8))])
    for i in range(16):
      for j in range(i):
        self.assertGreater(np.abs(others[i] - others[j]).max(), 1)

  def test_compiles_once(self):
    traces = []

    @jax.jit
    def run(images, ratios, key):
      traces.append(1)
      options = Augmentation(crop_scale=(0.2, 1.0), flip=0.5)
      return augmentation.augment(
        images, ratios, key, jnp.arange(2), (8, 8, 1), options
      )

    for step in range(3):
      images = _random(2, 10, 10, 1) + np.uint8(step)
      run(images, _aspect_ratios(2) + step, jax.random.key(step))
    self.assertLen(traces, 1)

  def test_another_operation_leaves_the_draws_of_the_first(self):
    images = np.array(_random(16, 6, 6, 1))
    flipped = _augmented(images, Augmentation(flip=0.5))
    both = _augmented(images, Augmentation(flip=0.5, erase=1.0))
    erased = _augmented(images, Augmentation(erase=1.0))
    mean = 127.5
    np.testing.assert_array_equal(both, np.where(erased == mean, mean, flipped))

  def test_operations_are_independent(self):
    images = np.broadcast_to(_random(1, 2, 6, 1), (4000, 2, 6, 1))
    options = Augmentation(
      flip=0.5, erase=0.5, erase_scale=(0.4, 0.5), erase_ratio=(4.0, 5.0)
    )
    got = _augmented(images, options)
    is_erased = (got == 127.5).any((1, 2, 3))
    kept = got != 127.5
    is_flipped = (kept <= (got == images[:, :, ::-1])).all((1, 2, 3))
    for chosen in (is_erased, ~is_erased):
      self.assertAlmostEqual(chosen.mean(), 0.5, delta=0.03)
      self.assertAlmostEqual(is_flipped[chosen].mean(), 0.5, delta=0.04)

  def test_flips_as_often_as_asked(self):
    images = np.broadcast_to(_random(1, 2, 3, 1), (4000, 2, 3, 1))
    for probability in (0.3, 1.0):
      options = Augmentation(flip=probability)
      got = _augmented(images, options)
      is_flipped = (got == images[:, :, ::-1]).all((1, 2, 3))
      is_same = (got == images).all((1, 2, 3))
      self.assertTrue((is_flipped | is_same).all())
      self.assertAlmostEqual(is_flipped.mean(), probability, delta=0.03)

  def test_erases_as_often_as_asked_with_the_mean(self):
    images = np.full((2000, 8, 8, 3), 255, np.uint8)

    @jax.jit
    def erase(images, row_ids):
      return augmentation.augment(
        images,
        None,
        jax.random.key(0),
        row_ids,
        (8, 8, 3),
        Augmentation(erase=0.4, erase_scale=(0.2, 0.2)),
        mean=(0.0, 0.5, 1.0),
      )

    got = np.asarray(erase(images, np.arange(2000)))
    is_erased = got[..., 0] == 0
    self.assertAlmostEqual(is_erased.any((1, 2)).mean(), 0.4, delta=0.04)
    np.testing.assert_array_equal(got[..., 1], np.where(is_erased, 127.5, 255))
    np.testing.assert_array_equal(got[..., 2], 255)

  def test_rotates_by_up_to_the_angle_to_either_side(self):
    # What turns about the centre draws an arc; its end tells the angle.
    images = np.zeros((500, 41, 41, 1), np.uint8)
    images[:, 20, 36] = 255
    got = _augmented(images, Augmentation(rotation=30.0))[..., 0]
    total = got.sum((1, 2))
    y = 20 - (got * np.arange(41)[:, None]).sum((1, 2)) / total
    x = (got * np.arange(41)).sum((1, 2)) / total - 20
    angles = np.degrees(np.arctan2(y, x))
    self.assertBetween(angles.min(), -31, -28)
    self.assertBetween(angles.max(), 28, 31)
    self.assertAlmostEqual(angles.mean(), 0, delta=2.5)

  def test_does_the_operations_in_the_order_it_says(self):
    # Ranges of one point fix what is drawn.
    images = _random(1, 9, 9, 3)
    options = Augmentation(
      crop_scale=(1.0, 1.0),
      crop_ratio=(1.0, 1.0),
      flip=1.0,
      blur=1.0,
      blur_sigma=(1.0, 1.0),
      hue=0.5,
    )
    ratios = np.ones(1, np.float32)
    got = np.asarray(
      _augment(images, ratios, 0, np.arange(1), (6, 6, 3), options)
    )
    box = geometry.Box(*np.float32((0, 0, 1, 1)))

    @jax.jit
    @jax.vmap
    def error(turn):
      image = geometry.resample(images[0], box, (6, 6), False)[:, ::-1]
      expected = color.gaussian_blur(
        color.adjust_hue(image, turn), 1.0, True, 1.0
      )
      return jnp.max(jnp.abs(expected - got[0]))

    # The turn of the hue was drawn; one that explains the result has to exist.
    turns = np.linspace(-0.5, 0.5, 1001, dtype=np.float32)
    errors = np.asarray(error(turns))
    self.assertLess(errors.min(), 1)
    self.assertGreater(np.median(errors), 30)

  def test_refuses_shapes_that_do_not_fit(self):
    images = np.zeros((2, 8, 8, 1), np.uint8)
    key, ids = jax.random.key(0), np.arange(2)
    with self.assertRaisesRegex(ValueError, 'not'):
      augmentation.augment(
        images, None, key, ids, (4, 4, 1), Augmentation(flip=0.5)
      )
    with self.assertRaisesRegex(ValueError, 'need aspect_ratios'):
      augmentation.augment(
        images, None, key, ids, (4, 4, 1), Augmentation(crop_scale=(0.1, 1))
      )


class MixTest(parameterized.TestCase):
  @parameterized.parameters(0.2, 4.0)
  def test_mixup_is_an_average_with_the_neighbour(self, alpha):
    n = 4000
    images = np.arange(n, dtype=np.float32).reshape(n, 1, 1, 1)
    labels = np.arange(n, dtype=np.int32) + 7
    mixed, second, weights = map(
      np.array, _mix(images, labels, 0, Augmentation(mixup=alpha))
    )
    self.assertEqual(weights.dtype, np.float32)
    self.assertEqual(second.dtype, np.int32)
    partner = np.arange(n) ^ 1
    np.testing.assert_array_equal(second, labels[partner])
    expected = weights * np.arange(n) + (1 - weights) * partner
    np.testing.assert_allclose(mixed.ravel(), expected, rtol=1e-5)
    # Beta(alpha, alpha), each row its own.
    self.assertAlmostEqual(weights.mean(), 0.5, delta=0.03)
    variance = 1 / (4 * (2 * alpha + 1))
    self.assertAlmostEqual(weights.var() / variance, 1, delta=0.1)
    self.assertLess(abs(np.corrcoef(weights[::2], weights[1::2])[0, 1]), 0.1)

  def test_cutmix_weights_are_the_shares_of_pixels(self):
    n = 400
    images = np.broadcast_to(
      np.arange(n, dtype=np.uint8).reshape(n, 1, 1, 1) % 2, (n, 20, 30, 1)
    )
    mixed, second, weights = map(
      np.array, _mix(images, np.arange(n), 0, Augmentation(cutmix=1.0))
    )
    np.testing.assert_array_equal(second, np.arange(n) ^ 1)
    is_own = mixed[..., 0] == images[..., 0]
    np.testing.assert_allclose(is_own.mean((1, 2)), weights, atol=1e-6)
    # What is not its own is one rectangle.
    rows, columns = ~is_own.all(2), ~is_own.all(1)
    np.testing.assert_array_equal(
      rows.sum(1) * columns.sum(1), (~is_own).sum((1, 2))
    )
    # As much as shares that are uniform, less at the edges.
    self.assertGreater(weights.std(), 0.15)

  def test_with_both_a_coin_decides_for_each_row(self):
    n = 1000
    images = np.broadcast_to(
      np.arange(n, dtype=np.uint8).reshape(n, 1, 1, 1) % 2, (n, 8, 8, 1)
    )
    options = Augmentation(mixup=4.0, cutmix=1.0)
    mixed, _, weights = map(np.array, _mix(images, np.arange(n), 0, options))
    is_average = ((mixed > 0.01) & (mixed < 0.99)).all((1, 2, 3))
    self.assertAlmostEqual(is_average.mean(), 0.5, delta=0.06)
    own = np.where(images[:, 0, 0, 0] == 1, mixed.mean((1, 2, 3)), 0)
    own = np.where(images[:, 0, 0, 0] == 0, 1 - mixed.mean((1, 2, 3)), own)
    np.testing.assert_allclose(own, weights, atol=1e-5)

  def test_steps_differ(self):
    images, options = _random(4, 3, 3, 1), Augmentation(mixup=1.0)
    one, two = (_mix(images, np.arange(4), step, options) for step in (0, 1))
    self.assertFalse(np.isclose(one[2], two[2]).any())

  def test_off_is_the_images_and_their_labels(self):
    images = _random(4, 3, 3, 1)
    mixed, second, weights = _mix(images, np.arange(4), 0, Augmentation())
    np.testing.assert_array_equal(mixed, images)
    np.testing.assert_array_equal(second, np.arange(4))
    np.testing.assert_array_equal(weights, 1)

  def test_refuses_an_odd_number_of_images(self):
    with self.assertRaisesRegex(
      InputError, 'batch_size is 3 on each'
    ) as caught:
      _mix(_random(3, 2, 2, 1), np.arange(3), 0, Augmentation(mixup=1.0))
    self.assertNotIn('\n', str(caught.exception))


if __name__ == '__main__':
  absltest.main()
