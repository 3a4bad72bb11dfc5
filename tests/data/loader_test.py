import contextlib
import dataclasses
import itertools
import threading
import time

import numpy as np
from absl.testing import absltest, parameterized

from retrieval_jax import data
from retrieval_jax.core.errors import InputError
from retrieval_jax.data import decoding


def _source(n):
  """Images that show their own row."""
  images = np.zeros((n, 2, 3, 1), np.uint8)
  images[:] = np.arange(1, n + 1, dtype=np.uint8).reshape(n, 1, 1, 1)
  return data.Source.of_array(images, np.arange(n, dtype=np.int32) % 3)


class FlakyImages:
  """Images in memory, some of which cannot be read."""

  def __init__(self, images, broken):
    self.images = images
    self.broken = broken
    self.read_rows = []

  def __len__(self):
    return len(self.images)

  def read(self, row):
    self.read_rows.append(int(row))
    if row in self.broken:
      raise decoding.UnreadableImageError('torn')
    return self.images[row]

  def describe(self, row):
    return f'folder/{row}.png'


def _flaky_source(n, broken):
  """A source like `_source(n)`, read image by image in one thread."""
  source = _source(n)
  store = FlakyImages(source.store.images, set(broken))
  return dataclasses.replace(source, store=store, num_threads=1)


