"""What fine-tuning is worth: trains recipes and losses, writes the page.

    PYTHONPATH=. python benchmarks/results.py screen
    PYTHONPATH=. python benchmarks/results.py run --jobs=2
    PYTHONPATH=. python benchmarks/results.py table
    PYTHONPATH=. python benchmarks/results.py picture

Every row is configs/fine_tuning.py with a few keys changed, asked by classes
that are never seen in training. `screen` tries rates of learning on a fold of
the training classes, once each; `run` trains every row with several seeds, or
with `--only` some of them. Metrics are collected in `results.json`; `table`
writes them into docs/results.md and `picture` draws the neighbours of some
queries before and after, from the runs; see `trainings.py`.
"""

import argparse
import dataclasses
from collections.abc import Mapping

import trainings
from trainings import Row

PAGE = trainings.ROOT / 'docs' / 'results.md'
PICTURE = trainings.ROOT / 'docs' / 'results.png'
DATA = 'glyphs'
# Of which a fold of the training classes is held back.
SCREENED_DATA = 'glyphs_validation'
VALIDATION = 'validation'
TABLE = trainings.Table(
  'results',
  {'precision_at_1': 'R@1', 'mean_average_precision_at_r': 'mAP@R'},
)
CONFIG = 'configs/fine_tuning.py'
# Of the picture.
NUM_QUERIES = 8
NUM_NEIGHBORS = 6
# The loss of the recipes.
LOSS = 'supcon'

_STILL = {
  'optimizer.frozen': ('backbone/.*',),
  'model.frozen_batch_norm': True,
}
# The embedding is what the pretrained network pools; the proxies, which are not
# in it, do one step, since a run has to train something.
FROZEN = Row(
  'frozen features',
  f'{CONFIG}:normalized_softmax',
  _STILL
  | {
    'model.neck': 'identity',
    'model.embedding_dim': 1280,
    'num_train_steps': 1,
    'optimizer.warmup_steps': 0,
  },
)
FULL = Row(f'full, {LOSS}', f'{CONFIG}:{LOSS}')
RECIPES = (
  Row(f'linear probe, {LOSS}', FULL.config, _STILL),
  Row(
    f'frozen BatchNorm, {LOSS}', FULL.config, {'model.frozen_batch_norm': True}
  ),
  Row(
    f'head first, {LOSS}',
    FULL.config,
    {'optimizer.head_only_steps': 20},
  ),
  Row(
    f'layer-wise decay 0.9, {LOSS}', FULL.config, {'optimizer.layer_decay': 0.9}
  ),
  FULL,
  Row(f'no weights, {LOSS}', FULL.config, {'model.pretrained': None}),
)
_FAST_HEAD = {'optimizer.head_learning_rate_multiplier': 30.0}
# A well-known loss of each family (a page of docs/losses/), its defaults.
FAMILIES = {
  'Softmax over pairs': FULL,
  'Pairs': Row('full, multi_similarity', f'{CONFIG}:multi_similarity'),
  'Triplets': Row('full, triplet_margin', f'{CONFIG}:triplet_margin'),
  'Rankings': Row('full, smooth_ap', f'{CONFIG}:smooth_ap'),
  'Proxies': Row('full, proxy_anchor', f'{CONFIG}:proxy_anchor', _FAST_HEAD),
  'Margin softmax': Row('full, arcface', f'{CONFIG}:arcface', _FAST_HEAD),
  'Views, without labels': Row(
    'full, ntxent of two views',
    f'{CONFIG}:ntxent',
    {
      'loss.positives': 'image',
      'data.classes_per_batch': 0,
      'data.views_per_image': 2,
      'augment.crop_scale': (0.4, 1.0),
      'augment.rotation': 15.0,
    },
  ),
}
# Peak rates of the backbone, beside 1e-3 of what is new.
RATES = (1.0, 0.3, 0.1)
SCREENED = tuple(
  Row(
    f'backbone rate x{rate:g}, {LOSS}',
    FULL.config,
    {
      'data.validation': 'classes',
      'optimizer.backbone_learning_rate_multiplier': rate,
    },
  )
  for rate in RATES
)
SCREEN = dataclasses.replace(TABLE, metrics={}, selection=VALIDATION)


def screen(arguments) -> None:
  """Trains once with each rate, measured on a fold of the training classes."""
  trainings.run(SCREEN, SCREENED, SCREENED_DATA, 1, arguments.jobs)


def rows() -> list[Row]:
  """Returns all rows that are trained with several seeds, each once."""
  found = {row.label: row for row in (*RECIPES, *FAMILIES.values())}
  return list(found.values())


def run(arguments) -> None:
  """Trains the rows; the frozen features have no seed."""
  chosen = [
    row
    for row in (FROZEN, *rows())
    if not arguments.only or row.label in arguments.only
  ]
  if FROZEN in chosen:
    trainings.run(TABLE, [FROZEN], DATA, 1, arguments.jobs)
  trained = [row for row in chosen if row is not FROZEN]
  trainings.run(TABLE, trained, DATA, arguments.seeds, arguments.jobs)


def table(chosen: Mapping[str, Row], heading: str) -> str:
  """Returns rows of metrics as Markdown, the best mAP@R first.

  Args:
    chosen: {what the first column says: row}.
    heading: of the first column.
  """
  found = {text: TABLE.cells(row.label, DATA) for text, row in chosen.items()}
  measured = [[text, *cells] for text, cells in found.items() if cells]
  measured.sort(key=lambda cells: -float(cells[-1].split()[0]))
  return trainings.markdown(
    [[heading, 'seeds', *TABLE.metrics.values()], *measured]
  )


def write_tables() -> None:
  """Puts the tables between their marks in docs/results.md."""
  recipes = {row.label: row for row in (FROZEN, *RECIPES)}
  trainings.write(table(recipes, 'recipe'), 'recipes', PAGE)
  families = {
    f'{family}: `{row.config.split(":")[1]}`': row
    for family, row in FAMILIES.items()
  }
  families['frozen features'] = FROZEN
  trainings.write(table(families, 'family, loss'), 'families', PAGE)
  screened = [['rate of the backbone', 'mAP@R of the validation classes']]
  for rate, row in zip(RATES, SCREENED, strict=True):
    for found in SCREEN.runs(row.label, SCREENED_DATA):
      screened.append([f'{rate * 1e-3:g}', f'{found[VALIDATION]:.4f}'])
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
    model = retrieval_jax.load(TABLE.workdir(row.label, DATA, 0))
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
  Image.fromarray(np.concatenate(sheets, axis=1)).save(PICTURE, optimize=True)


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
