"""What trained models say of the losses: screens them, runs the best, writes.

    PYTHONPATH=. python benchmarks/choosing_a_loss.py screen
    PYTHONPATH=. python benchmarks/choosing_a_loss.py run --data=glyphs_short
    PYTHONPATH=. python benchmarks/choosing_a_loss.py run --data=mnist_5k
    PYTHONPATH=. python benchmarks/choosing_a_loss.py run --data=glyphs
    PYTHONPATH=. python benchmarks/choosing_a_loss.py table
    PYTHONPATH=. python benchmarks/choosing_a_loss.py pixels

`screen` trains every candidate once and shortly, on small `glyphs`. The best of
each family, by mAP@R on the validation classes, and the losses that the project
set out with are then trained with several seeds by `run`, with equal steps on
each data set; `glyphs` is the full recipe of configs/zero_shot.py. Metrics are
collected in `choosing_a_loss.json`, and `table` writes them into
docs/choosing_a_loss.md and README.md; see `trainings.py`. `pixels` prints what
raw pixels reach on the test classes of `glyphs`, on all, and from face to face.
"""

import argparse

import numpy as np
import trainings
from trainings import Row

PAGE = trainings.ROOT / 'docs' / 'choosing_a_loss.md'
PIXELS = 'Raw pixels'
SHORT = 'glyphs_short'
VALIDATION = 'validation_mean_average_precision_at_r'
TABLE = trainings.Table(
  'choosing_a_loss',
  {'precision_at_1': 'P@1', 'mean_average_precision_at_r': 'mAP@R'},
  selection=VALIDATION,
)
# Batches and network are those of configs/zero_shot.py.
DATA = {
  'glyphs': {},
  # At a quarter of the pixels, and measured once.
  SHORT: {
    'num_epochs': 3,
    'eval_every_steps': 1_000_000,
    'data.image_size': 16,
  },
  # The same recipe where all classes are known, with a validation set of
  # images instead of classes.
  'mnist_5k': {
    'data.name': 'mnist_5k',
    'data.validation': 'images',
    'data.classes_per_batch': 8,
  },
}

# A candidate is the name of a loss and what differs from its defaults.
_FAST_HEAD = {'optimizer.head_learning_rate_multiplier': 30.0}
FAMILIES = {
  'Pairs': (
    ('circle', {}),
    ('contrastive', {}),
    ('multi_similarity', {}),
  ),
  'Triplets': (
    ('triplet_margin', {}),
    (
      'triplet_margin',
      {
        'loss.margin': 0.2,
        'miner.name': 'triplet_margin',
        'miner.type_of_triplets': 'semihard',
      },
    ),
  ),
  'Softmax over pairs': (
    ('ntxent', {}),
    ('supcon', {}),
  ),
  'Rankings': (
    ('recall_at_k', {}),
    ('roadmap', {}),
    ('smooth_ap', {}),
  ),
  'Margin softmax': (
    ('arcface', {}),
    ('arcface', _FAST_HEAD),
    ('circle_classification', _FAST_HEAD),
    ('cosface', _FAST_HEAD),
  ),
  'Proxies': (
    ('proxy_anchor', {}),
    ('normalized_softmax', _FAST_HEAD),
    ('proxy_anchor', _FAST_HEAD),
    ('soft_triple', _FAST_HEAD),
  ),
}
# Besides the best of each family: what the project set out with, as it came.
FOUNDING = tuple(
  (name, {}) for name in ('circle', 'triplet_margin', 'arcface', 'cosface')
)


def label_of(name, overrides) -> str:
  """Returns the loss and what differs from its defaults."""
  words = []
  for key, value in overrides.items():
    short = {
      'miner.name': 'miner',
      'optimizer.head_learning_rate_multiplier': 'head rate x',
    }.get(key, key.split('.')[-1])
    words.append(
      f'{short}{value:g}' if short.endswith('x') else f'{short} {value}'
    )
  return ', '.join([name, *words])


def row_of(candidate, data) -> Row:
  """Returns a training of a candidate on a data set."""
  name, overrides = candidate
  return Row(
    label_of(*candidate),
    f'configs/zero_shot.py:{name}',
    DATA[data] | overrides,
  )


def screened(candidate) -> float | None:
  """Returns mAP@R on the validation classes, None if it was not screened."""
  key = trainings.key_of(label_of(*candidate), SHORT, 0)
  return TABLE.collected().get(key, {}).get(VALIDATION)


def chosen() -> dict[str, tuple[str, dict]]:
  """Returns {family: its best candidate in the screening}."""
  best = {}
  for family, candidates in FAMILIES.items():
    values = {i: screened(c) for i, c in enumerate(candidates)}
    values = {i: value for i, value in values.items() if value is not None}
    if values:
      best[family] = candidates[max(values, key=values.get)]
  return best


def finalists() -> list[tuple[str, tuple[str, dict]]]:
  """Returns (family, candidate) of all that are trained in full."""
  found = [(family, candidate) for family, candidate in chosen().items()]
  best = [candidate for _, candidate in found]
  found += [('', c) for c in FOUNDING if c not in best]
  return found


