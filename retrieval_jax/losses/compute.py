"""Every loss in one call, for people at a prompt and for tests."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from retrieval_jax.core import relations
from retrieval_jax.core.errors import InputError
from retrieval_jax.losses import options as options_lib
from retrieval_jax.losses.objective import Batch, Objective


def compute(
  name: str,
  embeddings: jax.Array,
  labels: jax.Array,
  *,
  ref_embeddings: jax.Array | None = None,
  ref_labels: jax.Array | None = None,
  proxies: jax.Array | None = None,
  params: Mapping[str, Any] | None = None,
  state: Mapping[str, Any] | None = None,
  class_counts: Any = None,
  key: jax.Array | None = None,
  **options: Any,
) -> jax.Array:
  """Returns a loss by name, everything in one call.

  Args:
    name: of `LOSSES`.
    embeddings: [B, D] any float dtype; what needs unit rows normalises inside.
    labels: [B] int, or [B, L] label sets padded with -1; negative marks
      padding.
    ref_embeddings: [G, D], what the anchors of a pair loss are compared with;
      None compares them with each other, self excluded. Of `vicreg` the second
      views, row by row.
    ref_labels: [G] int, with `ref_embeddings`.
    proxies: [C * K, D] of a proxy loss, the K centres of a class adjacent.
    params: what the loss learns besides, as its row's `params` makes it; None
      takes the initial one.
    state: what the loss keeps, as its row's `state` makes it; None takes the
      initial one. The next state is not returned: `Objective` is for training.
    class_counts: [C] training images of each class, of losses that ask for it.
    key: random, of what is drawn; None takes a fixed one.
    **options: hyperparameters of the loss, and `miner`, `distance`, `reducer`,
      `embedding_regularizer`, ... as `losses.options` lists them; checked.

  Returns:
    float32 scalar, differentiable in embeddings, ref_embeddings, proxies and
    params.

  Raises:
    InputError: for a name or an option that does not exist or is out of range,
      labels or embeddings of a wrong shape, labels without a proxy.

  Example:
    >>> x = jnp.array([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])
    >>> y = jnp.array([0, 0, 1])
    >>> print(compute('triplet_margin', x, y, margin=0.2).round(3))
    0.462
    >>> print(compute('arcface', x, y, proxies=jnp.eye(2)).round(2))
    14.0
    >>> print(compute('contrastive', x, y, miner='pair_margin').round(2))
    1.26
  """
  (part,) = options_lib.parse({'name': name, **options})
  sets = part.row.kind != 'proxy'
  num_classes = 0
  if not isinstance(labels, jax.core.Tracer) and np.size(labels):
    num_classes = int(np.max(labels)) + 1
  embeddings, labels = _check_rows(
    embeddings, labels, 'embeddings', 'labels', sets
  )
  if part.row.kind == 'proxy':
    if ref_embeddings is not None:
      raise InputError(
        f'loss {name!r} compares with proxies, not with ref_embeddings; pass '
        'proxies of shape (classes * centres, D)'
      )
    proxies = _check_proxies(part, embeddings, labels, proxies)
    num_classes = len(proxies) // part.centers
  elif proxies is not None:
    raise InputError(
      f'loss {name!r} compares embeddings with each other and takes no '
      'proxies; leave them out, or pass ref_embeddings and ref_labels'
    )
  if part.row.views == 2:
    if ref_embeddings is None:
      raise InputError(
        f'loss {name!r} compares two views of each image; pass ref_embeddings '
        f'of shape {embeddings.shape}, the second views row by row'
      )
    ref_labels = labels if ref_labels is None else ref_labels
  if (ref_embeddings is None) != (ref_labels is None):
    raise InputError(
      'ref_embeddings and ref_labels go together; one of them is missing'
    )
  if ref_embeddings is not None:
    ref_embeddings, ref_labels = _check_rows(
      ref_embeddings, ref_labels, 'ref_embeddings', 'ref_labels', sets
    )
    _check_width(ref_embeddings, embeddings, 'ref_embeddings')
  if (
    'class_counts' in part.row.needs
    or part.class_weights == options_lib.INVERSE_LOG
  ):
    if class_counts is None:
      raise InputError(
        f'loss {name!r} needs class_counts; pass the number of training images '
        f'of each of the {num_classes} classes'
      )
    class_counts = jnp.asarray(class_counts, jnp.float32)
  objective = Objective(
    (part,),
    num_classes=num_classes,
    embedding_dim=embeddings.shape[1],
    class_counts=class_counts,
  )
  key = jax.random.key(0) if key is None else key
  return objective(
    objective.init_params(key) if params is None else {name: params},
    objective.init_state() if state is None else {name: state},
    Batch(
      embeddings,
      labels,
      references=ref_embeddings,
      reference_labels=ref_labels,
    ),
    proxies=proxies,
    key=key,
  ).loss


def _check_rows(embeddings, labels, name, labels_name, sets):
  embeddings = _check_matrix(embeddings, name)
  # Inside a transformation only the shapes are known.
  if not isinstance(labels, jax.core.Tracer):
    host_labels = np.asarray(labels)
    if not sets or host_labels.ndim != 2 or host_labels.shape[1] < 2:
      host_labels = relations.check_labels(labels, labels_name)
    if host_labels.size and host_labels.max() > np.iinfo(np.int32).max:
      raise InputError(
        f'{labels_name} has {host_labels.max()}; allowed are 32-bit ints: pass '
        'np.unique(labels, return_inverse=True)[1]'
      )
    labels = jnp.asarray(host_labels, jnp.int32)
  if labels.shape[:1] != embeddings.shape[:1]:
    raise InputError(
      f'{labels_name} has shape {labels.shape} for {name} of shape '
      f'{embeddings.shape}; allowed is one label a row'
    )
  return embeddings, labels


def _check_matrix(x, name):
  x = jnp.asarray(x)
  if x.ndim != 2 or not jnp.issubdtype(x.dtype, jnp.floating):
    raise InputError(
      f'{name} has shape {x.shape} and dtype {x.dtype}; allowed is a float '
      'array of shape (rows, D)'
    )
  return x


def _check_width(x, embeddings, name):
  if x.shape[1] != embeddings.shape[1]:
    raise InputError(
      f'{name} has shape {x.shape}; allowed is a width of '
      f'{embeddings.shape[1]}, that of embeddings {embeddings.shape}'
    )


def _check_proxies(part, embeddings, labels, proxies):
  if proxies is None:
    raise InputError(
      f'loss {part.name!r} needs proxies; pass an array of shape '
      f'(classes * {part.centers}, {embeddings.shape[1]})'
    )
  proxies = _check_matrix(proxies, 'proxies')
  _check_width(proxies, embeddings, 'proxies')
  if len(proxies) % part.centers:
    raise InputError(
      f'{part.row.centers[0]} is {part.centers} for {len(proxies)} proxies; '
      'allowed is a divisor of their number'
    )
  num_classes = len(proxies) // part.centers
  if not isinstance(labels, jax.core.Tracer) and labels.size:
    largest = int(labels.max())
    if largest >= num_classes:
      raise InputError(
        f'labels has {largest}; allowed is at most {num_classes - 1}, for '
        f'{num_classes} classes with a proxy'
      )
  return proxies
