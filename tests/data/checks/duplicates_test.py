import itertools
import os
import tempfile

import cv2
import numpy as np
from absl.testing import absltest, parameterized

from retrieval_jax.core.strings import Strings
from retrieval_jax.data.checks import duplicates, fingerprints
from retrieval_jax.data.collection import Collection
from retrieval_jax.data.sources import ImageFiles


def _picture(seed, height=96, width=128):
  """Returns [height, width, 3] uint8 of coarse blobs and fine noise."""
  generator = np.random.default_rng(seed)
  coarse = generator.integers(0, 256, (6, 8, 3), dtype=np.uint8)
  smooth = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
  noisy = smooth + generator.normal(0, 5, smooth.shape)
  return np.clip(noisy, 0, 255).astype(np.uint8)


def _jpeg(picture, quality=90):
  options = [cv2.IMWRITE_JPEG_QUALITY, quality]
  return cv2.imencode('.jpg', picture, options)[1].tobytes()


def _png(picture):
  return cv2.imencode('.png', picture)[1].tobytes()


class FilesTestCase(parameterized.TestCase):
  def collection(self, files, **columns):
    """Returns a collection of files that are written from {name: bytes}."""
    root = self.enterContext(tempfile.TemporaryDirectory())
    for name, content in files.items():
      if content is not None:
        with open(os.path.join(root, name), 'wb') as file:
          file.write(content)
    labels = np.zeros(len(files), np.int32)
    images = ImageFiles(root, Strings.of(files))
    return Collection('toy', images, labels, ('a',), **columns)

  def take(self, collection, **options):
    rows = np.arange(len(collection))
    return fingerprints.take_fingerprints(collection, rows, **options)


class NearPairsTest(parameterized.TestCase):
  @parameterized.parameters(*range(duplicates.MAX_BITS + 1))
  def test_equals_all_pairs_compared(self, max_bits):
    generator = np.random.default_rng(max_bits)
    centres = generator.integers(0, 2**64, 40, dtype=np.uint64)
    hashes = np.repeat(centres, 6)
    for _ in range(5):
      flips = np.uint64(1) << generator.integers(0, 64, 240, dtype=np.uint64)
      hashes = np.where(generator.random(240) < 0.3, hashes ^ flips, hashes)
    hashes = generator.permutation(hashes)
    expected = [
      (i, j, (int(hashes[i]) ^ int(hashes[j])).bit_count())
      for i, j in itertools.combinations(range(240), 2)
      if (int(hashes[i]) ^ int(hashes[j])).bit_count() <= max_bits
    ]
    near = duplicates.near_pairs(hashes, max_bits)
    found = np.column_stack([near.pairs, near.distances])
    np.testing.assert_array_equal(found, np.array(expected).reshape(-1, 3))
    self.assertNotEmpty(expected)
    self.assertTrue(near.is_complete)

  @parameterized.parameters(0, 1, 2)
  def test_few_hashes(self, n):
    near = duplicates.near_pairs(np.zeros(n, np.uint64), 3)
    self.assertEqual(near.pairs.tolist(), [[0, 1]] if n == 2 else [])

  @parameterized.parameters({'max_pairs': 100}, {'max_comparisons': 10_000})
  def test_too_many_pairs_end_the_search_and_this_is_said(self, **limits):
    hashes = np.zeros(3000, np.uint64)
    near = duplicates.near_pairs(hashes, 6, **limits)
    self.assertFalse(near.is_complete)
    self.assertLess(len(near.pairs), 100_000)

  def test_a_distance_that_is_too_large(self):
    with self.assertRaisesRegex(ValueError, 'allowed are 0 to 8'):
      duplicates.near_pairs(np.zeros(2, np.uint64), 9)


