import os
import pathlib
import tempfile
from unittest import mock

import cv2
import numpy as np
from absl.testing import absltest, parameterized

from retrieval_jax.core.errors import InputError
from retrieval_jax.data.collection import TEST, TRAIN, VALIDATION
from retrieval_jax.data.formats import folders


class FoldersTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.root = self._new_folder() / 'set'
    self.root.mkdir()

  def _new_folder(self):
    return pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))

  def _touch(self, *names):
    for name in names:
      (self.root / name).parent.mkdir(parents=True, exist_ok=True)
      (self.root / name).touch()

  def _load(self):
    return folders.folder(dir=str(self.root))

  def _refused(self, message, dir=None):
    with self.assertRaisesRegex(InputError, message) as caught:
      folders.folder(dir=str(dir or self.root))
    self.assertNotIn('\n', str(caught.exception))

  def test_a_folder_is_a_class(self):
    self._touch('dog/b.jpg', 'dog/a.png', 'cat/z.jpg', 'Bird/1.jpg')
    found = self._load()
    self.assertEqual(
      list(found.images.paths),
      ['Bird/1.jpg', 'cat/z.jpg', 'dog/a.png', 'dog/b.jpg'],
    )
    self.assertEqual(found.labels.tolist(), [0, 1, 2, 2])
    self.assertEqual(found.labels.dtype, np.int32)
    self.assertEqual(found.class_names, ('Bird', 'cat', 'dog'))
    self.assertEqual(found.name, 'set')
    self.assertIsNone(found.split)
    self.assertIsNone(found.is_query)
    self.assertEqual(found.num_skipped, {})

  def test_files_are_in_order_whatever_the_order_on_disk(self):
    names = [f'a/{i * 7919 % 100:02}.jpg' for i in range(100)]
    self._touch(*names, 'b/1.jpg')
    self.assertEqual(
      list(self._load().images.paths), [*sorted(names), 'b/1.jpg']
    )

  def test_numbered_folders_are_classes_in_order(self):
    self._touch('10/a.jpg', '9/a.jpg', '100/a.jpg')
    self.assertEqual(self._load().class_names, ('9', '10', '100'))

  def test_images_can_be_read_and_described(self):
    image = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    for name in ('a', 'b'):
      (self.root / name).mkdir()
      cv2.imwrite(str(self.root / name / 'é 1.png'), image)
    found = self._load()
    content = np.frombuffer(found.images.read(1), np.uint8)
    np.testing.assert_array_equal(cv2.imdecode(content, 1), image)
    self.assertEqual(found.images.describe(1), f'{self.root}/b/é 1.png')

  def test_extensions_are_those_of_images_in_any_case(self):
    names = 'a.jpg b.JPEG c.Png d.webp e.bmp f.TIF g.tiff h.gif'.split()
    self._touch(*(f'x/{name}' for name in names), 'y/1.jpg')
    self._touch('x/readme.txt', 'x/jpg', 'y/Thumbs.db', 'list.csv')
    with self.assertLogs(level='WARNING') as logs:
      found = self._load()
    self.assertLen(found, 9)
    self.assertEqual(
      found.num_skipped, {'file without the extension of an image': 4}
    )
    self.assertLen(logs.output, 1)

  def test_what_is_no_file_is_counted_as_that(self):
    self._touch('a/1.jpg', 'b/1.jpg')
    (self.root / 'a' / '2.jpg').symlink_to('nothing.jpg')
    (self.root / 'b' / '2.jpg').symlink_to('2.jpg')
    os.mkfifo(self.root / 'b' / '3.jpg')
    found = self._load()
    self.assertLen(found, 2)
    self.assertEqual(found.num_skipped, {'link to nothing, pipe or device': 3})

  def test_hidden_files_and_folders_are_passed_over(self):
    self._touch('a/1.jpg', 'b/1.jpg', 'a/.x.jpg', '.git/1.jpg', 'b/.h/1.jpg')
    found = self._load()
    self.assertLen(found, 2)
    self.assertEqual(found.num_skipped, {})

  def test_folders_below_a_class_belong_to_it(self):
    self._touch('a/x/2.jpg', 'a/1.jpg', 'a/x/y/3.jpg', 'a/w/4.jpg', 'b/1.jpg')
    found = self._load()
    self.assertEqual(
      list(found.images.paths),
      ['a/1.jpg', 'a/w/4.jpg', 'a/x/2.jpg', 'a/x/y/3.jpg', 'b/1.jpg'],
    )
    self.assertEqual(found.labels.tolist(), [0, 0, 0, 0, 1])

  def test_train_and_test_are_splits_that_may_share_classes(self):
    self._touch(
      'train/a/1.jpg', 'train/b/1.jpg', 'test/b/2.jpg', 'test/c/1.jpg'
    )
    found = self._load()
    facts = dict(
      zip(
        found.images.paths,
        zip(found.labels.tolist(), found.split.tolist(), strict=True),
        strict=True,
      )
    )
    self.assertEqual(
      facts,
      {
        'train/a/1.jpg': (0, TRAIN),
        'train/b/1.jpg': (1, TRAIN),
        'test/b/2.jpg': (1, TEST),
        'test/c/1.jpg': (2, TEST),
      },
    )
    self.assertIsNone(found.is_query)

  def test_query_and_gallery_are_the_test_set(self):
    self._touch('train/a/1.jpg', 'query/b/1.jpg', 'gallery/b/2.jpg')
    found = self._load()
    rows = {path: row for row, path in enumerate(found.images.paths)}
    order = [
      rows[f'{n}.jpg'] for n in ('train/a/1', 'query/b/1', 'gallery/b/2')
    ]
    self.assertEqual(found.split[order].tolist(), [TRAIN, TEST, TEST])
    self.assertEqual(found.is_query[order].tolist(), [False, True, False])
    self.assertEqual(found.is_gallery[order].tolist(), [False, False, True])

  def test_validation_beside_test_stays_validation(self):
    self._touch('train/a/1.jpg', 'val/b/1.jpg', 'test/c/1.jpg')
    self.assertEqual(self._load().split.tolist(), [TRAIN, VALIDATION, TEST])

  @parameterized.parameters('val', 'validation')
  def test_validation_alone_is_the_test_set(self, name):
    self._touch('train/a/1.jpg', f'{name}/b/1.jpg')
    self.assertEqual(self._load().split.tolist(), [TRAIN, TEST])

  def test_a_class_may_be_called_train(self):
    self._touch('train/1.jpg', 'bus/1.jpg')
    found = self._load()
    self.assertEqual(found.class_names, ('bus', 'train'))
    self.assertIsNone(found.split)

  def test_links_to_other_folders_are_followed(self):
    elsewhere = self._new_folder()
    (elsewhere / '1.jpg').touch()
    self._touch('a/1.jpg')
    (self.root / 'b').symlink_to(elsewhere)
    (self.root / 'a' / 'more').symlink_to(elsewhere)
    self.assertEqual(
      list(self._load().images.paths), ['a/1.jpg', 'a/more/1.jpg', 'b/1.jpg']
    )

  @parameterized.parameters(
    ('a/loop', 'a'), ('a/x/loop', 'a'), ('a/x/loop', '.'), ('loop', '.')
  )
  def test_refuses_links_without_an_end(self, link, target):
    self._touch('a/1.jpg', 'a/x/1.jpg', 'b/1.jpg')
    (self.root / link).symlink_to((self.root / target).resolve())
    self._refused("loop' is a link to a folder that holds it.*remove it")

  def test_broken_links_are_left_out(self):
    self._touch('a/1.jpg', 'b/1.jpg')
    (self.root / 'a' / '2.jpg').symlink_to(self.root / 'nowhere')
    found = self._load()
    self.assertLen(found, 2)
    self.assertEqual(sum(found.num_skipped.values()), 1)

  def test_classes_without_images_are_left_out_and_named(self):
    self._touch('a/1.jpg', 'c/1.jpg', 'b/readme.txt')
    with self.assertLogs(level='WARNING') as logs:
      found = self._load()
    self.assertEqual(found.class_names, ('a', 'c'))
    self.assertEqual(found.labels.tolist(), [0, 1])
    self.assertEqual(found.num_skipped['class folder without images'], 1)
    self.assertIn("'b'", ''.join(logs.output))

  def test_a_class_empty_in_one_split_keeps_its_label(self):
    self._touch('train/a/1.jpg', 'train/b/1.jpg', 'test/b/1.jpg')
    (self.root / 'test' / 'a').mkdir()
    found = self._load()
    self.assertEqual(found.class_names, ('a', 'b'))
    self.assertEqual(found.labels.tolist(), [0, 1, 1])

  def test_images_beside_class_folders_are_counted(self):
    self._touch('a/1.jpg', 'b/1.jpg', 'cover.jpg')
    self.assertEqual(
      self._load().num_skipped, {'image outside of a class folder': 1}
    )

  def test_refuses_images_without_class_folders(self):
    self._touch('1.jpg', '2.jpg')
    self._refused('holds 2 images in the folder itself.*sub-folder for each')

  def test_refuses_splits_without_class_folders(self):
    self._touch('train/1.jpg', 'test/2.jpg')
    self._refused('holds 2 images in a split itself')

  def test_refuses_one_class(self):
    self._touch('a/1.jpg', 'a/2.jpg')
    self._refused("one class only, 'a': retrieval is impossible")

  def test_refuses_no_images(self):
    self._refused('holds no images; allowed are files that end in .jpg')
    self._touch('a/1.txt', 'b/2.txt')
    self._refused('holds no images')

  def test_refuses_splits_beside_classes(self):
    self._touch('train/a/1.jpg', 'test/a/1.jpg', 'extra/1.jpg')
    self._refused("splits test, train and beside them 'extra'")

  @parameterized.parameters(('query', 'gallery'), ('gallery', 'query'))
  def test_refuses_queries_without_a_gallery(self, here, missing):
    self._touch('train/a/1.jpg', f'{here}/b/1.jpg')
    self._refused(f"a folder '{here}' but no '{missing}'")

  def test_refuses_a_folder_that_is_not_there(self):
    self._refused(
      f"does not exist; the nearest folder that does is '{self.root}'",
      self.root / 'x' / 'y',
    )

  def test_refuses_a_file(self):
    self._touch('list.csv')
    self._refused('is a file.*data.name=table', self.root / 'list.csv')

  def test_refuses_a_folder_that_may_not_be_read(self):
    self._touch('a/1.jpg', 'b/1.jpg')
    scandir = os.scandir

    def forbidden(path):
      if str(path).endswith('/b'):
        raise PermissionError(13, 'Permission denied', path)
      return scandir(path)

    with mock.patch.object(os, 'scandir', forbidden):
      self._refused(r"set/b' cannot be read \(Permission denied\)")


if __name__ == '__main__':
  absltest.main()
