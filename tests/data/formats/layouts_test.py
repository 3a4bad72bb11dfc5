import pathlib
import tempfile

import cv2
import numpy as np
from absl.testing import absltest, parameterized
from scipy import io

from retrieval_jax.core.errors import InputError
from retrieval_jax.data.collection import TEST, TRAIN
from retrieval_jax.data.formats import layouts


class _LayoutTest(parameterized.TestCase):
  loader = None

  def setUp(self):
    super().setUp()
    above = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    self.root = above / 'root'
    self.root.mkdir()
    self.write()

  def write(self):
    """Writes a miniature of the data set."""

  def write_images(self, *names):
    for number, name in enumerate(names):
      (self.root / name).parent.mkdir(parents=True, exist_ok=True)
      image = np.full((3, 4, 3), number, np.uint8)
      self.assertTrue(cv2.imwrite(str(self.root / name), image))

  def write_text(self, name, *lines):
    (self.root / name).parent.mkdir(parents=True, exist_ok=True)
    (self.root / name).write_text('\n'.join(lines) + '\n')

  def load(self, **options):
    with self.assertLogs(level='WARNING') as logs:
      found = type(self).loader(dir=str(self.root), **options)
    # A miniature is not as large as the data set.
    self.assertIn('the official ones are', logs.output[-1])
    return found

  def refused(self, message, dir=None, **options):
    with self.assertRaisesRegex(InputError, message) as caught:
      type(self).loader(dir=str(dir or self.root), **options)
    self.assertNotIn('\n', str(caught.exception))

  def check_images(self, found, *names):
    self.assertEqual(list(found.images.paths), list(names))
    for row in range(len(names)):
      content = np.frombuffer(found.images.read(row), np.uint8)
      self.assertEqual(cv2.imdecode(content, 1).shape, (3, 4, 3))

  def check_levels(self):
    """Says which folder to give to who gives the one above or below."""
    cure = f'set --config.data.dir={self.root}$'
    self.refused(cure, self.root.parent)
    below = next(path for path in sorted(self.root.iterdir()) if path.is_dir())
    self.refused(cure, below)


class CubTest(_LayoutTest):
  loader = staticmethod(layouts.cub)
  names = ('002.B/x.jpg', '001.A/y.jpg', '004.D/z.jpg', '003.C/w.jpg')

  def write(self):
    self.write_images(*(f'images/{name}' for name in self.names))
    images = [f'{i} {name}' for i, name in enumerate(self.names, 1)]
    self.write_text('images.txt', *images)
    # In another order: rows are found by their numbers.
    self.write_text('image_class_labels.txt', '4 3', '1 2', '2 1', '3 4')
    self.write_text('classes.txt', '1 001.A', '2 002.B', '3 003.C', '4 004.D')
    self.write_text(
      'bounding_boxes.txt', '2 1.0 2.0 3.0 4.5', '1 0.0 0.0 4.0 3.0',
      '3 1.0 0.0 2.0 3.0', '4 0.0 1.0 1.0 1.0',
    )  # fmt: skip

  def test_the_first_half_of_the_classes_is_trained_on(self):
    found = self.load()
    self.check_images(found, *(f'images/{name}' for name in self.names))
    self.assertEqual(found.labels.tolist(), [1, 0, 3, 2])
    self.assertEqual(found.labels.dtype, np.int32)
    self.assertEqual(found.class_names, ('001.A', '002.B', '003.C', '004.D'))
    self.assertEqual(found.split.tolist(), [TRAIN, TRAIN, TEST, TEST])
    self.assertIsNone(found.is_query)
    self.assertIsNone(found.boxes)

  def test_boxes_are_corners(self):
    np.testing.assert_array_equal(
      self.load(use_boxes=True).boxes,
      [[0, 0, 4, 3], [1, 2, 4, 6.5], [1, 0, 3, 3], [0, 1, 1, 2]],
    )

  def test_names_the_right_level(self):
    self.check_levels()

  @parameterized.parameters(
    'images.txt', 'image_class_labels.txt', 'classes.txt'
  )
  def test_names_a_missing_file(self, name):
    (self.root / name).unlink()
    self.refused(f'{name} is missing; the folder should hold images.txt')

  def test_boxes_need_their_file_only_if_used(self):
    (self.root / 'bounding_boxes.txt').unlink()
    self.load()
    self.refused('bounding_boxes.txt is missing', use_boxes=True)

  @parameterized.parameters(
    ('images.txt', '1 a.jpg 7', "images.txt', line 1: has 3 words"),
    ('images.txt', '', "images.txt' has no rows"),
    ('image_class_labels.txt', '1 2', "image '2' stands in one text file"),
    ('image_class_labels.txt', '1 x\n2 1\n3 1\n4 1', 'labels.txt.*allowed are'),
    ('image_class_labels.txt', '1 9\n2 1\n3 1\n4 1', "B/x.jpg' is of class 9"),
    ('images.txt', '1 no.jpg', 'none of the first 1 images.*images/no.jpg'),
  )
  def test_refuses_damaged_files(self, name, content, message):
    self.write_text(name, content)
    with self.assertRaisesRegex(InputError, message) as caught:
      layouts.cub(dir=str(self.root))
    self.assertNotIn('\n', str(caught.exception))


