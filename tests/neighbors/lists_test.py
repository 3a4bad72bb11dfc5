"""Lists that are ordered by labels, and lists that end early."""

import numpy as np
import pytest

from retrieval_jax import neighbors
from retrieval_jax.core.errors import InputError
from retrieval_jax.neighbors import Predictions, RankedLists


def test_soft_voting():
  angles = np.array([0.1, 0.2, 0.3, 1.0])
  train = np.stack([np.cos(angles), np.sin(angles)], axis=1)
  query = np.array([[2.0, 0.0]])
  # Two of three outvote the nearest.
  found = neighbors.predict_labels(query, train, np.array([4, 7, 7, 4]), k=3)
  assert found.labels.tolist() == [7]
  expected = (np.cos(0.2) + np.cos(0.3)) / 3
  np.testing.assert_allclose(found.scores, [expected], rtol=1e-6)
  # Equal votes: the label that comes first.
  train = np.array([[1.0, 0.0], [1.0, 0.0]])
  found = neighbors.predict_labels(query, train, np.array([9, 2]), k=2)
  assert found.labels.tolist() == [9]


def test_labels_go_first_missed_rows_next_and_the_rest_is_cut():
  gallery = Predictions(
    np.array([1, 2, 1, 2, 1, 1]), np.array([0.9, 0.9, 0.2, 0.9, 0.5, 0.5])
  )
  lists = RankedLists(
    np.array([[0.9, 0.8, 0.7, 0.6]] * 2), np.array([[1, 0, 3, -1]] * 2)
  )
  queries = Predictions(np.array([1, 8]), np.array([0.3, 0.9]))
  found = neighbors.rerank_by_labels(lists, queries, gallery, threshold=0.6)
  # 4 and 5 tie above the threshold, by index; 2 is below it.
  assert found.indices.tolist() == [[0, 4, 5, 1], [1, 0, 3, -1]]
  np.testing.assert_allclose(found.scores[0], 1 / np.arange(1, 5), rtol=1e-6)
  assert found.scores[1, 3] == -np.inf


def test_itself_is_not_inserted():
  predictions = Predictions(np.zeros(4, int), np.ones(4))
  lists = np.zeros((4, 2)), np.array([[1, 2], [2, 3], [3, 0], [0, 1]])
  found = neighbors.rerank_by_labels(
    (np.zeros((4, 4)), np.pad(lists[1], ((0, 0), (0, 2)), constant_values=-1)),
    predictions,
    predictions,
    exclude_self=True,
  )
  assert found.indices.tolist() == [
    [1, 2, 3, -1],
    [2, 3, 0, -1],
    [3, 0, 1, -1],
    [0, 1, 2, -1],
  ]


def test_label_aware_is_both(draw):
  train, train_labels = draw(60)
  gallery, _ = draw(40, seed=1)
  queries, _ = draw(9, seed=2)
  lists = neighbors.top_k(queries, gallery, 8)
  found = neighbors.label_aware_reranking(
    lists, queries, gallery, train, train_labels
  )
  predicted = [
    neighbors.predict_labels(rows, train, train_labels)
    for rows in (queries, gallery)
  ]
  expected = neighbors.rerank_by_labels(lists, *predicted)
  np.testing.assert_array_equal(found.indices, expected.indices)


def test_constant_threshold():
  lists = np.array([[0.9, 0.5, 0.4]]), np.array([[3, 1, 2]])
  found = neighbors.constant_threshold(lists, threshold=0.5)
  assert found.indices.tolist() == [[3, 1, -1]]
  assert found.scores[0, 2] == -np.inf


def test_adaptive_threshold():
  scores = np.array([[0.9, 0.8, 0.3, 0.2], [0.9, 0.8, 0.7, 0.6]])
  indices = np.array([[3, 1, 2, 0]] * 2)
  # The mean gap is (0.7 + 0.3) / 6; only 0.5 is above twice that.
  found = neighbors.adaptive_threshold((scores, indices), n_std=2.0)
  assert found.indices.tolist() == [[3, 1, -1, -1], [3, 1, 2, 0]]
  again = neighbors.adaptive_threshold(found, n_std=4.0)
  np.testing.assert_array_equal(again.indices, found.indices)
  alone = neighbors.adaptive_threshold((scores[:, :1], indices[:, :1]))
  np.testing.assert_array_equal(alone.indices, indices[:, :1])


def test_bad_input(draw):
  x, labels = draw(10)
  with pytest.raises(InputError, match='train_labels have 9 rows'):
    neighbors.predict_labels(x, x, labels[1:])
  with pytest.raises(InputError, match='from 1 to 10'):
    neighbors.predict_labels(x, x, labels, k=11)
  with pytest.raises(InputError, match=r'shape \(2,\)'):
    neighbors.constant_threshold((np.zeros(2), np.zeros(2, int)))
  with pytest.raises(InputError, match='dtype float64; .* scores first'):
    neighbors.constant_threshold((np.zeros((2, 1)), np.zeros((2, 1))))
  with pytest.raises(InputError, match='n_std is 0'):
    neighbors.adaptive_threshold(neighbors.top_k(x, x, 2), n_std=0)
  lists = neighbors.top_k(x, x, 2)
  predicted = neighbors.predict_labels(x, x, labels)
  fewer = Predictions(predicted.labels[:5], predicted.scores[:5])
  with pytest.raises(InputError, match='queries have 5 predictions'):
    neighbors.rerank_by_labels(lists, fewer, predicted)
  with pytest.raises(InputError, match='the index 9 but gallery has 5'):
    neighbors.rerank_by_labels(lists, predicted, fewer)
