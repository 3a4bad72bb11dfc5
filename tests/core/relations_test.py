"""Who belongs to whom, and labels that are refused."""

import jax.numpy as jnp
import numpy as np
import pytest

from retrieval_jax.core import relations
from retrieval_jax.core.errors import InputError, unknown_name


def test_masks_against_a_loop():
  rng = np.random.default_rng(0)
  labels, others = rng.integers(-1, 3, 9), rng.integers(-1, 3, 7)
  ids, other_ids = np.arange(9), np.arange(7) + 2
  positives, negatives = relations.pair_masks(
    *map(jnp.asarray, (labels, others, ids, other_ids))
  )
  for i in range(9):
    for j in range(7):
      pair = labels[i] >= 0 and others[j] >= 0 and ids[i] != other_ids[j]
      assert positives[i, j] == (pair and labels[i] == others[j])
      assert negatives[i, j] == (pair and labels[i] != others[j])


def test_padding_is_in_no_pair():
  labels = jnp.array([-1, -1, 0])
  positives, negatives = relations.pair_masks(labels, labels)
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
