"""From embeddings and labels to terms, and from terms to one number."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from retrieval_jax.core import arrays, collectives, relations
from retrieval_jax.core.errors import InputError
from retrieval_jax.losses.registry import (
  LOSSES,
  MINERS,
  check_hyperparameters,
  check_miner,
)
from retrieval_jax.losses.terms import Terms

_MATRICES = {
  'cosine': arrays.cosine_similarities,
  'euclidean': arrays.euclidean_distances,
}


def pair_terms(
  name: str,
  embeddings: jax.Array,
  labels: jax.Array,
  *,
  candidates: jax.Array | None = None,
  candidate_labels: jax.Array | None = None,
  ids: jax.Array | None = None,
  candidate_ids: jax.Array | None = None,
  miner: str | Mapping[str, Any] | None = None,
  **hyper: Any,
) -> Terms:
  """Returns the terms of a pair loss, one row for each anchor.

  On several devices the candidates are the gathered rows, and the ids the
  places of both in the whole batch:

      terms = pair_terms(
        'circle', embeddings, labels,
        candidates=all_gather_rows(embeddings, 'batch'),
        candidate_labels=all_gather_rows(labels, 'batch'),
        ids=row_ids(len(labels), 'batch'),
        candidate_ids=jnp.arange(global_batch_size),
      )

  Args:
    name: a pair loss of `LOSSES`.
    embeddings: [B, D] of the anchors, any float dtype, normalised inside.
    labels: [B] int; negative marks padding.
    candidates: [G, D]; None takes the anchors themselves, self excluded.
    candidate_labels: [G] int, with `candidates`.
    ids: [B] int; pairs with equal ids are left out.
    candidate_ids: [G] int, with `ids`.
    miner: the name of a triplet miner, or `{'name': ..., **hyperparameters}`.
    **hyper: hyperparameters of the loss.

  Returns:
    `{term: (values [B], counts [B])}`, float32.

  Example:
    >>> x = jnp.array([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])
    >>> terms = pair_terms('triplet_margin', x, jnp.array([0, 0, 1]))
    >>> terms['loss'][1].tolist()
    [0.0, 1.0, 0.0]
  """
  loss = LOSSES[name]
  if candidates is None:
    candidates, candidate_labels = embeddings, labels
    ids = candidate_ids = jnp.arange(labels.shape[0], dtype=jnp.int32)
  if loss.ordered:
    order = jnp.argsort(candidate_labels)
    candidates, candidate_labels = candidates[order], candidate_labels[order]
    if candidate_ids is not None:
      candidate_ids = candidate_ids[order]
  positives, negatives = relations.pair_masks(
    labels, candidate_labels, ids, candidate_ids
  )
  matrix = _MATRICES[loss.matrix](embeddings, candidates)
  if miner is not None:
    miner_name, miner_hyper = _split_miner(miner)
    hyper['bounds'] = MINERS[miner_name].function(
      matrix, positives, negatives, **miner_hyper
    )
  return loss.function(matrix, positives, negatives, **hyper)


def proxy_terms(
  name: str,
  cosines: jax.Array,
  labels: jax.Array,
  *,
  weights: jax.Array | None = None,
  **hyper: Any,
) -> Terms:
  """Returns the terms of a proxy loss, one row for each example.

  Args:
    name: a proxy loss of `LOSSES`.
    cosines: [B, C] with the proxies, any float dtype.
    labels: [B] int; negative marks padding.
    weights: [B] float, of the rows, or None.
    **hyper: hyperparameters of the loss.

  Returns:
    `{term: (values [B], counts [B])}`, float32.

  Example:
    >>> cosines = jnp.array([[1.0, -1.0], [1.0, -1.0]])
    >>> terms = proxy_terms('cosface', cosines, jnp.array([0, 1]), scale=2.0)
    >>> print(terms['loss'][0].round(3))
    [0.036 4.709]
  """
  return LOSSES[name].function(cosines, labels, weights=weights, **hyper)


def reduce_terms(
  terms: Terms, axis_name: str | None = None
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Divides each term over rows and devices, and adds the terms.

  Args:
    terms: of a loss.
    axis_name: the axis of the devices, or None.

  Returns:
    (loss, {term: its share}), float32 scalars, alike on every device. A term
    that counts nothing is 0 with a zero gradient.

  Example:
    >>> values, counts = jnp.array([2.0, 4.0]), jnp.array([1.0, 2.0])
    >>> loss, parts = reduce_terms({'loss': (values, counts)})
    >>> loss.item(), sorted(parts)
    (2.0, ['loss'])
  """
  parts = {
    name: collectives.masked_mean(values, counts, axis_name)
    for name, (values, counts) in terms.items()
  }
  return sum(parts.values()), parts