class TrainLoaderTest(parameterized.TestCase):
  @parameterized.product(process_count=(1, 2, 3, 4), classes_per_batch=(0, 3))
  def test_processes_make_up_the_batch(self, process_count, classes_per_batch):
    source = _source(40)
    sampler = data.make_sampler(
      source.labels,
      seed=0,
      batch_size=12,
      classes_per_batch=classes_per_batch,
    )
    loaders = [
      data.TrainLoader(
        source, sampler, process_index=i, process_count=process_count
      )
      for i in range(process_count)
    ]
    for step in (0, 1, 9):
      parts = [load(step) for load in loaders]
      rows = sampler(step)
      for part in parts:
        self.assertLen(part['images'], 12 // process_count)
        self.assertEqual(part['images'].dtype, np.uint8)
        self.assertEqual(part['labels'].dtype, np.int32)
        self.assertNotIn('aspect_ratios', part)
      images = np.concatenate([part['images'] for part in parts])
      labels = np.concatenate([part['labels'] for part in parts])
      np.testing.assert_array_equal(images[:, 0, 0, 0], rows + 1)
      np.testing.assert_array_equal(labels, source.labels[rows])

  def test_loads_only_its_own_rows(self):
    source = _flaky_source(40, broken=())
    sampler = data.make_sampler(source.labels, seed=0, batch_size=8)
    data.TrainLoader(source, sampler, process_index=1, process_count=4)(3)
    self.assertEqual(source.store.read_rows, sampler(3)[2:4].tolist())

  def test_canvases_come_with_their_aspect_ratios(self):
    source = _source(12)
    batch = data.TrainLoader(source, lambda step: np.arange(4), canvas=True)(0)
    np.testing.assert_allclose(batch['aspect_ratios'], [1.5] * 4)

  def test_refuses_a_batch_that_processes_do_not_divide(self):
    source = _source(10)
    sampler = data.make_sampler(source.labels, seed=0, batch_size=4)
    load = data.TrainLoader(source, sampler, process_count=3)
    with self.assertRaisesRegex(InputError, 'data.batch_size is 4; .* of 3'):
      load(0)

  def test_unreadable_image_gives_way_to_the_next_of_its_class(self):
    # Classes are row % 3; 4 is followed by 7, which is broken too, then by 10.
    source = _flaky_source(12, broken=(4, 7))
    load = data.TrainLoader(
      source, lambda step: np.array([4, 5]), max_unreadable_share=0.5
    )
    with self.assertLogs('retrieval_jax', 'WARNING') as logs:
      batch = load(0)
    self.assertEqual(batch['images'][:, 0, 0, 0].tolist(), [11, 6])
    self.assertEqual(batch['labels'].tolist(), [1, 2])
    self.assertEqual(load.unreadable.keys(), {4, 7})
    self.assertIn('folder/4.png: torn', logs.output[0])
    # Said once, counted once, and the same in another step.
    with self.assertNoLogs('retrieval_jax', 'WARNING'):
      np.testing.assert_array_equal(load(1)['images'], batch['images'])
    self.assertLen(load.unreadable, 2)

  def test_last_image_of_a_class_gives_way_to_its_first(self):
    source = _flaky_source(6, broken=(3,))
    load = data.TrainLoader(
      source, lambda step: np.array([3]), max_unreadable_share=0.5
    )
    self.assertEqual(load(0)['images'][0, 0, 0, 0], 1)

  def test_too_many_unreadable_images_are_fatal(self):
    source = _flaky_source(30, broken=(0, 1))
    load = data.TrainLoader(
      source, lambda step: np.array([step]), max_unreadable_share=1 / 30
    )
    load(0)
    load(0)  # The same one again is not one more.
    with self.assertRaisesRegex(
      InputError, '2 of the 30 images .*max_unreadable_share.*folder/1.png'
    ):
      load(1)

  def test_class_without_a_readable_image_is_named(self):
    source = _flaky_source(6, broken=(0, 3))
    load = data.TrainLoader(
      source, lambda step: np.array([0]), max_unreadable_share=1
    )
    with self.assertRaisesRegex(InputError, 'folder/0.png: torn; no other'):
      load(0)


class PaddedBatchesTest(parameterized.TestCase):
  @parameterized.product(n=(1, 7, 8, 9, 24), process_count=(1, 2, 4))
  def test_every_example_once_in_order(self, n, process_count):
    source = _source(n)
    per_process = [
      list(
        data.padded_batches(
          source, 8, process_index=i, process_count=process_count
        )
      )
      for i in range(process_count)
    ]
    # The same number on each, or a collective would wait for ever.
    self.assertEqual({len(b) for b in per_process}, {-(-n // 8)})
    seen = []
    for parts in zip(*per_process, strict=True):
      for part in parts:
        self.assertEqual(part['images'].shape, (8 // process_count, 2, 3, 1))
        self.assertEqual(part['images'].dtype, np.uint8)
        self.assertEqual(part['labels'].dtype, np.int32)
        self.assertEqual(part['mask'].dtype, bool)
        shown = part['images'][:, 0, 0, 0].astype(int)
        seen.extend(shown[part['mask']])
        np.testing.assert_array_equal(part['mask'], shown > 0)
        np.testing.assert_array_equal(
          part['labels'], np.where(part['mask'], (shown - 1) % 3, -1)
        )
    self.assertEqual(seen, list(range(1, n + 1)))

  def test_padding_leaves_the_source_alone(self):
    source = _source(3)
    list(data.padded_batches(source, 8))
    self.assertEqual(source.store.images.min(), 1)

  def test_unreadable_image_is_masked_and_keeps_its_place(self):
    source = _flaky_source(5, broken=(3,))
    with self.assertLogs('retrieval_jax', 'WARNING') as logs:
      first, last = data.padded_batches(source, 4)
    self.assertEqual(first['mask'].tolist(), [True, True, True, False])
    self.assertEqual(last['mask'].tolist(), [True, False, False, False])
    self.assertEqual(first['labels'].tolist(), [0, 1, 2, 0])
    self.assertEqual(first['images'][3].max(), 0)
    self.assertIn('folder/3.png: torn', logs.output[0])

  @parameterized.parameters((0, 1, 'at least 1'), (6, 4, 'multiples of 4'))
  def test_refuses_at_the_call(self, batch_size, process_count, message):
    with self.assertRaisesRegex(InputError, message):
      data.padded_batches(_source(3), batch_size, process_count=process_count)


class PrefetchTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.threads = threading.active_count()

  def tearDown(self):
    self.assertEqual(threading.active_count(), self.threads)
    super().tearDown()

  @parameterized.parameters(0, 1, 2, 100)
  def test_yields_all_in_order(self, depth):
    batches = data.prefetch(
      lambda step: step * 2, range(3, 20), lambda b: [b], depth=depth
    )
    self.assertEqual(list(batches), [[2 * s] for s in range(3, 20)])

  def test_works_ahead_by_depth_and_no_more(self):
    made = []
    batches = data.prefetch(
      lambda step: made.append(step) or step,
      itertools.count(),
      tuple_of,
      depth=3,
    )
    with contextlib.closing(batches):
      next(batches)
      deadline = time.monotonic() + 10
      while len(made) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
      time.sleep(0.05)
      self.assertEqual(made, [0, 1, 2, 3])

  def test_runs_in_another_thread(self):
    names = set()
    for _ in data.prefetch(
      lambda step: names.add(threading.get_ident()), range(3), tuple_of
    ):
      pass
    self.assertLen(names, 1)
    self.assertNotIn(threading.get_ident(), names)

  @parameterized.parameters('make_batch', 'put')
  def test_an_error_comes_out_where_its_batch_would(self, where):
    def fails_at_two(name):
      def function(batch):
        if name == where and batch == 2:
          raise InputError('image 2 is damaged')
        return batch

      return function

    batches = data.prefetch(
      fails_at_two('make_batch'), itertools.count(), fails_at_two('put')
    )
    self.assertEqual([next(batches), next(batches)], [0, 1])
    with self.assertRaisesRegex(InputError, 'image 2 is damaged'):
      next(batches)

  def test_stopping_early_ends_the_thread(self):
    batches = data.prefetch(lambda step: step, itertools.count(), tuple_of)
    for batch in batches:
      if batch == (5,):
        break
    batches.close()

  def test_a_failing_consumer_ends_the_thread(self):
    with self.assertRaises(KeyError):
      with contextlib.closing(
        data.prefetch(lambda step: step, itertools.count(), tuple_of)
      ) as batches:
        for _ in batches:
          raise KeyError

  def test_closing_before_the_start(self):
    data.prefetch(lambda step: step, itertools.count(), tuple_of).close()


def tuple_of(batch):
  return (batch,)


if __name__ == '__main__':
  absltest.main()
