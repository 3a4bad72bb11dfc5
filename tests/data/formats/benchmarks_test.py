"""Revisited Oxford and UnED: what their files say, and what is wrong."""

import json
import pickle

import cv2
import numpy as np
import pytest

from retrieval_jax import data
from retrieval_jax.core.errors import InputError
from retrieval_jax.data.formats import landmarks, revisited, uned

_SHAPE = data.Preprocessing((4, 4, 3), 4)


def _write_image(path):
  path.parent.mkdir(parents=True, exist_ok=True)
  # The colour is the place, so that a box can be seen.
  image = np.zeros((20, 30, 3), np.uint8)
  image[:, 15:] = 255
  cv2.imwrite(str(path), image)


@pytest.fixture
def oxford(tmp_path):
  gallery = ['all_souls_000001', 'all_souls_000002', 'magdalen_000001']
  query = {'bbx': [15.0, 0.0, 30.0, 20.0], 'easy': [1], 'hard': [], 'junk': [2]}
  truth = {'imlist': gallery, 'qimlist': ['all_souls_000013'], 'gnd': [query]}
  folder = tmp_path / 'roxford5k'
  for name in (*gallery, 'all_souls_000013'):
    _write_image(folder / 'jpg' / f'{name}.jpg')
  (folder / 'gnd_roxford5k.pkl').write_bytes(pickle.dumps(truth))
  return folder


def _refused(words, function, *args, **options):
  with pytest.raises(InputError, match=words) as caught:
    function(*args, **options)
  assert '\n' not in str(caught.value)


def test_queries_of_oxford_are_cut_and_the_gallery_is_not(oxford, caplog):
  dataset = data.load_dataset(
    'roxford5k', dir=str(oxford), preprocessing=_SHAPE, for_training=False
  )
  assert 'the official numbers are (70, 4993)' in caplog.text
  assert dataset.train is None
  # No query has a hard image, so there is nothing to measure in 'hard'.
  assert list(dataset.tests) == ['easy', 'medium']
  easy = dataset.tests['easy']
  assert easy.benchmark == 'revisited'
  assert [rows.tolist() for rows in easy.relevant] == [[1]]
  assert [rows.tolist() for rows in easy.ignored] == [[2]]
  assert easy.query.images_at(np.array([0])).min() > 200  # The right half.
  assert easy.gallery.images_at(np.array([0])).min() < 50
  names = dataset.class_names
  assert [names[label] for label in easy.gallery.labels] == [
    'all_souls', 'all_souls', 'magdalen',
  ]  # fmt: skip
  # One source, so that an image is embedded once.
  assert easy.query is dataset.tests['medium'].query
  assert easy.gallery is dataset.tests['medium'].gallery
  assert easy.query.identify(0) == 'jpg/all_souls_000013.jpg [15, 0, 30, 20]'


def test_a_subset_keeps_what_its_rows_are_relevant_to(oxford):
  dataset = data.load_dataset(
    'roxford5k', dir=str(oxford), preprocessing=_SHAPE, for_training=False
  )
  kept = dataset.tests['easy'].subset(np.array([0]), np.array([2, 0]))
  assert [rows.tolist() for rows in kept.relevant] == [[]]  # Not readable.
  assert [rows.tolist() for rows in kept.ignored] == [[0]]


def test_mistakes_of_oxford(oxford):
  _refused(
    'gnd_rparis6k.pkl is missing; the folder should hold',
    *(revisited.revisited, 'rparis6k'),
    dir=str(oxford),
  )
  _refused(
    f'set --config.data.dir={oxford}',
    *(revisited.revisited, 'roxford5k'),
    dir=str(oxford.parent),
  )
  _refused(
    'distractors is .*nowhere',
    *(revisited.revisited, 'roxford5k'),
    dir=str(oxford),
    distractors=str(oxford / 'nowhere'),
  )
  _refused(
    'no image is in the training set.*retrieval_jax.evaluate',
    *(data.load_dataset, 'roxford5k'),
    dir=str(oxford),
    image_size=4,
  )
  (oxford / 'jpg' / 'all_souls_000013.jpg').unlink()
  _refused(
    'none of the first 1 images exists.*unpack',
    *(revisited.revisited, 'roxford5k'),
    dir=str(oxford),
  )


