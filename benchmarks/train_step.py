"""A whole training step of the small net, against the same net in torch.

    python benchmarks/train_step.py [--peer-python PYTHON_WITH_TORCH]

Forward, ArcFace, backward and Adam on 28x28 images at dimension 50. torch runs
in channels_last, the faster of its two layouts here. Both sides start from the
same parameters and see the same batch, so that their losses after one step (the
column `value`) agree to the rounding of float32. `--clock=cpu` for a machine
that has other work to do.
"""

import math

import numpy as np
import paired

NUM_CLASSES = 10
DIM = 50
WIDTHS = (32, 64, 128)
MARGIN = math.radians(28.6)
SCALE = 64.0
LEARNING_RATE = 1e-3


def make_batch(batch):
  random = np.random.RandomState(0)
  images = random.randn(batch, 28, 28, 1).astype(np.float32)
  labels = random.randint(NUM_CLASSES, size=batch).astype(np.int32)
  return images, labels


def make_parameters():
  """Returns the parameters by torch's names, in this project's layout."""
  random = np.random.RandomState(1)
  parameters, channels = {}, 1
  for block, width in enumerate(WIDTHS):
    kernel = random.randn(3, 3, channels, width) / math.sqrt(9 * channels)
    parameters[f'conv_{block}'] = kernel.astype(np.float32)
    channels = width
  features = 7 * 7 * channels
  projection = random.randn(features, DIM) / math.sqrt(features)
  parameters['projection'] = projection.astype(np.float32)
  parameters['proxies'] = random.randn(NUM_CLASSES, DIM).astype(np.float32)
  return parameters


def ours(batch, normalization='none', dtype='float32'):
  import jax
  import optax

  from retrieval_jax import losses, models

  embedder = models.build_embedder(
    'convnet', DIM, normalization=normalization, dtype=dtype
  )
  head = models.ProxyHead(NUM_CLASSES, DIM)
  images, labels = jax.device_put(make_batch(batch))
  variables = embedder.init(jax.random.key(0), images[:1], train=False)
  statistics = variables.get('batch_stats', {})
  parameters = make_parameters()
  network = jax.tree.map(np.asarray, variables['params'])
  for block in range(len(WIDTHS)):
    network['backbone'][f'conv_{block}']['kernel'] = parameters[f'conv_{block}']
  network['projection']['kernel'] = parameters['projection']
  params = {'network': network, 'proxies': parameters['proxies']}
  optimizer = optax.adam(LEARNING_RATE)

  def step(params, statistics, opt_state, images, labels):
    def loss_fn(params):
      embeddings, updates = embedder.apply(
        {'params': params['network'], 'batch_stats': statistics},
        images,
        train=True,
        mutable=['batch_stats'],
      )
      cosines = head.apply(
        {'params': {'proxies': params['proxies']}}, embeddings
      )
      terms = losses.proxy_terms('arcface', cosines, labels)
      return losses.reduce_terms(terms)[0], updates.get('batch_stats', {})

    (loss, statistics), gradients = jax.value_and_grad(loss_fn, has_aux=True)(
      params
    )
    updates, opt_state = optimizer.update(gradients, opt_state, params)
    return optax.apply_updates(params, updates), statistics, opt_state, loss

  state = jax.device_put((params, statistics, optimizer.init(params)))
  step = jax.jit(step, donate_argnums=(0, 1, 2))
  step = step.lower(*state, images, labels).compile()
  history = []

  def call():
    nonlocal state
    *state, loss = step(*state, images, labels)
    history.append(loss.item())
    return history[:2][-1]

  return call


def torch_step(batch, normalization='none'):
  import torch
  from torch import nn
  from torch.nn import functional

  torch.set_num_threads(1)
  parameters = make_parameters()

  class Net(nn.Module):
    def __init__(self):
      super().__init__()
      channels = (1, *WIDTHS)
      self.convs = nn.ModuleList(
        nn.Conv2d(before, width, 3, padding=1, bias=normalization == 'none')
        for before, width in zip(channels, WIDTHS, strict=False)
      )
      self.norms = nn.ModuleList(
        nn.BatchNorm2d(width) if normalization == 'batch' else nn.Identity()
        for width in WIDTHS
      )
      self.projection = nn.Linear(7 * 7 * WIDTHS[-1], DIM)
      self.proxies = nn.Parameter(torch.from_numpy(parameters['proxies']))
      for block, conv in enumerate(self.convs):
        kernel = parameters[f'conv_{block}'].transpose(3, 2, 0, 1)
        conv.weight.data = torch.from_numpy(np.ascontiguousarray(kernel))
        if conv.bias is not None:
          nn.init.zeros_(conv.bias)
      # torch flattens channels first.
      kernel = parameters['projection'].reshape(7, 7, -1, DIM)
      kernel = kernel.transpose(3, 2, 0, 1).reshape(DIM, -1)
      self.projection.weight.data = torch.from_numpy(
        np.ascontiguousarray(kernel)
      )
      nn.init.zeros_(self.projection.bias)

    def forward(self, x):
      for block, (conv, norm) in enumerate(
        zip(self.convs, self.norms, strict=True)
      ):
        x = conv(x)
        if block < 2:
          x = functional.max_pool2d(x, 2)
        x = functional.relu(norm(x))
      embeddings = functional.normalize(self.projection(x.flatten(1)))
      return embeddings @ functional.normalize(self.proxies).T

  net = Net().to(memory_format=torch.channels_last)
  images, labels = make_batch(batch)
  images = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
  images = images.to(memory_format=torch.channels_last)
  labels = torch.from_numpy(labels.astype(np.int64))
  optimizer = torch.optim.Adam(net.parameters(), LEARNING_RATE)
  history = []

  def call():
    optimizer.zero_grad()
    cosines = net(images)
    target = cosines.gather(1, labels[:, None])
    sine = (1 - target**2).clamp_min(1e-12).sqrt()
    with_margin = target * math.cos(MARGIN) - sine * math.sin(MARGIN)
    logits = SCALE * cosines.scatter(1, labels[:, None], with_margin)
    loss = functional.cross_entropy(logits, labels)
    loss.backward()
    optimizer.step()
    history.append(loss.item())
    return history[:2][-1]

  return call


CASES = [
  paired.Case('convnet, B 32', ours, torch_step, {'batch': 32}),
  paired.Case('convnet, B 256', ours, torch_step, {'batch': 256}, bar=1.6),
  paired.Case(
    'convnet with BatchNorm, B 32',
    ours,
    torch_step,
    {'batch': 32, 'normalization': 'batch'},
  ),
  paired.Case(
    'convnet with BatchNorm, B 256',
    ours,
    torch_step,
    {'batch': 256, 'normalization': 'batch'},
    bar=1.6,
  ),
]

if __name__ == '__main__':
  paired.main(__file__, CASES, peer='torch')
