"""Records `pml_regularizers.json`: values and gradients of PML's regularizers.

  pip install torch pytorch-metric-learning
  python tests/golden/record_pml_regularizers.py

The test needs neither package. All is computed in float64.
"""

import json
import pathlib

import numpy as np
import pytorch_metric_learning
import torch
from pytorch_metric_learning import regularizers

NUM_CLASSES, CENTERS, DIM = 4, 3, 5

# {case: (our name, our hyperparameters, PML's)}
CASES = {
  'center_invariant': (
    'center_invariant',
    {},
    regularizers.CenterInvariantRegularizer(),
  ),
  'lp': ('lp', {}, regularizers.LpRegularizer()),
  'lp_1': ('lp', {'p': 1}, regularizers.LpRegularizer(p=1)),
  'lp_3_2': (
    'lp',
    {'p': 3, 'power': 2},
    regularizers.LpRegularizer(p=3, power=2),
  ),
  'regular_face': ('regular_face', {}, regularizers.RegularFaceRegularizer()),
  'sparse_centers': (
    'sparse_centers',
    {'centers_per_class': CENTERS},
    regularizers.SparseCentersRegularizer(NUM_CLASSES, CENTERS),
  ),
  'zero_mean': ('zero_mean', {}, regularizers.ZeroMeanRegularizer()),
}


def main() -> None:
  random = np.random.RandomState(0)
  rows = random.randn(NUM_CLASSES * CENTERS, DIM)
  cases = {}
  for case, (name, hyper, module) in CASES.items():
    x = torch.tensor(rows, requires_grad=True)
    value = module(x)
    (gradient,) = torch.autograd.grad(value, x)
    cases[case] = {
      'name': name,
      'hyper': hyper,
      'value': value.item(),
      'gradient': [[float(f'{v:.9g}') for v in row] for row in gradient],
    }
    print(f'{case:20} {value.item():.8f}')
  output = {
    'versions': {
      'pytorch_metric_learning': pytorch_metric_learning.__version__,
      'torch': torch.__version__,
    },
    'rows': rows.tolist(),
    'cases': cases,
  }
  path = pathlib.Path(__file__).with_name('pml_regularizers.json')
  path.write_text(json.dumps(output) + '\n')


if __name__ == '__main__':
  main()
