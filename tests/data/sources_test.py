import concurrent.futures
import gc
import io
import os
import pathlib
import pickle
import tempfile
import threading

import numpy as np
import PIL.Image
from absl.testing import absltest, parameterized

from retrieval_jax.core.errors import InputError
from retrieval_jax.core.strings import Strings
from retrieval_jax.data import preprocessing, sources
from retrieval_jax.data.preprocessing import Preprocessing


def _random(*shape):
  return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def _labels(n):
  return np.arange(n, dtype=np.int32)


class ArraySourceTest(parameterized.TestCase):
  @parameterized.parameters(((6, 4, 5),), ((6, 4, 5, 1),), ((6, 4, 5, 3),))
  def test_images_in_memory_are_as_they_are(self, shape):
    images = _random(*shape)
    source = sources.Source.of_array(images, _labels(6))
    self.assertLen(source, 6)
    images = images.reshape(6, 4, 5, -1)
    self.assertEqual(source.image_shape, images.shape[1:])
    rows = np.array([5, 0, 5])
    loaded = source.load(rows)
    np.testing.assert_array_equal(loaded.images, images[rows])
    np.testing.assert_array_equal(source.images_at(rows), images[rows])
    np.testing.assert_allclose(loaded.aspect_ratios, [1.25] * 3)
    self.assertEqual(loaded.errors, {})
    self.assertEqual(source.describe(2), 'image 2')

  def test_the_caller_may_write_into_what_was_loaded(self):
    images = _random(6, 4, 5, 1)
    source = sources.Source.of_array(images.copy(), _labels(6))
    for canvas in (False, True):
      source.load(np.arange(6), canvas=canvas).images[:] = 0
    np.testing.assert_array_equal(source.images_at(np.arange(6)), images)

  @parameterized.parameters(False, True)
  def test_nothing_is_prepared_one_by_one(self, canvas):
    source = sources.Source.of_array(_random(6, 4, 4, 1), _labels(6))
    self.enterContext(
      absltest.mock.patch.object(
        preprocessing.Preprocessing, 'prepare', side_effect=AssertionError
      )
    )
    self.assertLen(source.load(np.arange(6), canvas=canvas).images, 6)

  def test_rows_of_a_store(self):
    images = _random(6, 4, 5, 1)
    store = sources.ImageArray(images, 'digit')
    rows = np.array([4, 2, 3])
    source = sources.Source(
      store, _labels(3), Preprocessing((4, 5, 1), 4), rows
    )
    np.testing.assert_array_equal(
      source.images_at(np.array([0, 2])), images[[4, 3]]
    )
    self.assertEqual(source.describe(0), 'digit 4')

  @parameterized.parameters((1, 3), (3, 1))
  def test_channels_are_converted(self, channels, wanted):
    images = _random(20, 4, 5, channels)
    subject = Preprocessing((4, 5, wanted), 4)
    source = sources.Source(sources.ImageArray(images), _labels(20), subject)
    got = source.images_at(np.arange(20))
    expected = images.repeat(3, -1)
    if wanted == 1:
      expected = images @ [0.299, 0.587, 0.114]
    np.testing.assert_allclose(got, expected.reshape(20, 4, 5, -1), atol=1.5)

  def test_canvases(self):
    images = _random(20, 4, 6, 3)
    subject = Preprocessing((4, 4, 3), 4, canvas_size=5)
    source = sources.Source(sources.ImageArray(images), _labels(20), subject)
    loaded = source.load(np.array([7, 3]), canvas=True)
    self.assertEqual(loaded.images.shape, (2, 5, 5, 3))
    np.testing.assert_array_equal(loaded.images[1], subject.canvas(images[3]))
    np.testing.assert_allclose(loaded.aspect_ratios, [1.5, 1.5])

  def test_boxes_are_those_of_the_rows(self):
    images = _random(9, 12, 10, 3)
    rows = np.array([8, 1, 4])
    boxes = np.float32([[0, 0, 4, 4], [np.nan] * 4, [2, 3, 10, 7]])
    subject = Preprocessing((4, 4, 3), 4)
    source = sources.Source(
      sources.ImageArray(images), _labels(3), subject, rows, boxes
    )
    loaded = source.load(np.array([2, 1, 0]))
    for got, image in zip(
      loaded.images,
      (images[4, 3:7, 2:10], images[1], images[8, :4, :4]),
      strict=True,
    ):
      np.testing.assert_array_equal(got, subject.view(image))
    np.testing.assert_allclose(loaded.aspect_ratios, [2, 10 / 12, 1])

  def test_a_box_without_pixels_is_an_error_of_its_row(self):
    boxes = np.float32([[0, 0, 4, 4], [20, 0, 30, 4]])
    source = sources.Source(
      sources.ImageArray(_random(2, 8, 8, 1)),
      _labels(2),
      Preprocessing((8, 8, 1), 8),
      boxes=boxes,
    )
    loaded = source.load(np.array([1, 0]))
    self.assertEqual(list(loaded.errors), [0])
    self.assertStartsWith(loaded.errors[0], 'image 1: its box (20, 0, 30, 4)')

  def test_no_rows(self):
    for channels in (1, 3):
      source = sources.Source(
        sources.ImageArray(_random(2, 8, 8, 1)),
        _labels(2),
        Preprocessing((8, 8, channels), 8),
      )
      loaded = source.load(np.zeros(0, int))
      self.assertEqual(loaded.images.shape, (0, 8, 8, channels))

  @parameterized.parameters(
    (np.zeros((2, 8, 8)), [0, 1], 'dtype float64'),
    (np.zeros((2, 8), np.uint8), [0, 1], r'shape \(2, 8\)'),
    (np.zeros((2, 8, 8), np.uint8), [0], r'labels have shape \(1,\)'),
    (np.zeros((2, 3, 8, 8), np.uint8), [0, 1], '1 or 3 channels'),
  )
  def test_refuses(self, images, labels, message):
    with self.assertRaisesRegex(InputError, message):
      sources.Source.of_array(images, labels)


class FileSourceTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    (self.folder / 'é').mkdir()
    self.names = [f'é/{i}.{"jpg" if i % 2 else "png"}' for i in range(40)]
    y, x = np.mgrid[:48, :64]
    for i, name in enumerate(self.names):
      image = np.stack([x + 4 * i, y * 2, x + y], -1).astype(np.uint8)
      PIL.Image.fromarray(image).save(self.folder / name)

  def _source(self, **options):
    store = sources.ImageFiles(str(self.folder), Strings.of(self.names))
    self.subject = Preprocessing((32, 32, 3), 40, canvas_size=36)
    return sources.Source(store, _labels(40), self.subject, **options)

  @parameterized.parameters(0, 1, 2, 5)
  def test_files_are_as_read_images_reads_them(self, num_threads):
    source = self._source(num_threads=num_threads)
    rows = np.random.default_rng(0).permutation(40)
    loaded = source.load(rows)
    paths = [self.folder / self.names[row] for row in rows]
    expected = preprocessing.read_images(paths, self.subject)
    np.testing.assert_array_equal(loaded.images, expected)
    np.testing.assert_allclose(loaded.aspect_ratios, 64 / 48)
    self.assertEqual(loaded.errors, {})
    loaded = source.load(rows[:1], canvas=True)
    self.assertEqual(loaded.images.shape, (1, 36, 36, 3))
    self.assertEqual(source.describe(3), str(self.folder / self.names[3]))

  def test_what_cannot_be_read_is_black_and_named(self):
    (self.folder / self.names[3]).write_text('no image')
    (self.folder / self.names[30]).unlink()
    (self.folder / self.names[31]).unlink()
    (self.folder / self.names[31]).mkdir()
    rows = np.arange(40)[::-1]
    loaded = self._source().load(rows)
    self.assertEqual(list(loaded.errors), [8, 9, 36])
    for i, reason in ((36, 'not an image'), (9, 'No such'), (8, 'a folder')):
      path = str(self.folder / self.names[rows[i]])
      self.assertStartsWith(loaded.errors[i], f'{path}: ')
      self.assertIn(reason, loaded.errors[i])
      self.assertFalse(loaded.images[i].any())
      self.assertEqual(loaded.aspect_ratios[i], 1)
    black = ~loaded.images.any((1, 2, 3))
    self.assertEqual(black.sum(), 3)

  def test_a_defect_comes_out(self):
    source = self._source(num_threads=2)
    with absltest.mock.patch.object(
      sources.ImageFiles, 'read', side_effect=ZeroDivisionError
    ):
      with self.assertRaises(ZeroDivisionError):
        source.load(np.arange(40))
    self.assertEqual(source.load(np.arange(40)).errors, {})

  def test_threads_share_a_source(self):
    source = self._source(num_threads=2)
    rows = np.arange(40)
    expected = source.images_at(rows)
    before = threading.active_count()
    with concurrent.futures.ThreadPoolExecutor(4) as executor:
      for got in executor.map(lambda _: source.images_at(rows), range(8)):
        np.testing.assert_array_equal(got, expected)
    self.assertEqual(threading.active_count(), before)

  def test_threads_end_with_their_source(self):
    before = threading.active_count()
    source = self._source(num_threads=3)
    source.load(np.arange(40))
    self.assertGreater(threading.active_count(), before)
    threads = [t for t in threading.enumerate() if t.name.startswith('decode')]
    del source
    gc.collect()
    for thread in threads:
      thread.join(10)
    self.assertLessEqual(threading.active_count(), before)

  def test_a_copy_has_threads_of_its_own(self):
    source = self._source(num_threads=2)
    expected = source.images_at(np.arange(40))
    copy = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(copy.images_at(np.arange(40)), expected)

  def test_a_forked_process_has_threads_of_its_own(self):
    source = self._source(num_threads=2)
    expected = source.images_at(np.arange(40))
    executor = source._threads._executor
    # As in a fork, where the threads of the parent do not run.
    with absltest.mock.patch.object(os, 'getpid', return_value=-1):
      np.testing.assert_array_equal(source.images_at(np.arange(40)), expected)
    self.assertIsNot(source._threads._executor, executor)

  def test_any_store_will_do(self):
    class Records:
      def __len__(self):
        return 1

      def read(self, row):
        file = io.BytesIO()
        PIL.Image.new('L', (9, 9), 77).save(file, 'PNG')
        return file.getvalue()

      def describe(self, row):
        return f'record {row}'

    source = sources.Source(Records(), _labels(1), Preprocessing((4, 4, 1), 4))
    self.assertTrue((source.images_at(np.zeros(1, int)) == 77).all())


if __name__ == '__main__':
  absltest.main()
