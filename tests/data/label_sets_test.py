"""Images with several labels, from a collection to batches."""

import collections
import dataclasses

import numpy as np
import pytest

from retrieval_jax import data
from retrieval_jax.core.errors import InputError
from retrieval_jax.data import (
  decoding,
  forming,
  mixing,
  samplers,
  shaping,
  splits,
)
from retrieval_jax.data import roles as roles_lib
from retrieval_jax.data.collection import TEST, TRAIN


def _sets(seed=0, number=200, num_labels=12, width=3):
  """Sets of one to `width` labels, low labels far more often than high."""
  rng = np.random.default_rng(seed)
  share = 1 / np.arange(1, num_labels + 1) ** 1.3
  sets = np.full((number, width), -1, np.int32)
  for row in sets:
    size = rng.integers(1, width + 1)
    row[:size] = rng.choice(
      num_labels, size, replace=False, p=share / share.sum()
    )
  return sets


def _collection(sets, **columns):
  """A collection whose image `row` shows the number `row`."""
  sets = np.asarray(sets, np.int32)
  images = np.zeros((len(sets), 2, 2, 1), np.uint8)
  images += np.arange(len(sets), dtype=np.uint8).reshape(-1, 1, 1, 1)
  return data.Collection(
    name='toy',
    images=data.ImageArray(images),
    labels=sets[:, 0].copy(),
    label_sets=sets,
    class_names=tuple(f'class {c}' for c in range(sets.max() + 1)),
    image_shape=(2, 2, 1),
    **columns,
  )


def _form(collection, *, roles=None, **options):
  collection = roles_lib.resolve_roles(collection, **(roles or {}))
  return forming.make_dataset(
    collection, shaping.choose_preprocessing(collection), **options
  )


def _shown(source):
  return source.images_at(np.arange(len(source)))[:, 0, 0, 0]


# -- samplers -----------------------------------------------------------------


@pytest.mark.parametrize('p, k', [(4, 3), (12, 2), (6, 4)])
def test_batches_are_p_labels_of_k_images_that_have_them(p, k):
  sets = _sets()
  sampler = samplers.make_sampler(
    sets, seed=0, batch_size=p * k, classes_per_batch=p
  )
  for step in range(60):
    rows = sampler(step)
    assert rows.dtype == np.int64
    np.testing.assert_array_equal(rows, sampler(step))
    shared = []
    for images in sets[rows].reshape(p, k, -1):
      shared.append(set.intersection(*map(set, images.tolist())) - {-1})
    assert all(shared)
    # Each block is of a label of its own: there is a way to name them so.
    assert len(set.union(*shared)) >= p


def test_an_image_is_in_a_batch_once_where_its_label_has_another():
  sets = _sets(number=400)
  sampler = samplers.make_sampler(
    sets, seed=1, batch_size=24, classes_per_batch=6
  )
  plain = sampler.sampler
  repeats = sum(len(set(plain(s).tolist())) < 24 for s in range(100))
  assert repeats > 5  # Or there was nothing to replace.
  for step in range(100):
    assert len(set(sampler(step).tolist())) == 24


def test_an_image_stays_twice_where_its_label_has_no_other():
  sets = np.array([[0, 1], [0, 1]])
  sampler = samplers.make_sampler(
    sets, seed=0, batch_size=4, classes_per_batch=2
  )
  assert sorted(sampler(0).tolist()) == [0, 0, 1, 1]


def test_uniform_sampling_sees_each_image_once():
  sampler = samplers.make_sampler(_sets(number=40), seed=0, batch_size=8)
  rows = np.concatenate([sampler(step) for step in range(5)])
  assert sorted(rows.tolist()) == list(range(40))


def test_class_power_0_draws_all_labels_alike():
  sets = _sets(number=300, num_labels=5)
  sampler = samplers.make_sampler(
    sets, seed=0, batch_size=50, name='class_weighted', class_power=0.0
  )
  rows = np.concatenate([sampler(step) for step in range(300)])
  # A draw is of one label, and shows the image's others besides.
  seen = np.bincount(sets[rows][sets[rows] >= 0])
  there = np.bincount(sets[sets >= 0])
  assert seen.min() / seen.max() > 1.5 * there.min() / there.max()


