"""What fine-tuning is worth: trains recipes and losses, writes the page.

    PYTHONPATH=. python benchmarks/results.py screen
    PYTHONPATH=. python benchmarks/results.py run --jobs=2
    PYTHONPATH=. python benchmarks/results.py table
    PYTHONPATH=. python benchmarks/results.py picture

Every row is configs/fine_tuning.py, or configs/harry_small.py, with a few keys
changed, asked by classes that are never seen in training. `screen` tries rates
of learning on a fold of the training classes, once each; `run` trains every row
with several seeds, or with `--only` some of them. Metrics are collected in
`results.json`; `table` writes them into docs/results.md and docs/harry.md, and
`picture` draws the neighbours of some queries before and after, from the runs;
see `trainings.py`.
"""

import argparse
import dataclasses
from collections.abc import Mapping
from typing import Any

import trainings
from trainings import Row

PAGE = trainings.ROOT / 'docs' / 'results.md'
HARRY_PAGE = trainings.ROOT / 'docs' / 'harry.md'
PICTURE = trainings.ROOT / 'docs' / 'results.png'
CONFIG = 'configs/fine_tuning.py'
DATA = 'glyphs'
TABLE = trainings.Table(
  'results',
  {'precision_at_1': 'R@1', 'mean_average_precision_at_r': 'mAP@R'},
)
# A fold of the training classes is held back, and measured.
SCREENED_DATA = 'glyphs_validation'
VALIDATION = 'validation_mean_average_precision_at_r'
SCREEN = dataclasses.replace(TABLE, metrics={}, selection=VALIDATION)
# Of the picture.
NUM_QUERIES = 8
NUM_NEIGHBORS = 6
GAP = 32
_MEASURED = {
  'eval.metrics': tuple(TABLE.metrics),
  'eval.projector_images': 0,
}
# The loss of the recipes.
LOSS = 'supcon'


def row_of(
  recipe: str, loss: str, overrides: Mapping[str, Any] | None = None
) -> Row:
  """Returns a training by a recipe and a loss, of which no more is measured."""
  keys = _MEASURED | dict(overrides or {})
  return Row(f'{recipe}, {loss}', f'{CONFIG}:{loss}', keys)


_STILL = {'optimizer.frozen': ('backbone/.*',)}
# The embedding is what the pretrained network pools; the proxies, which are not
# in it, do one step, since a run has to train something.
_POOLED = _STILL | {
  'model.neck': 'identity',
  'model.embedding_dim': 1280,
  'optimizer.warmup_steps': 0,
}
FROZEN = row_of(
  'frozen', 'normalized_softmax', _POOLED | {'num_train_steps': 1}
)
FULL = row_of('full', LOSS)
RECIPES = {
  'frozen features': FROZEN,
  'frozen weights, BatchNorm follows the batches': row_of(
    'frozen weights',
    'normalized_softmax',
    _POOLED | {'model.frozen_batch_norm': False},
  ),
  'linear probe': row_of('linear probe', LOSS, _STILL),
  'the head for 20 steps, then all (LP-FT)': row_of(
    'head first', LOSS, {'optimizer.head_only_steps': 20}
  ),
  'layer-wise decay of the rate, 0.9': row_of(
    'layer decay', LOSS, {'optimizer.layer_decay': 0.9}
  ),
  'full': FULL,
  'full, one rate for all': row_of(
    'one rate', LOSS, {'optimizer.backbone_learning_rate_multiplier': 1.0}
  ),
  'full, BatchNorm follows the batches': row_of(
    'batch norm', LOSS, {'model.frozen_batch_norm': False}
  ),
}
_FAST_HEAD = {'optimizer.head_learning_rate_multiplier': 30.0}
_CLASS_MEANS = _FAST_HEAD | {'head.init': 'class_mean'}
# A well-known loss of each family, a page of docs/losses/, with its defaults.
FAMILIES = {
  'pairs': row_of('full', 'multi_similarity'),
  'triplets': row_of('full', 'triplet_margin'),
  'softmax over pairs': FULL,
  'ranking': row_of('full', 'smooth_ap'),
  'softmax with a margin': row_of('full', 'arcface', _FAST_HEAD),
  'proxies': row_of('full', 'proxy_anchor', _FAST_HEAD),
  'two views of an image, no labels': row_of(
    'views',
    'ntxent',
    {
      'loss.positives': 'image',
      'data.classes_per_batch': 0,
      'data.views_per_image': 2,
      'augment.crop_scale': (0.4, 1.0),
      'augment.rotation': 15.0,
    },
  ),
}
# Losses with proxies, by where the proxies start.
STARTS = {
  f'`{loss}` | {start}': row_of(recipe, loss, keys)
  for loss in ('circle_classification', 'arcface', 'cosface', 'proxy_anchor')
  for start, recipe, keys in (
    ('at random', 'full', _FAST_HEAD),
    ('class means', 'class means', _CLASS_MEANS),
  )
}
_HEAD_FIRST = {'optimizer.head_only_steps': 50, 'head.init': 'normal'}
_FROM_MEANS = {'optimizer.head_only_steps': 0, 'head.init': 'class_mean'}


def harry(
  loss: str, start: str, statistics: str, keys: Mapping[str, Any]
) -> Row:
  """Returns a short training of Harry on a laptop, of small images."""
  short = {
    'num_train_steps': 300,
    'eval_every_steps': 1_000_000,
    'data.validation': None,
    'data.batch_size': 64,
    'model.stem_stride': 2,
    'model.frozen_batch_norm': statistics == 'ImageNet',
  }
  label = f'harry, {loss}, {start}, {statistics}'
  return Row(label, f'configs/harry_small.py:{loss}', _MEASURED | short | keys)


