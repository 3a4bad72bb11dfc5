"""Records `pml_proxies.json`: losses with proxies that are no margin softmax.

pip install torch pytorch-metric-learning
python tests/golden/record_pml_proxies.py
"""

import torch
from pml_recording import DIM, NUM_CLASSES, PROXY, Case, record
from pytorch_metric_learning import losses


class NormalizedP2SGrad(torch.nn.Module):
  """PML's P2SGrad as a function of weights that need not be unit columns.

  PML rescales its weights in place, before it differentiates; here they are
  scaled within the function, so that the gradient is that of the weights.
  """

  def __init__(self):
    super().__init__()
    self.W = torch.nn.Parameter(torch.zeros(DIM, NUM_CLASSES))
    self.inner = losses.P2SGradLoss(DIM, NUM_CLASSES)
    # A plain tensor takes the place of PML's parameter.
    del self.inner.weight

  def forward(self, embeddings, labels, indices_tuple=None):
    self.inner.weight = torch.nn.functional.normalize(self.W, dim=0)
    return self.inner(embeddings, labels, indices_tuple)


CASES = {
  'normalized_softmax': Case(
    'normalized_softmax', {}, losses.NormalizedSoftmaxLoss(**PROXY)
  ),
  'normalized_softmax_soft': Case(
    'normalized_softmax',
    {'temperature': 0.5},
    losses.NormalizedSoftmaxLoss(temperature=0.5, **PROXY),
  ),
  'p2s_grad': Case('p2s_grad', {}, NormalizedP2SGrad()),
  'proxy_anchor': Case(
    'proxy_anchor', {}, losses.ProxyAnchorLoss(**PROXY), transpose=False
  ),
  'proxy_anchor_soft': Case(
    'proxy_anchor',
    {'margin': 0.3, 'alpha': 2.0},
    losses.ProxyAnchorLoss(margin=0.3, alpha=2.0, **PROXY),
    transpose=False,
  ),
  'proxy_nca': Case(
    'proxy_nca', {}, losses.ProxyNCALoss(**PROXY), transpose=False
  ),
  'proxy_nca_sharp': Case(
    'proxy_nca',
    {'softmax_scale': 9.0},
    losses.ProxyNCALoss(softmax_scale=9.0, **PROXY),
    transpose=False,
  ),
  # ProxyNCA++ in probability form, which PML does not have by that name.
  'proxy_nca_pp': Case(
    'proxy_nca_pp',
    {},
    losses.ProxyNCALoss(softmax_scale=9.0, **PROXY),
    transpose=False,
  ),
  'soft_triple': Case(
    'soft_triple',
    {'centers_per_class': 3},
    losses.SoftTripleLoss(centers_per_class=3, **PROXY),
    centers=3,
  ),
  'soft_triple_soft': Case(
    'soft_triple',
    {'centers_per_class': 2, 'la': 3.0, 'gamma': 0.5, 'margin': 0.2},
    losses.SoftTripleLoss(
      centers_per_class=2, la=3.0, gamma=0.5, margin=0.2, **PROXY
    ),
    centers=2,
  ),
}

if __name__ == '__main__':
  record('proxies', CASES)