def test_weights_of_labels_can_be_given():
  sets = np.array([[0, 1], [1, 2], [2, -1], [0, -1]])
  sampler = samplers.make_sampler(
    sets,
    seed=0,
    batch_size=4,
    name='class_weighted',
    class_weights=np.array([0.0, 1.0, 0.0]),
  )
  rows = np.concatenate([sampler(step) for step in range(10)])
  assert set(rows.tolist()) == {0, 1}


def test_coverage_counts_labels():
  sets = np.array([[0, 1], [1, 2], [3, -1]])
  found = data.coverage(
    lambda step: np.array([0, 0]), sets, num_steps=1, images_per_class=2
  )
  assert (found.images_seen, found.classes_seen) == (1 / 3, 0.5)
  assert found.small_classes == 3


@pytest.mark.parametrize('name', ['category_balanced', 'hierarchical'])
def test_samplers_of_categories_are_refused(name):
  with pytest.raises(InputError, match=f'data.sampler is {name!r}.*set one of'):
    samplers.make_sampler(
      _sets(),
      seed=0,
      batch_size=8,
      name=name,
      classes_per_batch=4,
      categories=np.zeros(200, int),
      categories_per_batch=1,
    )


def test_a_mixture_takes_its_share_of_each_part():
  sets = _sets(number=60, num_labels=4)
  sampler = samplers.make_sampler(
    sets,
    seed=0,
    batch_size=8,
    classes_per_batch=4,
    parts=[0, 30, 60],
    mixing='balanced',
  )
  assert (sampler(3) < 30).sum() == 4


# -- splits -------------------------------------------------------------------


def test_the_rarest_label_against_a_loop():
  sets = _sets()
  counts = collections.Counter(sets[sets >= 0].tolist())
  expected = [
    min((counts[label], label) for label in row if label >= 0)[1]
    for row in sets.tolist()
  ]
  assert splits.rarest_labels(sets).tolist() == expected


@pytest.mark.parametrize('fraction', [0.2, 0.5])
def test_a_stratified_split_gives_each_label_its_share(fraction):
  sets = _sets(number=2000)
  codes = splits.stratified(sets, test_fraction=fraction)
  for label in range(12):
    has = (sets == label).any(axis=1)
    share = (codes[has] == TEST).mean()
    assert abs(share - fraction) < 0.1, (label, share)
  # Of the rarest label of all, as exactly as of a class.
  rarest = np.bincount(sets[sets >= 0]).argmin()
  has = (sets == rarest).any(axis=1)
  assert (codes[has] == TEST).sum() == np.floor(fraction * has.sum() + 0.5)


def test_images_are_dealt_into_folds():
  sets = _sets(number=600)
  folds = splits.image_folds(sets, num_folds=3)
  for label in range(12):
    held = np.bincount(folds[(sets == label).any(axis=1)], minlength=3)
    assert held.min() > 0.6 * held.mean()


@pytest.mark.parametrize(
  'call, words',
  [
    (splits.class_disjoint, 'class_disjoint.*data.split=stratified'),
    (
      lambda y: splits.class_folds(y, num_folds=2),
      'data.validation is classes.*data.validation=images',
    ),
    (lambda y: splits.first_classes(y, num_train=3), 'several labels each'),
  ],
)
def test_holding_out_whole_labels_is_refused(call, words):
  with pytest.raises(InputError, match=words) as caught:
    call(_sets())
  assert '\n' not in str(caught.value)


# -- data sets ----------------------------------------------------------------


