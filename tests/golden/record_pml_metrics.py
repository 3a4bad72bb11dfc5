"""Records metrics of pytorch-metric-learning for `retrieval_test.py`.

Command (needs pytorch-metric-learning, faiss-cpu):

    python tests/golden/record_pml_metrics.py

Rankings are full (k=None), embeddings are normalised first, as PML does not.
"""

import importlib.metadata
import json
import pathlib

import numpy as np

_NAMES = (
  'precision_at_1',
  'r_precision',
  'mean_average_precision',
  'mean_average_precision_at_r',
  'mean_reciprocal_rank',
)
CASES = {
  # seed, queries, gallery (0: the queries), dimension, classes, noise
  'self': (0, 60, 0, 8, 5, 1.0),
  'self_imbalanced': (1, 80, 0, 16, 23, 1.5),
  'gallery': (2, 30, 70, 8, 6, 1.0),
  'gallery_with_lone_queries': (3, 40, 25, 6, 30, 0.7),
}


def make_case(seed, num_queries, num_gallery, dim, num_classes, noise):
  """Returns query embeddings and labels, gallery embeddings and labels."""
  random = np.random.RandomState(seed)
  centers = random.randn(num_classes, dim)

  def draw(number):
    # Squared, so that some classes are rare.
    labels = (num_classes * random.rand(number) ** 2).astype(np.int64)
    x = centers[labels] + noise * random.randn(number, dim)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    return x.astype(np.float32), labels

  queries = draw(num_queries)
  return queries + (draw(num_gallery) if num_gallery else (None, None))


def main():
  import torch
  from pytorch_metric_learning.utils import accuracy_calculator

  calculator = accuracy_calculator.AccuracyCalculator(
    include=_NAMES, k=None, device=torch.device('cpu')
  )
  recorded = {}
  for name, arguments in CASES.items():
    arrays = make_case(*arguments)
    tensors = [None if a is None else torch.from_numpy(a) for a in arrays]
    values = calculator.get_accuracy(*tensors)
    recorded[name] = {key: float(values[key]) for key in _NAMES}
  versions = {
    package: importlib.metadata.version(package)
    for package in ('pytorch-metric-learning', 'faiss-cpu', 'torch')
  }
  golden = {'versions': versions, 'metrics': recorded}
  path = pathlib.Path(__file__).with_name('pml_metrics.json')
  path.write_text(json.dumps(golden, indent=1) + '\n')


if __name__ == '__main__':
  main()
