"""What the page says and draws of rankings, thresholds and re-ranking."""

import io
import re

import numpy as np
from absl.testing import absltest
from PIL import Image

from retrieval_jax import metrics
from retrieval_jax.metrics import pairs, verification
from retrieval_jax.training import (
  ablation,
  plots,
  ranking_plots,
  report_rankings,
)


def _embedded(num_rows=60, num_classes=4):
  rng = np.random.default_rng(0)
  labels = np.arange(num_rows) % num_classes
  rows = rng.normal(size=(num_classes, 6))[labels]
  return (rows + rng.normal(size=rows.shape)).astype(np.float32), labels


def _verified():
  x, y = _embedded()
  return verification.verify(pairs.Task(x, y, x, y, self_excluded=True))


def _pixels(png):
  return np.asarray(Image.open(io.BytesIO(png)).convert('RGB')).astype(int)


def _columns_of(pixels, color):
  rgb = np.frombuffer(bytes.fromhex(color[1:]), np.uint8).astype(int)
  near = (np.abs(pixels - rgb) <= 12).all(axis=-1)
  return np.flatnonzero(near.any(axis=0))


class SectionTest(absltest.TestCase):
  def test_says_what_is_drawn(self):
    x, y = _embedded()
    result = metrics.evaluate_retrieval(x, y, curves=True)
    verified = _verified()
    text = report_rankings.curves_section(
      result.curves, verified, 'Of some <rows>.'
    )
    self.assertEqual(text.count('<figure'), 3)
    recall = metrics.retrieval_metrics(x, y, metrics=('recall_at_1',))
    self.assertIn(f'from {recall["recall_at_1"]:.4f} at 1', text)
    best = verified.roc.best_f1
    self.assertIn(f'at {best.threshold:.4f} (dashed)', text)
    self.assertIn(f'{best.num_positives:,} pairs that match', text)
    self.assertIn('Of some &lt;rows&gt;.', text)

  def test_says_why_there_are_no_pairs(self):
    text = report_rankings.curves_section(None, None, 'Too <little> memory.')
    self.assertNotIn('<figure', text)
    self.assertIn('Too &lt;little&gt; memory.', text)

  def test_ablation_has_a_row_for_each_chain(self):
    lists = metrics.evaluate_lists([[1, 2], [0, 2], [0, 1]], [5, 5, 5])
    variants = [
      ablation.Variant((), lists),
      ablation.Variant(('pca_whitening', 'diffusion'), lists),
    ]
    text = report_rankings.ablation_section(variants)
    rows = re.findall('<tr>(.*?)</tr>', text)
    self.assertLen(rows, 3)
    self.assertIn('pca_whitening + diffusion', rows[2])
    self.assertIn(f'{lists.metrics["precision_at_1"]:.4f}', rows[1])
    self.assertNotIn('is not found', text)
    lists = metrics.evaluate_lists([[1], [0], [0]], [5, 5, 5], [5, 5, 6])
    variants = [
      ablation.Variant((), lists, 'one view'),
      ablation.Variant((), lists, 'flip'),
    ]
    text = report_rankings.ablation_section(variants)
    self.assertIn('>none (one view)<', text)
    self.assertIn('>none (flip)<', text)
    self.assertIn('Of the first 1 of 3 gallery images', text)
    self.assertIn('Of the first 1 of 3', ablation.format_table(variants))
    self.assertIn('None was chosen', report_rankings.ablation_section(()))


class DrawingTest(absltest.TestCase):
  def test_the_line_and_its_band_are_there(self):
    x = np.array([1.0, 10.0, 100.0])
    curve = metrics.Curve(
      x,
      np.array([0.2, 0.5, 0.9]),
      np.array([0.1, 0.4, 0.8]),
      np.array([0.3, 0.6, 1.0]),
    )
    for theme in (plots.LIGHT, plots.DARK):
      pixels = _pixels(
        ranking_plots.draw_curve(curve, theme, along='k', log=True)
      )
      self.assertEqual(pixels.shape, (644, 1058, 3))
      columns = _columns_of(pixels, plots.PALETTE[0])
      self.assertGreater(columns[-1] - columns[0], 700)

  def test_a_perfect_curve_is_drawn(self):
    one = np.ones(3)
    curve = metrics.Curve(np.arange(1.0, 4.0), one, one, one)
    pixels = _pixels(ranking_plots.draw_curve(curve, plots.LIGHT, along='k'))
    self.assertNotEmpty(_columns_of(pixels, plots.PALETTE[0]))

  def test_positives_stand_to_the_right(self):
    edges = np.linspace(-1, 1, 5)
    drawn = ranking_plots.draw_similarities(
      edges, np.array([0, 0, 0, 9]), np.array([7, 0, 0, 0]), 0.25, plots.LIGHT
    )
    pixels = _pixels(drawn)
    positives = _columns_of(pixels, ranking_plots.POSITIVES)
    negatives = _columns_of(pixels, ranking_plots.NEGATIVES)
    (line,) = {_columns_of(pixels, plots.LIGHT.strong)[0]}
    self.assertLess(negatives[0], line)
    self.assertLess(line, positives[-1])


if __name__ == '__main__':
  absltest.main()
