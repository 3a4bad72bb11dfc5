"""The drawings: pixels where they are exact, and every odd input drawn."""

import base64
import io

import numpy as np
from absl.testing import parameterized
from PIL import Image

from retrieval_jax.training import plots


def _pixels(png: bytes) -> np.ndarray:
  return np.asarray(Image.open(io.BytesIO(png)).convert('RGB'))


def _from_uri(uri: str) -> np.ndarray:
  return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(',')[1]))))


def _rgb(color: str) -> np.ndarray:
  return np.frombuffer(bytes.fromhex(color[1:]), np.uint8)


def _has_color(pixels: np.ndarray, color: str, tolerance: int = 12) -> bool:
  difference = np.abs(pixels.astype(int) - _rgb(color).astype(int))
  return bool(np.any(np.all(difference <= tolerance, axis=-1)))


class EncodeImageTest(parameterized.TestCase):
  @parameterized.parameters(1, 3)
  def test_keeps_a_small_image_exactly(self, channels):
    image = np.random.default_rng(0).integers(
      0, 256, (28, 20, channels), np.uint8
    )
    uri = plots.encode_image(image)
    self.assertStartsWith(uri, 'data:image/png;base64,')
    np.testing.assert_array_equal(
      _from_uri(uri).reshape(28, 20, channels), image
    )

  @parameterized.parameters(1, 3)
  def test_shrinks_a_large_image(self, channels):
    ramp = np.linspace(0, 255, 400).astype(np.uint8)
    image = np.broadcast_to(ramp[None, :, None], (200, 400, channels))
    uri = plots.encode_image(np.ascontiguousarray(image))
    self.assertStartsWith(uri, 'data:image/jpeg;base64,')
    self.assertEqual(_from_uri(uri).shape[:2], (48, 96))
    self.assertLess(len(uri), 6000)


class PrincipalComponentsTest(parameterized.TestCase):
  def test_finds_the_plane_of_the_points(self):
    rng = np.random.default_rng(0)
    plane = np.linalg.qr(rng.normal(size=(7, 2)))[0]
    rows = rng.normal(size=(200, 2)) * [5.0, 2.0] @ plane.T + 3.0
    mean, axes, explained = plots.principal_components(rows)
    np.testing.assert_allclose(axes.T @ axes, np.eye(2), atol=1e-12)
    np.testing.assert_allclose(
      (rows - mean) @ axes @ axes.T + mean, rows, atol=1e-9
    )
    self.assertAlmostEqual(explained.sum(), 1.0)
    self.assertGreater(explained[0], explained[1])

  def test_agrees_with_the_svd_of_the_rows(self):
    rows = np.random.default_rng(1).normal(size=(30, 5))
    mean, axes, explained = plots.principal_components(rows)
    _, scales, vectors = np.linalg.svd(rows - rows.mean(axis=0))
    np.testing.assert_allclose(
      np.abs(np.sum(axes.T * vectors[:2], axis=1)), 1.0, atol=1e-9
    )
    np.testing.assert_allclose(
      explained, (scales**2 / np.sum(scales**2))[:2], atol=1e-12
    )

  @parameterized.named_parameters(
    ('one_row', np.ones((1, 4)), 0),
    ('equal_rows', np.ones((9, 4)), 0),
    ('one_dimension', np.arange(5.0)[:, None], 1),
    ('a_line', np.outer(np.arange(5.0), np.ones(4)), 1),
    ('zero', np.zeros((3, 4)), 0),
  )
  def test_missing_axes_are_zero(self, rows, num_axes):
    _, axes, explained = plots.principal_components(rows)
    self.assertEqual(axes.shape, (rows.shape[1], 2))
    self.assertEqual(int(np.any(axes != 0, axis=0).sum()), num_axes)
    self.assertAlmostEqual(explained.sum(), float(num_axes))

  def test_the_sign_does_not_depend_on_the_order_of_rows(self):
    rows = np.random.default_rng(2).normal(size=(40, 3))
    np.testing.assert_allclose(
      plots.principal_components(rows)[1],
      plots.principal_components(rows[::-1])[1],
      atol=1e-9,
    )


