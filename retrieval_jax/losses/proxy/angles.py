"""The angle with the own class, and what a margin makes of it.

The angle has no gradient at 0 and 180 degrees: the slope of the arc cosine is
infinite there. The part of the gradient that goes through the angle is taken as
zero at these two points, so that an embedding on the centre of its class gives
no NaN.
"""

import math

import jax
import jax.numpy as jnp


def sine(cosines: jax.Array) -> jax.Array:
  """Returns sqrt(1 - c^2), with a zero gradient where it is 0.

  Args:
    cosines: float32 array, in [-1, 1] up to rounding.

  Example:
    >>> print(sine(jnp.array([1.0, 0.6])).round(3))
    [0.  0.8]
  """
  # The product keeps the digits that 1 - c * c loses near 1.
  square = (1.0 - cosines) * (1.0 + cosines)
  inside = ~(square <= 0)  # A NaN stays a NaN.
  return jnp.where(inside, jnp.sqrt(jnp.where(inside, square, 1.0)), 0.0)


def angle(cosines: jax.Array) -> jax.Array:
  """Returns the angle in [0, pi], with a zero gradient at both ends.

  Args:
    cosines: float32 array, in [-1, 1] up to rounding.

  Example:
    >>> print(jnp.degrees(angle(jnp.array([1.0, 0.0, -1.0]))))
    [  0.  90. 180.]
  """
  return jnp.arctan2(sine(cosines), cosines)


def add_margin(cosines: jax.Array, margin: float | jax.Array) -> jax.Array:
  """Returns the cosine of the angle with a margin added, made to fall.

    t = cos(theta + m) = c cos m - sqrt(1 - c^2) sin m    if theta <= pi - m
    t = c - m sin m                                       otherwise

  The second line keeps t falling in theta ("easy continuation", as PML has
  it).

  Args:
    cosines: [B] float32, in [-1, 1] up to rounding.
    margin: m in radians, a number or [B].

  Example:
    >>> print(add_margin(jnp.array([1.0, -1.0]), 0.5).round(3))
    [ 0.878 -1.24 ]
  """
  if isinstance(margin, (int, float)):
    cos_m, sin_m, edge = math.cos(margin), math.sin(margin), -math.cos(margin)
  else:
    cos_m, sin_m = jnp.cos(margin), jnp.sin(margin)
    # A negative margin, which a random one may be, has no edge.
    edge = -jnp.cos(jnp.maximum(margin, 0.0))
  return jnp.where(
    cosines >= edge,
    cosines * cos_m - sine(cosines) * sin_m,
    cosines - margin * sin_m,
  )
