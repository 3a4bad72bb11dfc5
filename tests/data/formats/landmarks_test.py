import pathlib
import shutil
import tempfile

import cv2
import numpy as np
from absl.testing import absltest, parameterized

from retrieval_jax.core.errors import InputError
from retrieval_jax.data.collection import TEST, TRAIN
from retrieval_jax.data.formats import landmark_tables, landmarks

# Of the training set: id -> landmark. Those of the clean set are 7 and 30.
TRAIN_SET = {
  '0123456789abcdef': 30,
  '00000000000000a1': 7,
  'ffffffffffffffff': 30,
  'fedcba9876543210': 4,
  '89abcdef01234567': 7,
}
CLEAN = {30: ['ffffffffffffffff', '0123456789abcdef'], 7: ['89abcdef01234567']}
INDEX = [f'{i:x}{i:x}{i:x}{i:013x}' for i in range(6)]
# id -> index images; rows of INDEX.
QUERIES = {
  'aaa0000000000001': [3, 1],
  'aaa0000000000002': None,
  'aaa0000000000003': [5],
  'aaa0000000000004': [1],
}


def _path(folder, name):
  return f'{folder}/{name[0]}/{name[1]}/{name[2]}/{name}.jpg'


class LandmarksTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    above = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    self.root = above / 'gldv2_dataset'
    image = np.zeros((3, 4, 3), np.uint8)
    for folder, names in (
      ('train', TRAIN_SET),
      ('index', INDEX),
      ('test', QUERIES),
    ):
      for name in names:
        path = self.root / _path(folder, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), image)
    self._write(
      'train/train.csv',
      'id,url,landmark_id',
      *(f'{i},"http://x/a,b.jpg",{label}' for i, label in TRAIN_SET.items()),
    )
    self._write(
      'train/train_clean.csv',
      'landmark_id,images',
      *(f'{label},{" ".join(ids)}' for label, ids in CLEAN.items()),
    )
    self._write('index/index.csv', 'id', *INDEX)
    rows = []
    for i, (name, relevant) in enumerate(QUERIES.items()):
      ids = ' '.join(INDEX[row] for row in relevant or [])
      usage = ('Public', 'Private')[i % 2] if relevant else 'Ignored'
      rows.append(f'{name},{ids or "None"},{usage}')
    self._write('test/retrieval_solution_v2.1.csv', 'id,images,Usage', *rows)

  def _write(self, name, *lines):
    (self.root / name).write_text('\n'.join(lines) + '\n')

  def _load(self, **options):
    return landmarks.gldv2(dir=str(self.root), **options)

  def _refused(self, message, dir=None, **options):
    with self.assertRaisesRegex(InputError, message) as caught:
      landmarks.gldv2(dir=str(dir or self.root), **options)
    self.assertNotIn('\n', str(caught.exception))

  @parameterized.parameters(
    ('clean', [('ffffffffffffffff', 1), ('0123456789abcdef', 1),
               ('89abcdef01234567', 0)], ('7', '30')),
    ('c2x', [('0123456789abcdef', 1), ('00000000000000a1', 0),
             ('ffffffffffffffff', 1), ('89abcdef01234567', 0)], ('7', '30')),
    ('all', [('0123456789abcdef', 2), ('00000000000000a1', 1),
             ('ffffffffffffffff', 2), ('fedcba9876543210', 0),
             ('89abcdef01234567', 1)], ('4', '7', '30')),
  )  # fmt: skip
  def test_trains_on_a_subset(self, subset, expected, names):
    found = self._load(subset=subset)
    num = len(expected)
    self.assertEqual(
      list(found.images.paths)[:num], [_path('train', i) for i, _ in expected]
    )
    self.assertEqual(found.labels[:num].tolist(), [n for _, n in expected])
    self.assertEqual(found.class_names[: len(names)], names)
    self.assertEqual(found.split.tolist(), [TRAIN] * num + [TEST] * 9)
    self.assertLen(found, num + 9)

  def test_queries_ask_the_index(self):
    found = self._load()
    asked, searched = found.is_query, found.is_gallery
    self.assertEqual(asked.tolist(), [False] * 3 + [True] * 3 + [False] * 6)
    self.assertEqual(searched.tolist(), [False] * 6 + [True] * 6)
    queries = [name for name, relevant in QUERIES.items() if relevant]
    self.assertEqual(
      list(found.images.paths)[3:],
      [_path('test', i) for i in queries] + [_path('index', i) for i in INDEX],
    )
    for row in range(len(found)):
      content = np.frombuffer(found.images.read(row), np.uint8)
      self.assertEqual(cv2.imdecode(content, 1).shape, (3, 4, 3))

  def test_labels_are_the_groups_that_the_lists_connect(self):
    found = self._load()
    # Queries 1 and 3 of the three share index image 1; image 5 is the second's.
    first, second, third = found.labels[3:6].tolist()
    self.assertEqual(first, third)
    self.assertNotEqual(first, second)
    none = len(found.class_names) - 1
    self.assertEqual(
      found.labels[6:].tolist(), [none, first, none, first, none, second]
    )
    self.assertEqual(found.class_names[-1], 'no query')
    self.assertEqual(sorted({first, second, none}), [2, 3, 4])

  def test_the_log_counts(self):
    with self.assertLogs(level='INFO') as logs:
      self._load()
    self.assertIn(
      '3 queries, 6 index images, 4 relevant pairs', logs.output[-1]
    )

  def test_an_index_that_is_relevant_throughout_has_no_last_class(self):
    self._write('index/index.csv', 'id', *(INDEX[row] for row in (1, 3, 5)))
    found = self._load()
    self.assertEqual(found.class_names, ('7', '30', 'queries 0', 'queries 1'))
    self.assertLess(found.labels.max(), 4)

  @parameterized.parameters('.', 'metadata')
  def test_metadata_may_lie_elsewhere(self, folder):
    expected = self._load(subset='c2x')
    (self.root / folder).mkdir(exist_ok=True)
    for path in self.root.glob('*/*.csv'):
      shutil.move(path, self.root / folder)
    found = self._load(subset='c2x')
    np.testing.assert_array_equal(found.labels, expected.labels)
    self.assertEqual(list(found.images.paths), list(expected.images.paths))

  def test_thousands_of_images_are_as_a_loop_says(self):
    rng = np.random.default_rng(0)
    ids = [f'{i:016x}' for i in rng.integers(0, 2**64, 70_000, np.uint64)]
    (self.root / _path('train', ids[0])).parent.mkdir(parents=True)
    (self.root / _path('train', ids[0])).touch()
    labels = rng.integers(0, 9000, len(ids)).tolist()
    rows = (f'{i},u,{n}' for i, n in zip(ids, labels, strict=True))
    self._write('train/train.csv', 'id,url,landmark_id', *rows)
    found = self._load(subset='all')
    paths = list(found.images.paths)[:70_000]
    self.assertEqual(paths, [_path('train', i) for i in ids])
    names = [found.class_names[n] for n in found.labels[:70_000].tolist()]
    self.assertEqual(names, [str(n) for n in labels])

  def test_the_solution_is_rows_of_the_gallery(self):
    ids = np.array([int(name, 16) for name in INDEX], np.uint64)
    order = [4, 1, 5, 0, 3, 2]
    found = landmark_tables.read_retrieval_solution(
      str(self.root / 'test/retrieval_solution_v2.1.csv'), ids[order]
    )
    self.assertEqual(
      [f'{i:016x}' for i in found.query_ids.tolist()],
      [name for name, relevant in QUERIES.items() if relevant],
    )
    self.assertEqual(found.offsets.tolist(), [0, 2, 3, 4])
    self.assertEqual(found.gallery_rows.tolist(), [4, 1, 2, 1])
    self.assertEqual(found.is_public.tolist(), [True, True, False])

  @parameterized.parameters(
    ('train/train_clean.csv', 'clean'),
    ('train/train_clean.csv', 'c2x'),
    ('train/train.csv', 'all'),
    ('train/train.csv', 'c2x'),
    ('index/index.csv', 'clean'),
    ('test/retrieval_solution_v2.1.csv', 'clean'),
  )
  def test_names_a_missing_file(self, name, subset):
    (self.root / name).unlink()
    self._refused(f'{name} or .* is missing; the folder', subset=subset)

  def test_clean_does_not_need_the_whole_table(self):
    (self.root / 'train/train.csv').unlink()
    self.assertLen(self._load(), 12)

  def test_names_the_right_level(self):
    cure = f'set --config.data.dir={self.root}$'
    self._refused(cure, self.root.parent)
    self._refused(cure, self.root / 'index')

  def test_names_images_that_are_not_unpacked(self):
    shutil.rmtree(self.root / 'index' / '0')
    self.assertLen(self._load(), 12)  # Found where they are read.
    for path in (self.root / 'index').iterdir():
      if path.is_dir():
        shutil.rmtree(path)
    self._refused(f'none of the first 6 images.*{self.root}/index/0/0/0/')

  @parameterized.named_parameters(
    ('column', 'train/train_clean.csv', 'landmark,images\n7,x',
     "has no column 'landmark_id', only landmark, images"),
    ('id', 'index/index.csv', 'id\n0123456789abcdeg',
     "index.csv': '0123456789abcdeg' is no identifier"),
    ('id_short', 'index/index.csv', 'id\n0123456789abcdef\n012',
     "'012' is no identifier"),
    ('id_empty', 'train/train_clean.csv', 'landmark_id,images\n7,',
     "'' is no identifier"),
    ('landmark', 'train/train_clean.csv', f'landmark_id,images\nx,{INDEX[0]}',
     "train_clean.csv': landmark_id: .*'x'"),
    ('empty', 'index/index.csv', 'id', "index.csv' has no rows"),
    ('unknown', 'index/index.csv', f'id\n{INDEX[0]}',
     f"image {INDEX[3]} is not in index.csv"),
  )  # fmt: skip
  def test_refuses_damaged_files(self, name, content, message):
    self._write(name, content)
    self._refused(message)

  def test_refuses_an_unknown_subset(self):
    self._refused(
      "data.subset is 'cleen'; did you mean 'clean'", subset='cleen'
    )


if __name__ == '__main__':
  absltest.main()