def _matrix(rows, fields):
  """Returns what loadmat reads as a struct array of 1 x N."""
  array = np.empty((1, len(rows)), [(field, object) for field in fields])
  for i, row in enumerate(rows):
    array[0, i] = tuple(row)
  return array


def _names(*names):
  array = np.empty((1, len(names)), object)
  array[0, :] = names
  return array


BOX_FIELDS = ('bbox_x1', 'bbox_y1', 'bbox_x2', 'bbox_y2')


class CarsTest(_LayoutTest):
  loader = staticmethod(layouts.cars)
  names = ('car_ims/000001.jpg', 'car_ims/000002.jpg', 'car_ims/000003.jpg')

  def write(self):
    self.write_images(*self.names)
    rows = [
      (name, 1, 1, 4, 3, label, 0)
      for name, label in zip(self.names, (3, 1, 2), strict=True)
    ]
    fields = ('relative_im_path', *BOX_FIELDS, 'class', 'test')
    io.savemat(
      self.root / 'cars_annos.mat',
      {
        'annotations': _matrix(rows, fields),
        'class_names': _names('Audi A', 'BMW B', 'Fiat C', 'VW D'),
      },
    )

  def test_the_first_half_of_the_classes_is_trained_on(self):
    found = self.load()
    self.check_images(found, *self.names)
    self.assertEqual(found.labels.tolist(), [2, 0, 1])
    self.assertEqual(found.class_names, ('Audi A', 'BMW B', 'Fiat C'))
    self.assertEqual(found.split.tolist(), [TEST, TRAIN, TRAIN])

  def test_boxes_count_from_zero_and_end_after_the_last_pixel(self):
    boxes = self.load(use_boxes=True).boxes
    np.testing.assert_array_equal(boxes, [[0, 0, 4, 3]] * 3)

  def test_names_the_right_level(self):
    self.check_levels()

  def test_refuses_a_damaged_file(self):
    file = self.root / 'cars_annos.mat'
    file.write_bytes(file.read_bytes()[:200])
    self.refused("cars_annos.mat' (cannot be read|has no)")

  def test_refuses_a_file_of_something_else(self):
    io.savemat(self.root / 'cars_annos.mat', {'x': 1})
    self.refused("cars_annos.mat' has no 'class_names'")


class CarsDevkitTest(_LayoutTest):
  loader = staticmethod(layouts.cars)

  def write(self):
    self.write_images('cars_train/1.jpg', 'cars_train/2.jpg', 'cars_test/1.jpg')
    (self.root / 'devkit').mkdir()
    fields = (*BOX_FIELDS, 'class', 'fname')
    for name, rows in (
      ('devkit/cars_train_annos', [(1, 1, 4, 3, 1, '1.jpg'),
                                   (1, 1, 4, 3, 2, '2.jpg')]),
      ('cars_test_annos_withlabels', [(2, 1, 3, 3, 1, '1.jpg')]),
    ):  # fmt: skip
      annotations = {'annotations': _matrix(rows, fields)}
      io.savemat(self.root / f'{name}.mat', annotations)
    names = {'class_names': _names('Audi A', 'BMW B')}
    io.savemat(self.root / 'devkit/cars_meta.mat', names)

  def test_train_and_test_of_the_download_are_mixed(self):
    found = self.load()
    self.check_images(
      found, 'cars_train/1.jpg', 'cars_train/2.jpg', 'cars_test/1.jpg'
    )
    self.assertEqual(found.labels.tolist(), [0, 1, 0])
    self.assertEqual(found.split.tolist(), [TRAIN, TEST, TRAIN])

  def test_the_labels_of_the_test_images_may_be_in_devkit(self):
    name = 'cars_test_annos_withlabels.mat'
    (self.root / name).rename(self.root / 'devkit' / name)
    self.assertLen(self.load(), 3)
    (self.root / 'devkit' / name).unlink()
    self.refused(f'where {name} or devkit/{name} is missing')

  def test_names_the_right_level(self):
    cure = f'devkit/cars_meta.mat.*set --config.data.dir={self.root}$'
    self.refused(cure, self.root.parent)
    self.refused(cure, self.root / 'devkit')

  def test_refuses_annotations_without_labels(self):
    rows = [(2, 1, 3, 3, '1.jpg')]
    annotations = {'annotations': _matrix(rows, (*BOX_FIELDS, 'fname'))}
    io.savemat(self.root / 'cars_test_annos_withlabels.mat', annotations)
    self.refused("withlabels.mat': annotations have no field 'class'")


