"""Softmax losses with a margin, over the cosines with a proxy of each class.

The margin touches the logit of the own class alone, so the log-sum-exp is taken
with that one replaced: the cosines and their gradient are the only [B, C]
arrays that are kept.
"""

import functools
import math

import jax
import jax.numpy as jnp

from retrieval_jax.losses.terms import Terms


def arcface(
  cosines: jax.Array,
  labels: jax.Array,
  *,
  margin_deg: float = 28.6,
  scale: float = 64.0,
  weights: jax.Array | None = None,
) -> Terms:
  """ArcFace: a margin added to the angle with the own class.

    L_i = -log(e^{scale t_i} / (e^{scale t_i} + sum_{j != y_i} e^{scale c_ij}))
    t = cos(theta + m) = c cos m - sqrt(1 - c^2) sin m    if theta <= pi - m
    t = c - m sin m                                       otherwise

  with c = cos(theta) the cosine with the own class. The second line keeps t
  decreasing in theta ("easy continuation", as PML has it). On the class centre,
  c = 1, the angle has no gradient; the one of the sine is taken as zero there.

  Args:
    cosines: [B, C] in [-1, 1] up to rounding, any float dtype; the loss is
      float32.
    labels: [B] int, the own class; negative marks padding, which counts 0. A
      label of C or above gives NaN.
    margin_deg: m in degrees, in (0, 90].
    scale: s of the paper, above 0.
    weights: [B] float, of the rows; the loss is divided by their sum. None is
      1 for each.

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

  def target(cosine):
    square = 1.0 - cosine * cosine
    inside = square > 0
    sine = jnp.where(inside, jnp.sqrt(jnp.where(inside, square, 1.0)), 0.0)
    return jnp.where(
      cosine >= -math.cos(margin),
      cosine * math.cos(margin) - sine * math.sin(margin),
      cosine - margin * math.sin(margin),
    )

  return _margin_softmax(cosines, labels, target, scale, weights)


def cosface(
  cosines: jax.Array,
  labels: jax.Array,
  *,
  margin: float = 0.35,
  scale: float = 64.0,
  weights: jax.Array | None = None,
) -> Terms:
  """CosFace: a margin taken from the cosine with the own class.

    L_i = -log(e^{scale (c_iy - margin)}
               / (e^{scale (c_iy - margin)} + sum_{j != y} e^{scale c_ij}))

  Args:
    cosines: [B, C] in [-1, 1] up to rounding, any float dtype; the loss is
      float32.
    labels: [B] int, the own class; negative marks padding, which counts 0. A
      label of C or above gives NaN.
    margin: m of the paper, in (0, 1].
    scale: s of the paper, above 0.
    weights: [B] float, of the rows; the loss is divided by their sum. None is
      1 for each.

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
  return _margin_softmax(cosines, labels, lambda c: c - margin, scale, weights)


def _margin_softmax(cosines, labels, target, scale, weights):
  """Cross-entropy with the own cosine c replaced by target(c)."""
  cosines = cosines.astype(jnp.float32)
  logits = scale * target(_own_cosines(cosines, labels))
  values = _logsumexp_with(scale, cosines, labels, logits) - logits
  values = jnp.where(labels < cosines.shape[1], values, jnp.nan)
  valid = labels >= 0
  counts = valid.astype(jnp.float32)
  if weights is not None:
    weights = weights.astype(jnp.float32)
    values *= weights
    counts *= weights
  return {'loss': (jnp.where(valid, values, 0.0), counts)}


# Derivatives are written by hand so that all of the gradient is one elementwise
# pass over the cosines: the derivative of a gather is a matrix of zeros, that
# of a softmax keeps a matrix of exponentials.


@jax.custom_jvp
def _own_cosines(cosines, labels):
  """Returns c_iy [B]; of padding, that of any class."""
  labels = jnp.clip(labels, 0, cosines.shape[1] - 1)
  return jnp.take_along_axis(cosines, labels[:, None], axis=1)[:, 0]


@_own_cosines.defjvp
def _own_cosines_jvp(primals, tangents):
  cosines, labels = primals
  tangent = jnp.where(_is_own(cosines, labels), tangents[0], 0.0)
  return _own_cosines(cosines, labels), jnp.sum(tangent, axis=1)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _logsumexp_with(scale, cosines, labels, logits):
  """Returns log(e^{logits_i} + sum_{j != y_i} e^{scale c_ij}), [B]."""
  others = jnp.where(_is_own(cosines, labels), -jnp.inf, scale * cosines)
  largest = jnp.maximum(jnp.max(others, axis=1), logits)
  total = jnp.sum(jnp.exp(others - largest[:, None]), axis=1)
  return largest + jnp.log(total + jnp.exp(logits - largest))


@_logsumexp_with.defjvp
def _logsumexp_with_jvp(scale, primals, tangents):
  cosines, labels, logits = primals
  value = _logsumexp_with(scale, cosines, labels, logits)
  softmax = jnp.exp(scale * cosines - value[:, None])
  softmax = jnp.where(_is_own(cosines, labels), 0.0, softmax)
  tangent = jnp.sum(scale * softmax * tangents[0], axis=1)
  return value, tangent + jnp.exp(logits - value) * tangents[2]


def _is_own(cosines, labels):
  classes = jnp.arange(cosines.shape[1], dtype=labels.dtype)
  return classes[None, :] == labels[:, None]
