"""Records values and gradients of pytorch-metric-learning (PML).

    pip install torch pytorch-metric-learning
    python tests/golden/record_pml_losses.py

writes `pml_losses.json` beside this script, which the tests read; they need
neither torch nor PML. Everything is computed in float64.
"""

import json
import pathlib

import numpy as np
import pytorch_metric_learning
import torch
from pytorch_metric_learning import losses, miners, reducers

# Name of the case -> (our loss, our arguments, PML's loss, PML's miner).
NUM_CLASSES, DIM = 5, 6
PROXY = {'num_classes': NUM_CLASSES, 'embedding_size': DIM}


def miner_case(kind, margin=0.2, loss_margin=0.3):
  ours = {
    'margin': loss_margin,
    'miner': {
      'name': 'triplet_margin',
      'margin': margin,
      'type_of_triplets': kind,
    },
  }
  return (
    'triplet_margin',
    ours,
    losses.TripletMarginLoss(margin=loss_margin),
    miners.TripletMarginMiner(margin=margin, type_of_triplets=kind),
  )


def cases():
  mean = reducers.MeanReducer
  return {
    'circle': ('circle', {}, losses.CircleLoss(), None),
    'circle_soft': (
      'circle',
      {'margin': 0.25, 'scale': 4.0},
      losses.CircleLoss(m=0.25, gamma=4),
      None,
    ),
    'circle_references': ('circle', {}, losses.CircleLoss(), None),
    'triplet': ('triplet_margin', {}, losses.TripletMarginLoss(), None),
    'triplet_wide': (
      'triplet_margin',
      {'margin': 0.4},
      losses.TripletMarginLoss(margin=0.4),
      None,
    ),
    'triplet_mean': (
      'triplet_margin',
      {'margin': 0.2, 'reducer': 'mean'},
      losses.TripletMarginLoss(margin=0.2, reducer=mean()),
      None,
    ),
    'triplet_references': (
      'triplet_margin',
      {'margin': 0.2},
      losses.TripletMarginLoss(margin=0.2),
      None,
    ),
    'triplet_all': miner_case('all'),
    'triplet_hard': miner_case('hard'),
    'triplet_semihard': miner_case('semihard'),
    'triplet_easy': miner_case('easy'),
    'triplet_semihard_mean': (
      'triplet_margin',
      {
        'margin': 0.1,
        'reducer': 'mean',
        'miner': {'name': 'triplet_margin', 'type_of_triplets': 'semihard'},
      },
      losses.TripletMarginLoss(margin=0.1, reducer=mean()),
      miners.TripletMarginMiner(margin=0.2, type_of_triplets='semihard'),
    ),
    'arcface': ('arcface', {}, losses.ArcFaceLoss(**PROXY), None),
    # At this scale every class, and the easy continuation, has a say.
    'arcface_soft': (
      'arcface',
      {'margin_deg': 45.0, 'scale': 4.0},
      losses.ArcFaceLoss(**PROXY, margin=45, scale=4),
      None,
    ),
    'cosface': ('cosface', {}, losses.CosFaceLoss(**PROXY), None),
    'cosface_soft': (
      'cosface',
      {'margin': 0.2, 'scale': 4.0},
      losses.CosFaceLoss(**PROXY, margin=0.2, scale=4),
      None,
    ),
  }


def main():
  random = np.random.RandomState(0)
  labels = np.array([0, 1, 2, 0, 1, 4, 0, 2, 1, 0, 1, 3, 2])
  ref_labels = np.array([2, 0, 0, 1, 1, 2, 3])
  centers = random.randn(NUM_CLASSES, DIM)
  embeddings = 0.8 * centers[labels] + random.randn(len(labels), DIM)
  ref_embeddings = 0.8 * centers[ref_labels]
  ref_embeddings += random.randn(len(ref_labels), DIM)
  proxies = 0.5 * centers + random.randn(NUM_CLASSES, DIM)
  # Beyond 180 degrees minus the margin: the easy continuation.
  embeddings[3] = -proxies[0] + 0.05 * random.randn(DIM)

  recorded = {}
  for name, (loss, arguments, pml_loss, pml_miner) in cases().items():
    x = torch.tensor(embeddings, requires_grad=True)
    y = torch.tensor(labels)
    wrt = {'embeddings': x}
    references = {}
    if name.endswith('references'):
      ref_x = torch.tensor(ref_embeddings, requires_grad=True)
      wrt['ref_embeddings'] = ref_x
      references = {'ref_emb': ref_x, 'ref_labels': torch.tensor(ref_labels)}
    if hasattr(pml_loss, 'W'):
      pml_loss.W.data = torch.tensor(proxies.T.copy())
      wrt['proxies'] = pml_loss.W
    indices = None if pml_miner is None else pml_miner(x, y)
    value = pml_loss(x, y, indices, **references)
    gradients = torch.autograd.grad(value, list(wrt.values()))
    gradients = dict(zip(wrt, (g.numpy() for g in gradients), strict=True))
    if 'proxies' in gradients:
      gradients['proxies'] = gradients['proxies'].T
    recorded[name] = {
      'loss': loss,
      'arguments': arguments,
      'value': value.item(),
      'gradients': {k: rounded(g) for k, g in gradients.items()},
    }
  output = {
    'versions': {
      'pytorch_metric_learning': pytorch_metric_learning.__version__,
      'torch': torch.__version__,
    },
    'labels': labels.tolist(),
    'ref_labels': ref_labels.tolist(),
    'embeddings': embeddings.tolist(),
    'ref_embeddings': ref_embeddings.tolist(),
    'proxies': proxies.tolist(),
    'cases': recorded,
  }
  path = pathlib.Path(__file__).with_name('pml_losses.json')
  path.write_text(json.dumps(output, indent=1) + '\n')
  for name, row in recorded.items():
    print(f'{name:24} {row["value"]:.8f}')


def rounded(x):
  return [[float(f'{v:.9g}') for v in row] for row in x]


if __name__ == '__main__':
  main()
