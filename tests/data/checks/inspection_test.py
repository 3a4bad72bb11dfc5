"""Each fault is planted alone in a clean set, and must be all that is found."""

import dataclasses
import os
import tempfile

import cv2
import numpy as np
from absl.testing import absltest, parameterized

from retrieval_jax.core.strings import Strings
from retrieval_jax.data.checks import findings, inspection
from retrieval_jax.data.collection import TEST, TRAIN, VALIDATION, Collection
from retrieval_jax.data.sources import ImageArray, ImageFiles


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


def _saved_anew(picture):
  return _jpeg(cv2.resize(picture, (112, 84)), 60)


class Planted:
  """24 files of 6 classes; 0 to 2 are trained on, the others ask each other."""

  def __init__(self, root):
    self.root = root
    self.labels = np.repeat(np.arange(6, dtype=np.int32), 4)
    self.split = np.where(self.labels < 3, TRAIN, TEST).astype(np.int8)
    self.is_query = self.split == TEST
    self.is_gallery = self.split == TEST
    self.paths = [f'{i:02}.jpg' for i in range(24)]
    self.others = {}
    self.class_names = tuple('abcdef')
    for i in range(24):
      self.write(i, _jpeg(_picture(i)))

  def write(self, i, content):
    with open(os.path.join(self.root, self.paths[i]), 'wb') as file:
      file.write(content)

  def part_gallery(self):
    """The last two of each class are the gallery of the first two."""
    place = np.arange(24) % 4
    self.is_query &= place < 2
    self.is_gallery &= place >= 2

  def collection(self):
    return Collection(
      'planted',
      ImageFiles(self.root, Strings.of(self.paths)),
      self.labels,
      self.class_names,
      split=self.split,
      is_query=self.is_query,
      is_gallery=self.is_gallery,
      **self.others,
    )


def _unreadable(planted):
  planted.write(3, b'\xff\xd8\xff nothing')
  os.remove(os.path.join(planted.root, planted.paths[20]))
  return {'unreadable_image': [3, 20]}


def _leak(planted):
  planted.write(13, _jpeg(_picture(2)))
  return {'train_test_leak': [[2, 13]], 'two_labels': [[2, 13]]}


def _leak_of_a_shared_class(planted):
  planted.labels[13] = 0
  planted.write(13, _jpeg(_picture(2)))
  return {
    'train_test_leak': [[2, 13]],
    'lone_query': [13],
    'shared_class': [0],
  }


def _near_leak(planted):
  planted.write(13, _saved_anew(_picture(2)))
  return {'near_train_test_leak': [[2, 13]]}


def _near_leak_of_small_pictures(planted):
  for i in range(24):
    planted.write(i, _jpeg(cv2.resize(_picture(i), (48, 36)), 95))
  planted.write(13, _jpeg(cv2.resize(_picture(2), (48, 36)), 60))
  return {'small_near_duplicate': [[2, 13]]}


def _leak_to_validation(planted):
  planted.split[4:12] = VALIDATION
  planted.is_query[4:12] = planted.is_gallery[4:12] = True
  planted.labels[4] = 0
  planted.write(4, _jpeg(_picture(2)))
  planted.write(9, _saved_anew(_picture(3)))
  return {
    'train_validation_leak': [[2, 4]],
    'near_train_validation_leak': [[3, 9]],
    'lone_query': [4],
  }


def _sequence(planted):
  planted.others['sequence'] = np.full(24, -1, np.int32)
  planted.others['sequence'][[1, 5, 14, 15, 16]] = 7, 8, 7, 7, 9
  return {'sequence_leak': [[1, 14], [1, 15]]}


def _query_in_gallery(planted):
  planted.part_gallery()
  planted.write(15, _jpeg(_picture(13)))
  planted.write(18, _saved_anew(_picture(17)))
  return {'query_gallery_leak': [[15, 13]], 'near_query_gallery': [[17, 18]]}


def _two_labels(planted):
  planted.write(6, _jpeg(_picture(1)))
  planted.write(17, _saved_anew(_picture(22)))
  return {'two_labels': [[1, 6]], 'near_two_labels': [[17, 22]]}


def _label_sets(planted):
  """Sets that overlap are no contradiction; others are."""
  sets = np.stack([planted.labels, np.full(24, -1, np.int32)], axis=1)
  sets[6] = 1, 0
  planted.others['label_sets'] = sets
  planted.write(6, _jpeg(_picture(2)))
  planted.write(7, _jpeg(_picture(3)))
  return {'two_labels': [[3, 7]], 'duplicate': [[2, 6]]}


