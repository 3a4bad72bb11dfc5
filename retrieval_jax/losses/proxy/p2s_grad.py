"""P2SGrad: squared errors of the cosines."""

import jax
import jax.numpy as jnp

from retrieval_jax.core import collectives
from retrieval_jax.core.class_shards import Shard, is_own, own_cosines
from retrieval_jax.losses import terms
from retrieval_jax.losses.terms import Reducer, Terms


def p2s_grad(
  cosines: jax.Array,
  labels: jax.Array,
  *,
  weights: jax.Array | None = None,
  reducer: str | Reducer = 'mean',
  shard: Shard | None = None,
) -> Terms:
  """P2SGrad: the mean squared error of cosines, 1 for the own class, else 0.

    L_i = 1 / C ((1 - c_iy)^2 + sum_{j != y} c_ij^2)

  The paper defines a gradient and no loss; this is the loss that has it, up to
  a factor. PML rescales its weights to unit length at each call and
  differentiates without that; here the gradient goes through the scaling, which
  leaves out the part along the proxy that PML's next call undoes.

  Use it where no scale and margin shall be tuned. The mean over the classes
  makes its gradient small where there are many: raise the learning rate, or
  the weight of the loss.

  Cost: O(B C) time and memory, beside the product that gives the cosines.

  Defaults: there is no hyperparameter.

  Args:
    cosines: [B, C] in [-1, 1] up to rounding, any float dtype; the loss is
      float32.
    labels: [B] int, the own class; negative marks padding, which counts 0. A
      label of C or above gives NaN.
    weights: [B] float, of the rows; the loss is divided by their sum. None is
      1 for each.
    reducer: over the rows.
    shard: how the classes are shared out over devices, or None.

  Returns:
    The term 'loss', one value a row.

  Example:
    >>> cosines = jnp.array([[0.5, 1.0], [0.0, 1.0]])
    >>> p2s_grad(cosines, jnp.array([0, 1]))['loss'][0].tolist()
    [0.625, 0.0]

  References:
    Zhang et al., P2SGrad: Refined Gradients for Optimizing Deep Face Models,
    CVPR 2019, eq. 11.
  """
  axis_name, present = shard or (None, None)
  cosines = cosines.astype(jnp.float32)
  num_classes = cosines.shape[1] if present is None else jnp.sum(present)
  own = is_own(cosines, labels)
  left_out = own if present is None else own | ~present[None, :]
  others = jnp.where(left_out, 0.0, cosines)
  found = jnp.any(own, axis=1).astype(jnp.float32)
  errors, found, num_classes = collectives.psum(
    (
      jnp.sum(others * others, axis=1),
      found,
      jnp.asarray(num_classes, jnp.float32),
    ),
    axis_name,
  )
  missing = 1.0 - own_cosines(cosines, labels, shard)
  values = (errors + missing * missing) / num_classes
  values = jnp.where(found > 0, values, jnp.nan)
  return terms.row_term(values, labels >= 0, reducer, weights)
