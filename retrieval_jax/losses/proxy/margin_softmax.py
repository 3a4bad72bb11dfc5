"""Softmax losses with one margin, over the cosines with a proxy of each class.

The margin touches the logit of the own class alone.
"""

import math

import jax
import jax.numpy as jnp

from retrieval_jax.core.class_shards import Shard, own_cosines
from retrieval_jax.losses.proxy import angles, softmax
from retrieval_jax.losses.terms import Reducer, Terms


def arcface(
  cosines: jax.Array,
  labels: jax.Array,
  *,
  margin_deg: float = 28.6,
  scale: float = 64.0,
  label_smoothing: float = 0.0,
  weights: jax.Array | None = None,
  reducer: str | Reducer = 'mean',
  shard: Shard | None = None,
) -> Terms:
  """ArcFace: a margin added to the angle with the own class.

    L_i = -log(e^{scale t_i} / (e^{scale t_i} + sum_{j != y_i} e^{scale c_ij}))
    t = cos(theta + m) = c cos m - sqrt(1 - c^2) sin m    if theta <= pi - m
    t = c - m sin m                                       otherwise

  with c = cos(theta) the cosine with the own class. The second line keeps t
  decreasing in theta ("easy continuation", as PML has it). On the class centre,
  c = 1, the angle has no gradient; the one of the sine is taken as zero there.

  Use it as the first choice when every training image has a class with enough
  images to hold a proxy: it needs no miner and no particular batch. Against
  CosFace its margin weighs more far from the centre; a smaller scale or margin
  helps if the loss does not start to fall.

  Cost: O(B C) time and memory, beside the product that gives the cosines.

  Defaults: PML's. 28.6 degrees are 0.5 radians.

  Args:
    cosines: [B, C] in [-1, 1] up to rounding, any float dtype; the loss is
      float32.
    labels: [B] int, the own class; negative marks padding, which counts 0. A
      label of C or above gives NaN.
    margin_deg: m in degrees, in (0, 90].
    scale: s of the paper, above 0.
    label_smoothing: in [0, 1), the share of the target that is spread over all
      classes; see `softmax.margin_softmax`.
    weights: [B] float, of the rows; the loss is divided by their sum. None is
      1 for each.
    reducer: over the rows.
    shard: how the classes are shared out over devices, or None.

  Returns:
    The term 'loss', one value a row.

  Example:
    >>> cosines = jnp.array([[0.8, 0.1], [0.3, 0.4]])
    >>> labels = jnp.array([0, -1])
    >>> values, counts = arcface(cosines, labels, scale=8.0)['loss']
    >>> print(values.round(4), counts)
    [0.0773 0.    ] [1. 0.]

  References:
    Deng et al., ArcFace, CVPR 2019, eq. 3.
  """
  margin = math.radians(margin_deg)
  return softmax.margin_softmax(
    cosines,
    labels,
    lambda c: angles.add_margin(c, margin),
    scale,
    label_smoothing=label_smoothing,
    weights=weights,
    reducer=reducer,
    shard=shard,
  )


def subcenter_arcface(
  cosines: jax.Array,
  labels: jax.Array,
  *,
  margin_deg: float = 28.6,
  scale: float = 64.0,
  label_smoothing: float = 0.0,
  weights: jax.Array | None = None,
  reducer: str | Reducer = 'mean',
  shard: Shard | None = None,
) -> Terms:
  """Sub-centre ArcFace: a class is as near as the nearest of its centres.

    c_ij = max_k <x_i, w_jk>,  and then the loss is ArcFace's

  The maximum passes the gradient to the nearest centre of each class alone.
  How many centres a class has is the option `sub_centers`, by default 3.

  Use it instead of ArcFace where a class holds several looks (a landmark from
  inside and outside) or mislabelled images: they gather around centres of their
  own, and can be dropped afterwards.

  Cost: O(B C) time and memory, beside O(B C sub_centers) for the cosines.

  Defaults: PML's.

  Args:
    cosines: [B, C] in [-1, 1] up to rounding, any float dtype, of the nearest
      centre of each class.
    labels: [B] int, the own class; negative marks padding.
    margin_deg: m in degrees, in (0, 90].
    scale: s of the paper, above 0.
    label_smoothing: in [0, 1), the share of the target that is spread over all
      classes; see `softmax.margin_softmax`.
    weights: [B] float, of the rows; the loss is divided by their sum.
    reducer: over the rows.
    shard: how the classes are shared out over devices, or None.

  Returns:
    The term 'loss', one value a row.

  Example:
    >>> by_center = jnp.array([[[0.1, 0.8, 0.2], [0.1, 0.0, -0.5]]])
    >>> cosines = jnp.max(by_center, axis=-1)
    >>> terms = subcenter_arcface(cosines, jnp.array([0]), scale=8.0)
    >>> print(terms['loss'][0].round(4))
    [0.0773]

  References:
    Deng et al., Sub-center ArcFace, ECCV 2020.
  """
  return arcface(
    cosines,
    labels,
    margin_deg=margin_deg,
    scale=scale,
    label_smoothing=label_smoothing,
    weights=weights,
    reducer=reducer,
    shard=shard,
  )