class SopTest(_LayoutTest):
  loader = staticmethod(layouts.sop)
  header = 'image_id class_id super_class_id path'
  names = ('bicycle_final/1.JPG', 'chair_final/2.JPG', 'bicycle_final/3.JPG')

  def write(self):
    self.write_images(*self.names)
    a, b, c = self.names
    self.write_text('Ebay_train.txt', self.header, f'1 9 1 {a}', f'2 9 3 {b}')
    self.write_text('Ebay_test.txt', self.header, f'3 10 1 {c}')

  def test_reads_both_files(self):
    found = self.load()
    self.check_images(found, *self.names)
    self.assertEqual(found.labels.tolist(), [0, 0, 1])
    self.assertEqual(found.class_names, ('9', '10'))
    self.assertEqual(found.split.tolist(), [TRAIN, TRAIN, TEST])
    self.assertEqual(found.category.tolist(), [0, 1, 0])
    self.assertEqual(found.category_names, ('bicycle', 'chair'))

  def test_names_the_right_level(self):
    self.check_levels()

  def test_names_a_missing_file(self):
    (self.root / 'Ebay_test.txt').unlink()
    self.refused('Ebay_test.txt is missing; the folder should hold Ebay_train')

  def test_refuses_a_file_without_its_header(self):
    self.write_text('Ebay_test.txt', '3 10 1 x')
    self.refused("Ebay_test.txt', line 1: does not begin with image_id")


class InShopTest(_LayoutTest):
  loader = staticmethod(layouts.in_shop)
  names = (
    'WOMEN/Dresses/id_00000002/02_1_front.jpg',
    'WOMEN/Dresses/id_00000001/02_1_front.jpg',
    'MEN/Denim/id_00000001/01_1_front.jpg',
  )

  def write(self):
    self.write_images(*(f'Img/img/{name}' for name in self.names))
    self.partition('train', 'query', 'gallery')
    boxes = [
      f'img/{name}   1  2  {i} 0 4 3' for i, name in enumerate(self.names)
    ]
    self.write_text(
      'Anno/list_bbox_inshop.txt', '3',
      'image_name  clothes_type  pose_type  x_1 y_1 x_2 y_2', *boxes[::-1],
    )  # fmt: skip

  def partition(self, *statuses, count=3):
    rows = [
      f'img/{name}    {name.split("/")[2]} {status}'
      for name, status in zip(self.names, statuses, strict=True)
    ]
    header = 'image_name item_id evaluation_status'
    self.write_text('Eval/list_eval_partition.txt', str(count), header, *rows)

  def test_queries_and_gallery_are_apart(self):
    found = self.load()
    self.check_images(found, *(f'Img/img/{name}' for name in self.names))
    self.assertEqual(found.labels.tolist(), [1, 0, 0])
    self.assertEqual(found.class_names, ('id_00000001', 'id_00000002'))
    self.assertEqual(found.split.tolist(), [TRAIN, TEST, TEST])
    self.assertEqual(found.is_query.tolist(), [False, True, False])
    self.assertEqual(found.is_gallery.tolist(), [False, False, True])
    self.assertEqual(found.category.tolist(), [1, 1, 0])
    self.assertEqual(found.category_names, ('MEN/Denim', 'WOMEN/Dresses'))
    self.assertIsNone(found.boxes)

  def test_boxes_are_found_by_name(self):
    boxes = self.load(use_boxes=True).boxes
    np.testing.assert_array_equal(
      boxes, [[0, 0, 4, 3], [1, 0, 4, 3], [2, 0, 4, 3]]
    )

  def test_the_files_may_lie_side_by_side(self):
    (self.root / 'Img/img').rename(self.root / 'img')
    for name in ('Eval/list_eval_partition.txt', 'Anno/list_bbox_inshop.txt'):
      (self.root / name).rename(self.root / pathlib.Path(name).name)
    found = self.load(use_boxes=True)
    self.check_images(found, *(f'img/{name}' for name in self.names))

  def test_larger_images_have_no_boxes(self):
    (self.root / 'Img/img').rename(self.root / 'Img/img_highres')
    found = self.load()
    self.assertEqual(found.images.paths[0], f'Img/img_highres/{self.names[0]}')
    self.refused('data.use_boxes is True, but the boxes are', use_boxes=True)

  def test_names_the_right_level(self):
    self.check_levels()

  def test_names_the_right_level_to_who_gives_eval(self):
    self.refused(
      f'Img/img/ is missing.*set --config.data.dir={self.root}$',
      self.root / 'Eval',
    )

  def test_names_what_is_missing(self):
    (self.root / 'Img').rename(self.root / 'Images')
    self.refused('Img/img/ is missing; the folder should hold Eval/')
    (self.root / 'Eval/list_eval_partition.txt').unlink()
    self.refused('where Eval/list_eval_partition.txt or list_eval_part')

  def test_refuses_a_file_that_is_cut_off(self):
    self.partition('train', 'query', 'gallery', count=4)
    self.refused("partition.txt' has 3 rows, but its first line says '4'")

  def test_refuses_an_unknown_status(self):
    self.partition('train', 'querry', 'gallery')
    self.refused("is 'querry'; allowed are train, query, gallery")


del _LayoutTest


if __name__ == '__main__':
  absltest.main()
