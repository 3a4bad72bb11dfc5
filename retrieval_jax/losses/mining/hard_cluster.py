"""The hardest class, by the means of the classes."""

import jax
import jax.numpy as jnp
from jax import lax

from retrieval_jax.core.distances import EUCLIDEAN, Distance
from retrieval_jax.core.errors import InputError


def hard_cluster_miner(
  distances: jax.Array,
  positives: jax.Array,
  negatives: jax.Array,
  *,
  candidates: jax.Array,
  labels: jax.Array,
  candidate_labels: jax.Array,
  distance: Distance = EUCLIDEAN,
) -> tuple[jax.Array, jax.Array]:
  """The image farthest from its class's mean, and the class nearest to it.

    positive of class c  argmax_p ||m_c - x_p||,  m_c the mean of the class
    negative of class c  the images of argmin_k ||m_c - m_k||,  k other than c

  HardClusterMiner of OML (open-metric-learning) makes triplets of the mean,
  that positive and the other mean. Pairs have images at both ends: here each
  image of a class is an anchor in the mean's place, and each image of the other
  class a negative in its mean's. The farthest image itself has no positive.
  Classes need not be of one size; the mean is that of the candidates. Nothing
  carries a gradient.

  Use it where single hard images are noise, and whole classes are confused.

  Cost: O(B G D) time, O((B + G) D + B G) memory.

  Defaults: there is no hyperparameter.

  Args:
    distances: [B, G], not looked at.
    positives: [B, G] bool.
    negatives: [B, G] bool.
    candidates: [G, D].
    labels: [B] int; negative marks padding.
    candidate_labels: [G] int likewise.
    distance: between means and images, 'lp'.

  Returns:
    (positives, negatives), [B, G] bool, the selected pairs.

  Raises:
    InputError: for label sets, which part the images into no classes.

  Example:
    >>> x = jnp.array([[0.0], [1.0], [4.0], [5.0], [8.0], [9.5]])
    >>> y = jnp.array([0, 0, 1, 1, 2, 2])
    >>> same = y[:, None] == y[None, :]
    >>> p, n = hard_cluster_miner(
    ...   x, same & ~jnp.eye(6, dtype=bool), ~same, candidates=x, labels=y,
    ...   candidate_labels=y,
    ...   distance=Distance('lp', normalize=False),
    ... )
    >>> n[3].astype(int).tolist()
    [1, 1, 0, 0, 0, 0]

  References:
    HardClusterMiner of OML (open-metric-learning).
  """
  del distances
  if labels.ndim != 1:
    raise InputError(
      "miner.name is 'hard_cluster'; allowed for label sets are the others: a "
      'mean needs one class an image'
    )
  x = distance.prepare(lax.stop_gradient(candidates))
  plain = Distance('lp', p=distance.p, normalize=False)
  # The place of a class is that of its first image, once ordered by class.
  ordered = jnp.sort(candidate_labels)
  places = jnp.searchsorted(ordered, candidate_labels)
  own = jnp.searchsorted(ordered, labels)
  num_columns = len(places)
  present = candidate_labels >= 0
  sizes = jnp.zeros(num_columns).at[places].add(present.astype(jnp.float32))
  sums = jnp.zeros(x.shape).at[places].add(jnp.where(present[:, None], x, 0.0))
  means = sums / jnp.maximum(sizes, 1.0)[:, None]
  own_means = means[jnp.minimum(own, max(num_columns - 1, 0))]

  same = (own[:, None] == places[None, :]) & present[None, :]
  far = jnp.where(same, plain.matrix(own_means, x), -jnp.inf)
  classes = jnp.arange(num_columns)[None, :]
  other = (own[:, None] != classes) & (sizes > 0)[None, :]
  near = jnp.where(other, plain.matrix(own_means, means), jnp.inf)
  if num_columns:
    positives &= classes == jnp.argmax(far, axis=1)[:, None]
    negatives &= places[None, :] == jnp.argmin(near, axis=1)[:, None]
  both = jnp.any(positives, axis=1) & jnp.any(negatives, axis=1)
  return positives & both[:, None], negatives & both[:, None]
