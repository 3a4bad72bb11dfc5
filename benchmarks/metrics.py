"""Retrieval metrics against PML's `AccuracyCalculator`.

Command (the peer needs pytorch-metric-learning and faiss-cpu):

    python benchmarks/metrics.py [--peer-python PYTHON] [--only WORDS]

The queries are the gallery: embeddings around class centres, normalised.
PML ranks to k='max_bin_count', which gives all its metrics but the full mAP;
this project gives that too, in the same pass. The value shown is mAP@R.
"""

import numpy as np
import paired

_METRICS = (
  'precision_at_1',
  'r_precision',
  'mean_average_precision',
  'mean_average_precision_at_r',
)


def _data(rows, dim, classes, noise):
  random = np.random.RandomState(0)
  labels = random.permutation(np.arange(rows) % classes)
  x = random.randn(classes, dim)[labels] + noise * random.randn(rows, dim)
  x /= np.linalg.norm(x, axis=1, keepdims=True)
  return x.astype(np.float32), labels


def ours(**arguments):
  from retrieval_jax import metrics

  embeddings, labels = _data(**arguments)

  def run():
    values = metrics.retrieval_metrics(embeddings, labels, metrics=_METRICS)
    return values['mean_average_precision_at_r']

  run()
  return run


def peer(**arguments):
  import torch
  from pytorch_metric_learning.utils import accuracy_calculator

  embeddings, labels = map(torch.from_numpy, _data(**arguments))
  calculator = accuracy_calculator.AccuracyCalculator(
    include=_METRICS, k='max_bin_count', device=torch.device('cpu')
  )

  def run():
    values = calculator.get_accuracy(embeddings, labels)
    return float(values['mean_average_precision_at_r'])

  return run


def _case(rows, dim, classes, noise, bar=None):
  name = f'{rows:,} x {dim}, {classes:,} classes'
  arguments = {'rows': rows, 'dim': dim, 'classes': classes, 'noise': noise}
  return paired.Case(name, ours, peer, arguments, bar)


CASES = [
  _case(10_000, 50, 10, 1.6, 0.30),
  _case(5_900, 512, 100, 2.2, 0.35),
  _case(20_000, 128, 3_740, 1.3, 0.25),
  _case(60_502, 128, 11_316, 1.3, 0.55),
  # What a good model gives: of other classes next to nothing is near.
  _case(20_000, 128, 400, 0.9),
]

if __name__ == '__main__':
  paired.main(__file__, CASES, peer='PML')
