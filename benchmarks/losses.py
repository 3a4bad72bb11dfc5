"""Every loss and miner of pytorch-metric-learning (PML), forward and backward.

    python benchmarks/losses.py [--peer-python PYTHON_WITH_PML] [--only circle]
    python benchmarks/losses.py --json=benchmarks/losses.json
    python benchmarks/losses.py table

The gradient is that of the embeddings and of the proxies where there are any;
the column `value` holds the loss of both. `--clock=cpu` for a machine that has
other work to do. `table` writes what `--json` collected to docs/speed.md.
"""

import dataclasses
import json
import pathlib
import sys

import numpy as np
import paired
import trainings

ROOT = pathlib.Path(__file__).resolve().parents[1]
COLLECTED = ROOT / 'benchmarks' / 'losses.json'
NUM_CLASSES = 10
NUM_PROXIES = 1000
DIM = 128
BATCHES = (32, 256, 1024)

# {our name: PML's class}.
PAIR_LOSSES = {
  'angular': 'AngularLoss',
  'circle': 'CircleLoss',
  'contrastive': 'ContrastiveLoss',
  'dynamic_soft_margin': 'DynamicSoftMarginLoss',
  'fast_ap': 'FastAPLoss',
  'generalized_lifted_structure': 'GeneralizedLiftedStructureLoss',
  'histogram': 'HistogramLoss',
  'instance': 'InstanceLoss',
  'intra_pair_variance': 'IntraPairVarianceLoss',
  'lifted_structure': 'LiftedStructureLoss',
  'manifold': 'ManifoldLoss',
  'margin': 'MarginLoss',
  'multi_similarity': 'MultiSimilarityLoss',
  'n_pairs': 'NPairsLoss',
  'nca': 'NCALoss',
  'ntxent': 'NTXentLoss',
  'pnp': 'PNPLoss',
  'ranked_list': 'RankedListLoss',
  'signal_to_noise_ratio_contrastive': 'SignalToNoiseRatioContrastiveLoss',
  'smooth_ap': 'SmoothAPLoss',
  'supcon': 'SupConLoss',
  'threshold_consistent_margin': 'ThresholdConsistentMarginLoss',
  'triplet_margin': 'TripletMarginLoss',
  'tuplet_margin': 'TupletMarginLoss',
  'vicreg': 'VICRegLoss',
}
PROXY_LOSSES = {
  'arcface': 'ArcFaceLoss',
  'cosface': 'CosFaceLoss',
  'large_margin_softmax': 'LargeMarginSoftmaxLoss',
  'normalized_softmax': 'NormalizedSoftmaxLoss',
  'p2s_grad': 'P2SGradLoss',
  'proxy_anchor': 'ProxyAnchorLoss',
  'proxy_nca': 'ProxyNCALoss',
  'soft_triple': 'SoftTripleLoss',
  'sphereface': 'SphereFaceLoss',
  'subcenter_arcface': 'SubCenterArcFaceLoss',
}
MINERS = {
  'angular': 'AngularMiner',
  'batch_easy_hard': 'BatchEasyHardMiner',
  'batch_hard': 'BatchHardMiner',
  'distance_weighted': 'DistanceWeightedMiner',
  'hdc': 'HDCMiner',
  'multi_similarity': 'MultiSimilarityMiner',
  'packaged_triplets': 'EmbeddingsAlreadyPackagedAsTriplets',
  'pair_margin': 'PairMarginMiner',
  'triplet_margin': 'TripletMarginMiner',
  'uniform_histogram': 'UniformHistogramMiner',
}
# Where there is no default: {our name: (our arguments, PML's)}.
ARGUMENTS = {
  'manifold': ({'K': 50}, {'l': DIM, 'K': 50}),
  'ranked_list': (
    {'margin': 0.4, 'negative_temperature': 10.0},
    {'margin': 0.4, 'Tn': 10.0},
  ),
}
# Proxies of each class.
CENTERS = {'soft_triple': 10, 'subcenter_arcface': 3}


