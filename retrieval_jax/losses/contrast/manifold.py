"""Manifold similarity: a random walk over a batch and its proxies."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from retrieval_jax.core import arrays
from retrieval_jax.core.errors import InputError
from retrieval_jax.losses.terms import Reducer, Terms, row_term


def manifold(
  embeddings: jax.Array,
  candidates: jax.Array,
  positives: jax.Array,
  negatives: jax.Array,
  *,
  params: Mapping[str, jax.Array],
  labels: jax.Array,
  K: int = 50,
  lambdaC: float = 1.0,
  alpha: float = 0.8,
  margin: float = 5e-4,
  reducer: str | Reducer = 'mean',
) -> Terms:
  """Manifold loss: random-walk similarities with K learnable proxies.

    F = (1 - alpha) (I - alpha S)^-1
    L_i = log(1 + sum_k exp(F_ik - F_ic + margin))
          + lambdaC log(1 + sum_k exp(cos(F_i, F_k) - cos(F_i, F_c) + margin))

  with S the graph exp(2 max(0, cosine)) over embeddings and proxies, without
  loops and scaled to D^-1/2 S D^-1/2; c the proxy of row i, and k over the
  other proxies whose exponent is not below 0. The proxy of a row is
  `labels % K`, a fixed division of the classes into K meta-classes; PML draws
  it at random for each image and step unless it is told. All steps of a random
  walk are in the inverse, which is well-conditioned: the eigenvalues lie within
  1 - alpha and 1 + alpha.

  Use it for classes that are curved or stretched in the embedding, beside a
  loss of pairs: each row is drawn to one of K proxies and not to its class.

  Cost: O((B + K)^3) time, O((B + K)^2) memory.

  Defaults: PML's.

  Args:
    embeddings: [B, D] any float dtype, normalised inside.
    candidates: [B, D], not used: the walk is over the batch itself.
    positives: [B, B] bool, not used.
    negatives: [B, B] bool, not used.
    params: {'proxies': [K, D]}, normalised inside.
    labels: [B] int; negative marks padding.
    K: how many proxies, at least 1.
    lambdaC: weight of the second sum, the context, at least 0.
    alpha: share of a step of the walk, in (0, 1).
    margin: in the unit of F and of cosines, at least 0.
    reducer: over the rows.

  Returns:
    The term 'loss', one value a row.

  Raises:
    InputError: for label sets, and for proxies of another number than K.

  Example:
    >>> x = jnp.array([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])
    >>> masks = jnp.zeros((3, 3), bool)
    >>> params = {'proxies': jnp.array([[0.0, 1.0], [1.0, 0.0]])}
    >>> labels = jnp.array([0, 0, 1])
    >>> terms = manifold(
    ...   x, x, masks, masks, params=params, labels=labels, K=2
    ... )
    >>> [f'{value:.3f}' for value in terms['loss'][0]]
    ['1.505', '0.000', '1.508']

  References:
    Aziere and Todorovic, Ensemble Deep Manifold Similarity Learning Using Hard
    Proxies, CVPR 2019.
  """
  if labels.ndim != 1:
    raise InputError(
      f'labels has shape {labels.shape}; manifold takes (B,), one class a row: '
      'for label sets use multi_label_supcon'
    )
  proxies = params['proxies']
  if proxies.shape[0] != K:
    raise InputError(
      f'params has {proxies.shape[0]} proxies and loss.K is {K}; allowed are '
      'K of them: set loss.K, or make the proxies anew'
    )
  num_rows = embeddings.shape[0]
  valid = labels >= 0
  nodes = arrays.normalize(
    jnp.concatenate([embeddings.astype(jnp.float32), proxies])
  )
  present = jnp.concatenate([valid, jnp.ones(K, bool)])
  walk = _random_walk(nodes, present, alpha)
  rows, centers = walk[:num_rows], walk[num_rows:]

  own = jax.nn.one_hot(labels % K, K, dtype=bool)

  def excess(affinities):
    target = jnp.sum(jnp.where(own, affinities, 0.0), axis=1, keepdims=True)
    gaps = affinities - target + margin
    # Written with "not", so that a NaN stays.
    used = ~own & ~(gaps < 0)
    exps = jnp.exp(jnp.where(used, gaps, 0.0))
    return jnp.log1p(jnp.sum(jnp.where(used, exps, 0.0), axis=1))

  intrinsic = excess(walk[:num_rows, num_rows:])
  context = excess(arrays.cosine_similarities(rows, centers))
  return row_term(intrinsic + lambdaC * context, valid, reducer)


def init_manifold(
  hyperparameters: Mapping[str, Any],
  num_classes: int,
  embedding_dim: int,
  key: jax.Array,
) -> dict[str, jax.Array]:
  """Returns the proxies of `manifold`, standard normal as PML's."""
  del num_classes
  shape = (hyperparameters.get('K', 50), embedding_dim)
  return {'proxies': jax.random.normal(key, shape)}


def _random_walk(nodes, present, alpha):
  """Returns (1 - alpha) (I - alpha S)^-1 of the graph of the nodes."""
  size = nodes.shape[0]
  eye = jnp.eye(size, dtype=bool)
  linked = present[:, None] & present[None, :] & ~eye
  cosines = jax.nn.relu(arrays.dot_products(nodes, nodes))
  graph = jnp.where(linked, jnp.exp(2 * cosines), 0.0)
  degrees = jnp.sum(graph, axis=1)
  # A lone node has no degree, and no step to take.
  scale = jnp.where(degrees > 0, degrees, 1.0) ** -0.5
  matrix = jnp.where(eye, 1.0, 0.0)
  matrix -= alpha * scale[:, None] * graph * scale[None, :]
  inverse = jnp.linalg.inv(lax.stop_gradient(matrix))
  # A step of Newton's: the same inverse, with the derivative of an inverse as
  # two products, where that of a factorisation takes several solves.
  product = arrays.dot_products(inverse, arrays.dot_products(matrix, inverse).T)
  return (1 - alpha) * (2 * inverse - product)
