"""Losses, forward and backward, against pytorch-metric-learning (PML).

    python benchmarks/losses.py [--peer-python PYTHON_WITH_PML] [--only circle]

The gradient is that of the embeddings, and of the proxies where there are any;
the column `value` holds the loss of both. `--clock=cpu` for a machine that has
other work to do.
"""

import numpy as np
import paired

NUM_CLASSES = 10
DIM = 128


def make_batch(batch, num_classes, dim=DIM):
  random = np.random.RandomState(0)
  labels = random.permutation(np.arange(batch) % num_classes).astype(np.int32)
  if num_classes > batch:
    labels = random.permutation(num_classes)[:batch].astype(np.int32)
  centers = random.randn(batch, dim)
  embeddings = 0.5 * centers[labels % batch] + random.randn(batch, dim)
  return embeddings.astype(np.float32), labels


def make_proxies(num_classes, dim):
  proxies = np.random.RandomState(1).randn(num_classes, dim)
  return (0.05 * proxies).astype(np.float32)


def ours_pair(loss, batch, miner=None, **hyper):
  import jax

  from retrieval_jax import losses

  def loss_fn(embeddings, labels):
    return losses.compute(loss, embeddings, labels, miner=miner, **hyper)

  embeddings, labels = jax.device_put(make_batch(batch, NUM_CLASSES))
  step = jax.jit(jax.value_and_grad(loss_fn)).lower(embeddings, labels)
  step = step.compile()
  return lambda: jax.block_until_ready(step(embeddings, labels))[0].item()


def ours_proxy(loss, num_classes, batch=128, dim=512):
  import jax

  from retrieval_jax import losses

  def loss_fn(embeddings, proxies, labels):
    return losses.compute(loss, embeddings, labels, proxies=proxies)

  embeddings, labels = make_batch(batch, num_classes, dim)
  inputs = jax.device_put((embeddings, make_proxies(num_classes, dim), labels))
  step = jax.jit(jax.value_and_grad(loss_fn, argnums=(0, 1)))
  step = step.lower(*inputs).compile()
  return lambda: jax.block_until_ready(step(*inputs))[0].item()


def pml_pair(loss, batch, miner=None, **hyper):
  import torch
  from pytorch_metric_learning import losses, miners

  if loss == 'circle':
    module = losses.CircleLoss()
  else:
    module = losses.TripletMarginLoss(**hyper)
  if miner is not None:
    hyper = {k: v for k, v in miner.items() if k != 'name'}
    miner = miners.TripletMarginMiner(**hyper)
  embeddings, labels = make_batch(batch, NUM_CLASSES)
  embeddings = torch.from_numpy(embeddings).requires_grad_()
  labels = torch.from_numpy(labels.astype(np.int64))

  def step():
    embeddings.grad = None
    triplets = None if miner is None else miner(embeddings, labels)
    value = module(embeddings, labels, triplets)
    value.backward()
    return value.item()

  return step


def pml_proxy(loss, num_classes, batch=128, dim=512):
  import torch
  from pytorch_metric_learning import losses

  module = {'arcface': losses.ArcFaceLoss, 'cosface': losses.CosFaceLoss}[loss]
  module = module(num_classes=num_classes, embedding_size=dim)
  # PML keeps the proxies as [D, C].
  proxies = make_proxies(num_classes, dim).T
  module.W.data = torch.from_numpy(np.ascontiguousarray(proxies))
  embeddings, labels = make_batch(batch, num_classes, dim)
  embeddings = torch.from_numpy(embeddings).requires_grad_()
  labels = torch.from_numpy(labels.astype(np.int64))

  def step():
    embeddings.grad = None
    module.zero_grad()
    value = module(embeddings, labels)
    value.backward()
    return value.item()

  return step


SEMIHARD = {
  'loss': 'triplet_margin',
  'margin': 0.2,
  'miner': {
    'name': 'triplet_margin',
    'margin': 0.2,
    'type_of_triplets': 'semihard',
  },
}


def _pair_case(loss, batch, bar=None, label=None, **arguments):
  return paired.Case(
    f'{label or loss}, B {batch}',
    ours_pair,
    pml_pair,
    {'loss': loss, 'batch': batch} | arguments,
    bar=bar,
  )


def _proxy_case(loss, num_classes, bar=None):
  return paired.Case(
    f'{loss}, C {num_classes:,}',
    ours_proxy,
    pml_proxy,
    {'loss': loss, 'num_classes': num_classes},
    bar=bar,
  )


CASES = [
  _pair_case('circle', 32),
  _pair_case('circle', 256, bar=0.12),
  _pair_case('circle', 1024),
  _pair_case('triplet_margin', 32),
  _pair_case('triplet_margin', 128),
  _pair_case('triplet_margin', 256, bar=0.03),
  _pair_case('triplet_margin', 512, bar=0.03),
  _pair_case('triplet_margin', 1024, bar=0.03),
  _pair_case(
    'triplet_margin',
    256,
    label='triplet_margin semihard',
    **{k: v for k, v in SEMIHARD.items() if k != 'loss'},
  ),
  *[
    _proxy_case(loss, num_classes, bar)
    for loss in ('arcface', 'cosface')
    for num_classes, bar in ((10, None), (1000, None), (81313, 0.6))
  ],
]

if __name__ == '__main__':
  paired.main(__file__, CASES, peer='PML')