class DrawTest(parameterized.TestCase):
  @parameterized.named_parameters(
    ('one_point', [1], [0.5]),
    ('long', range(5000), np.linspace(2.0, 1.0, 5000)),
    ('steep', range(1, 100), 1000.0 * np.exp(-np.arange(1, 100.0))),
    ('zero', [1, 2, 3], [0.0, 0.0, 0.0]),
    ('negative', [1, 2, 3], [-1.0, 0.0, 1.0]),
  )
  def test_draws_a_curve_in_both_themes(self, steps, values):
    curve = (np.array(steps), np.array(values))
    for theme in (plots.LIGHT, plots.DARK):
      pixels = _pixels(plots.draw_curves([curve], theme))
      self.assertTrue(_has_color(pixels, plots.PALETTE[0]))
      np.testing.assert_array_equal(pixels[0, 0], _rgb(theme.background))

  @parameterized.named_parameters(
    ('some', [1.0, np.nan, 2.0, np.inf], True),
    ('all', [np.nan] * 4, False),
  )
  def test_marks_values_that_are_not_finite(self, values, has_curve):
    curve = (np.arange(4), np.array(values))
    pixels = _pixels(plots.draw_curves([curve], plots.LIGHT, upper=1.0))
    self.assertTrue(_has_color(pixels, plots.WRONG, tolerance=40))
    self.assertEqual(_has_color(pixels, plots.PALETTE[0]), has_curve)

  def test_draws_more_curves_than_hues(self):
    curves = [(np.arange(3), np.arange(3.0) + i) for i in range(12)]
    plots.draw_curves(curves, plots.LIGHT)

  def test_draws_crosses_over_dots(self):
    dots = np.random.default_rng(0).normal(size=(50, 2))
    cross = np.array([[9.0, 9.0]])
    explained = np.array([0.6, 0.3])
    pixels = [
      _pixels(
        plots.draw_map(
          dots, [plots.PALETTE[3]] * 50, crosses, explained, plots.LIGHT
        )
      )
      for crosses in (np.zeros((0, 2)), cross)
    ]
    self.assertTrue(_has_color(pixels[0], plots.PALETTE[3], tolerance=90))
    self.assertFalse(_has_color(pixels[0], plots.LIGHT.strong))
    self.assertTrue(_has_color(pixels[1], plots.LIGHT.strong))

  def test_draws_a_map_of_one_point(self):
    plots.draw_map(
      np.zeros((1, 2)),
      [plots.OTHER],
      np.zeros((0, 2)),
      np.zeros(2),
      plots.DARK,
    )

  def test_draws_the_same_twice(self):
    curve = (np.arange(100), np.random.default_rng(0).random(100))
    self.assertEqual(
      plots.draw_curves([curve], plots.DARK),
      plots.draw_curves([curve], plots.DARK),
    )


class NeighborSheetTest(parameterized.TestCase):
  def test_frames_right_green_and_wrong_red(self):
    queries = np.full((2, 30, 20, 1), 10, np.uint8)
    neighbors = np.full((2, 3, 30, 20, 1), 20, np.uint8)
    right = np.array([[True, False, True], [False, False, True]])
    sheet = plots.neighbor_sheet(queries, neighbors, right, right | True)
    # Enlarged twice: tiles of 60 x 40 in frames of 3, 4 apart, 8 more after
    # the query.
    self.assertEqual(sheet.shape, (2 * 70 + 4, 4 * 50 + 8 + 4, 3))
    for i in range(2):
      top = 4 + 70 * i
      np.testing.assert_array_equal(sheet[top, 4], _rgb(plots.OTHER))
      np.testing.assert_array_equal(sheet[top + 3, 7], [10, 10, 10])
      for j in range(3):
        left = 4 + 50 + 8 + 50 * j
        color = plots.RIGHT if right[i, j] else plots.WRONG
        np.testing.assert_array_equal(sheet[top, left], _rgb(color))
        np.testing.assert_array_equal(sheet[top + 65, left + 45], _rgb(color))
        np.testing.assert_array_equal(sheet[top + 3, left + 3], [20, 20, 20])
        np.testing.assert_array_equal(sheet[top, left + 46], [255, 255, 255])

  def test_leaves_places_blank(self):
    images = np.full((1, 3, 64, 64, 1), 20, np.uint8)
    shown = np.array([[True, False, True]])
    sheet = plots.neighbor_sheet(images[:, 0], images, shown, shown)
    blank = sheet[:, 4 + 74 + 8 + 74 : 4 + 74 + 8 + 2 * 74 - 4]
    self.assertTrue((blank == 255).all())
    self.assertFalse((sheet[:, -40:] == 255).all())

  def test_shrinks_large_images(self):
    queries = np.zeros((1, 200, 400, 3), np.uint8)
    neighbors = np.zeros((1, 1, 200, 400, 3), np.uint8)
    sheet = plots.neighbor_sheet(queries, neighbors, *np.ones((2, 1, 1), bool))
    self.assertEqual(sheet.shape, (48 + 6 + 4 + 4, 2 * (96 + 6 + 4) + 8 + 4, 3))
