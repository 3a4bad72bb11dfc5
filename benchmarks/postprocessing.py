"""What post-processing changes: each alone, fused views, and a chain.

Command (from the top of the repository, after the training that it says):

    PYTHONPATH=. python benchmarks/postprocessing.py

It measures a run of

    python -m retrieval_jax.main --config=configs/zero_shot.py \\
        --config.num_epochs=2 --config.data.image_size=16 \\
        --config.model.pooling=average --workdir=runs/postprocessing

on its validation classes, by which one may choose, and on its test classes. The
seconds are of ranking the test set, everything that was compiled included. With
`--size=10000` it measures k-reciprocal re-ranking of so many random rows.
"""

import argparse
import functools
import resource
import time

import jax
import numpy as np

from retrieval_jax import data, metrics, neighbors
from retrieval_jax.core.errors import InputError
from retrieval_jax.training import ablation, checkpoint, steps, tasks
from retrieval_jax.training import config as config_lib
from retrieval_jax.training.views import Views

_CHAINS = (
  ('pca_whitening', 'alpha_query_expansion', 'k_reciprocal'),
  # The two that are the best alone on the validation classes.
  ('database_augmentation', 'k_reciprocal'),
)
# Other than the defaults: classes have about twelve images here.
_OPTIONS = {
  'average_query_expansion': {'k': 3},
  'alpha_query_expansion': {'k': 10},
  'pca_whitening': {'power': 0.25},
  'k_reciprocal': {'k1': 12, 'k2': 4},
  'constant_threshold': {'threshold': 0.9},
}
_VIEWS = {
  'flip': Views(flip=True),
  'scales 0.8, 1, 1.25': Views(scales=(0.8, 1.0, 1.25)),
}
_SHOWN = (
  'precision_at_1',
  'recall_at_10',
  'mean_average_precision_at_100',
  'mean_average_precision_at_r',
  'returned_precision',
)


def embedder(workdir, views):
  """Returns a function from a source to its embeddings, through some views."""
  config = checkpoint.read_config(workdir)
  info = checkpoint.read_dataset_info(workdir)
  variables = checkpoint.restore_variables(workdir)
  task = tasks.make_task(
    config,
    config_lib.Classes(info['num_classes']),
    data.load_dataset(**config_lib.dataset_options(config)).image_shape,
    axis_name=None,
  )._replace(views=views)
  step = jax.jit(functools.partial(steps.embed_step, task=task, axis_name=None))
  variables = {
    'params': variables['params']['embedder'],
    'batch_stats': variables['batch_stats'],
  }

  def embed(source, batch_size=512):
    rows = []
    for start in range(0, len(source), batch_size):
      picked = np.arange(start, min(start + batch_size, len(source)))
      images = source.images_at(np.resize(picked, batch_size))
      rows.append(np.asarray(step(variables, images))[: len(picked)])
    return np.concatenate(rows)

  return embed


def measure(names, embedded, labels, list_length):
  """Returns (the metrics, seconds) of a chain."""
  chain = neighbors.parse_postprocessing(names, _OPTIONS)
  started = time.perf_counter()
  (variant,) = ablation.ablate(
    [chain],
    embedded,
    lambda rows: metrics.evaluate_lists(rows, labels),
    list_length=list_length,
  )
  return variant.result.metrics, time.perf_counter() - started


def compare(workdir, only):
  config = checkpoint.read_config(workdir)
  dataset = data.load_dataset(**config_lib.dataset_options(config))
  sets = {
    'validation': dataset.validations['validation'].query,
    'test': dataset.tests['test'].query,
  }
  embed = embedder(workdir, Views())
  train = embed(dataset.train)

  def embedded(rows):
    return neighbors.Embedded(rows, rows, True, train, dataset.train.labels)

  plain = {name: embedded(embed(source)) for name, source in sets.items()}
  rows = {'none': ((), plain)}
  for label, views in _VIEWS.items():
    embed = embedder(workdir, views)
    seen = {name: embedded(embed(source)) for name, source in sets.items()}
    rows[label] = ((), seen)
  for name in neighbors.POSTPROCESSING:
    rows[name] = ((name,), plain)
  for chain in _CHAINS:
    rows[' + '.join(chain)] = (chain, plain)
  print(f'| | validation | | {"| " * len(_SHOWN)}test, s |')
  print(f'| post-processing | mAP@R | P@1 | {" | ".join(_SHOWN)} | |')
  print(f'|---|{"---|" * (len(_SHOWN) + 3)}')
  for label, (names, of_set) in rows.items():
    if only not in label:
      continue
    values, seconds = {}, 0.0
    for set_name, source in sets.items():
      values[set_name], seconds = measure(
        names, of_set[set_name], source.labels, 100
      )
    chosen = (values['validation'][n] for n in (_SHOWN[3], _SHOWN[0]))
    shown = (values['test'].get(name) for name in _SHOWN)
    numbers = ['' if v is None else f'{v:.4f}' for v in (*chosen, *shown)]
    print(f'| {label} | {" | ".join(numbers)} | {seconds:.0f} |', flush=True)


def large(size, dim=128):
  random = np.random.default_rng(0)
  x = random.normal(size=(size // 12 + 1, dim))[np.arange(size) // 12]
  x = (x + 0.7 * random.normal(size=x.shape)).astype(np.float32)
  neighbors.top_k(x, x, 100, exclude_self=True)
  before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  started = time.perf_counter(), time.process_time()
  neighbors.k_reciprocal_reranking(x, x, 100, exclude_self=True)
  seconds = time.perf_counter() - started[0]
  cpu_seconds = time.process_time() - started[1]
  grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
  print(
    f'{size:,} x {dim}: {seconds:.1f} s, {cpu_seconds:.1f} s of processors, '
    f'{grown / 1024:.0f} MiB'
  )


if __name__ == '__main__':
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--workdir', default='runs/postprocessing')
  parser.add_argument('--size', type=int)
  parser.add_argument('--only', default='', help='rows with these words')
  flags = parser.parse_args()
  try:
    large(flags.size) if flags.size else compare(flags.workdir, flags.only)
  except InputError as error:
    raise SystemExit(str(error)) from None
