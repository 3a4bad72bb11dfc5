"""Records PML's softmax losses over pairs and losses of whole batches."""

import torch
from pml_recording import DIM, Case, record
from pytorch_metric_learning import distances, losses


class ManifoldOfLabels(torch.nn.Module):
  """PML's manifold loss with the proxies that ours takes, `labels % K`."""

  def __init__(self, K, **hyper):
    super().__init__()
    self.loss = losses.ManifoldLoss(DIM, K, **hyper)
    self.proxies = self.loss.proxies

  def forward(self, x, labels, indices_tuple=None):
    del indices_tuple
    self.loss.proxies = self.proxies
    return self.loss(x, indices_tuple=labels % self.loss.K)


def cosine_and_lp(name, module, soft, references=True):
  """Default, soft hyperparameters, references, a distance and a dot product."""
  lp = {'name': 'lp', 'normalize': False}
  dot = {'name': 'dot', 'normalize': False}
  unscaled = distances.LpDistance(normalize_embeddings=False)
  dot_unscaled = distances.DotProductSimilarity(normalize_embeddings=False)
  cases = {
    name: Case(name, {}, module()),
    f'{name}_lp': Case(
      name, {**soft, 'distance': lp}, module(**soft, distance=unscaled)
    ),
    f'{name}_dot': Case(
      name, {**soft, 'distance': dot}, module(**soft, distance=dot_unscaled)
    ),
  }
  if references:
    cases |= {
      f'{name}_soft': Case(name, soft, module(**soft)),
      f'{name}_references': Case(name, soft, module(**soft), references=True),
    }
  return cases


CASES = {
  **cosine_and_lp('ntxent', losses.NTXentLoss, {'temperature': 0.5}),
  **cosine_and_lp('supcon', losses.SupConLoss, {'temperature': 0.5}),
  **cosine_and_lp('nca', losses.NCALoss, {'softmax_scale': 3.0}),
  **cosine_and_lp('n_pairs', losses.NPairsLoss, {}, references=False),
  'instance': Case('instance', {}, losses.InstanceLoss()),
  'instance_soft': Case(
    'instance', {'scale': 2.0}, losses.InstanceLoss(gamma=2.0)
  ),
  'angular': Case('angular', {}, losses.AngularLoss()),
  'angular_soft': Case(
    'angular', {'alpha': 20.0}, losses.AngularLoss(alpha=20)
  ),
  'angular_references': Case(
    'angular', {'alpha': 30.0}, losses.AngularLoss(alpha=30), references=True
  ),
  'manifold': Case('manifold', {'K': 5}, ManifoldOfLabels(5), transpose=False),
  'manifold_soft': Case(
    'manifold',
    {'K': 5, 'lambdaC': 0.3, 'alpha': 0.5, 'margin': 0.2},
    ManifoldOfLabels(5, lambdaC=0.3, alpha=0.5, margin=0.2),
    transpose=False,
  ),
  'vicreg': Case('vicreg', {}, losses.VICRegLoss(), views=True),
  'vicreg_soft': Case(
    'vicreg',
    {
      'invariance_lambda': 2.0,
      'variance_mu': 3.0,
      'covariance_v': 4.0,
      'eps': 0.5,
    },
    losses.VICRegLoss(
      invariance_lambda=2.0, variance_mu=3.0, covariance_v=4.0, eps=0.5
    ),
    views=True,
  ),
}

if __name__ == '__main__':
  record('contrast', CASES)