def _duplicates(planted):
  planted.write(1, _jpeg(_picture(0)))
  planted.write(2, _jpeg(_picture(0)))
  planted.write(15, _saved_anew(_picture(14)))
  return {'duplicate': [[0, 1], [0, 2]], 'near_duplicate': [[14, 15]]}


def _repeated_row(planted):
  planted.paths[14] = planted.paths[13]
  return {'repeated_row': [[13, 14]]}


def _boxes(planted):
  boxes = np.full((24, 4), np.nan, np.float32)
  boxes[0] = 0, 0, 128, 96  # Just fits.
  boxes[1] = 10, 10, 128.9, 90  # Off by rounding.
  boxes[2] = 10, 10, 131, 90
  boxes[3] = -3, 10, 60, 90
  boxes[4] = 60, 10, 20, 90  # Inverted.
  boxes[5] = 10, 20, 90, 20
  boxes[6] = np.nan, 0, 20, 20
  planted.others['boxes'] = boxes
  return {'box_outside': [2, 3], 'empty_box': [4, 5, 6]}


def _boxes_of_one_picture(planted):
  boxes = np.full((24, 4), np.nan, np.float32)
  boxes[[1, 13, 14]] = [0, 0, 70, 90], [60, 0, 128, 90], [40, 5, 120, 80]
  planted.paths[13] = planted.paths[14] = planted.paths[1]
  planted.others['boxes'] = boxes
  return {'shared_picture': [[1, 13], [1, 14]]}


def _blank(planted):
  planted.write(1, _jpeg(np.zeros((96, 128, 3), np.uint8)))
  planted.write(13, _jpeg(np.zeros((96, 128, 3), np.uint8)))
  planted.write(14, _jpeg(np.full((96, 128, 3), 90, np.uint8)))
  return {'blank_image': [1, 13, 14]}


def _shapes(planted):
  planted.write(1, _jpeg(_picture(40, 15, 20)))
  planted.write(13, _jpeg(_picture(41, 70, 360)))
  return {'tiny_image': [1], 'extreme_shape': [13]}


def _tiny_beside_large(planted):
  for i in range(24):
    planted.write(i, _jpeg(_picture(i, 300, 400), 60))
  planted.write(7, _jpeg(_picture(7, 29, 40)))
  return {'tiny_image': [7]}


def _unmatched_queries(planted):
  planted.part_gallery()
  planted.is_gallery[planted.labels == 4] = False
  return {'query_without_match': [16, 17], 'unused_row': [18, 19]}


def _lone_query(planted):
  planted.labels[23] = 6
  planted.class_names += ('g',)
  return {'lone_query': [23]}


def _no_query_matches(planted):
  planted.labels[12:] = np.arange(3, 15)
  planted.class_names = tuple(f'class {c}' for c in range(15))
  return {'query_without_match': list(range(12, 24))}


def _classes(planted):
  planted.labels[3] = 7
  planted.class_names += ('g', 'h')
  planted.labels[8] = 3
  return {
    'lone_class': [3, 7],
    'empty_class': [6],
    'shared_class': [3],
  }


def _unasked_classes(planted):
  planted.part_gallery()
  planted.is_query[12:14] = False
  planted.is_gallery[0:4] = True  # Training images are searched in as well.
  return {'unasked_class': [0, 3], 'unused_row': [12, 13]}


def _label_gaps(planted):
  planted.class_names = ('3', '4', '7', '8', '9', '11')
  return {'label_gap': 3}


def _skipped_rows(planted):
  planted.others['num_skipped'] = {'no label': 2, 'no path': 5}
  return {'skipped_row': 7}


def _unused_rows(planted):
  planted.split[[0, 12]] = -1
  return {'unused_row': [0, 12]}


FAULTS = (
  _unreadable,
  _leak,
  _leak_of_a_shared_class,
  _near_leak,
  _near_leak_of_small_pictures,
  _leak_to_validation,
  _sequence,
  _query_in_gallery,
  _two_labels,
  _label_sets,
  _duplicates,
  _repeated_row,
  _boxes,
  _boxes_of_one_picture,
  _blank,
  _shapes,
  _tiny_beside_large,
  _unmatched_queries,
  _lone_query,
  _no_query_matches,
  _classes,
  _unasked_classes,
  _label_gaps,
  _skipped_rows,
  _unused_rows,
)


def _summary(found):
  return {
    f.name: f.count if f.kind == 'whole' else f.items.tolist()
    for f in found.listed
  }


class InspectionTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.planted = Planted(self.enterContext(tempfile.TemporaryDirectory()))

  def inspect(self, **options):
    return inspection.inspect_collection(self.planted.collection(), **options)

  def test_a_clean_set(self):
    found = self.inspect()
    self.assertEqual(_summary(found), {})
    self.assertEqual(found.verdict, 'nothing found')
    self.assertEqual(found.images_per_class.tolist(), [4] * 6)
    self.assertEqual(
      dict(found.facts),
      {
        'images': '24 of 6 classes',
        'training set': '12 of 3 classes',
        'test set': '12 of 3 classes, each against the others',
        'images per class': '4 to 4, median 4',
        'width, pixels': '128 to 128, median 128',
        'height, pixels': '96 to 96, median 96',
        'width / height': '1.333 to 1.333, median 1.333',
      },
    )

  @parameterized.named_parameters((f.__name__[1:], f) for f in FAULTS)
  def test_a_planted_fault_is_what_is_found(self, plant):
    expected = plant(self.planted)
    self.assertEqual(_summary(self.inspect()), expected)

  def test_every_kind_of_finding_is_planted(self):
    planted = set()
    for plant in FAULTS:
      folder = tempfile.TemporaryDirectory()
      planted |= set(plant(Planted(self.enterContext(folder))))
    # Takes 300,000 pairs; `duplicates_test` makes it happen.
    planted.add('incomplete_search')
    self.assertEqual(planted, set(findings.KINDS))

  def test_near_duplicates_can_be_left_out(self):
    _near_leak(self.planted)
    found = self.inspect(near_duplicate_bits=None)
    self.assertEqual(_summary(found), {})
    self.assertIn('were not looked for', found.scope)

  def test_some_pictures_and_all_labels(self):
    _unreadable(self.planted)
    _lone_query(self.planted)
    told = []
    found = self.inspect(max_images=10, progress=told.append)
    self.assertEqual(sum(told), 10)
    self.assertEqual(found.num_read, 10)
    self.assertIn('10 of 24 pictures were read', found.scope)
    self.assertEqual(found.get('lone_query').items.tolist(), [23])
    twice = self.inspect(max_images=10, num_threads=3)
    self.assertEqual(_summary(found), _summary(twice))

  def test_without_splits_nothing_leaks(self):
    _leak(self.planted)
    collection = dataclasses.replace(
      self.planted.collection(), split=None, is_query=None, is_gallery=None
    )
    found = inspection.inspect_collection(collection)
    self.assertEqual(_summary(found), {'two_labels': [[2, 13]]})

  def test_images_in_memory(self):
    images = np.random.default_rng(0).integers(0, 256, (8, 70, 70, 1))
    images = images.astype(np.uint8)
    images[6] = images[1]
    collection = Collection(
      'memory',
      ImageArray(images),
      np.repeat(np.arange(4, dtype=np.int32), 2),
      tuple('abcd'),
      split=np.repeat(np.array([TRAIN, TEST], np.int8), 4),
    )
    found = inspection.inspect_collection(collection)
    self.assertEqual(
      _summary(found), {'train_test_leak': [[1, 6]], 'two_labels': [[1, 6]]}
    )

  def test_no_rows(self):
    collection = Collection(
      'empty',
      ImageArray(np.zeros((0, 8, 8, 1), np.uint8)),
      np.zeros(0, np.int32),
      (),
    )
    found = inspection.inspect_collection(collection)
    self.assertEqual(_summary(found), {})


class FormatTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.planted = Planted(self.enterContext(tempfile.TemporaryDirectory()))

  def format(self):
    collection = self.planted.collection()
    found = inspection.inspect_collection(collection)
    return findings.format_findings(found, collection)

  def test_names_paths_classes_parts_and_what_is_left_out(self):
    for i in range(12, 20):
      self.planted.write(i, b'nothing')
    self.planted.write(20, _jpeg(_picture(2)))
    text = self.format()
    self.assertIn('train_test_leak 1  (one picture is trained', text)
    self.assertIn(f'{self.planted.root}/02.jpg (class a, train)', text)
    self.assertIn('20.jpg (class f, test query and gallery)', text)
    self.assertIn('unreadable_image 8', text)
    self.assertIn('... and 5 more', text)
    self.assertEndsWith(text, '3 kinds of error.')

  def test_a_name_does_not_move_the_cursor(self):
    self.planted.class_names = ('\x1b[2J\r',) + self.planted.class_names[1:]
    self.planted.write(0, b'nothing')
    text = self.format()
    self.assertNotIn('\x1b', text)
    self.assertNotIn('\r', text)


if __name__ == '__main__':
  absltest.main()
