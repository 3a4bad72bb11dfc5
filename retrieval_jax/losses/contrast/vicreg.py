"""VICReg: two views alike, every dimension used, none twice."""

import jax
import jax.numpy as jnp

from retrieval_jax.core import arrays
from retrieval_jax.losses.terms import Reducer, Terms, reduce_row


def vicreg(
  embeddings: jax.Array,
  candidates: jax.Array,
  positives: jax.Array,
  negatives: jax.Array,
  *,
  invariance_lambda: float = 25.0,
  variance_mu: float = 25.0,
  covariance_v: float = 1.0,
  eps: float = 1e-4,
  reducer: str | Reducer = 'mean',
) -> Terms:
  """VICReg over two views of each image: invariance, variance, covariance.

    L = lambda mean_ik (x_ik - y_ik)^2 + mu (v(x) + v(y)) + nu (c(x) + c(y))
    v(z) = mean_k max(0, 1 - sqrt(var(z_k) + eps)) / 2
    c(z) = sum over k != l of cov(z_k, z_l)^2 / D

  Variances and covariances are over the rows and divided by one less than
  their number. The half in v is PML's, the paper has none. Nothing is
  normalised: embeddings of 1e9 and more overflow the squares of c.

  Use it without labels, on the output of a wide projector, where negatives are
  not wanted. It needs no large batch, but a few hundred rows for the variances.

  Cost: O(B D^2) time, O(B D + D^2) memory.

  Defaults: PML's.

  Args:
    embeddings: [B, D] the first views, any float dtype.
    candidates: [B, D] the second views; row i of both is of one image.
    positives: [B, B] bool.
    negatives: [B, B] bool; a row without a pair in either is padding.
    invariance_lambda: lambda, at least 0.
    variance_mu: mu, at least 0.
    covariance_v: nu, at least 0.
    eps: added to the variance, above 0.
    reducer: over the rows of the invariance and the dimensions of the variance;
      the covariance is one number.

  Returns:
    The terms 'invariance_loss', one value a row, and 'variance_loss1',
    'variance_loss2' and 'covariance_loss', of all rows together, which are
    shared out over the rows.

  Example:
    >>> x = jnp.array([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]])
    >>> masks = jnp.eye(3, dtype=bool)
    >>> terms = vicreg(x, x + 0.5, masks, ~masks)
    >>> for name, (values, counts) in terms.items():
    ...   print(name, jnp.sum(values) / jnp.sum(counts))
    invariance_loss 6.25
    variance_loss1 0.0
    variance_loss2 0.0
    covariance_loss 0.5

  References:
    Bardes et al., VICReg: Variance-Invariance-Covariance Regularization for
    Self-Supervised Learning, ICLR 2022, eq. 1 to 6.
  """
  valid = jnp.any(positives | negatives, axis=1)
  x = jnp.where(valid[:, None], embeddings.astype(jnp.float32), 0.0)
  y = jnp.where(valid[:, None], candidates.astype(jnp.float32), 0.0)
  distances = invariance_lambda * jnp.mean((x - y) ** 2, axis=1)
  variance_x, covariance_x = _moments(x, valid, eps)
  variance_y, covariance_y = _moments(y, valid, eps)
  covariance = covariance_v * (covariance_x + covariance_y)
  share = valid / jnp.maximum(jnp.sum(valid), 1)

  def shared(values, reducer):
    valid = jnp.ones((1, values.size), bool)
    value, count = reduce_row(values.reshape(1, -1), valid, reducer)
    return value * share, count * share

  return {
    'invariance_loss': reduce_row(distances, valid, reducer),
    'variance_loss1': shared(variance_mu * variance_x, reducer),
    'variance_loss2': shared(variance_mu * variance_y, reducer),
    'covariance_loss': shared(covariance, 'mean'),
  }


def _moments(z, valid, eps):
  count = jnp.sum(valid).astype(jnp.float32)
  mean = jnp.sum(z, axis=0) / jnp.maximum(count, 1.0)
  z = jnp.where(valid[:, None], z - mean[None, :], 0.0)
  covariance = arrays.dot_products(z.T, z.T) / jnp.maximum(count - 1.0, 1.0)
  variance = jnp.diagonal(covariance)
  hinge = jax.nn.relu(1.0 - jnp.sqrt(variance + eps)) / 2
  rest = jnp.where(jnp.eye(z.shape[1], dtype=bool), 0.0, covariance)
  return hinge, jnp.sum(rest**2) / z.shape[1]