# By the loss, by what the proxies start from, and by whose statistics BatchNorm
# has.
HARRY = {
  f'{loss} | {start} | {statistics}': harry(loss, start, statistics, keys)
  for loss, start, statistics, keys in (
    ('arcface', 'head first', 'ImageNet', _HEAD_FIRST),
    ('arcface', 'head first', 'batches', _HEAD_FIRST),
    ('arcface', 'class means', 'ImageNet', _FROM_MEANS),
    ('arcface', 'class means', 'batches', _FROM_MEANS),
    ('circle', 'head first', 'ImageNet', _HEAD_FIRST),
    ('circle', 'class means', 'ImageNet', _FROM_MEANS),
  )
}
ROWS = (
  *RECIPES.values(),
  *FAMILIES.values(),
  *STARTS.values(),
  *HARRY.values(),
)
# Peak rate of the backbone, and its part of that of what is new.
RATES = {1e-3: 1.0, 3e-4: 0.3, 1e-4: 0.1}
SCREENED = {
  rate: row_of(
    f'rate {rate:g}',
    LOSS,
    {
      'data.validation': 'classes',
      'optimizer.backbone_learning_rate_multiplier': factor,
    },
  )
  for rate, factor in RATES.items()
}


def screen(arguments) -> None:
  """Trains once with each rate, measured on a fold of the training classes."""
  rows = list(SCREENED.values())
  trainings.run(SCREEN, rows, SCREENED_DATA, 1, arguments.jobs)


def run(arguments) -> None:
  """Trains the rows; the frozen features have no seed."""
  rows = {row.label: row for row in ROWS}
  if arguments.only:
    rows = {label: rows[label] for label in arguments.only}
  if rows.pop(FROZEN.label, None):
    trainings.run(TABLE, [FROZEN], DATA, 1, arguments.jobs)
  rows = list(rows.values())
  trainings.run(TABLE, rows, DATA, arguments.seeds, arguments.jobs)


def table(heading: str, rows: Mapping[str, Row]) -> str:
  """Returns the rows that were trained as Markdown, the best mAP@R first.

  Args:
    heading: of the first column, or of several with ' | ' between them.
    rows: {what these columns say: row}.
  """
  found = {text: TABLE.cells(row.label, DATA) for text, row in rows.items()}
  measured = [
    [*text.split(' | '), *cells] for text, cells in found.items() if cells
  ]
  measured.sort(key=lambda cells: -float(cells[-1].split()[0]))
  return trainings.markdown(
    [[*heading.split(' | '), 'seeds', *TABLE.metrics.values()], *measured]
  )


def write_tables() -> None:
  """Puts the tables between their marks in docs/results.md."""
  trainings.write(table(f'recipe, `{LOSS}`', RECIPES), 'recipes', PAGE)
  losses = {
    f'`{row.config.split(":")[1]}` ({family})': row
    for family, row in FAMILIES.items()
  }
  losses['frozen features'] = FROZEN
  trainings.write(table('loss', losses), 'losses', PAGE)
  trainings.write(table('loss | proxies', STARTS), 'starts', PAGE)
  heading = 'loss | proxies | statistics of'
  trainings.write(table(heading, HARRY), 'harry', HARRY_PAGE)
  screened = [['rate of the backbone', 'mAP@R of the validation classes']]
  for rate, row in SCREENED.items():
    for found in SCREEN.runs(row.label, SCREENED_DATA):
      screened.append([f'{rate:g}', f'{found[VALIDATION]:.4f}'])
  if len(screened) > 1:
    trainings.write(trainings.markdown(screened), 'screen', PAGE)


def draw_neighbors() -> None:
  """Draws what some queries find before and after, side by side."""
  import numpy as np
  from PIL import Image

  import retrieval_jax
  from retrieval_jax.data import glyphs
  from retrieval_jax.data.collection import TEST
  from retrieval_jax.training import inspection, plots

  collection = glyphs.glyphs()
  rows = np.flatnonzero(collection.split == TEST)
  images, labels = collection.images.images[rows], collection.labels[rows]
  queries = inspection.sample_queries(
    labels, np.zeros(len(labels), bool), NUM_QUERIES
  )
  sheets = []
  for row in (FROZEN, FULL):
    model = retrieval_jax.load(str(TABLE.workdir(row.label, DATA, 0)))
    embeddings = model.embed(images)
    _, found = retrieval_jax.neighbors.top_k(
      embeddings, embeddings, k=NUM_NEIGHBORS, exclude_self=True
    )
    found = found[queries]
    sheets.append(
      plots.neighbor_sheet(
        images[queries],
        images[found],
        labels[found] == labels[queries, None],
        np.ones(found.shape, bool),
      )
    )
  before, after = sheets
  gap = np.full((len(before), GAP, 3), 255, np.uint8)
  picture = np.concatenate([before, gap, after], axis=1)
  Image.fromarray(picture).save(PICTURE, optimize=True)


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  commands = parser.add_subparsers(dest='command', required=True)
  for name in ('screen', 'run'):
    runner = commands.add_parser(name)
    runner.add_argument('--jobs', type=int, default=2)
    if name == 'run':
      runner.add_argument('--seeds', type=int, default=3)
      runner.add_argument('--only', action='append', help='the label of a row')
  commands.add_parser('table')
  commands.add_parser('picture')
  arguments = parser.parse_args()
  functions = {
    'screen': lambda: screen(arguments),
    'run': lambda: run(arguments),
    'table': write_tables,
    'picture': draw_neighbors,
  }
  functions[arguments.command]()


if __name__ == '__main__':
  main()
