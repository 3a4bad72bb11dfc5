"""Exact search against a stable sort of all similarities."""

import gc
import tempfile
import weakref
from unittest import mock

import jax
import numpy as np
from absl.testing import absltest, parameterized

from retrieval_jax import neighbors
from retrieval_jax.core.errors import InputError
from retrieval_jax.neighbors import candidates, search


def _draw(number, dim=16, seed=0):
  random = np.random.default_rng(seed)
  return random.normal(size=(number, dim)).astype(np.float32)


def _brute_force(queries, gallery, k, exclude_self=False):
  unit = [
    x.astype(float) / np.linalg.norm(x.astype(float), axis=1, keepdims=True)
    for x in (queries, gallery)
  ]
  similarities = unit[0] @ unit[1].T
  if exclude_self:
    np.fill_diagonal(similarities, -np.inf)
  order = np.argsort(-similarities.round(6), axis=1, kind='stable')[:, :k]
  return np.take_along_axis(similarities, order, axis=1), order


class TopKTest(parameterized.TestCase):
  @parameterized.parameters((1, 1), (7, 3), (40, 40), (300, 5))
  def test_equals_brute_force(self, size, k):
    queries, gallery = _draw(33, seed=1), _draw(size)
    similarities, indices = neighbors.top_k(queries, gallery, k)
    expected, expected_indices = _brute_force(queries, gallery, k)
    np.testing.assert_allclose(similarities, expected, atol=1e-6)
    np.testing.assert_array_equal(indices, expected_indices)
    self.assertEqual(similarities.dtype, np.float32)
    self.assertEqual(indices.dtype, np.int32)

  @parameterized.product(
    num_devices=(1, 4), budget_mb=(4, 128), on_host=(False, True)
  )
  def test_tiles_devices_and_budget_change_nothing(
    self, num_devices, budget_mb, on_host
  ):
    queries, gallery = _draw(70, dim=40, seed=1), _draw(9001, dim=40)
    gallery[8000] = gallery[5]
    expected = _brute_force(queries, gallery, 10)
    searcher = neighbors.Searcher(
      gallery,
      memory_budget_mb=budget_mb,
      devices=jax.local_devices()[:num_devices],
    )
    if not on_host:
      searcher._find = candidates.find_on_devices
    similarities, indices = searcher.top_k(queries, 10)
    np.testing.assert_array_equal(indices, expected[1])
    np.testing.assert_allclose(similarities, expected[0], atol=1e-6)

  @parameterized.product(distance=('dot', 'l2'), first_pass=(None, 'bfloat16'))
  def test_other_distances(self, distance, first_pass):
    queries, gallery = _draw(9, seed=1), _draw(300)
    gallery *= np.random.default_rng(2).uniform(0.5, 2, (300, 1))
    gallery[200] = gallery[7]
    found, indices = neighbors.top_k(
      queries, gallery, 6, distance=distance, first_pass=first_pass
    )
    q, g = queries.astype(float), gallery.astype(float)
    if distance == 'dot':
      expected, sign = q @ g.T, -1
    else:
      expected, sign = np.linalg.norm(q[:, None] - g, axis=-1), 1
    order = np.argsort(sign * expected.round(5), axis=1, kind='stable')[:, :6]
    np.testing.assert_array_equal(indices, order)
    np.testing.assert_allclose(
      found, np.take_along_axis(expected, order, axis=1), atol=1e-5
    )

  @parameterized.product(
    spread_and_offset=((1e-4, 0), (1e-5, 0), (1.0, 1000)),
    most_candidates=(40, 2048),
    exclude_self=(False, True),
  )
  def test_distances_that_squares_of_norms_hide(
    self, spread_and_offset, most_candidates, exclude_self
  ):
    spread, offset = spread_and_offset
    centres = _draw(10).repeat(60, axis=0)
    gallery = offset + centres + spread * _draw(600, seed=1)
    gallery[50] = gallery[7]
    queries = gallery
    if not exclude_self:
      queries = gallery[::60] + spread * _draw(10, seed=2)
    with mock.patch.object(search, '_MOST_CANDIDATES', most_candidates):
      found, indices = neighbors.top_k(
        queries, gallery, 9, distance='l2', exclude_self=exclude_self
      )
    q, g = queries.astype(float), gallery.astype(float)
    squares = ((q[:, None] - g) ** 2).sum(axis=-1)
    if exclude_self:
      np.fill_diagonal(squares, np.inf)
    order = np.argsort(squares, axis=1, kind='stable')[:, :9]
    expected = np.sqrt(np.take_along_axis(squares, order, axis=1))
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    # What differs less than its own rounding may change places.
    of_indices = np.sqrt(np.take_along_axis(squares, indices, axis=1))
    np.testing.assert_allclose(of_indices, expected, rtol=1e-5)
    for row in indices:
      self.assertLen(set(row), 9)

  @parameterized.parameters('cosine', 'dot', 'l2')
  def test_a_searcher_is_freed_at_once(self, distance):
    self.addCleanup(gc.enable)
    gc.disable()
    searcher = neighbors.Searcher(_draw(600), distance=distance)
    searcher.top_k(_draw(9, seed=1), 5)
    reference = weakref.ref(searcher)
    del searcher
    self.assertIsNone(reference())

  def test_far_from_the_origin_no_distance_is_computed_twice(self):
    queries, gallery = _draw(9, seed=1) + 1000, _draw(600) + 1000
    with mock.patch.object(
      neighbors.Searcher,
      '_search',
      autospec=True,
      side_effect=neighbors.Searcher._search,
    ) as search_once:
      neighbors.top_k(queries, gallery, 5, distance='l2')
    self.assertEqual(search_once.call_count, 1)

  @parameterized.parameters('dot', 'l2')
  def test_a_row_without_a_square_in_float32(self, distance):
    x, long = _draw(5), _draw(5)
    long[3] *= 1e25
    with self.assertRaisesRegex(InputError, 'gallery row 3 has the norm'):
      neighbors.top_k(x, long, 2, distance=distance)
    with self.assertRaisesRegex(InputError, 'queries row 3 has the norm'):
      neighbors.top_k(long, x, 2, distance=distance)
    self.assertEqual(neighbors.top_k(long, x, 2)[1].shape, (5, 2))

  def test_memory_map_is_the_array(self):
    queries, gallery = _draw(9, seed=1), _draw(5000)
    folder = self.enter_context(tempfile.TemporaryDirectory())
    path = f'{folder}/gallery.npy'
    np.save(path, gallery)
    expected = neighbors.top_k(queries, gallery, 7)
    for given in (path, np.load(path, mmap_mode='r')):
      for found, wanted in zip(
        neighbors.top_k(queries, given, 7), expected, strict=True
      ):
        np.testing.assert_array_equal(found, wanted)

  def test_ties_come_by_index(self):
    gallery = np.repeat(_draw(3, dim=50), [2000, 3000, 4000], axis=0)
    gallery = gallery[np.random.default_rng(0).permutation(9000)]
    queries = gallery[:5]
    _, indices = neighbors.top_k(queries, gallery, 30)
    for query, found in zip(queries, indices, strict=True):
      equal = np.flatnonzero((gallery == query).all(axis=1))
      np.testing.assert_array_equal(found, equal[:30])

  @parameterized.product(k=(3, 300), nearest=('first', 'last'))
  def test_the_order_of_the_gallery_changes_nothing(self, k, nearest):
    # Whole numbers, so that products are exact and many are equal.
    queries, gallery = (
      (4 * _draw(12, seed=1)).round(),
      (4 * _draw(9000)).round(),
    )
    # One query finds its best rows in one place, the others all over.
    by = np.argsort(gallery @ queries[0], kind='stable')
    gallery = gallery[by if nearest == 'last' else by[::-1]]
    found, indices = neighbors.top_k(queries, gallery, k, distance='dot')
    similarities = queries.astype(float) @ gallery.T
    order = np.argsort(-similarities, axis=1, kind='stable')[:, :k]
    np.testing.assert_array_equal(indices, order)
    np.testing.assert_array_equal(
      found, np.take_along_axis(similarities, order, axis=1)
    )

  def test_nan_is_the_worst_and_zeros_are_equal(self):
    scored = np.array([np.nan, -0.0, 0.0, -np.nan, -1.0, 2.0], np.float32)
    found, rows = candidates.best_of(
      np.zeros(6, int), scored, np.arange(6), 5, num_rows=1
    )
    self.assertEqual(rows[0, :4].tolist(), [5, 1, 2, 4])
    self.assertEqual(found[0].tolist(), [2.0, 0.0, 0.0, -1.0, -np.inf])

  def test_exclude_self_keeps_duplicates(self):
    x = _draw(20)
    x[13] = x[2]
    _, indices = neighbors.top_k(x, x, 19, exclude_self=True)
    self.assertEqual(indices[2, 0], 13)
    self.assertEqual(indices[13, 0], 2)
    self.assertFalse((indices == np.arange(20)[:, None]).any())
    _, expected = _brute_force(x, x, 19, exclude_self=True)
    np.testing.assert_array_equal(indices, expected)

  def test_zero_rows_have_similarity_zero(self):
    gallery = np.array([[-1.0, 0.0], [0.0, 0.0], [1.0, 0.0]])
    similarities, indices = neighbors.top_k(gallery[2:], gallery, 3)
    self.assertEqual(indices.tolist(), [[2, 1, 0]])
    self.assertEqual(similarities.tolist(), [[1.0, 0.0, -1.0]])

  @parameterized.parameters(0, 21, -1, 2.0, True, None)
  def test_bad_k(self, k):
    with self.assertRaisesRegex(InputError, 'from 1 to 20'):
      neighbors.top_k(_draw(3), _draw(20), k)

  def test_bad_input(self):
    x = _draw(20)
    with self.assertRaisesRegex(InputError, 'from 1 to 19'):
      neighbors.top_k(x, x, 20, exclude_self=True)
    with self.assertRaisesRegex(InputError, 'exclude_self'):
      neighbors.top_k(x[:5], x, 3, exclude_self=True)
    with self.assertRaisesRegex(InputError, "did you mean 'l2'"):
      neighbors.top_k(x, x, 3, distance='l22')
    with self.assertRaisesRegex(InputError, 'first_pass'):
      neighbors.top_k(x, x, 3, first_pass='int8')
    with self.assertRaisesRegex(InputError, 'oversampling'):
      neighbors.top_k(x, x, 3, oversampling=0.5)
    with self.assertRaisesRegex(InputError, 'none.npy'):
      neighbors.top_k('none.npy', x, 3)
    with self.assertRaisesRegex(InputError, '16 columns, .* has 15'):
      neighbors.top_k(x, x[:, :15], 3)
    with self.assertRaisesRegex(InputError, 'gallery row 4 '):
      bad = x.copy()
      bad[4, 0] = np.nan
      neighbors.top_k(x, bad, 3)