def compute(
  name: str,
  embeddings: jax.Array,
  labels: jax.Array,
  *,
  ref_embeddings: jax.Array | None = None,
  ref_labels: jax.Array | None = None,
  proxies: jax.Array | None = None,
  sub_centers: int = 1,
  miner: str | Mapping[str, Any] | None = None,
  **hyper: Any,
) -> jax.Array:
  """Returns a loss by name, everything in one call.

  Args:
    name: of `LOSSES`.
    embeddings: [B, D] any float dtype, normalised inside.
    labels: [B] int; negative marks padding.
    ref_embeddings: [G, D], what the anchors of a pair loss are compared with;
      None compares them with each other, self excluded.
    ref_labels: [G] int, with `ref_embeddings`.
    proxies: [C * sub_centers, D] of a proxy loss, the sub-centres of a class
      adjacent.
    sub_centers: centres of a class.
    miner: as in `pair_terms`.
    **hyper: hyperparameters of the loss, checked.

  Returns:
    float32 scalar, differentiable in embeddings, ref_embeddings and proxies.

  Raises:
    InputError: for a name or a hyperparameter that does not exist or is out of
      range, labels or embeddings of a wrong shape, labels without a proxy.

  Example:
    >>> x = jnp.array([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])
    >>> y = jnp.array([0, 0, 1])
    >>> print(compute('triplet_margin', x, y, margin=0.2).round(3))
    0.462
    >>> print(compute('arcface', x, y, proxies=jnp.eye(2)).round(2))
    14.0
  """
  check_hyperparameters(name, hyper)
  if miner is not None:
    miner_name, miner_hyper = _split_miner(miner)
    check_miner(miner_name, miner_hyper, loss=name)
  loss = LOSSES[name]
  embeddings, labels = _check_rows(embeddings, labels, 'embeddings', 'labels')

  if loss.kind == 'proxy':
    if ref_embeddings is not None:
      raise InputError(
        f'loss {name!r} compares with proxies, not with ref_embeddings; pass '
        'proxies of shape (classes * sub_centers, D)'
      )
    proxies = _check_proxies(name, embeddings, labels, proxies, sub_centers)
    cosines = arrays.proxy_cosines(embeddings, proxies, sub_centers)
    return reduce_terms(proxy_terms(name, cosines, labels, **hyper))[0]

  if proxies is not None:
    raise InputError(
      f'loss {name!r} compares embeddings with each other and takes no '
      'proxies; leave them out, or pass ref_embeddings and ref_labels'
    )
  if (ref_embeddings is None) != (ref_labels is None):
    raise InputError(
      'ref_embeddings and ref_labels go together; one of them is missing'
    )
  if ref_embeddings is not None:
    ref_embeddings, ref_labels = _check_rows(
      ref_embeddings, ref_labels, 'ref_embeddings', 'ref_labels'
    )
    _check_width(ref_embeddings, embeddings, 'ref_embeddings')
  terms = pair_terms(
    name,
    embeddings,
    labels,
    candidates=ref_embeddings,
    candidate_labels=ref_labels,
    miner=miner,
    **hyper,
  )
  return reduce_terms(terms)[0]


def _split_miner(miner):
  if isinstance(miner, str):
    return miner, {}
  hyper = dict(miner)
  if 'name' not in hyper:
    raise InputError(
      f'miner has no name; pass one of {", ".join(sorted(MINERS))}, or '
      "{'name': ..., and its hyperparameters}"
    )
  return hyper.pop('name'), hyper


def _check_rows(embeddings, labels, name, labels_name):
  embeddings = _check_matrix(embeddings, name)
  # Inside a transformation only the shapes are known.
  if not isinstance(labels, jax.core.Tracer):
    host_labels = relations.check_labels(labels, labels_name)
    if host_labels.size and host_labels.max() > np.iinfo(np.int32).max:
      raise InputError(
        f'{labels_name} has {host_labels.max()}; allowed are 32-bit ints: pass '
        'np.unique(labels, return_inverse=True)[1]'
      )
    labels = jnp.asarray(host_labels, jnp.int32)
  if labels.shape != embeddings.shape[:1]:
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


def _check_proxies(name, embeddings, labels, proxies, sub_centers):
  if proxies is None:
    raise InputError(
      f'loss {name!r} needs proxies; pass an array of shape '
      f'(classes * sub_centers, {embeddings.shape[1]})'
    )
  proxies = _check_matrix(proxies, 'proxies')
  _check_width(proxies, embeddings, 'proxies')
  if sub_centers < 1 or len(proxies) % sub_centers:
    raise InputError(
      f'sub_centers is {sub_centers!r} for {len(proxies)} proxies; allowed is '
      'a divisor of their number'
    )
  num_classes = len(proxies) // sub_centers
  if not isinstance(labels, jax.core.Tracer) and labels.size:
    largest = int(labels.max())
    if largest >= num_classes:
      raise InputError(
        f'labels has {largest}; allowed is at most {num_classes - 1}, for '
        f'{num_classes} classes with a proxy'
      )
  return proxies