class EqualGroupsTest(FilesTestCase):
  def test_bytes_and_pixels_make_pictures_equal(self):
    first, second = _picture(0), _picture(1)
    other = first.copy()
    # The grey value stays, the colour does not.
    other[..., 0] = np.where(other[..., 0] > 127, 0, 255)
    collection = self.collection(
      {
        '0.jpg': _jpeg(first),
        '1.jpg': _jpeg(second),
        'copy_of_0.jpg': _jpeg(first),
        '3.png': _png(first),
        'as_3.bmp': cv2.imencode('.bmp', first)[1].tobytes(),
        'again_0.jpg': _jpeg(first),
        'other_quality.jpg': _jpeg(first, 60),
        'broken_a.jpg': b'nothing',
        'broken_b.jpg': b'nothing',
        'black_a.png': _png(np.zeros((40, 40, 3), np.uint8)),
        'black_b.png': _png(np.zeros((40, 40, 3), np.uint8)),
      }
    )
    found = self.take(collection)
    groups = duplicates.equal_groups(found, collection)
    self.assertEqual(groups.tolist(), [0, 1, 0, 3, 3, 0, 6, 7, 8, 9, 10])

  def test_pictures_that_differ_in_fine_detail_are_not_equal(self):
    smooth = cv2.GaussianBlur(_picture(0, 480, 640), (9, 9), 3) // 2 + 64
    board = (np.add.outer(np.arange(480), np.arange(640)) % 2 * 30)[..., None]
    collection = self.collection(
      {
        'board.jpg': _jpeg(smooth + board.astype(np.uint8)),
        'inverse.jpg': _jpeg(smooth + 30 - board.astype(np.uint8)),
      }
    )
    found = self.take(collection)
    # What makes it a test: they are the same at an eighth of the size.
    self.assertEqual(found.pixels[0], found.pixels[1])
    groups = duplicates.equal_groups(found, collection)
    self.assertEqual(groups.tolist(), [0, 1])

  def test_boxes_of_one_file_are_different_pictures(self):
    file = _png(_picture(0))
    boxes = np.array(
      [[0, 0, 50, 50], [40, 30, 90, 80], [0, 0, 50, 50], [np.nan] * 4],
      np.float32,
    )
    collection = self.collection(
      dict.fromkeys(['a.png', 'b.png', 'c.png', 'd.png'], file), boxes=boxes
    )
    found = self.take(collection)
    groups = duplicates.equal_groups(found, collection)
    self.assertEqual(groups.tolist(), [0, 1, 0, 3])


class KeepAlikeTest(FilesTestCase):
  def test_another_colour_is_another_picture(self):
    shape = (96, 96, 3)
    red, blue = np.full(shape, 255, np.uint8), np.full(shape, 255, np.uint8)
    red[20:70, 30:60], blue[20:70, 30:60] = (20, 20, 200), (200, 60, 20)
    collection = self.collection(
      {
        'red.png': _png(red),
        'blue.png': _png(blue),
        'red.jpg': _jpeg(cv2.resize(red, (80, 80)), 70),
      }
    )
    near = duplicates.NearPairs(
      np.array([[0, 1], [0, 2], [1, 2]]), np.array([0, 2, 4]), True
    )
    kept = duplicates.keep_alike(near, collection, np.arange(3))
    self.assertEqual(kept.pairs.tolist(), [[0, 2]])
    self.assertEqual(kept.distances.tolist(), [2])

  def test_correlation_is_that_of_numpy(self):
    generator = np.random.default_rng(0)
    a, b = generator.integers(0, 256, (2, 5, 4, 4, 1), dtype=np.uint8)
    expected = [
      np.corrcoef(x.ravel(), y.ravel())[0, 1] for x, y in zip(a, b, strict=True)
    ]
    np.testing.assert_allclose(
      duplicates.correlation(a, b), expected, atol=1e-6
    )
    flat = np.full_like(a, 7)
    np.testing.assert_array_equal(duplicates.correlation(a, flat), np.zeros(5))


