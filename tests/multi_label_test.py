"""Images with several labels, from a table to results, by config keys alone."""

import csv
import json
import pathlib
import re

import numpy as np
import PIL.Image
import pytest

from retrieval_jax import data, main, metrics

pytestmark = pytest.mark.usefixtures('no_drawings')

ROOT = pathlib.Path(__file__).parents[1]
TRAIN_IMAGES, TEST_IMAGES, SIDE = 600, 150, 28


def _write_images(folder):
  """Two digits on each picture, at half their size; its labels are both."""
  digits = data.load_dataset('mnist_5k').train
  rng = np.random.default_rng(0)
  with open(folder / 'pairs.csv', 'w', newline='') as file:
    writer = csv.writer(file)
    writer.writerow(['path', 'label', 'split'])
    for i in range(TRAIN_IMAGES + TEST_IMAGES):
      rows = rng.integers(0, len(digits), 2)
      halves = digits.images_at(rows)[..., 0].astype(float)
      halves = halves.reshape(2, SIDE // 2, 2, SIDE // 2, 2).mean((2, 4))
      picture = np.zeros((SIDE, SIDE), np.uint8)
      for half, left in zip(halves, (0, SIDE // 2), strict=True):
        top = rng.integers(0, SIDE // 2 + 1)
        picture[top : top + SIDE // 2, left : left + SIDE // 2] = half
      PIL.Image.fromarray(picture).save(folder / f'{i}.png')
      # A pair of equal digits is written twice, and counts once.
      labels = ' | '.join(str(label) for label in digits.labels[rows])
      part = 'train' if i < TRAIN_IMAGES else 'test'
      writer.writerow([f'{i}.png', labels, part])


@pytest.fixture(scope='module')
def table(tmp_path_factory):
  folder = tmp_path_factory.mktemp('pairs')
  _write_images(folder)
  return folder / 'pairs.csv'


def _run(table, workdir, **keys):
  given = {
    'data.name': 'table',
    'data.file': table,
    'data.label_separator': '|',
    'data.image_size': SIDE,
    'data.channels': 1,
    'data.batch_size': 64,
    'eval.batch_size': 64,
    'loss.name': 'contrastive',
    'optimizer.warmup_steps': 30,
    'eval_every_steps': 1000,
    'checkpoint_every_steps': 1000,
  }
  given.update(keys)
  return main.main(
    [
      f'--config={ROOT / "configs/default.py"}',
      f'--workdir={workdir}',
      *(f'--config.{key}={value}' for key, value in given.items()),
    ]
  )


def _load(table):
  return data.load_dataset(
    'table', file=table, label_separator='|', image_size=SIDE, channels=1
  )


def test_the_table_is_read_as_sets_in_which_each_label_is_once(table):
  formed = _load(table)
  assert formed.is_multi_label and formed.num_classes == 10
  sizes = (formed.train.labels >= 0).sum(axis=1)
  # One pair in ten is of equal digits.
  assert set(sizes.tolist()) == {1, 2}
  assert 0.05 < (sizes == 1).mean() < 0.2
  assert f'mean {sizes.mean():.2f} labels an image' in data.describe(formed)


def _train(table, workdir, num_steps):
  """Returns what is found on the test set after some steps."""
  keys = {'data.classes_per_batch': 8, 'num_train_steps': num_steps}
  assert not _run(table, workdir, **keys)
  results = json.loads((workdir / 'results.json').read_text())
  return results['evaluations']['test']


@pytest.mark.slow
def test_a_pair_loss_learns_from_label_sets(table, tmp_path):
  # Against what would be had by chance.
  labels = _load(table).tests['test'].query.labels
  random = np.random.default_rng(0).normal(size=(TEST_IMAGES, 50))
  chance = metrics.retrieval_metrics(random, labels)
  trained = _train(table, tmp_path, 80)['metrics']
  assert 0.2 < chance['mean_average_precision'] < 0.45
  assert trained['mean_average_precision'] > (
    1.25 * chance['mean_average_precision']
  )
  assert trained['precision_at_1'] > 1.4 * chance['precision_at_1']


def test_a_run_says_how_label_sets_were_compared(table, tmp_path):
  protocol = _train(table, tmp_path, 2)['protocol']
  assert protocol['relevance'] == 'at least one label in common'
  assert protocol['num_queries'] == TEST_IMAGES
  page = (tmp_path / 'report.html').read_text()
  # Sets are named whole, and a neighbour with one label in common is right.
  found = re.findall(
    r'query \d+, of class ([\d |]+)"|neighbour \d+, (right|wrong), '
    r'of class ([\d |]+)"',
    page,
  )
  assert any('|' in query for query, _, _ in found)
  asked, num_told = set(), 0
  for query, verdict, names in found:
    if query:
      asked = set(query.split(' | '))
    else:
      shares = bool(asked & set(names.split(' | ')))
      assert shares == (verdict == 'right')
      num_told += 1
  assert num_told > 20


@pytest.mark.parametrize(
  'keys, words',
  [
    ({'loss.name': 'arcface'}, 'several labels'),
    ({'data.validation': 'classes'}, 'data.validation=images'),
    ({'data.split': 'class_disjoint'}, 'data.split=stratified'),
    (
      {
        'data.sampler': 'hierarchical',
        'data.classes_per_batch': 4,
        'data.categories_per_batch': 2,
      },
      'several labels',
    ),
  ],
)
def test_what_label_sets_cannot_have_is_refused(
  keys, words, table, tmp_path, capsys
):
  assert _run(table, tmp_path, **keys) == 2
  error = capsys.readouterr().err.splitlines()
  assert [line for line in error if line.startswith('retrieval_jax: ')]
  assert words in error[-1]