def test_training_labels_come_first_and_sets_are_renumbered():
  formed = _form(
    _collection(
      [[2, 4, -1], [4, -1, -1], [0, 2, 4], [2, 1, -1], [1, 0, -1]],
      split=np.array([TRAIN, TRAIN, TEST, TEST, TEST], np.int8),
    )
  )
  assert formed.is_multi_label and formed.num_classes == 2
  assert formed.train.labels.dtype == np.int32
  assert formed.class_names == tuple(f'class {c}' for c in (2, 4, 0, 1, 3))
  assert formed.train.labels.tolist() == [[0, 1, -1], [1, -1, -1]]
  assert formed.tests['test'].query.labels.tolist() == [
    [2, 0, 1],
    [0, 3, -1],
    [3, 2, -1],
  ]
  data.check_dataset(formed)


def test_pages_show_each_set_as_a_class():
  split = np.array([TRAIN, TRAIN, TEST, TEST, TEST], np.int8)
  formed = _form(
    _collection([[0, 1], [2, -1], [1, 0], [0, 2], [0, 1]], split=split)
  )
  query = formed.tests['test'].query.labels
  (train, asked), names = formed.display_classes(formed.train.labels, query)
  assert [names[i] for i in train] == ['class 0 | class 1', 'class 2']
  assert [names[i] for i in asked] == [
    'class 0 | class 1',
    'class 0 | class 2',
    'class 0 | class 1',
  ]


def test_the_line_for_the_log():
  split = np.array([TRAIN, TRAIN, TEST, TEST], np.int8)
  formed = _form(_collection([[0, 1], [1, -1], [0, 1], [1, 2]], split=split))
  assert data.describe(formed) == (
    'toy: multi-label: 2 training images, 2 labels, mean 1.50 labels an image; '
    'test: 2 queries, each against the others'
  )


def test_sets_of_one_label_are_ints():
  split = np.array([TRAIN, TRAIN, TEST, TEST], np.int8)
  formed = _form(_collection([[0, 0], [1, -1], [0, -1], [0, 0]], split=split))
  assert not formed.is_multi_label
  assert formed.train.labels.tolist() == [0, 1]


def test_a_label_twice_counts_once():
  split = np.array([TRAIN, TRAIN, TEST, TEST], np.int8)
  sets = [[0, 0, 1], [1, 1, -1], [0, 1, 0], [1, 0, 0]]
  formed = _form(_collection(sets, split=split))
  assert formed.train.labels.tolist() == [[0, 1], [1, -1]]


def test_splits_and_validation_divide_images():
  sets = _sets(number=200)
  formed = _form(
    _collection(sets),
    roles={'split': 'stratified', 'test_fraction': 0.3},
    validation='images',
    validation_folds=4,
  )
  parts = [
    formed.train,
    formed.validations['validation'].query,
    formed.tests['test'].query,
  ]
  rows = np.concatenate([_shown(part) for part in parts])
  assert len(set(rows.tolist())) == len(rows) == 200
  names = formed.class_names
  for part in parts:
    for row, labels in zip(_shown(part), part.labels, strict=True):
      found = {names[label] for label in labels if label >= 0}
      assert found == {f'class {c}' for c in sets[row] if c >= 0}


@pytest.mark.parametrize(
  'roles, options, words',
  [
    ({}, {}, 'data.split is None.*data.split=stratified'),
    ({'split': 'class_disjoint'}, {}, 'data.split is class_disjoint'),
    (
      {'split': 'stratified'},
      {'validation': 'classes'},
      'data.validation=images',
    ),
  ],
)
def test_what_label_sets_cannot_have(roles, options, words):
  with pytest.raises(InputError, match=words) as caught:
    _form(_collection(_sets()), roles=roles, **options)
  assert '\n' not in str(caught.value)


def test_classes_know_their_categories_unless_they_have_two():
  split = np.array([TEST, TEST, TRAIN, TRAIN], np.int8)
  single = dataclasses.replace(
    _collection([[0], [0], [1], [2]], split=split),
    label_sets=None,
    category=np.array([1, 1, 0, -1], np.int32),
    category_names=('a', 'b'),
  )
  assert _form(single).class_categories.tolist() == [0, -1, 1]
  unclear = dataclasses.replace(single, category=np.array([1, 0, 0, 0]))
  assert _form(unclear).class_categories is None


