"""Softmax losses whose margin is another one in each row."""

import jax
import jax.numpy as jnp
from jax import lax

from retrieval_jax.core import collectives
from retrieval_jax.core.class_shards import Shard, own_cosines
from retrieval_jax.core.errors import InputError
from retrieval_jax.losses.proxy import angles, softmax
from retrieval_jax.losses.terms import Reducer, Terms


def dynamic_margin(
  cosines: jax.Array,
  labels: jax.Array,
  *,
  class_counts: jax.Array,
  margin_min: float = 0.05,
  margin_max: float = 0.5,
  exponent: float = 0.25,
  scale: float = 64.0,
  label_smoothing: float = 0.0,
  weights: jax.Array | None = None,
  reducer: str | Reducer = 'mean',
  shard: Shard | None = None,
) -> Terms:
  """ArcFace with a larger margin for the classes with fewer images.

    m_y = margin_min + (margin_max - margin_min) n_y^{-exponent}

  and then the loss is ArcFace's, n_y being the number of training images of the
  own class: a class of one image has `margin_max`, a class without end would
  have `margin_min`. The paper writes m_y = a n_y^{-lambda} + b; its code scales
  m_y so that the largest class of the data has exactly the least margin. Here a
  margin depends on its class alone, not on the rest of the data.

  Use it on long-tailed data, such as landmarks, instead of ArcFace; it goes
  with `sub_centers` above 1.

  Cost: O(B C) time and memory, beside the product that gives the cosines.

  Defaults: margins and exponent of the paper's code; the scale is that of
  `arcface`.

  Args:
    cosines: [B, C] in [-1, 1] up to rounding, any float dtype.
    labels: [B] int, the own class; negative marks padding.
    class_counts: [B] float32, n_y of each row; below 1 counts as 1.
    margin_min: of the largest class, radians, in [0, pi / 2].
    margin_max: of a class of one image, radians, in (0, pi / 2], at least
      `margin_min`.
    exponent: lambda of the paper, above 0.
    scale: above 0.
    label_smoothing: in [0, 1), the share of the target that is spread over all
      classes; see `softmax.margin_softmax`.
    weights: [B] float, of the rows; the loss is divided by their sum.
    reducer: over the rows.
    shard: how the classes are shared out over devices, or None.

  Returns:
    The term 'loss', one value a row.

  Raises:
    InputError: if the margins contradict each other.

  Example:
    >>> cosines = jnp.array([[0.8, 0.1], [0.8, 0.1]])
    >>> terms = dynamic_margin(
    ...   cosines,
    ...   jnp.array([0, 0]),
    ...   class_counts=jnp.array([1.0, 1000.0]),
    ...   scale=8.0,
    ... )
    >>> print(terms['loss'][0].round(4))
    [0.0777 0.0072]

  References:
    Ha et al., Google Landmark Recognition 2020 Competition Third Place
    Solution, 2020.
  """
  if margin_max < margin_min:
    raise InputError(
      f'loss.margin_max is {margin_max!r}; allowed is at least '
      f'loss.margin_min, {margin_min!r}: rare classes have the larger margin'
    )
  counts = jnp.maximum(class_counts.astype(jnp.float32), 1.0)
  margins = margin_min + (margin_max - margin_min) * counts**-exponent
  return softmax.margin_softmax(
    cosines,
    labels,
    lambda c: angles.add_margin(c, margins),
    scale,
    label_smoothing=label_smoothing,
    weights=weights,
    reducer=reducer,
    shard=shard,
  )


def elasticface(
  cosines: jax.Array,
  labels: jax.Array,
  *,
  row_keys: jax.Array,
  base: str = 'arc',
  margin: float | None = None,
  sigma: float = 0.0125,
  plus: bool = False,
  scale: float = 64.0,
  axis_name: str | None = None,
  weights: jax.Array | None = None,
  reducer: str | Reducer = 'mean',
  shard: Shard | None = None,
) -> Terms:
  """ElasticFace: ArcFace or CosFace with a random margin for each row.

    m_i = margin + sigma z_i,  z_i normal

  and then the loss is ArcFace's (`base='arc'`) or CosFace's ('cos') with m_i.
  With `plus` the draws of the batch, over all devices, are handed out again in
  the order of the own cosines: the row that is farthest from its class gets the
  largest margin, the nearest the smallest. The published code looks the sorted
  draws up by the order and not by the rank, which hands them out at random. No
  gradient goes through the margins.

  Use it instead of ArcFace or CosFace if one margin for all classes seems too
  strict, as with classes that vary by different amounts.

  Cost: O(B C) time and memory, beside the product that gives the cosines;
  `plus` sorts two vectors of the batch.

  Defaults: those of the authors' code.

  Args:
    cosines: [B, C] in [-1, 1] up to rounding, any float dtype.
    labels: [B] int, the own class; negative marks padding.
    row_keys: [B] random keys.
    base: 'arc' or 'cos'.
    margin: the mean, in radians for 'arc' and a cosine for 'cos'; None is the
      paper's, 0.5 and 0.35.
    sigma: the standard deviation, at least 0. The default is the paper's
      without `plus`; with it, the paper has 0.0175 ('arc') and 0.025 ('cos').
    plus: whether harder rows get larger margins.
    scale: above 0.
    axis_name: of the devices that hold the other rows, or None.
    weights: [B] float, of the rows; the loss is divided by their sum.
    reducer: over the rows.
    shard: how the classes are shared out over devices, or None.

  Returns:
    The term 'loss', one value a row.

  Example:
    >>> cosines = jnp.array([[0.8, 0.1], [0.3, 0.4]])
    >>> keys = jax.random.split(jax.random.key(0), 2)
    >>> terms = elasticface(
    ...   cosines, jnp.array([0, 1]), row_keys=keys, sigma=0.0, scale=8.0
    ... )
    >>> [f'{value:.3f}' for value in terms['loss'][0]]
    ['0.078', '3.151']

  References:
    Boutros et al., ElasticFace, CVPR Workshops 2022.
  """
  if margin is None:
    margin = 0.5 if base == 'arc' else 0.35
  draws = jax.vmap(lambda key: jax.random.normal(key, ()))(row_keys)
  margins = margin + sigma * draws
  if plus:
    own = own_cosines(cosines.astype(jnp.float32), labels, shard)
    margins = _by_hardness(
      margins, lax.stop_gradient(own), labels >= 0, axis_name
    )

  def target(own):
    return angles.add_margin(own, margins) if base == 'arc' else own - margins

  return softmax.margin_softmax(
    cosines,
    labels,
    target,
    scale,
    weights=weights,
    reducer=reducer,
    shard=shard,
  )


def _by_hardness(margins, own, valid, axis_name):
  """Hands the margins of the whole batch out, the smallest to the nearest."""
  rows = collectives.row_ids(margins.shape[0], axis_name)
  margins, own, valid = collectives.all_gather_rows(
    (margins, own, valid), axis_name
  )
  # Padding comes last in both orders, and gets the draws of padding.
  smallest_first = jnp.sort(jnp.where(valid, margins, jnp.inf))
  nearest_first = jnp.argsort(jnp.where(valid, -own, jnp.inf))
  ranks = jnp.argsort(nearest_first)[rows]
  handed = smallest_first[ranks]
  return jnp.where(jnp.isfinite(handed), handed, 0.0)
