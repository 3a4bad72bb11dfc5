"""Records what the miners of pytorch-metric-learning (PML) select.

See `pml_recording` for what it needs. Each case is the set of pairs, or of
triplets, on one of three batches: 'plain' and 'equal' of `pml_recording`, the
former also against its references, and 'ties', whole numbers of which many are
equally far apart.
"""

import itertools
import json
import pathlib

import numpy as np
import pytorch_metric_learning
import torch
from pml_recording import arrays
from pytorch_metric_learning import distances, miners

STRATEGIES = ('easy', 'hard', 'semihard', 'all')
RAW = {'name': 'lp', 'normalize': False}


def word(options):
  if options is None or isinstance(options, str):
    return options or 'default'
  return options['name']


def pml_distance(options):
  if options == 'cosine':
    return distances.CosineSimilarity()
  if options == {'name': 'dot', 'normalize': False}:
    return distances.DotProductSimilarity(normalize_embeddings=False)
  return distances.LpDistance(normalize_embeddings=options != RAW)


def cases():
  """Yields (name, our miner, our options, PML's miner, batch)."""

  def case(name, kind, options, pml, batch='plain', distance=None):
    hyper = dict(options)
    if distance is not None:
      options = options | {'distance': distance}
      hyper['distance'] = pml_distance(distance)
    return name, kind, options, pml(**hyper), batch

  for angle, batch in ((20, 'plain'), (40, 'plain'), (40, 'references')):
    yield case(
      f'angular_{angle}_{batch}',
      'angular',
      {'angle': angle},
      miners.AngularMiner,
      batch,
    )
  for p, n in itertools.product(STRATEGIES, STRATEGIES):
    if {p, n} in ({'semihard'}, {'semihard', 'all'}):
      continue
    for batch, distance in (
      ('plain', None),
      ('plain', 'cosine'),
      ('references', None),
      ('ties', RAW),
    ):
      yield case(
        f'batch_easy_hard_{p}_{n}_{batch}_{word(distance)}',
        'batch_easy_hard',
        {'pos_strategy': p, 'neg_strategy': n},
        miners.BatchEasyHardMiner,
        batch,
        distance,
      )
  for p, n in (('easy', 'semihard'), ('hard', 'hard'), ('all', 'easy')):
    yield case(
      f'batch_easy_hard_{p}_{n}_ranges',
      'batch_easy_hard',
      {
        'pos_strategy': p,
        'neg_strategy': n,
        'allowed_pos_range': [0.5, 1.0],
        'allowed_neg_range': [0.6, 1.3],
      },
      miners.BatchEasyHardMiner,
    )
  for batch, distance in (('plain', None), ('references', None), ('ties', RAW)):
    yield case(
      f'batch_hard_{batch}',
      'batch_hard',
      {},
      miners.BatchHardMiner,
      batch,
      distance,
    )
  for share in (0.3, 0.5, 1.0):
    yield case(
      f'hdc_{share}',
      'hdc',
      {'filter_percentage': share},
      miners.HDCMiner,
      'references',
    )
  for epsilon in (0.0, 0.1, 0.3):
    for batch, distance in (
      ('plain', None),
      ('references', None),
      ('plain', {'name': 'lp'}),
      ('ties', {'name': 'dot', 'normalize': False}),
    ):
      yield case(
        f'multi_similarity_{epsilon}_{batch}_{word(distance)}',
        'multi_similarity',
        {'epsilon': epsilon},
        miners.MultiSimilarityMiner,
        batch,
        distance,
      )
  yield case(
    'packaged_triplets',
    'packaged_triplets',
    {},
    miners.EmbeddingsAlreadyPackagedAsTriplets,
    'equal',
  )
  yield case('pair_margin', 'pair_margin', {}, miners.PairMarginMiner)
  yield case(
    'pair_margin_references',
    'pair_margin',
    {'pos_margin': 0.7, 'neg_margin': 1.1},
    miners.PairMarginMiner,
    'references',
  )
  yield case(
    'pair_margin_ties',
    'pair_margin',
    {'pos_margin': 1.0, 'neg_margin': 2.0},
    miners.PairMarginMiner,
    'ties',
    RAW,
  )
  yield case(
    'pair_margin_cosine',
    'pair_margin',
    {'pos_margin': 0.8, 'neg_margin': 0.2},
    miners.PairMarginMiner,
    'plain',
    'cosine',
  )
  for kind in ('all', 'hard', 'semihard', 'easy'):
    for batch, distance, margin in (
      ('plain', None, 0.2),
      ('plain', 'cosine', 0.1),
      ('references', None, 0.2),
      ('ties', RAW, 1.0),
    ):
      yield case(
        f'triplet_margin_{kind}_{batch}_{word(distance)}',
        'triplet_margin',
        {'type_of_triplets': kind, 'margin': margin},
        miners.TripletMarginMiner,
        batch,
        distance,
      )


def batches():
  """Returns {batch: (embeddings, labels, references or None, their labels)}."""
  found = arrays()
  random = np.random.RandomState(1)
  # 16 rows: their mean is a float.
  ties = random.randint(-1, 2, size=(16, 3)).astype(float)
  plain = found['embeddings'], found['labels']
  return {
    'plain': (*plain, None, None),
    'references': (*plain, found['ref_embeddings'], found['ref_labels']),
    'equal': (found['equal_embeddings'], found['equal_labels'], None, None),
    'ties': (ties, random.randint(4, size=16), None, None),
  }


def main():
  """Writes `pml_miners.json` beside this file, and prints the sizes."""
  found = batches()
  recorded = {}
  for name, kind, options, miner, batch in cases():
    tensors = [None if x is None else torch.tensor(x) for x in found[batch]]
    columns = [index.tolist() for index in miner(*tensors)]
    if len(columns) == 3:
      selected = {'triplets': sorted(zip(*columns, strict=True))}
    else:
      selected = {
        'positives': sorted(zip(*columns[:2], strict=True)),
        'negatives': sorted(zip(*columns[2:], strict=True)),
      }
    recorded[name] = {'miner': kind, 'options': options, 'batch': batch}
    recorded[name] |= selected
    print(f'{name:50}', {k: len(v) for k, v in selected.items()})
  output = {
    'versions': {
      'pytorch_metric_learning': pytorch_metric_learning.__version__,
      'torch': torch.__version__,
    },
    'batches': {
      name: [None if x is None else x.tolist() for x in batch]
      for name, batch in found.items()
    },
    'cases': recorded,
  }
  path = pathlib.Path(__file__).with_name('pml_miners.json')
  path.write_text(json.dumps(output) + '\n')


if __name__ == '__main__':
  main()
