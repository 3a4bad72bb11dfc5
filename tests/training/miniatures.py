"""Benchmarks of a few pictures, in the layouts that their authors give out.

Each function writes one into a folder, with four classes to train on.
"""

import pathlib

import cv2
import numpy as np
from scipy import io

SIDE = 72
# Of pictures of a class.
COUNT = 4


def _write_image(path: pathlib.Path, label: int, number: int) -> None:
  """A picture in which its class can be seen, in noise."""
  pattern = np.random.default_rng(1000 + label).uniform(0, 255, (9, 9, 3))
  noise = np.random.default_rng(100 * label + number).normal(
    0, 30, (SIDE, SIDE, 3)
  )
  picture = np.kron(pattern, np.ones((8, 8, 1))) + noise
  path.parent.mkdir(parents=True, exist_ok=True)
  cv2.imwrite(str(path), np.clip(picture, 0, 255).astype(np.uint8))


def _write_lines(path: pathlib.Path, *lines: str) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text('\n'.join(lines) + '\n')


def _pictures(num_classes: int):
  """Yields (row from 1 on, class from 1 on, number in the class)."""
  for row in range(num_classes * COUNT):
    yield row + 1, row // COUNT + 1, row % COUNT


def cub(folder: pathlib.Path) -> None:
  """The first half of the classes is trained on."""
  names, labels = [], []
  for row, label, number in _pictures(8):
    name = f'{label:03d}.Bird/{number}.jpg'
    _write_image(folder / 'images' / name, label, number)
    names.append(f'{row} {name}')
    labels.append(f'{row} {label}')
  _write_lines(folder / 'images.txt', *names)
  _write_lines(folder / 'image_class_labels.txt', *labels)
  classes = (f'{label} {label:03d}.Bird' for label in range(1, 9))
  _write_lines(folder / 'classes.txt', *classes)


def cars(folder: pathlib.Path) -> None:
  """The first half of the classes is trained on."""
  fields = ('relative_im_path', 'bbox_x1', 'bbox_y1', 'bbox_x2', 'bbox_y2')
  fields += ('class', 'test')
  annotations = np.empty((1, 8 * COUNT), [(name, object) for name in fields])
  for row, label, number in _pictures(8):
    path = f'car_ims/{row:06d}.jpg'
    _write_image(folder / path, label, number)
    annotations[0, row - 1] = (path, 1, 1, SIDE, SIDE, label, 0)
  names = np.array([[f'Car {label}' for label in range(1, 9)]], object)
  io.savemat(
    folder / 'cars_annos.mat',
    {'annotations': annotations, 'class_names': names},
  )


def sop(folder: pathlib.Path) -> None:
  """Classes of one list are trained on, those of the other asked."""
  lists = {'train': [], 'test': []}
  for row, label, number in _pictures(8):
    path = f'chair_final/{label}_{number}.JPG'
    _write_image(folder / path, label, number)
    rows = lists['train' if label <= 4 else 'test']
    rows.append(f'{row} {label} 1 {path}')
  for name, rows in lists.items():
    header = 'image_id class_id super_class_id path'
    _write_lines(folder / f'Ebay_{name}.txt', header, *rows)


def in_shop(folder: pathlib.Path) -> None:
  """Half of the pictures of the last classes ask, the others are found."""
  rows = []
  for _, label, number in _pictures(8):
    item = f'id_{label:08d}'
    name = f'WOMEN/Dresses/{item}/{number:02d}_1_front.jpg'
    _write_image(folder / 'Img/img' / name, label, number)
    status = 'train' if label <= 4 else ('query', 'gallery')[number % 2]
    rows.append(f'img/{name} {item} {status}')
  header = 'image_name item_id evaluation_status'
  path = folder / 'Eval/list_eval_partition.txt'
  _write_lines(path, str(len(rows)), header, *rows)


def gldv2(folder: pathlib.Path) -> None:
  """Four landmarks; a query of each looks for its pictures in the index."""
  ids = {'train': {}, 'index': {}, 'test': {}}
  for row, label, number in _pictures(4):
    ids['train'].setdefault(label, []).append(f'{row:016x}')
    if number < 2:
      ids['index'].setdefault(label, []).append(f'{row + 100:016x}')
  ids['test'] = {label: [f'{label + 200:016x}'] for label in (1, 2)}
  for number, (part, classes) in enumerate(ids.items()):
    for label, images in classes.items():
      for i, name in enumerate(images):
        path = folder / part / name[0] / name[1] / name[2] / f'{name}.jpg'
        _write_image(path, label, 10 * number + i)
  clean = (f'{label},{" ".join(own)}' for label, own in ids['train'].items())
  _write_lines(folder / 'train/train_clean.csv', 'landmark_id,images', *clean)
  index = [name for own in ids['index'].values() for name in own]
  _write_lines(folder / 'index/index.csv', 'id', *index)
  solution = (
    f'{own[0]},{" ".join(ids["index"][label])},{usage}'
    for (label, own), usage in zip(
      ids['test'].items(), ('Public', 'Private'), strict=True
    )
  )
  _write_lines(
    folder / 'test/retrieval_solution_v2.1.csv', 'id,images,Usage', *solution
  )
