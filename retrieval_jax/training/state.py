"""What is trained, and where it lies: networks, train state, devices.

The state lives twice: on the devices, every leaf with a leading device axis as
`jax.pmap` takes it, and on the host without that axis, as it is checkpointed.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from flax import linen as nn

from retrieval_jax import losses, models
from retrieval_jax.training import config as config_lib
from retrieval_jax.training import sharding
from retrieval_jax.training.sharding import ClassSharding

# The pmapped axis: all devices of all processes.
AXIS = 'batch'


class TrainState(flax.struct.PyTreeNode):
  """All that a step changes.

  Attributes:
    step: int32 scalar, the number of steps done.
    diverged: bool scalar, whether the next step was tried and is not finite;
      then the state stays as it is.
    params: {'embedder': ..., 'head': ..., 'loss': ...}; `head` only with a
      proxy loss, `loss` only with one that learns more than that.
    batch_stats: the running statistics of BatchNorm, or {}.
    loss_state: what the losses keep between steps, or {}.
    opt_state: of the optimizer.
    averages: moving averages of the embedder, {'params', 'batch_stats'}, or {}.
  """

  step: jax.Array
  diverged: jax.Array
  params: Any
  batch_stats: Any
  loss_state: Any
  opt_state: Any
  averages: Any

  def starting_from(self, params: Any, batch_stats: Any) -> 'TrainState':
    """Returns the state with other weights, the averages starting at them."""
    averages = {}
    if self.averages:
      averages = {'params': params['embedder'], 'batch_stats': batch_stats}
    return self.replace(
      params=params, batch_stats=batch_stats, averages=averages
    )

  def measured(self) -> dict[str, Any]:
    """Returns the embedder's {'params', 'batch_stats'} that are measured."""
    return self.averages or {
      'params': self.params['embedder'],
      'batch_stats': self.batch_stats,
    }


def class_sharding(objective: losses.Objective) -> ClassSharding | None:
  """Returns how the proxies are shared out, None if no device lacks any."""
  if not objective.shards_classes:
    return None
  return ClassSharding(AXIS, objective.num_classes, objective.centers)


class Networks(NamedTuple):
  """The modules of a run: images -> embeddings -> (with proxies) cosines.

  Attributes:
    embedder: that is trained.
    measured_embedder: the same with the pooling of the evaluation, for the
      same parameters.
    head: of the proxies, or None.
  """

  embedder: models.Embedder
  measured_embedder: models.Embedder
  head: nn.Module | None


def build_networks(
  config: ml_collections.ConfigDict,
  objective: losses.Objective,
  axis_name: str | None = AXIS,
) -> Networks:
  """Returns the modules that the config names."""
  embedder, measured_embedder = (
    models.build_embedder(
      config.model.name,
      config.model.embedding_dim,
      axis_name=axis_name,
      **options,
    )
    for options in (
      config_lib.model_options(config),
      config_lib.measured_model_options(config),
    )
  )
  head = None
  if objective.centers:
    head = models.ProxyHead(
      num_classes=objective.num_classes,
      embedding_dim=config.model.embedding_dim,
      sub_centers=objective.centers,
    )
  return Networks(embedder, measured_embedder, head)


def init_variables(
  key: jax.Array,
  networks: Networks,
  objective: losses.Objective,
  image_shape: tuple[int, int, int],
) -> tuple[dict[str, Any], Any]:
  """Returns (params, batch_stats) of a fresh state, a function of the key."""
  images = jnp.zeros((1, *image_shape), jnp.float32)
  variables = networks.embedder.init(key, images, train=False)
  params = {'embedder': variables['params']}
  if networks.head is not None:
    embeddings = jnp.zeros((1, networks.head.embedding_dim), jnp.float32)
    # Another stream than the embedder's first layer.
    head = networks.head.init(jax.random.fold_in(key, 1), embeddings)
    params['head'] = head['params']
  learnt = objective.init_params(jax.random.fold_in(key, 2))
  if jax.tree.leaves(learnt):
    params['loss'] = learnt
  return params, variables.get('batch_stats', {})


def parameter_shapes(
  networks: Networks,
  objective: losses.Objective,
  image_shape: tuple[int, int, int],
) -> dict[str, Any]:
  """Returns the tree of the parameters' shapes; nothing is computed."""
  return jax.eval_shape(
    lambda: init_variables(jax.random.key(0), networks, objective, image_shape)
  )[0]


def new_state(
  seed: int,
  networks: Networks,
  objective: losses.Objective,
  optimizer: optax.GradientTransformation,
  image_shape: tuple[int, int, int],
  *,
  averages: bool = False,
) -> TrainState:
  """Returns the state of step 0, a function of the seed.

  Args:
    seed: of the initial weights.
    networks: the modules.
    objective: the loss.
    optimizer: whose state is made.
    image_shape: (H, W, C).
    averages: whether moving averages of the embedder are kept.
  """
  params, batch_stats = init_variables(
    jax.random.key(seed), networks, objective, image_shape
  )
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    diverged=jnp.zeros((), bool),
    params=params,
    batch_stats=batch_stats,
    loss_state=objective.init_state(),
    opt_state=optimizer.init(params),
    averages={'params': params['embedder'], 'batch_stats': batch_stats}
    if averages
    else {},
  )