class FirstOfEachTest(parameterized.TestCase):
  def test_equals_a_loop(self):
    generator = np.random.default_rng(0)
    for _ in range(20):
      groups = generator.integers(0, 12, 30)
      left, right = generator.random((2, 30)) < 0.4
      expected = []
      for j in np.flatnonzero(right):
        firsts = [i for i in range(30) if left[i] and groups[i] == groups[j]]
        if firsts and firsts[0] != j:
          expected.append([firsts[0], j])
      found = duplicates.first_of_each(groups, left, right)
      self.assertEqual(found.tolist(), expected)


class FingerprintsTest(FilesTestCase):
  def test_hash_is_the_signs_of_a_cosine_transform(self):
    grey = np.random.default_rng(0).integers(0, 256, (32, 32), dtype=np.uint8)
    # The transform by its definition, up to factors of rows and columns.
    x = np.arange(32)
    basis = np.cos(np.pi * (2 * x + 1) * x[:, None] / 64)
    basis *= np.where(x == 0, 1, np.sqrt(2))[:, None]
    low = (basis @ grey.astype(float) @ basis.T)[:8, :8].ravel()[1:]
    expected = sum(1 << i for i in range(63) if low[i] > np.median(low))
    self.assertEqual(fingerprints.perceptual_hash(grey), expected)

  def test_hashes_of_a_picture_saved_anew_are_near(self):
    for seed in range(10):
      picture = _picture(seed, 180, 240)
      variants = {
        'a.png': _png(picture),
        'b.jpg': _jpeg(picture, 40),
        'c.jpg': _jpeg(cv2.resize(picture, (160, 120))),
        'd.jpg': _jpeg(cv2.convertScaleAbs(picture, alpha=0.8)),
        'e.png': _png(_picture(seed + 100, 180, 240)),
      }
      hashes = self.take(self.collection(variants)).hashes.tolist()
      distances = [(hashes[0] ^ other).bit_count() for other in hashes[1:]]
      self.assertLessEqual(max(distances[:3]), 6)
      self.assertGreater(distances[3], 12)

  def test_what_is_remembered(self):
    picture = _picture(0, 60, 90)
    collection = self.collection(
      {
        'a.jpg': _jpeg(picture),
        'b.png': _png(np.full((30, 20, 3), 200, np.uint8)),
        'c.png': None,
        'd.png': b'\x89PNG',
      }
    )
    told = []
    found = self.take(collection, progress=told.append)
    self.assertEqual(sum(told), 4)
    self.assertEqual(found.sizes.tolist(), [[60, 90], [30, 20], [0, 0], [0, 0]])
    self.assertEqual(found.is_blank.tolist(), [False, True, False, False])
    self.assertEqual(found.errors[2], 'No such file or directory')
    self.assertEqual(set(found.errors), {2, 3})
    self.assertLen(set(found.paths.tolist()), 4)

  def test_threads_change_nothing(self):
    files = {f'{i}.jpg': _jpeg(_picture(i, 40, 60)) for i in range(150)}
    collection = self.collection(files)
    one, four = (self.take(collection, num_threads=n) for n in (1, 4))
    for name in ('paths', 'places', 'contents', 'pixels', 'hashes', 'sizes'):
      np.testing.assert_array_equal(getattr(one, name), getattr(four, name))

  def test_a_box_is_read_at_a_fraction_as_at_full_size(self):
    picture = cv2.resize(_picture(3), (1200, 900))
    boxes = np.array([[300, 150, 900, 700]], np.float32)
    collection = self.collection({'a.jpg': _jpeg(picture)}, boxes=boxes)
    small = fingerprints.read_picture(collection, 0, 3, 48)
    full = fingerprints.read_picture(collection, 0, 3, 0)
    self.assertEqual(full.shape, (550, 600, 3))
    self.assertGreaterEqual(min(small.shape[:2]), 48)
    self.assertLess(small.shape[0], 300)
    shrunk = cv2.resize(full, small.shape[1::-1], interpolation=cv2.INTER_AREA)
    self.assertLess(np.abs(small.astype(int) - shrunk).mean(), 4)


if __name__ == '__main__':
  absltest.main()
