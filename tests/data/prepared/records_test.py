import pathlib
import struct
import tempfile
from concurrent import futures
from typing import NamedTuple

import numpy as np
from absl.testing import absltest, parameterized
from array_record.python import array_record_module
from tensorflow_datasets.proto import tf_example_pb2

from retrieval_jax.data import decoding
from retrieval_jax.data.prepared import records


class Range(NamedTuple):
  filename: str
  skip: int
  take: int
  examples_in_shard: int


def example(image, label=0):
  result = tf_example_pb2.Example()
  result.features.feature['image'].bytes_list.value.append(image)
  result.features.feature['label'].int64_list.value.append(label)
  return result.SerializeToString()


class RecordsTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))

  def write(self, name, contents, file_format):
    path = str(self.folder / name)
    if file_format == 'tfrecord':
      with open(path, 'wb') as file:
        for content in contents:
          file.write(struct.pack('<QI', len(content), 1) + content + b'crc_')
    else:
      writer = array_record_module.ArrayRecordWriter(path, 'group_size:1')
      for content in contents:
        writer.write(content)
      writer.close()
    return path

  def open(self, ranges, file_format):
    opener = {
      'tfrecord': records.TFRecords,
      'array_record': records.array_records,
    }[file_format]
    return opener(ranges)

  def shards(self, file_format, sizes=(700, 1, 400)):
    """Writes examples of `row` times the byte `row % 251`, labelled `row`."""
    contents, ranges = [], []
    for size in sizes:
      start = len(contents)
      rows = range(start, start + size)
      contents += [example(bytes([row % 251]) * row, row) for row in rows]
      path = self.write(f'{start}', contents[start:], file_format)
      ranges.append(Range(path, 0, size, size))
    return contents, ranges

  @parameterized.parameters('array_record', 'tfrecord')
  def test_reads_at_random_and_from_many_threads(self, file_format):
    contents, ranges = self.shards(file_format)
    store = self.open(ranges, file_format)
    self.assertLen(store, 1101)
    rows = np.random.default_rng(0).permutation(np.repeat(np.arange(1101), 3))
    with futures.ThreadPoolExecutor(16) as pool:
      for row, content in zip(
        rows, pool.map(lambda row: store[row], rows.tolist()), strict=True
      ):
        self.assertEqual(content, contents[row])
    self.assertEqual(list(store.__getitems__([3, 700, 2])),
                     [contents[3], contents[700], contents[2]])  # fmt: skip

  @parameterized.parameters('array_record', 'tfrecord')
  def test_reads_parts_of_files(self, file_format):
    contents, (first, second, third) = self.shards(file_format)
    store = self.open(
      [
        third._replace(skip=7, take=2),
        second,
        first._replace(skip=699, take=1),
      ],
      file_format,
    )
    self.assertEqual(
      [store[row] for row in range(4)],
      [contents[row] for row in (708, 709, 700, 699)],
    )

  @parameterized.parameters('array_record', 'tfrecord')
  def test_scan_visits_every_record_once(self, file_format):
    _, ranges = self.shards(file_format)
    seen = np.zeros(1101, int)

    def visit(row, features):
      self.assertEqual(features['label'].int64_list.value, [row])
      seen[row] += 1

    records.scan(self.open(ranges, file_format), visit)
    np.testing.assert_array_equal(seen, 1)

  def test_scan_raises_what_a_visit_raises(self):
    _, ranges = self.shards('tfrecord')

    def visit(row, features):
      if row == 900:
        raise KeyError('here')

    with self.assertRaisesRegex(KeyError, 'here'):
      records.scan(self.open(ranges, 'tfrecord'), visit)

  def test_offsets_are_reused(self):
    contents, ranges = self.shards('tfrecord')
    offsets = records.TFRecords(ranges).offsets
    self.assertEqual(offsets[1] - offsets[0], 16 + len(contents[0]))
    store = records.TFRecords(ranges, offsets[::-1])
    # As they are given: the last of the first file is where it says.
    store.offsets[0] = offsets[5]
    self.assertEqual(store[0], contents[5])

  @parameterized.parameters(0, 5, 12, 20)
  def test_a_file_that_ends_early_is_damaged(self, size):
    content = example(b'picture')
    path = self.write('file', [content] * 2, 'tfrecord')
    whole = records.TFRecords([Range(path, 0, 2, 2)])
    with open(path, 'r+b') as file:
      file.truncate(16 + len(content) + size)
    with self.assertRaisesRegex(ValueError, 'ends at record 1 of 2'):
      records.TFRecords([Range(path, 0, 2, 2)])
    self.assertEqual(whole[0], content)
    with self.assertRaisesRegex(ValueError, 'ends within a record'):
      whole[1]

  def test_no_example_is_damage(self):
    with self.assertRaises(records.DAMAGE):
      records.parse(b'\xff\xff nothing')


class ImageRecordsTest(parameterized.TestCase):
  def store(self, contents):
    return records.ImageRecords(
      contents, 'image', [('birds train', 2), ('birds test', 1)]
    )

  def test_reads_the_stored_bytes(self):
    images = self.store([example(b'a'), example(b'bc'), example(b'')])
    self.assertLen(images, 3)
    self.assertEqual([images.read(row) for row in range(2)], [b'a', b'bc'])
    self.assertEqual(
      [images.describe(row) for row in range(3)],
      ['birds train record 0', 'birds train record 1', 'birds test record 0'],
    )
    for row in -1, 3:
      with self.assertRaises(IndexError):
        images.read(row)

  def test_a_picture_that_is_not_there_cannot_be_read(self):
    images = self.store([example(b''), b'\xff\xff', b''])
    for row in range(3):
      with self.assertRaises(decoding.UnreadableImageError):
        images.read(row)

  def test_one_damaged_record_leaves_the_others(self):
    with tempfile.TemporaryDirectory() as folder:
      path = f'{folder}/file'
      writer = array_record_module.ArrayRecordWriter(path, 'group_size:1')
      random = np.random.default_rng(0)
      contents = [example(random.bytes(5000)) for _ in range(30)]
      for content in contents:
        writer.write(content)
      writer.close()
      with open(path, 'r+b') as file:
        data = file.read()
        file.seek(data.index(contents[4][100:200]))
        file.write(b'x' * 10)
      images = records.ImageRecords(
        records.array_records([Range(path, 0, 30, 30)]), 'image', [('x', 30)]
      )
      for row in *range(30), 4, 5:
        if row == 4:
          with self.assertRaisesRegex(
            decoding.UnreadableImageError, 'Corrupted'
          ):
            images.read(row)
        else:
          self.assertIn(images.read(row), contents[row])


if __name__ == '__main__':
  absltest.main()