def test_rows_without_a_label_are_named():
  split = np.array([TRAIN, TRAIN, TEST, TEST], np.int8)
  formed = _form(_collection([[0, 1], [-1, -1], [0, 1], [1, 0]], split=split))
  with pytest.raises(InputError, match='train: image 1 has no label'):
    data.check_dataset(formed)


def test_a_data_set_without_matches_is_refused():
  split = np.array([TRAIN, TRAIN, TEST, TEST], np.int8)
  formed = _form(_collection([[0, 1], [1, 0], [2, 3], [4, 5]], split=split))
  with pytest.raises(InputError, match='no query has a match'):
    data.check_dataset(formed)


def test_parts_of_two_kinds_are_refused():
  split = np.array([TRAIN, TRAIN, TEST, TEST], np.int8)
  formed = _form(_collection([[0, 1], [1, 0], [0, 1], [1, 0]], split=split))
  query = formed.tests['test'].query
  query = dataclasses.replace(query, labels=query.labels[:, 0])
  formed = dataclasses.replace(
    formed, tests={'test': data.EvaluationSet(query)}
  )
  with pytest.raises(InputError, match='or label sets in both'):
    data.check_dataset(formed)


def test_a_mixture_with_single_labels_makes_sets_of_them():
  split = np.array([TRAIN, TRAIN, TEST, TEST], np.int8)
  several = _form(_collection([[0, 1], [1, -1], [2, 0], [2, 1]], split=split))
  single = _form(_collection([[1], [1], [0], [0]], split=split))
  mixed = mixing.mix_datasets({'a': single, 'b': several})
  assert mixed.num_classes == 3
  assert mixed.class_names == (
    'a/class 1',
    'b/class 0',
    'b/class 1',
    'a/class 0',
    'b/class 2',
  )
  assert mixed.train.labels.tolist() == [[0, -1], [0, -1], [1, 2], [2, -1]]
  queries = {name: s.query.labels.tolist() for name, s in mixed.tests.items()}
  assert queries == {
    'a/test': [[3, -1], [3, -1]],
    'b/test': [[4, 1], [4, 2]],
  }
  data.check_dataset(mixed)


# -- batches ------------------------------------------------------------------


class _TornImages:
  """Images of which some cannot be read."""

  def __init__(self, images, torn):
    self.images, self.torn = images, torn

  def __len__(self):
    return len(self.images)

  def read(self, row):
    if row in self.torn:
      raise decoding.UnreadableImageError('torn')
    return self.images[row]

  def describe(self, row):
    return f'image {row}'


@pytest.fixture
def source():
  sets = [[0, 1], [2, -1], [0, 2], [1, -1], [2, 1]]
  split = np.array([TRAIN] * 5 + [TEST] * 2, np.int8)
  return _form(_collection([*sets, [0, 1], [0, 2]], split=split)).train


def test_batches_carry_label_sets(source):
  parts = [
    data.TrainLoader(
      source,
      lambda step: np.array([4, 0, 3, 1]),
      process_index=process,
      process_count=2,
    )(0)['labels']
    for process in range(2)
  ]
  assert parts[0].dtype == np.int32
  assert np.concatenate(parts).tolist() == [[2, 1], [0, 1], [1, -1], [2, -1]]


def test_a_replacement_brings_its_own_labels(source):
  store = _TornImages(source.store.images, {0})
  torn = dataclasses.replace(source, store=store, num_threads=1)
  load = data.TrainLoader(
    torn, lambda step: np.array([0, 1]), max_unreadable_share=0.5
  )
  batch = load(0)
  assert batch['images'][:, 0, 0, 0].tolist() == [2, 1]
  assert batch['labels'].tolist() == [[0, 2], [2, -1]]


def test_padding_has_no_label(source):
  *_, last = data.padded_batches(source, 3)
  assert last['labels'].tolist() == [[1, -1], [2, 1], [-1, -1]]
  assert last['mask'].tolist() == [True, True, False]
