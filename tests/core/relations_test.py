"""Who belongs to whom, and labels that are refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from retrieval_jax.core import relations
from retrieval_jax.core.errors import InputError, unknown_name
from tests.compiling import compiled

pair_masks = compiled(relations.pair_masks)
relevance = compiled(relations.relevance)


def test_masks_against_a_loop():
  rng = np.random.default_rng(0)
  labels, others = rng.integers(-1, 3, 9), rng.integers(-1, 3, 7)
  ids, other_ids = np.arange(9), np.arange(7) + 2
  positives, negatives = pair_masks(labels, others, ids, other_ids)
  for i in range(9):
    for j in range(7):
      pair = labels[i] >= 0 and others[j] >= 0 and ids[i] != other_ids[j]
      assert positives[i, j] == (pair and labels[i] == others[j])
      assert negatives[i, j] == (pair and labels[i] != others[j])


def test_padding_is_in_no_pair():
  labels = np.array([-1, -1, 0])
  positives, negatives = pair_masks(labels, labels)
  assert not positives[:2].any() and not negatives[:2].any()
  assert positives[2].tolist() == [False, False, True]


@pytest.mark.parametrize(
  'labels, words',
  [
    (np.zeros((5, 1), int), r'shape \(5, 1\).*reshape'),
    (np.zeros((), int), r'shape \(\)'),
    (np.zeros(5, np.float32), 'dtype float32.*astype'),
    (np.array(['a', 'b']), 'dtype <U1'),
    (np.zeros(5, bool), 'dtype bool'),
  ],
)
def test_labels_that_are_refused(labels, words):
  with pytest.raises(InputError, match=f'query_labels.*{words}'):
    relations.check_labels(labels, 'query_labels')


def test_large_labels_stay_apart():
  labels = relations.check_labels([2**24, 2**24 + 1])
  assert labels[0] != labels[1]


def test_unknown_name_without_a_near_one():
  message = str(unknown_name('loss.name', 'zzz', ['b', 'a']))
  assert message == "loss.name is 'zzz', known: a, b"


# -- label sets and grades ----------------------------------------------------


def _label_sets(rng, number, width=3, num_labels=6):
  """Sets of none to `width` labels, padding anywhere."""
  sets = np.full((number, width), -1, np.int32)
  for row in sets:
    size = rng.integers(0, width + 1)
    row[rng.permutation(width)[:size]] = rng.permutation(num_labels)[:size]
  return sets


def test_jaccard_and_masks_of_label_sets_against_a_loop():
  rng = np.random.default_rng(1)
  labels, others = _label_sets(rng, 9), _label_sets(rng, 7, width=4)
  ids, other_ids = np.arange(9), np.arange(7) + 2
  found = relevance(labels, others)
  masks = pair_masks(labels, others, ids, other_ids)
  assert found.dtype == np.float32
  padding = 0
  for i in range(9):
    for j in range(7):
      a, b = set(labels[i]) - {-1}, set(others[j]) - {-1}
      expected = len(a & b) / len(a | b) if a | b else 0
      assert found[i, j] == np.float32(expected)
      pair = bool(a) and bool(b) and ids[i] != other_ids[j]
      padding += not (a and b)
      assert masks[0][i, j] == (pair and bool(a & b))
      assert masks[1][i, j] == (pair and not a & b)
  assert padding  # Or nothing was said of it.
  assert found.max() == 1 or (found > 0.5).any()


def test_sets_of_one_label_are_classes():
  rng = np.random.default_rng(0)
  labels, ids = rng.integers(-1, 3, 12), np.arange(12)
  alone = pair_masks(labels, labels, ids, ids)
  wide = np.stack([np.full(12, -1), labels], axis=1)
  for found, expected in zip(
    pair_masks(wide, wide, ids, ids), alone, strict=True
  ):
    np.testing.assert_array_equal(found, expected)


def test_grades_against_a_loop():
  rng = np.random.default_rng(2)
  labels, others = rng.integers(-1, 4, 9), rng.integers(-1, 4, 7)
  grades = rng.uniform(size=(4, 4)) * (rng.uniform(size=(4, 4)) < 0.6)
  found = relevance(labels, others, grades)
  positives, negatives = pair_masks(labels, others, grades=grades)
  for i in range(9):
    for j in range(7):
      pair = labels[i] >= 0 and others[j] >= 0
      expected = grades[labels[i], others[j]] if pair else 0
      assert found[i, j] == np.float32(expected)
      assert positives[i, j] == (pair and expected > 0)
      assert negatives[i, j] == (pair and expected == 0)


def test_grades_of_the_identity_are_classes():
  labels = np.array([0, 2, 1, 2])
  np.testing.assert_array_equal(
    relevance(labels, labels, np.eye(3)), relevance(labels, labels)
  )


def test_no_cube_of_label_sets_is_kept():
  wide = jax.ShapeDtypeStruct((512, 16), jnp.int32)
  compiled = jax.jit(relations.relevance).lower(wide, wide).compile()
  matrix = 512 * 512 * 4
  assert compiled.memory_analysis().temp_size_in_bytes <= 6 * matrix


def test_one_category_of_negative_number_is_none():
  grades = relations.category_grades(np.array([-1, -1, 0, 0]), 0.25)
  np.testing.assert_array_equal(
    grades,
    [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0.25], [0, 0, 0.25, 1]],
  )


@pytest.mark.parametrize('kind', ['ints', 'sets', 'grades'])
def test_the_host_and_the_devices_agree(kind):
  rng = np.random.default_rng(4)
  if kind == 'sets':
    labels, others = _label_sets(rng, 8), _label_sets(rng, 5)
  else:
    labels, others = rng.integers(0, 4, 8), rng.integers(0, 4, 5)
  grades = np.eye(4)[::-1].copy() if kind == 'grades' else None
  nearest = rng.integers(0, 5, (8, 3))
  expected = relevance(labels, others, grades)
  np.testing.assert_array_equal(
    relations.are_related(labels, others[nearest], grades),
    np.take_along_axis(expected > 0, nearest, axis=1),
  )


def test_label_sets_are_packed():
  sets = np.array([[-1, 7, 7, 5], [2, -1, 2, -3], [-1, -1, -1, -1]])
  assert relations.pack_label_sets(sets).tolist() == [[7, 5], [2, -1], [-1, -1]]
  assert relations.check_labels(sets, label_sets=True).shape == (3, 2)


@pytest.mark.parametrize(
  'call, words',
  [
    (lambda y, s: relations.relevance(y, s), r'shape \(2,\).*\(2, 2\)'),
    (lambda y, s: relations.pair_masks(s, s, grades=np.eye(9)), 'leave grades'),
    (lambda y, s: relations.check_labels(s, 'y'), r'shape \(2, 2\)'),
    (
      lambda y, s: relations.check_labels(s[:, :1], 'y', label_sets=True),
      r'shape \(2, 1\).*\(N, L\)',
    ),
    (lambda y, s: relations.category_grades(y, 1.5), 'same_category is 1.5'),
  ],
)
def test_kinds_that_do_not_go_together_are_refused(call, words):
  with pytest.raises(InputError, match=words) as caught:
    call(np.array([0, 1]), np.array([[0, 1], [1, -1]]))
  assert '\n' not in str(caught.value)