def make_arrays(loss, batch, num_classes, dim):
  """Returns what is differentiated, {name: array}, and the labels."""
  random = np.random.RandomState(0)
  if loss == 'smooth_ap':
    # What PML's needs: classes of one size, one after the other.
    num_classes = 2 ** ((batch.bit_length()) // 2)
    labels = np.arange(batch) // (batch // num_classes)
  elif num_classes > batch:
    labels = random.permutation(num_classes)[:batch]
  else:
    labels = random.permutation(np.arange(batch) % num_classes)
  centers = random.randn(batch, dim)
  embeddings = 0.5 * centers[labels % batch] + random.randn(batch, dim)
  arrays = {'embeddings': embeddings}
  if loss == 'vicreg':
    arrays['ref_embeddings'] = embeddings + 0.5 * random.randn(batch, dim)
  if loss in PROXY_LOSSES:
    count = num_classes * CENTERS.get(loss, 1)
    arrays['proxies'] = 0.05 * np.random.RandomState(1).randn(count, dim)
  if loss == 'manifold':
    arrays['proxies'] = random.randn(ARGUMENTS[loss][0]['K'], dim)
  arrays = {name: array.astype(np.float32) for name, array in arrays.items()}
  return arrays, labels.astype(np.int32)


def ours(loss, batch, num_classes, dim=DIM, miner=None):
  import jax

  from retrieval_jax import losses

  hyper = ARGUMENTS.get(loss, ({}, {}))[0]
  if loss in CENTERS:
    hyper = {losses.LOSSES[loss].centers[0]: CENTERS[loss]}

  def loss_fn(arrays, labels):
    if loss == 'manifold':
      arrays = {
        'embeddings': arrays['embeddings'],
        'params': {'proxies': arrays['proxies']},
      }
    return losses.compute(loss, labels=labels, miner=miner, **arrays, **hyper)

  inputs = jax.device_put(make_arrays(loss, batch, num_classes, dim))
  step = jax.jit(jax.value_and_grad(loss_fn)).lower(*inputs).compile()
  return lambda: jax.block_until_ready(step(*inputs))[0].item()


def pml(loss, batch, num_classes, dim=DIM, miner=None):
  import torch
  from pytorch_metric_learning import losses, miners

  hyper = ARGUMENTS.get(loss, ({}, {}))[1]
  if loss in PROXY_LOSSES:
    width = 'descriptors_dim' if loss == 'p2s_grad' else 'embedding_size'
    hyper = {'num_classes': num_classes, width: dim}
    if loss in CENTERS:
      name = (
        'sub_centers' if loss == 'subcenter_arcface' else 'centers_per_class'
      )
      hyper[name] = CENTERS[loss]
  module = getattr(losses, (PAIR_LOSSES | PROXY_LOSSES)[loss])(**hyper)
  mine = None
  if miner is not None:
    options = miner if isinstance(miner, dict) else {'name': miner}
    mine = getattr(miners, MINERS[options['name']])(
      **{key: value for key, value in options.items() if key != 'name'}
    )
  arrays, labels = make_arrays(loss, batch, num_classes, dim)
  proxies = arrays.pop('proxies', None)
  if proxies is not None:
    name = next(
      n for n in ('W', 'fc', 'proxies', 'weight') if hasattr(module, n)
    )
    # Some keep them as [D, C].
    if getattr(module, name).shape != proxies.shape:
      proxies = np.ascontiguousarray(proxies.T)
    getattr(module, name).data = torch.from_numpy(proxies)
  if loss == 'dynamic_soft_margin':
    # With a gradient through the histogram its second step fails. It starts
    # anew, so that each step gives the same number.
    update = module.update_histogram

    def update_anew(data):
      module.hist_ = torch.zeros_like(module.hist_)
      update(data.detach())

    module.update_histogram = update_anew
  leaves = {
    name: torch.from_numpy(array).requires_grad_()
    for name, array in arrays.items()
  }
  embeddings = leaves['embeddings']
  labels = torch.from_numpy(labels.astype(np.int64))

  def step():
    module.zero_grad()
    for leaf in leaves.values():
      leaf.grad = None
    if loss == 'vicreg':
      value = module(embeddings, ref_emb=leaves['ref_embeddings'])
    elif loss == 'manifold':
      value = module(embeddings, indices_tuple=labels % module.K)
    else:
      indices = None if mine is None else mine(embeddings, labels)
      value = module(embeddings, labels, indices)
    value.backward()
    return value.item()

  return step


# {our name: (from this batch on, the ratio to reach)}; PML's time elsewhere.
BARS = {
  'circle': (32, 0.12),
  'multi_similarity': (32, 0.16),
  'ntxent': (128, 0.001),
  'supcon': (32, 0.25),
  'triplet_margin': (256, 0.03),
}
# With its own margins this miner finds nothing in these batches.
PAIR_MARGIN = {'name': 'pair_margin', 'pos_margin': 1.2, 'neg_margin': 1.4}
SEMIHARD = {'name': 'triplet_margin', 'type_of_triplets': 'semihard'}
MINED = {name: name for name in MINERS}
MINED |= {'pair_margin': PAIR_MARGIN, 'triplet_margin, semihard': SEMIHARD}


def loss_case(loss, batch):
  least, bar = BARS.get(loss, (0, 1.0))
  arguments = {
    'loss': loss,
    'batch': batch,
    'num_classes': NUM_PROXIES if loss in PROXY_LOSSES else NUM_CLASSES,
  }
  bar = bar if batch >= least else 1.0
  return paired.Case(f'{loss}, B {batch:,}', ours, pml, arguments, bar)


def miner_case(label, batch):
  case = loss_case('triplet_margin', batch)
  if label == 'packaged_triplets':
    batch -= batch % 3
  return dataclasses.replace(
    case,
    name=f'triplet_margin of {label}, B {batch:,}',
    arguments=case.arguments | {'batch': batch, 'miner': MINED[label]},
  )


def class_case(loss, num_classes, bar):
  arguments = {
    'loss': loss,
    'batch': 128,
    'num_classes': num_classes,
    'dim': 512,
  }
  name = f'{loss}, D 512, C {num_classes:,}, B 128'
  return paired.Case(name, ours, pml, arguments, bar)


CASES = [
  *[
    loss_case(loss, batch)
    for loss in sorted(PAIR_LOSSES | PROXY_LOSSES)
    for batch in BATCHES
  ],
  *[miner_case(label, batch) for label in sorted(MINED) for batch in BATCHES],
  loss_case('ntxent', 128),
  loss_case('triplet_margin', 128),
  loss_case('triplet_margin', 512),
  *[
    class_case(loss, num_classes, bar)
    for loss in ('arcface', 'cosface')
    for num_classes, bar in ((10, 1.0), (1000, 1.0), (81313, 0.6))
  ],
]


def write_tables():
  """Puts what was collected between the marks in docs/speed.md."""
  collected = json.loads(COLLECTED.read_text())
  page = ROOT / 'docs' / 'speed.md'
  labels = sorted(PAIR_LOSSES | PROXY_LOSSES)
  rows = [
    (label, [loss_case(label, batch) for batch in BATCHES]) for label in labels
  ]
  trainings.write(wide_table('loss', rows, collected), 'losses', page)
  rows = [
    (label, [miner_case(label, batch) for batch in BATCHES])
    for label in sorted(MINED)
  ]
  trainings.write(wide_table('miner', rows, collected), 'miners', page)
  wide = 3 * (len(labels) + len(MINED))
  rows = [['', 'ratio', 'bar', 'ms', 'PML, ms']]
  for case in CASES[wide:]:
    sides = collected[case.name]
    rows.append(
      [case.name, ratio(sides), f'{case.bar:g}', *map(ms, sides.values())]
    )
  trainings.write(trainings.markdown(rows), 'more', page)


def wide_table(heading, rows, collected):
  """Returns rows of (label, cases of all batches) as Markdown."""
  sizes = [f'{batch:,}' for batch in BATCHES]
  lines = [[heading, *(f'ratio, B {size}' for size in sizes)]]
  lines[0] += [f'ms, B {size}' for size in sizes]
  lines[0] += [f'MiB, B {sizes[-1]}', 'PML, MiB']
  for label, cases in rows:
    found = [collected[case.name] for case in cases]
    lines.append(
      [
        f'`{label}`',
        *map(ratio, found),
        *(ms(sides['ours']) for sides in found),
        *map(mib, found[-1].values()),
      ]
    )
  return trainings.markdown(lines)


def ratio(sides):
  if 'failure' in sides['peer']:
    return 'fails'
  return f'{sides["ours"]["seconds"] / sides["peer"]["seconds"]:.2g}'


def ms(side):
  return f'{1e3 * side["seconds"]:.3g}' if 'seconds' in side else ''


def mib(side):
  return f'{side["extra_mib"]:.0f}' if 'extra_mib' in side else ''


if __name__ == '__main__':
  if sys.argv[1:] == ['table']:
    write_tables()
  else:
    paired.main(__file__, CASES, peer='PML')
