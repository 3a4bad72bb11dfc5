"""The curves against loops over single rankings; their bands by simulation."""

import numpy as np
from absl.testing import absltest

from retrieval_jax.metrics import curves
from retrieval_jax.metrics.ranks import Ranks


def ranks_of(lists):
  """Returns the ranks of queries whose positives stand at these, untied."""
  none = np.zeros(0, np.int64)
  sizes = np.array([len(ranks) for ranks in lists])
  return Ranks(
    np.arange(len(lists)),
    sizes,
    np.concatenate([np.arange(1.0, size + 1) for size in sizes]),
    np.concatenate([np.array(ranks, float) for ranks in lists]),
    none,
    none,
  )


def curves_of(*blocks):
  sums = curves.CurveSums()
  for block in blocks:
    sums.add(block)
  return sums.curves()


class CurvesTest(absltest.TestCase):
  def test_a_case_by_hand(self):
    # Precisions 1/2, 2/3 of the first query, 1 of the second.
    found = curves_of(ranks_of([[2, 3], [1]]))
    self.assertEqual(found.cmc.x[:3].tolist(), [1, 2, 3])
    self.assertEqual(found.cmc.mean[:3].tolist(), [0.5, 1.0, 1.0])
    np.testing.assert_allclose(found.precision.mean, (2 / 3 + 1) / 2)
    found = curves_of(ranks_of([[1, 4]]))
    at = dict(
      zip(found.precision.x.round(2), found.precision.mean, strict=True)
    )
    self.assertEqual((at[0.0], at[0.5], at[0.51], at[1.0]), (1, 1, 0.5, 0.5))

  def test_equals_a_loop(self):
    rng = np.random.default_rng(0)
    lists = [
      np.sort(rng.permutation(400)[: rng.integers(1, 101)] + 1)
      for _ in range(40)
    ]
    found = curves_of(ranks_of(lists[:25]), ranks_of(lists[25:]))
    for k, value in zip(found.cmc.x, found.cmc.mean, strict=True):
      self.assertAlmostEqual(value, np.mean([min(r) <= k for r in lists]))
    for level, recall in enumerate(found.precision.x):
      best = [
        max(
          (j + 1) / rank
          for j, rank in enumerate(ranks)
          if (j + 1) / len(ranks) >= recall - 1e-12
        )
        for ranks in lists
      ]
      self.assertAlmostEqual(found.precision.mean[level], np.mean(best))

  def test_a_tie_counts_against_the_model(self):
    one = np.array([1])
    tied = Ranks(
      queries=np.array([0]),
      num_positives=one,
      hits=np.array([1.0]),
      ranks=np.array([1.0]),
      tied=np.array([0]),
      num_tied=2 * one,
    )
    found = curves_of(tied)
    self.assertEqual(found.cmc.mean[:3].tolist(), [0, 0, 1])
    np.testing.assert_allclose(found.precision.mean, 1 / 3)

  def test_bands_hold_the_truth_nineteen_times_in_twenty(self):
    rng = np.random.default_rng(1)
    covered = []
    for _ in range(300):
      # A geometric rank: P(first <= k) = 1 - 0.7 ** k; precision 1 / rank.
      lists = rng.geometric(0.3, size=(60, 1))
      found = curves_of(ranks_of(lists))
      truths = 0.3, 0.3 / 0.7 * -np.log(0.3)
      covered.append(
        [
          curve.low[0] <= truth <= curve.high[0]
          for curve, truth in zip(
            (found.cmc, found.precision), truths, strict=True
          )
        ]
      )
    shares = np.mean(covered, axis=0)
    self.assertTrue(((shares > 0.90) & (shares < 0.99)).all(), shares)

  def test_bands_stay_within_bounds_and_hold_the_mean(self):
    for lists in ([[1]] * 5, [[9, 10]], [[1], [3]]):
      for curve in vars(curves_of(ranks_of(lists))).values():
        self.assertTrue((curve.low >= 0).all() and (curve.high <= 1).all())
        self.assertTrue((curve.low <= curve.mean).all())
        self.assertTrue((curve.mean <= curve.high).all())


if __name__ == '__main__':
  absltest.main()
