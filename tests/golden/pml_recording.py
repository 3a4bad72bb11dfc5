"""Records values and gradients of pytorch-metric-learning (PML).

A family's script, `record_pml_<family>.py`, holds `CASES` and calls `record`.
It needs `pip install torch pytorch-metric-learning`; the tests need neither,
they read what was written beside the scripts. All is computed in float64.

    CASES = {
      'circle': Case('circle', {}, losses.CircleLoss()),
      'circle_references': Case('circle', {}, losses.CircleLoss(),
                                references=True),
    }
    if __name__ == '__main__':
      record('pair', CASES)
"""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytorch_metric_learning
import torch

NUM_CLASSES, DIM = 5, 6
PROXY = {'num_classes': NUM_CLASSES, 'embedding_size': DIM}


@dataclasses.dataclass
class Case:
  """One call, ours and theirs.

  Attributes:
    loss: our name of the loss.
    arguments: ours, what `losses.compute` takes besides the arrays, in values
      that JSON can hold.
    pml: the loss module of PML.
    miner: its miner, or None.
    references: whether the embeddings are compared with the recorded
      references and not with each other.
    centers: proxies of each class; the recorded `proxies` hold 3 a class, of
      which the first are taken, the centres of a class adjacent.
    proxies: name of the module's attribute with the proxies, found if None.
    transpose: whether PML keeps them as [D, C].
    views: whether the references are second views of the embeddings, row by
      row.
    batch: 'plain' (classes of 1 to 4 images, not in order), or 'equal' (4
      classes of 3 images, not in order), for losses that need that.
  """

  loss: str
  arguments: Mapping[str, Any]
  pml: torch.nn.Module
  miner: torch.nn.Module | None = None
  references: bool = False
  centers: int = 1
  proxies: str | None = None
  transpose: bool = True
  views: bool = False
  batch: str = 'plain'


def arrays() -> dict[str, np.ndarray]:
  """Returns the arrays that all cases share."""
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
  more = proxies[:, None] + 0.7 * random.randn(NUM_CLASSES, 2, DIM)
  proxies = np.concatenate([proxies[:, None], more], axis=1)
  equal_labels = np.array([0, 1, 2, 3, 2, 1, 0, 3, 3, 0, 1, 2])
  equal = 0.8 * centers[equal_labels] + random.randn(len(equal_labels), DIM)
  return {
    'labels': labels,
    'ref_labels': ref_labels,
    'embeddings': embeddings,
    'ref_embeddings': ref_embeddings,
    'view_embeddings': embeddings + 0.5 * random.randn(*embeddings.shape),
    'proxies': proxies,
    'equal_labels': equal_labels,
    'equal_embeddings': equal,
  }


def run(case: Case) -> dict[str, Any]:
  """Returns the recorded row of a case."""
  found = arrays()
  prefix = 'equal_' if case.batch == 'equal' else ''
  x = torch.tensor(found[f'{prefix}embeddings'], requires_grad=True)
  y = torch.tensor(found[f'{prefix}labels'])
  wrt = {'embeddings': x}
  references = {}
  if case.references or case.views:
    name = 'view_embeddings' if case.views else 'ref_embeddings'
    ref_x = torch.tensor(found[name], requires_grad=True)
    ref_y = y if case.views else torch.tensor(found['ref_labels'])
    wrt['ref_embeddings'] = ref_x
    references = {'ref_emb': ref_x, 'ref_labels': ref_y}
  module = case.pml.double()
  attribute = case.proxies or next(
    (name for name in ('W', 'proxies', 'fc') if hasattr(module, name)), None
  )
  if attribute is not None:
    w = found['proxies'][:, : case.centers].reshape(-1, DIM)
    w = w.T if case.transpose else w
    getattr(module, attribute).data = torch.tensor(w.copy())
    wrt['proxies'] = getattr(module, attribute)
  indices = None if case.miner is None else case.miner(x, y)
  arguments = (x,) if case.views else (x, y)
  if case.views:
    value = module(*arguments, ref_emb=references['ref_emb'])
  else:
    value = module(x, y, indices, **references)
  gradients = torch.autograd.grad(value, list(wrt.values()), allow_unused=True)
  gradients = {
    name: np.zeros(tuple(leaf.shape)) if g is None else g.numpy()
    for (name, leaf), g in zip(wrt.items(), gradients, strict=True)
  }
  if 'proxies' in gradients and case.transpose:
    gradients['proxies'] = gradients['proxies'].T
  return {
    'loss': case.loss,
    'arguments': dict(case.arguments),
    'batch': case.batch,
    'views': case.views,
    'centers': case.centers,
    'value': value.item(),
    'gradients': {
      name: [[float(f'{v:.9g}') for v in row] for row in g]
      for name, g in gradients.items()
    },
  }


def record(family: str, cases: Mapping[str, Case]) -> None:
  """Writes `pml_<family>.json` beside this file, and prints the values."""
  recorded = {name: run(case) for name, case in cases.items()}
  output = {
    'versions': {
      'pytorch_metric_learning': pytorch_metric_learning.__version__,
      'torch': torch.__version__,
    },
    'arrays': {name: array.tolist() for name, array in arrays().items()},
    'cases': recorded,
  }
  path = pathlib.Path(__file__).with_name(f'pml_{family}.json')
  path.write_text(json.dumps(output) + '\n')
  for name, row in recorded.items():
    print(f'{name:32} {row["value"]:.8f}')
