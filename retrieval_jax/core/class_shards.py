"""Classes shared out over the devices, as proxies and as columns of cosines.

Device d of N has the proxies of the classes d * S to (d + 1) * S - 1, where S
is the number of classes divided by N and rounded up; the last devices hold some
rows of zeros that stand for no class. A step gathers the embeddings, each
device compares all of them with its own classes, or with a sample of these, and
the softmax sums over devices.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from retrieval_jax.core import collectives


class Shard(NamedTuple):
  """How the columns of cosines [B, C] are shared out over devices.

  The rows are the same on every device, the columns are its classes. `labels`
  are then columns of this device: 0 to C - 1 if the own class is here, C or
  above if it is on another device, negative for a padded row.

  Attributes:
    axis_name: of the devices, or None for one device.
    present: [C] bool, False at a column that stands for no class; None if all
      do.
  """

  axis_name: str | None
  present: jax.Array | None = None


def classes_per_shard(num_classes: int, num_shards: int) -> int:
  """Returns S, how many classes a device has room for.

  Example:
    >>> classes_per_shard(10, 4)
    3
  """
  return -(-num_classes // num_shards)


class Columns(NamedTuple):
  """What a device compares the rows of all devices with in a step.

  Attributes:
    proxies: [C * sub_centers, D], of the classes that it looks at.
    labels: the labels of the rows as columns of these; see `Shard`.
    shard: goes with them to losses and accuracies.
  """

  proxies: jax.Array
  labels: jax.Array
  shard: Shard


def select_columns(
  proxies: jax.Array,
  labels: jax.Array,
  *,
  axis_name: str | None,
  num_classes: int,
  sub_centers: int = 1,
  rate: float = 1.0,
  key: jax.Array | None = None,
) -> Columns:
  """Returns the classes of this device that a step looks at.

  With a rate below 1 (Partial FC) these are all of its classes that the batch
  has images of, and others at random, up to the rate times what it has room
  for; if that is less than the rows of the batch, as many as these. The loss is
  then a softmax over the classes that were taken, without any correction, as in
  the paper. A class that is not taken has a gradient of zero, which is not the
  same as no update: see `training.optim`.

  Which others are drawn is a function of the key and of the position of the
  device, so at a rate below 1 another number of devices is another run.

  Args:
    proxies: [S * sub_centers, D], the part of this device; all of them,
      [num_classes * sub_centers, D], with one device. The centres of a class
      are adjacent.
    labels: int classes of the whole data set, of the rows of all devices
      (`collectives.all_gather_rows`), [G], or [G, L] for several a row;
      negative marks padding.
    axis_name: of the devices, or None.
    num_classes: of the whole data set.
    sub_centers: of a class.
    rate: in (0, 1], the share of the classes that a step looks at.
    key: of the step, equal on all devices; needed with a rate below 1.

  Returns:
    Columns. `arrays.proxy_cosines(embeddings of all devices, proxies)` are the
    cosines that belong to `labels` and `shard`.

  Example:
    >>> columns = select_columns(
    ...   jnp.eye(4), jnp.array([2, 0]), axis_name=None, num_classes=4,
    ...   rate=0.5, key=jax.random.key(0),
    ... )
    >>> columns.proxies.tolist(), columns.labels.tolist()
    ([[1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0]], [1, 0])

  References:
    An et al., Killing Two Birds with One Stone: Efficient and Robust Training
    of Face Recognition CNNs by Partial FC, CVPR 2022.
  """
  room = proxies.shape[0] // sub_centers
  position = 0 if axis_name is None else lax.axis_index(axis_name)
  first = position * room
  count = jnp.clip(num_classes - first, 0, room)
  labels = _shard_labels(labels, first, room, num_classes)
  num_columns = min(room, max(round(rate * room), labels.size))
  if num_columns == room:
    present = jnp.arange(room) < count
    return Columns(proxies, labels, Shard(axis_name, present))
  key = jax.random.fold_in(key, position)
  classes = sample_classes(labels, room, count, num_columns, key)
  # What is promised here makes the gradient ten times as fast.
  taken = proxies.reshape(room, sub_centers, -1).at[classes]
  taken = taken.get(indices_are_sorted=True, unique_indices=True)
  # Where the classes that were taken went; no label is of another one.
  column = jnp.full(room, num_columns, labels.dtype)
  column = column.at[classes].set(jnp.arange(num_columns, dtype=labels.dtype))
  here = (labels >= 0) & (labels < room)
  moved = column[jnp.clip(labels, 0, room - 1)]
  return Columns(
    taken.reshape(num_columns * sub_centers, -1),
    jnp.where(here, moved, jnp.where(labels < 0, -1, num_columns)),
    Shard(axis_name, classes < count),
  )


def sample_classes(
  labels: jax.Array,
  room: int,
  count: jax.Array | int,
  num_columns: int,
  key: jax.Array,
) -> jax.Array:
  """Draws the classes of a device that a step looks at, without replacement.

  Args:
    labels: int, any shape, within the device: those from 0 to `room` - 1 are
      taken for certain.
    room: S, the rows of classes of the device.
    count: how many of them stand for a class.
    num_columns: how many to draw, at least as many as there are labels; rows
      that stand for no class are drawn last.
    key: of the step and the device.

  Returns:
    [num_columns] int32, rising.

  Example:
    >>> drawn = sample_classes(jnp.array([7, -1, 7, 9]), 8, 8, 4,
    ...                        jax.random.key(0))
    >>> drawn.shape, 7 in drawn
    ((4,), True)
  """
  # Negative ones would count from the end.
  labels = jnp.where(labels < 0, room, labels).reshape(-1)
  draw = jax.random.uniform(key, (room,))
  draw = jnp.where(jnp.arange(room) < count, draw, -1.0)
  draw = draw.at[labels].set(2.0, mode='drop')
  _, classes = lax.top_k(draw, num_columns)
  # In order, so that memory is read in order.
  return jnp.sort(classes)


def _shard_labels(labels, first, room, num_classes):
  """Returns labels within this device; `room` for a class that is elsewhere."""
  local = labels - first
  here = (local >= 0) & (local < room) & (labels < num_classes)
  return jnp.where(labels < 0, -1, jnp.where(here, local, room))


def top_k_accuracy(
  cosines: jax.Array,
  labels: jax.Array,
  k: int,
  shard: Shard | None = None,
) -> jax.Array:
  """Returns the share of rows whose class is among the k nearest proxies.

  Classes as near as the right one count against it: a collapsed model scores
  0, not 1. Where classes are sampled it is the share among these, and so
  higher than among all.

  Args:
    cosines: [B, C] free of margins.
    labels: [B] int; a negative one is padding and not counted.
    k: at least 1.
    shard: how the columns are shared out over devices, or None.

  Returns:
    float32 scalar in [0, 1], equal on all devices of the shard.

  Example:
    >>> cosines = jnp.array([[0.9, 0.1], [0.5, 0.5]])
    >>> top_k_accuracy(cosines, jnp.array([0, 0]), 1).item()
    0.5
  """
  axis_name, present = shard or (None, None)
  target = own_cosines(cosines, labels, shard)[:, None]
  # Written with "not <", so that a NaN counts against the row.
  as_near = ~(cosines < target)
  if present is not None:
    as_near &= present[None, :]
  # The class itself is no nearer than itself.
  above = collectives.psum(jnp.sum(as_near, axis=1), axis_name) - 1
  valid = labels >= 0
  right = jnp.sum((above < k) & valid).astype(jnp.float32)
  return right / jnp.maximum(jnp.sum(valid), 1)


def own_cosines(
  cosines: jax.Array, labels: jax.Array, shard: Shard | None = None
) -> jax.Array:
  """Returns c_iy, what each row has in the column of its own class.

  Args:
    cosines: [B, C] any float dtype.
    labels: [B] int; see `Shard`.
    shard: how the columns are shared out, or None.

  Returns:
    [B], equal on all devices. Of a row that is padding, and of a class that is
    nowhere, it is some finite number.

  Example:
    >>> cosines = jnp.array([[0.5, 0.25], [0.0, 1.0]])
    >>> print(own_cosines(cosines, jnp.array([1, 0])))
    [0.25 0.  ]
  """
  return _own_cosines(shard and shard.axis_name, cosines, labels)


def is_own(cosines: jax.Array, labels: jax.Array) -> jax.Array:
  """Returns [B, C] bool, True at the own class of each row."""
  classes = jnp.arange(cosines.shape[1], dtype=labels.dtype)
  return classes[None, :] == labels[:, None]


# The derivative is written by hand so that it is an elementwise pass: that of a
# gather is a matrix of zeros and a scatter.
@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _own_cosines(axis_name, cosines, labels):
  column = jnp.clip(labels, 0, cosines.shape[1] - 1)
  own = jnp.take_along_axis(cosines, column[:, None], axis=1)[:, 0]
  if axis_name is None:
    return own
  return collectives.psum(jnp.where(labels == column, own, 0.0), axis_name)


@_own_cosines.defjvp
def _own_cosines_jvp(axis_name, primals, tangents):
  cosines, labels = primals
  tangent = jnp.where(is_own(cosines, labels), tangents[0], 0.0)
  tangent = collectives.psum(jnp.sum(tangent, axis=1), axis_name)
  return _own_cosines(axis_name, cosines, labels), tangent
