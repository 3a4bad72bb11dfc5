"""Softmax losses without a margin: a temperature is all that they have."""

import jax

from retrieval_jax.core.class_shards import Shard
from retrieval_jax.losses.proxy import softmax
from retrieval_jax.losses.terms import Reducer, Terms


def normalized_softmax(
  cosines: jax.Array,
  labels: jax.Array,
  *,
  temperature: float = 0.05,
  label_smoothing: float = 0.0,
  weights: jax.Array | None = None,
  reducer: str | Reducer = 'mean',
  shard: Shard | None = None,
) -> Terms:
  """Normalised softmax: cross-entropy of cosines over a temperature.

    L_i = -log(e^{c_iy / temperature} / sum_j e^{c_ij / temperature})

  Use it as the baseline of the losses against proxies, and where classes are so
  noisy that a margin hurts. With a margin it is CosFace of scale
  1 / temperature.

  Cost: O(B C) time and memory, beside the product that gives the cosines.

  Defaults: PML's.

  Args:
    cosines: [B, C] in [-1, 1] up to rounding, any float dtype; the loss is
      float32.
    labels: [B] int, the own class; negative marks padding, which counts 0. A
      label of C or above gives NaN.
    temperature: sigma of the paper, above 0.
    label_smoothing: in [0, 1), the share of the target that is spread over all
      classes; see `softmax.margin_softmax`.
    weights: [B] float, of the rows; the loss is divided by their sum. None is
      1 for each.
    reducer: over the rows.
    shard: how the classes are shared out over devices, or None.

  Returns:
    The term 'loss', one value a row.

  Example:
    >>> import jax.numpy as jnp
    >>> cosines = jnp.array([[0.8, 0.1], [0.3, 0.4]])
    >>> labels = jnp.array([0, -1])
    >>> terms = normalized_softmax(cosines, labels, temperature=0.25)
    >>> print(terms['loss'][0].round(4), terms['loss'][1])
    [0.059 0.   ] [1. 0.]

  References:
    Zhai and Wu, Classification is a Strong Baseline for Deep Metric Learning,
    BMVC 2019.
  """
  return softmax.margin_softmax(
    cosines,
    labels,
    lambda c: c,
    1.0 / temperature,
    label_smoothing=label_smoothing,
    weights=weights,
    reducer=reducer,
    shard=shard,
  )


def proxy_nca(
  cosines: jax.Array,
  labels: jax.Array,
  *,
  softmax_scale: float = 1.0,
  weights: jax.Array | None = None,
  reducer: str | Reducer = 'mean',
  shard: Shard | None = None,
) -> Terms:
  """ProxyNCA: cross-entropy of squared distances to the proxies.

    L_i = -log(e^{-scale d_iy} / sum_j e^{-scale d_ij})
    d_ij = || x_i / ||x_i|| - p_j / ||p_j|| ||^2 = 2 - 2 c_ij

  with scale = `softmax_scale`. As in PML the own proxy is in the denominator,
  which the paper leaves out. A row whose probability underflows keeps its
  loss; PML drops it, the hardest row of all.

  Use it to reproduce published results. The default scale is so soft that no
  row is ever fitted, the loss of C classes staying above
  log(1 + (C - 1) e^{-4}); prefer `proxy_nca_pp`.

  Cost: O(B C) time and memory, beside the product that gives the cosines.

  Defaults: PML's.

  Args:
    cosines: [B, C] in [-1, 1] up to rounding, any float dtype; the loss is
      float32.
    labels: [B] int, the own class; negative marks padding, which counts 0. A
      label of C or above gives NaN.
    softmax_scale: of the squared distances, above 0.
    weights: [B] float, of the rows; the loss is divided by their sum. None is
      1 for each.
    reducer: over the rows.
    shard: how the classes are shared out over devices, or None.

  Returns:
    The term 'loss', one value a row.

  Example:
    >>> import jax.numpy as jnp
    >>> cosines = jnp.array([[0.8, 0.1], [0.3, 0.4]])
    >>> terms = proxy_nca(cosines, jnp.array([0, 1]), softmax_scale=2.0)
    >>> print(terms['loss'][0].round(4))
    [0.059 0.513]

  References:
    Movshovitz-Attias et al., No Fuss Distance Metric Learning using Proxies,
    ICCV 2017.
  """
  # The 2 of 2 - 2 c is the same for all classes, and cancels.
  return softmax.margin_softmax(
    cosines,
    labels,
    lambda c: c,
    2.0 * softmax_scale,
    weights=weights,
    reducer=reducer,
    shard=shard,
  )


def proxy_nca_pp(
  cosines: jax.Array,
  labels: jax.Array,
  *,
  temperature: float = 1 / 9,
  weights: jax.Array | None = None,
  reducer: str | Reducer = 'mean',
  shard: Shard | None = None,
) -> Terms:
  """ProxyNCA++: the probability of the own proxy, at a low temperature.

    L_i = -log(e^{-d_iy / temperature} / sum_j e^{-d_ij / temperature})
    d_ij = || x_i / ||x_i|| - p_j / ||p_j|| ||^2 = 2 - 2 c_ij

  It is `proxy_nca` with a `softmax_scale` of 1 / temperature; the rest of the
  paper is not in the loss: max pooling, layer normalisation of the embedding,
  proxies with a learning rate of their own, and batches balanced by class.

  Use it for fine-grained sets of a few hundred classes, and with the learning
  rate of the proxies far above the network's.

  Cost: O(B C) time and memory, beside the product that gives the cosines.

  Defaults: the authors' scale of 3, squared.

  Args:
    cosines: [B, C] in [-1, 1] up to rounding, any float dtype; the loss is
      float32.
    labels: [B] int, the own class; negative marks padding, which counts 0. A
      label of C or above gives NaN.
    temperature: T of the paper, of the squared distances, above 0.
    weights: [B] float, of the rows; the loss is divided by their sum. None is
      1 for each.
    reducer: over the rows.
    shard: how the classes are shared out over devices, or None.

  Returns:
    The term 'loss', one value a row.

  Example:
    >>> import jax.numpy as jnp
    >>> cosines = jnp.array([[0.8, 0.1], [0.3, 0.4]])
    >>> terms = proxy_nca_pp(cosines, jnp.array([0, 1]), temperature=0.5)
    >>> print(terms['loss'][0].round(4))
    [0.059 0.513]

  References:
    Teh et al., ProxyNCA++: Revisiting and Revitalizing Proxy Neighborhood
    Component Analysis, ECCV 2020.
  """
  return proxy_nca(
    cosines,
    labels,
    softmax_scale=1.0 / temperature,
    weights=weights,
    reducer=reducer,
    shard=shard,
  )