def cosface(
  cosines: jax.Array,
  labels: jax.Array,
  *,
  margin: float = 0.35,
  scale: float = 64.0,
  label_smoothing: float = 0.0,
  weights: jax.Array | None = None,
  reducer: str | Reducer = 'mean',
  shard: Shard | None = None,
) -> Terms:
  """CosFace: a margin taken from the cosine with the own class.

    L_i = -log(e^{scale (c_iy - margin)}
               / (e^{scale (c_iy - margin)} + sum_{j != y} e^{scale c_ij}))

  Use it where ArcFace would do, when the plainest of the margins is wanted: it
  has no angle in it, and far from its class a row is drawn alike at any cosine.
  It is also known as AM-Softmax.

  Cost: O(B C) time and memory, beside the product that gives the cosines.

  Defaults: PML's.

  Args:
    cosines: [B, C] in [-1, 1] up to rounding, any float dtype; the loss is
      float32.
    labels: [B] int, the own class; negative marks padding, which counts 0. A
      label of C or above gives NaN.
    margin: m of the paper, in (0, 1].
    scale: s of the paper, above 0.
    label_smoothing: in [0, 1), the share of the target that is spread over all
      classes; see `softmax.margin_softmax`.
    weights: [B] float, of the rows; the loss is divided by their sum. None is
      1 for each.
    reducer: over the rows.
    shard: how the classes are shared out over devices, or None.

  Returns:
    The term 'loss', one value a row.

  Example:
    >>> cosines = jnp.array([[0.8, 0.1], [0.3, 0.4]])
    >>> labels = jnp.array([0, 1])
    >>> values, counts = cosface(cosines, labels, scale=8.0)['loss']
    >>> print(values.round(4), counts)
    [0.059  2.1269] [1. 1.]

  References:
    Wang et al., CosFace, CVPR 2018, eq. 4.
  """
  return softmax.margin_softmax(
    cosines,
    labels,
    lambda c: c - margin,
    scale,
    label_smoothing=label_smoothing,
    weights=weights,
    reducer=reducer,
    shard=shard,
  )


def combined_margin(
  cosines: jax.Array,
  labels: jax.Array,
  *,
  m1: float = 1.0,
  m2: float = 0.3,
  m3: float = 0.2,
  scale: float = 64.0,
  filter_threshold: float | None = None,
  weights: jax.Array | None = None,
  reducer: str | Reducer = 'mean',
  shard: Shard | None = None,
) -> Terms:
  """Combined margin: one that multiplies the angle and two that are added.

    L_i = -log(e^{scale t_i} / (e^{scale t_i} + sum_j e^{scale c_ij}))
    t = (-1)^k cos(m1 theta + m2) - 2 k - m3,  k = floor((m1 theta + m2) / pi)

  with theta the angle with the own class and j the other classes with c_ij at
  most `filter_threshold`. k is 0 up to the angle where the cosine would rise
  again, and carries t on beyond it, falling and without a jump. The derivative
  is that of the formula. InsightFace takes the margin without a gradient
  (dt / dc = 1), and does not carry t on. At c = 1 and c = -1 the gradient
  through the angle is taken as zero.

  The filter holds other classes above the threshold to be wrong labels of the
  same thing. They are left out; InsightFace sets their cosine to 0.

  Use it to mix the margins of SphereFace (m1), ArcFace (m2) and CosFace (m3),
  and with the filter on data with classes that are duplicates of each other.

  Cost: O(B C) time and memory, beside the product that gives the cosines.

  Defaults: m1, m2 and m3 of the mixture that the ArcFace paper calls CM1; the
  scale is that of `arcface`.

  Args:
    cosines: [B, C] in [-1, 1] up to rounding, any float dtype.
    labels: [B] int, the own class; negative marks padding.
    m1: multiplies the angle, above 0.
    m2: added to the angle, radians, in [0, pi / 2].
    m3: taken from the cosine, in [0, 1].
    scale: above 0.
    filter_threshold: a cosine in (0, 1], or None for no filter.
    weights: [B] float, of the rows; the loss is divided by their sum.
    reducer: over the rows.
    shard: how the classes are shared out over devices, or None.

  Returns:
    The term 'loss', one value a row.

  Example:
    >>> cosines = jnp.array([[0.8, 0.1], [0.3, 0.4]])
    >>> labels = jnp.array([0, 1])
    >>> terms = combined_margin(cosines, labels, m2=0.0, m3=0.35, scale=8.0)
    >>> print(terms['loss'][0].round(4))
    [0.059  2.1269]

  References:
    Deng et al., ArcFace, CVPR 2019, eq. 4.
    An et al., Partial FC, CVPR 2022 (the filter).
  """

  def target(cosine):
    theta = m1 * angles.angle(cosine) + m2
    k = jnp.floor(theta / math.pi)
    sign = 1.0 - 2.0 * jnp.mod(k, 2.0)
    return sign * jnp.cos(theta) - 2.0 * k - m3

  common = {'weights': weights, 'reducer': reducer, 'shard': shard}
  if filter_threshold is None:
    return softmax.margin_softmax(cosines, labels, target, scale, **common)
  cosines = cosines.astype(jnp.float32)
  own = scale * target(own_cosines(cosines, labels, shard))
  # A NaN is not above the threshold, and stays.
  kept = ~(cosines > filter_threshold)
  logits = jnp.where(kept, scale * cosines, -jnp.inf)
  return softmax.softmax_terms(logits, labels, own, **common)
