import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from retrieval_jax.data.augmentation import geometry, occlusion


def _numbers(n, columns):
  return jax.random.uniform(jax.random.key(3), (n, columns))


def _erased(n, size, area, ratio):
  draw = jax.vmap(lambda x: occlusion.draw_erased(x, size, area, ratio))
  return np.array(jax.jit(draw)(_numbers(n, geometry.NUM_DRAWS)))


class EraseTest(parameterized.TestCase):
  @parameterized.parameters(
    ((64, 64), (0.02, 0.33), (0.3, 3.3)), ((40, 90), (0.1, 0.2), (0.8, 2.0))
  )
  def test_areas_and_ratios_are_those_asked_for(self, size, area, ratio):
    top, bottom, left, right = _erased(4000, size, area, ratio)
    self.assertGreaterEqual(min(top.min(), left.min()), 0)
    self.assertLessEqual(bottom.max(), size[0])
    self.assertLessEqual(right.max(), size[1])
    heights, widths = bottom - top, right - left
    shares = heights * widths / (size[0] * size[1])
    # But for the rounding to whole pixels.
    self.assertBetween(shares.min(), 0.85 * area[0], 1.1 * area[0])
    self.assertBetween(shares.max(), 0.95 * area[1], 1.1 * area[1])
    aspects = widths / heights
    self.assertBetween(aspects.min(), 0.8 * ratio[0], 1.2 * ratio[0])
    self.assertBetween(aspects.max(), 0.8 * ratio[1], 1.2 * ratio[1])
    if size == (64, 64):
      self.assertAlmostEqual(shares.mean(), 0.175, delta=0.01)
      self.assertAlmostEqual(np.log(aspects).mean(), 0, delta=0.04)

  def test_places_are_uniform(self):
    # Always 4 of 8 rows: it begins at 0 .. 4, each as often.
    top, bottom, *_ = _erased(5000, (8, 8), (0.25, 0.25), (1.0, 1.0))
    np.testing.assert_array_equal(bottom - top, 4)
    counts = np.bincount(top.astype(int), minlength=5)
    np.testing.assert_allclose(counts, 1000, atol=120)

  def test_what_cannot_fit_is_empty(self):
    top, bottom, *_ = _erased(50, (8, 8), (1.0, 1.0), (1.0, 1.0))
    np.testing.assert_array_equal(top, bottom)

  def test_only_the_rectangle_changes(self):
    image = jnp.arange(24.0).reshape(4, 3, 2)
    rectangle = occlusion.Rectangle(1, 3, 0, 2)
    got = occlusion.erase(image, rectangle, jnp.array([[[7.0, 9.0]]]))
    expected = np.array(image)
    expected[1:3, 0:2] = 7, 9
    np.testing.assert_array_equal(got, expected)
    got = occlusion.erase(image, rectangle.only_if(False), jnp.zeros((4, 3, 2)))
    np.testing.assert_array_equal(got, image)

  def test_noise_is_uniform_over_bytes(self):
    noise = np.array(occlusion.draw_noise(jax.random.key(0), (200, 200, 3)))
    counts = np.bincount(noise.astype(int).ravel(), minlength=256)
    self.assertLen(counts, 256)
    np.testing.assert_allclose(counts, noise.size / 256, rtol=0.25)
    channels = noise.reshape(-1, 3)
    correlations = np.corrcoef(channels.T) - np.eye(3)
    self.assertLess(np.abs(correlations).max(), 0.03)


class MixTest(parameterized.TestCase):
  def test_cutmix_cuts_at_the_edges_and_counts_what_is_left(self):
    image, partner = jnp.zeros((4, 6, 1)), jnp.ones((4, 6, 1))
    # A quarter of the area, 2 rows and 3 columns, about the pixel (0, 5).
    rectangle = occlusion.draw_pasted(jnp.array([0.1, 0.9]), (4, 6), 0.75)
    mixed, share = occlusion.cutmix(image, partner, rectangle)
    expected = np.zeros((4, 6))
    expected[:1, 4:] = 1
    np.testing.assert_array_equal(mixed[..., 0], expected)
    self.assertAlmostEqual(share.item(), 22 / 24, places=6)

  @parameterized.parameters(0.0, 0.3, 1.0)
  def test_the_share_is_the_weight_where_nothing_is_cut(self, weight):
    rectangle = occlusion.draw_pasted(jnp.array([0.5, 0.5]), (200, 200), weight)
    image, partner = jnp.zeros((200, 200, 1)), jnp.ones((200, 200, 1))
    mixed, share = occlusion.cutmix(image, partner, rectangle)
    self.assertAlmostEqual(share.item(), weight, delta=0.01)
    self.assertAlmostEqual(1 - mixed.mean().item(), share.item(), places=5)

  def test_mixup_is_the_weighted_average(self):
    rng = np.random.default_rng(0)
    image, partner = rng.uniform(0, 255, (2, 3, 4, 3)).astype(np.float32)
    got = occlusion.mixup(image, partner, 0.3)
    np.testing.assert_allclose(got, 0.3 * image + 0.7 * partner, rtol=1e-5)


if __name__ == '__main__':
  absltest.main()
