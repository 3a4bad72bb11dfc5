"""The queries that the report picks, against cases worked by hand."""

import numpy as np
from absl.testing import parameterized

from retrieval_jax.training import inspection


class SampleQueriesTest(parameterized.TestCase):
  def test_takes_every_class_once_before_any_twice(self):
    labels = np.array([0] * 50 + [1] * 2 + [2])
    chosen = inspection.sample_queries(labels, np.zeros(53, bool), 6)
    self.assertEqual(labels[chosen].tolist(), [0, 0, 0, 1, 1, 2])
    self.assertLen(set(chosen.tolist()), 6)

  def test_takes_classes_from_all_over_when_there_are_many(self):
    labels = np.arange(1000)
    chosen = inspection.sample_queries(labels, labels < 0, 8)
    self.assertLen(set(labels[chosen].tolist()), 8)
    self.assertGreater(labels[chosen].max(), 500)
    self.assertEqual(chosen.tolist(), sorted(chosen.tolist()))

  def test_leaves_lone_queries_out_unless_all_are(self):
    labels = np.array([0, 0, 1, 1])
    lone = np.array([True, False, True, True])
    self.assertEqual(inspection.sample_queries(labels, lone, 8).tolist(), [1])
    everything = inspection.sample_queries(labels, np.ones(4, bool), 8)
    self.assertEqual(everything.tolist(), [0, 1, 2, 3])


class WorstQueriesTest(parameterized.TestCase):
  def test_orders_by_score_then_by_index(self):
    scores = np.array([0.5, 1.0, 0.1, np.nan, 0.5, 0.0, 0.9])
    self.assertEqual(
      inspection.worst_queries(scores, 10).tolist(), [5, 2, 0, 4, 6]
    )
    self.assertEqual(inspection.worst_queries(scores, 2).tolist(), [5, 2])

  def test_a_rounding_below_one_is_no_failure(self):
    scores = np.array([1.0, 1.0 - 6e-8, np.nan], np.float32)
    self.assertEmpty(inspection.worst_queries(scores, 10))


class ConfusedPairsTest(parameterized.TestCase):
  def test_counts_a_case_worked_by_hand(self):
    #                 right  4>9   4>9   4>7   9>4   lone  9>4   9>4
    labels = np.array([4, 4, 4, 4, 9, 7, 9, 9])
    nearest = np.array([4, 9, 9, 7, 4, 4, 4, 4])
    similarities = np.array([0.9, 0.2, 0.3, 0.8, 0.5, 0.9, 0.5, 0.4])
    lone = np.arange(8) == 5
    self.assertEqual(
      inspection.confused_pairs(labels, nearest, similarities, lone),
      [
        inspection.Confusion(9, 4, count=3, total=3, example=4),
        inspection.Confusion(4, 9, count=2, total=4, example=2),
        inspection.Confusion(4, 7, count=1, total=4, example=3),
      ],
    )

  def test_nothing_is_confused_when_all_are_right(self):
    labels = np.array([0, 1, 1])
    pairs = inspection.confused_pairs(
      labels, labels, np.ones(3), np.zeros(3, bool)
    )
    self.assertEqual(pairs, [])

  def test_agrees_with_a_loop(self):
    rng = np.random.default_rng(0)
    labels, nearest = rng.integers(0, 6, (2, 500))
    lone = rng.random(500) < 0.1
    counted = {}
    for label, other, alone in zip(labels, nearest, lone, strict=True):
      if label != other and not alone:
        key = (int(label), int(other))
        counted[key] = counted.get(key, 0) + 1
    pairs = inspection.confused_pairs(labels, nearest, rng.random(500), lone)
    self.assertEqual(
      {(p.query_class, p.nearest_class): p.count for p in pairs}, counted
    )
    self.assertEqual(
      [p.count for p in pairs], sorted(counted.values(), reverse=True)
    )
