"""Which leaves of a train state are shared out over devices, and how.

With a class-sharded head each device has the proxies of some classes only, and
what the optimizer keeps for them. On the host these leaves are whole,
[C * sub_centers, D], as every other leaf is, so a checkpoint restores on any
number of devices and processes, sharded or not.

What a step has to do with a sharded leaf: its gradient is not the mean over
the devices (`mean_gradients`), and a norm or a check over all leaves sums over
its parts (`global_norm`, `all_finite`). Otherwise each device would clip by a
norm of its own, and what should be equal on all of them drifts apart.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from retrieval_jax.core import class_shards, collectives

# Parameters, and in the optimizer's state what mirrors them.
_SHARDED = ('head', 'proxies')
# What processes exchange at a time when they merge a leaf.
_BLOCK_BYTES = 2**26


class ClassSharding(NamedTuple):
  """How the proxies are shared out.

  Attributes:
    axis_name: of the devices.
    num_classes: C, of the data set.
    sub_centers: proxies of a class, adjacent rows.
  """

  axis_name: str
  num_classes: int
  sub_centers: int = 1

  def rows(self, num_devices: int) -> int:
    """Returns how many rows of the proxies a device holds."""
    classes = class_shards.classes_per_shard(self.num_classes, num_devices)
    return classes * self.sub_centers


def is_class_sharded(path: Sequence[Any]) -> bool:
  """Returns whether a leaf is one of those that a sharded head shares out.

  Args:
    path: of the leaf in parameters, gradients, an optimizer's state or the
      whole train state, as `jax.tree.map_with_path` gives it.

  Example:
    >>> tree = {'head': {'proxies': 0, 'scale': 0}, 'embedder': {'kernel': 0}}
    >>> found = jax.tree.map_with_path(lambda p, _: is_class_sharded(p), tree)
    >>> found['head'], found['embedder']
    ({'proxies': True, 'scale': False}, {'kernel': False})
  """
  keys = [key.key for key in path if isinstance(key, jax.tree_util.DictKey)]
  return tuple(keys[-2:]) == _SHARDED


def mean_gradients(
  gradients: Any, axis_name: str | None, shard_axis: str | None = None
) -> Any:
  """Returns the gradient of the loss of the global batch.

  Args:
    gradients: of this device, of a loss reduced with psum'd sum and count.
    axis_name: of the devices, or None.
    shard_axis: the same with a sharded head; None: no leaf is sharded.
  """

  def mean(path, gradient):
    if shard_axis is not None and is_class_sharded(path):
      # Every device differentiates its own copy of the loss, and the proxies
      # here have a part in all of them.
      return gradient / lax.axis_size(shard_axis)
    return collectives.pmean(gradient, axis_name)

  return jax.tree.map_with_path(mean, gradients)


def global_norm(tree: Any, shard_axis: str | None = None) -> jax.Array:
  """Returns the Euclidean norm of all leaves, each part counted once.

  Args:
    tree: of arrays of this device.
    shard_axis: of the devices, with a sharded head; None: no leaf is sharded.

  Returns:
    float32 scalar, equal on all devices.

  Example:
    >>> tree = {'embedder': jnp.full(2, 2.0), 'head': {'proxies': jnp.ones(8)}}
    >>> global_norm(tree).item()
    4.0
  """

  def square(leaf):
    # Of a complex leaf |z|^2, as optax has it.
    return jnp.sum((leaf * jnp.conj(leaf)).real.astype(jnp.float32))

  return jnp.sqrt(_sum_leaves(square, tree, shard_axis))


def all_finite(tree: Any, shard_axis: str | None = None) -> jax.Array:
  """Returns whether no leaf has a NaN or an infinity, on any device.

  Args:
    tree: of arrays of this device.
    shard_axis: of the devices, with a sharded head; None: no leaf is sharded.

  Returns:
    bool scalar, equal on all devices.

  Example:
    >>> all_finite({'a': jnp.ones(2), 'b': jnp.array([0.0, jnp.nan])}).item()
    False
  """

  def has_others(leaf):
    return jnp.any(~jnp.isfinite(leaf)).astype(jnp.int32)

  return _sum_leaves(has_others, tree, shard_axis) == 0


def _sum_leaves(function, tree, shard_axis):
  leaves = jax.tree.leaves_with_path(tree)
  whole = [function(leaf) for p, leaf in leaves if not is_class_sharded(p)]
  parts = [function(leaf) for p, leaf in leaves if is_class_sharded(p)]
  return sum(whole) + collectives.psum(sum(parts), shard_axis)


def device_axis(axis_name: str) -> NamedSharding:
  """Returns the sharding of [local devices, ...] that `jax.pmap` itself uses.

  After `flax.jax_utils.replicate` it is another, and the step is traced twice.
  """
  mesh = Mesh(np.array(jax.local_devices()), (axis_name,))
  return NamedSharding(mesh, PartitionSpec(axis_name))


def split(leaf: np.ndarray, classes: ClassSharding) -> jax.Array:
  """Puts a leaf of the host on the devices, to each its part.

  Args:
    leaf: [C * sub_centers, D], or that with other axes behind.
    classes: how it is shared out.

  Returns:
    [local devices, rows, D]; rows of zeros fill up the last devices. No device
    and no buffer of the host holds more than the parts of this process.

  Raises:
    ValueError: the leaf has another number of rows.
  """
  leaf = np.asarray(leaf)
  expected = classes.num_classes * classes.sub_centers
  if leaf.ndim < 1 or len(leaf) != expected:
    raise ValueError(
      f'a leaf at {"/".join(_SHARDED)} has shape {leaf.shape}; with a sharded '
      f'head its first axis has to be the {expected} proxies'
    )
  positions = _positions(classes.axis_name)
  rows = classes.rows(jax.device_count())

  def part(index):
    position = positions[index[0].indices(len(positions))[0]]
    found = leaf[position * rows : (position + 1) * rows]
    padding = [(0, rows - len(found))] + [(0, 0)] * (leaf.ndim - 1)
    return np.pad(found, padding)[None]

  return jax.make_array_from_callback(
    (len(positions), rows, *leaf.shape[1:]),
    device_axis(classes.axis_name),
    part,
  )


def merge(leaf: jax.Array, classes: ClassSharding) -> np.ndarray:
  """Returns [C * sub_centers, D] on the host of what `split` put on devices.

  With several processes every one gets all of it, and all have to call it.
  """
  local = jax.local_devices()
  parts = {part.device: part.data for part in leaf.addressable_shards}
  parts = np.stack([np.asarray(parts[device])[0] for device in local])
  positions = _positions(classes.axis_name)
  num_rows = classes.num_classes * classes.sub_centers
  rows = parts.shape[1]
  whole = np.empty(
    (jax.device_count() * rows, *parts.shape[2:]), dtype=parts.dtype
  )
  whole_parts = whole.reshape((jax.device_count(), *parts.shape[1:]))
  if jax.process_count() == 1:
    whole_parts[positions] = parts
    return whole[:num_rows]
  positions = multihost_utils.process_allgather(positions).reshape(-1)
  # In blocks, because each passes through the memory of every device.
  block = max(1, _BLOCK_BYTES // max(1, whole[:1].nbytes * len(positions)))
  for first in range(0, rows, block):
    found = multihost_utils.process_allgather(parts[:, first : first + block])
    found = found.reshape((len(positions), -1, *parts.shape[2:]))
    whole_parts[positions, first : first + block] = found
  return whole[:num_rows]


def _positions(axis_name):
  """Returns the positions of the local devices on the axis, [devices]."""
  if jax.process_count() == 1:
    return np.arange(jax.local_device_count())
  # Which process has which part of the axis is for the backend to say.
  ones = jnp.zeros(jax.local_device_count())
  found = jax.pmap(lambda _: lax.axis_index(axis_name), axis_name)(ones)
  found = {part.device: part.data for part in found.addressable_shards}
  return np.array([int(found[device][0]) for device in jax.local_devices()])