def _write_uned(root, **files):
  for key, entries in files.items():
    domain, kind = key.split('_')
    folder = root / 'info_files' / domain
    folder.mkdir(parents=True, exist_ok=True)
    text = entries if isinstance(entries, str) else json.dumps(entries)
    (folder / f'{kind}.json').write_text(text)
    if isinstance(entries, list):
      for entry in entries:
        _write_image(root / 'images' / entry['path'])


def _entries(domain, *classes):
  return [
    {'path': f'{domain}/{i}.jpg', 'class_id': own}
    for i, own in enumerate(classes)
  ]


def test_merged_queries_know_which_row_they_are(tmp_path):
  _write_uned(
    tmp_path,
    cars_test=_entries('cars', 3, 3, 8),
    met_test=_entries('met/test', 3, [8, 3]),
    met_index=_entries('met/index', 8, 3),
  )
  collection = uned.uned(dir=str(tmp_path))
  assert collection.class_names == ('cars/3', 'cars/8', 'met/3', 'met/8')
  dataset = data.load_dataset(
    'uned', dir=str(tmp_path), preprocessing=_SHAPE, for_training=False
  )
  assert list(dataset.tests) == [
    'cars/separate', 'met/separate', 'cars/merged', 'met/merged',
  ]  # fmt: skip
  cars, met = dataset.tests['cars/merged'], dataset.tests['met/merged']
  assert cars.own_rows.tolist() == [0, 1, 2]
  assert met.own_rows is None
  assert met.gallery is cars.gallery
  assert met.gallery.labels.tolist() == [0, 0, 1, 3, 2]
  assert met.answers.tolist() == [[2, -1], [3, 2]]
  assert cars.answers is None
  assert dataset.tests['cars/separate'].gallery is None
  # Without an unreadable row, those behind it move up.
  kept = cars.subset(np.array([0, 2]), np.array([0, 2, 3, 4]))
  assert kept.own_rows.tolist() == [0, 1]


def test_mistakes_of_uned(tmp_path):
  def refused(words, **files):
    _write_uned(tmp_path, **files)
    _refused(words, uned.uned, dir=str(tmp_path))

  refused('info_files/<domain>/test.json is missing')
  refused('images/ is missing', cars_test='[]')
  (tmp_path / 'images').mkdir()
  refused("cars/test.json': it is no list of images")
  refused("cars/test.json' cannot be read", cars_test='[{')
  refused("entry 0 is '5'", cars_test='[5]')
  refused("entry 0: path is ''", cars_test='[{"path": "", "class_id": 1}]')
  for wrong in ('"a"', '-1', '[]', 'true', '[1, "b"]'):
    refused(
      'entry 0: class_id is',
      cars_test=f'[{{"path": "a", "class_id": {wrong}}}]',
    )
  refused(
    "index.json': entry 1 has several classes",
    cars_test=_entries('cars', 1),
    cars_index=_entries('cars', 1, [1, 2]),
  )
  (tmp_path / 'info_files' / 'cars' / 'index.json').unlink()
  for path in (tmp_path / 'images').rglob('*.jpg'):
    path.unlink()
  _refused('none of the first 1 images', uned.uned, dir=str(tmp_path))


def test_recognition_needs_training_images(tmp_path):
  _refused(
    "data.recognition is True with data.subset 'none'",
    landmarks.gldv2,
    dir=str(tmp_path),
    subset='none',
    recognition=True,
  )


def test_another_split_leaves_the_tasks_of_the_benchmark_out(oxford):
  collection = data.load_collection(
    'roxford5k', dir=str(oxford), split='class_disjoint'
  )
  assert not collection.tasks