class SearcherTest(parameterized.TestCase):
  @parameterized.product(distance=('cosine', 'l2'), budget_mb=(1, 128))
  def test_each_search_is_a_search_of_its_own(self, distance, budget_mb):
    gallery = _draw(9000, seed=2)
    searcher = neighbors.Searcher(
      gallery, distance=distance, memory_budget_mb=budget_mb
    )
    self.assertEqual(searcher.is_resident, budget_mb == 128)
    for num_queries, k in ((1, 7), (11, 2)):
      queries = _draw(num_queries, seed=num_queries)
      found = searcher.top_k(queries, k)
      expected = neighbors.top_k(queries, gallery, k, distance=distance)
      for part, of_expected in zip(found, expected, strict=True):
        np.testing.assert_array_equal(part, of_expected)
    few = neighbors.Searcher(gallery[:50], distance=distance)
    np.testing.assert_array_equal(
      few.top_k(gallery[:50], 49, exclude_self=True)[1],
      neighbors.top_k(
        gallery[:50], gallery[:50], 49, distance=distance, exclude_self=True
      )[1],
    )

  def test_compiles_once_for_a_size(self):
    searcher = neighbors.Searcher(_draw(300, dim=9))
    searcher.top_k(_draw(3, dim=9), 2)
    before = candidates._scores._cache_size()
    for num_queries, k in ((1, 5), (8, 1), (2, 300)):
      searcher.top_k(_draw(num_queries, dim=9), k)
    self.assertEqual(candidates._scores._cache_size(), before)
    searcher.top_k(_draw(9, dim=9), 2)
    self.assertEqual(candidates._scores._cache_size(), before + 1)

  def test_bad_input(self):
    searcher = neighbors.Searcher(_draw(20))
    with self.assertRaisesRegex(InputError, 'queries row 1 '):
      searcher.top_k(np.full((2, 16), [[1.0], [np.nan]]), 3)
    with self.assertRaisesRegex(InputError, 'from 1 to 20'):
      searcher.top_k(_draw(2), 21)
    with self.assertRaisesRegex(InputError, 'gallery of 20'):
      searcher.top_k(_draw(2), 2, exclude_self=True)
    with self.assertRaisesRegex(InputError, 'gallery has shape'):
      neighbors.Searcher(np.zeros((0, 4)))


if __name__ == '__main__':
  absltest.main()