def create_state(
  init: Callable[[int], TrainState], seed: int, *, backbone: bool = True
) -> TrainState:
  """Returns the state of step 0 on the host.

  Args:
    init: seed -> state, such as `Task.new_state` of an optimizer.
    seed: of the initial weights.
    backbone: whether the weights of the backbone are drawn. Where others take
      their place they can be zeros: to compile what draws those of a deep
      network takes half a minute.
  """

  def drawn(seed):
    state = init(seed)
    return (
      state if backbone else jax.tree.map_with_path(_unless_backbone, state)
    )

  # The seed is an argument: a program with the seed in it is another one for
  # each seed, whose numbers the compiler draws, slowly.
  found = jax.device_get(jax.jit(drawn)(seed))
  return jax.tree.map(
    lambda shape, leaf: (
      np.zeros(shape.shape, shape.dtype) if leaf is None else leaf
    ),
    jax.eval_shape(init, seed),
    found,
  )


def _unless_backbone(path, leaf):
  is_in = any(getattr(key, 'key', None) == 'backbone' for key in path)
  return None if is_in else leaf


def empty_state(init: Callable[[int], TrainState]) -> TrainState:
  """Returns a state with nothing in its arrays, to read a checkpoint into.

  It costs neither a compilation nor, for as long as nobody writes to them, the
  memory of the arrays.

  Args:
    init: as that of `create_state`; it is only traced.
  """
  shapes = jax.eval_shape(init, 0)
  return jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), shapes)


def replicate(tree: Any, classes: ClassSharding | None = None) -> Any:
  """Copies a host tree to every local device, with a leading device axis.

  Args:
    tree: of arrays.
    classes: how the proxies are shared out; None: each device has them all.
  """
  num_devices = jax.local_device_count()
  by_device = sharding.device_axis(AXIS)

  def put(path, leaf):
    if classes is not None and sharding.is_class_sharded(path):
      return sharding.split(leaf, classes)
    leaf = np.asarray(leaf)
    return jax.device_put(
      np.broadcast_to(leaf, (num_devices, *leaf.shape)), by_device
    )

  return jax.tree.map_with_path(put, tree)


def unreplicate(tree: Any, classes: ClassSharding | None = None) -> Any:
  """Returns the host tree, numpy leaves without the device axis.

  Args:
    tree: of arrays on the devices.
    classes: as `replicate` was given; all processes have to call this then.
  """

  def local(path, leaf):
    if classes is not None and sharding.is_class_sharded(path):
      return sharding.merge(leaf, classes)[None]
    return leaf.addressable_data(0)

  # Indexed on the host: a slice on the device is a program for each leaf.
  tree = jax.device_get(jax.tree.map_with_path(local, tree))
  return jax.tree.map(lambda leaf: np.asarray(leaf[0]), tree)


def shard(batch: Any) -> Any:
  """Puts [b, ...] rows of this process on its devices as [devices, B, ...]."""
  num_devices = jax.local_device_count()
  by_device = sharding.device_axis(AXIS)

  def put(rows):
    shape = (num_devices, len(rows) // num_devices, *rows.shape[1:])
    return jax.device_put(rows.reshape(shape), by_device)

  return jax.tree.map(put, batch)


def merge_params(params: Any, source: Any) -> tuple[Any, list[str], list[str]]:
  """Takes the leaves of `source` that fit into `params`.

  Args:
    params: a nested dictionary of arrays, freshly initialised.
    source: another, of some other run.

  Returns:
    (merged, taken, fresh): the tree of `params`' structure and the names of
    the leaves from `source` and of those left as they were, because `source`
    has none of that name and shape.

  Example:
    >>> new = {'embedder': {'w': np.zeros(2)}, 'head': {'proxies': np.zeros(3)}}
    >>> old = {'embedder': {'w': np.ones(2)}, 'head': {'proxies': np.ones(5)}}
    >>> merge_params(new, old)[1:]
    (['embedder/w'], ['head/proxies'])
  """
  flat = flax.traverse_util.flatten_dict(params, sep='/')
  other = flax.traverse_util.flatten_dict(source, sep='/')
  taken = [
    name
    for name, leaf in flat.items()
    if name in other and other[name].shape == leaf.shape
  ]
  merged = flat | {name: other[name] for name in taken}
  fresh = sorted(flat.keys() - set(taken))
  return (
    flax.traverse_util.unflatten_dict(merged, sep='/'),
    sorted(taken),
    fresh,
  )