def measure_pixels(collection, query, gallery=None) -> dict[str, float]:
  """Returns the metrics of the cosine of raw pixels.

  Args:
    collection: whose images are in memory.
    query: [N] bool, the rows that ask.
    gallery: [N] bool, the rows that are searched in; None: the queries, each
      excluded from its own ranking.
  """
  from retrieval_jax import metrics

  def part(rows):
    images = collection.images.images[rows].astype(np.float32)
    return images.reshape(len(images), -1), collection.labels[rows]

  return metrics.retrieval_metrics(
    *part(query),
    *(part(gallery) if gallery is not None else ()),
    metrics=tuple(TABLE.metrics),
  )


def print_pixels() -> None:
  """Prints what raw pixels reach on `glyphs`, by task; records the first."""
  from retrieval_jax.data import glyphs
  from retrieval_jax.data.collection import TEST

  collection = glyphs.glyphs()
  is_test = collection.split == TEST
  of_face = np.array(collection.domain_names)[collection.domain]
  serif, sans = (
    is_test & np.char.startswith(of_face, f'DejaVu {family} ')
    for family in ('Serif', 'Sans')
  )
  sans &= ~np.char.startswith(of_face, 'DejaVu Sans Mono')
  everything = np.ones(len(collection), bool)
  rows = [['raw pixels', 'images', 'classes', *TABLE.metrics.values()]]
  for name, query, gallery in (
    ('test classes', is_test, None),
    ('all classes', everything, None),
    ('test classes, Serif in Sans', serif, sans),
  ):
    found = measure_pixels(collection, query, gallery)
    if query is is_test:
      TABLE.record(trainings.key_of(PIXELS, 'glyphs', 0), found)
    size = f'{query.sum():,}'
    if gallery is not None:
      size += f' in {gallery.sum():,}'
    classes = f'{len(np.unique(collection.labels[query])):,}'
    rows.append([name, size, classes, *(f'{v:.4f}' for v in found.values())])
  print(trainings.markdown(rows))


def screen(arguments) -> None:
  """Trains every candidate once."""
  rows = [
    row_of(candidate, SHORT)
    for candidates in FAMILIES.values()
    for candidate in candidates
    if not arguments.only or candidate[0] in arguments.only
  ]
  trainings.run(TABLE, rows, SHORT, 1, arguments.jobs)


def run(arguments) -> None:
  """Trains the best of each family, and the founding losses."""
  rows = [
    row_of(candidate, arguments.data)
    for _, candidate in finalists()
    if not arguments.only or candidate[0] in arguments.only
  ]
  trainings.run(TABLE, rows, arguments.data, arguments.seeds, arguments.jobs)


def final_table(data) -> str:
  """Returns the trained rows of one data set, the best mAP@R first."""
  rows = []
  for family, candidate in finalists():
    label = label_of(*candidate)
    cells = TABLE.cells(label, data)
    if cells:
      rows.append([label, family, *cells])
  rows.sort(key=lambda row: -float(row[-1].split()[0]))
  pixels = TABLE.cells(PIXELS, data)
  if pixels:
    rows.append([PIXELS, '', '', *pixels[1:]])
  heading = [f'`{data}`', 'best of', 'seeds', *TABLE.metrics.values()]
  return trainings.markdown([heading, *rows])


def screening_table() -> str:
  """Returns all candidates, family by family, the best first."""
  rows = [['loss', 'family', 'validation mAP@R']]
  for family, candidates in FAMILIES.items():
    found = [(screened(c), label_of(*c)) for c in candidates]
    found = sorted(pair for pair in found if pair[0] is not None)[::-1]
    rows += [[label, family, f'{value:.4f}'] for value, label in found]
  return trainings.markdown(rows)


def write_tables() -> None:
  """Puts the tables between their marks in docs/ and README.md."""
  trainings.write(final_table('glyphs'), 'zero_shot')
  trainings.write(final_table(SHORT), SHORT)
  for data in DATA:
    if any(key.startswith(f'{data}/') for key in TABLE.collected()):
      trainings.write(final_table(data), data, PAGE)
  trainings.write(screening_table(), 'screen', PAGE)


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  commands = parser.add_subparsers(dest='command', required=True)
  for name in ('screen', 'run'):
    runner = commands.add_parser(name)
    runner.add_argument('--jobs', type=int, default=2)
    runner.add_argument('--only', action='append', help='the name of a loss')
    if name == 'run':
      runner.add_argument('--data', choices=sorted(DATA), default=SHORT)
      runner.add_argument('--seeds', type=int, default=3)
  commands.add_parser('table')
  commands.add_parser('pixels')
  arguments = parser.parse_args()
  functions = {
    'screen': lambda: screen(arguments),
    'run': lambda: run(arguments),
    'table': write_tables,
    'pixels': print_pixels,
  }
  functions[arguments.command]()


if __name__ == '__main__':
  main()
