"""Records PML's losses over rankings, see `pml_recording`.

Smooth-AP is recorded apart, under 'smooth_ap': PML 2.9 groups B / C rows that
follow each other, with C and B / C exchanged, so that it is right if the rows
are ordered by class and there are as many classes as images of each. The
batches: 'square' is such a one, 'interleaved' the same rows in another order,
'oblong' is ordered, of 2 classes of 3 images.
"""

import json
import pathlib

import numpy as np
import torch
from pml_recording import Case, record
from pytorch_metric_learning import losses

CASES = {
  'fast_ap': Case('fast_ap', {}, losses.FastAPLoss()),
  'fast_ap_soft': Case(
    'fast_ap', {'num_bins': 3}, losses.FastAPLoss(num_bins=3)
  ),
  'histogram': Case('histogram', {}, losses.HistogramLoss()),
  'histogram_soft': Case(
    'histogram', {'n_bins': 5}, losses.HistogramLoss(n_bins=5)
  ),
  'histogram_delta': Case(
    'histogram', {'delta': 0.25}, losses.HistogramLoss(delta=0.25)
  ),
  'pnp': Case('pnp', {}, losses.PNPLoss()),
  **{
    f'pnp_soft_{variant}': Case(
      'pnp',
      {'b': 1.5, 'alpha': 2.5, 'anneal': 0.3, 'variant': variant},
      losses.PNPLoss(b=1.5, alpha=2.5, anneal=0.3, variant=variant),
    )
    for variant in losses.PNPLoss.VARIANTS
  },
}

SMOOTH_AP_LABELS = {
  'square': [0, 0, 0, 1, 1, 1, 2, 2, 2],
  'interleaved': [0, 1, 2, 0, 1, 2, 0, 1, 2],
  'oblong': [0, 0, 0, 1, 1, 1],
}


def smooth_ap(batch, temperature):
  """Returns the recorded row of a batch of `SMOOTH_AP_LABELS`."""
  random = np.random.RandomState(0)
  labels = np.array(SMOOTH_AP_LABELS[batch])
  square = np.array(SMOOTH_AP_LABELS['square'])
  rows = random.randn(3, 6)[square] + random.randn(len(square), 6)
  # The same rows of each class in each batch.
  taken = [0, 0, 0]
  order = []
  for label in labels:
    order.append(3 * label + taken[label])
    taken[label] += 1
  x = torch.tensor(rows[order], requires_grad=True)
  module = losses.SmoothAPLoss(temperature=temperature).double()
  value = module(x, torch.tensor(labels))
  (gradient,) = torch.autograd.grad(value, x)
  return {
    'labels': labels.tolist(),
    'embeddings': rows[order].tolist(),
    'temperature': temperature,
    'value': value.item(),
    'gradient': gradient.tolist(),
  }


def case_of(row):
  """Returns a recorded row of Smooth-AP in the form of `pml_recording`."""
  return {
    'loss': 'smooth_ap',
    'arguments': {'temperature': row['temperature']},
    'batch': 'equal',
    'views': False,
    'centers': 1,
    'value': row['value'],
    'gradients': {'embeddings': row['gradient']},
  }


if __name__ == '__main__':
  record('listwise', CASES)
  path = pathlib.Path(__file__).with_name('pml_listwise.json')
  recorded = json.loads(path.read_text())
  rows = {
    f'{batch}_{temperature}': smooth_ap(batch, temperature)
    for batch in SMOOTH_AP_LABELS
    for temperature in (0.01, 0.3)
  }
  recorded['smooth_ap'] = rows
  # In this family the batch called 'equal' is 'square', where PML is right.
  for name in ('labels', 'embeddings'):
    recorded['arrays'][f'equal_{name}'] = rows['square_0.01'][name]
  recorded['cases'] |= {
    'smooth_ap': case_of(rows['square_0.01']),
    'smooth_ap_soft': case_of(rows['square_0.3']),
  }
  path.write_text(json.dumps(recorded) + '\n')
  for name, row in rows.items():
    print(f'smooth_ap {name:22} {row["value"]:.8f}')
