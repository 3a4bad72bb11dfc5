"""What a search ranks by, as an inner product: cosine, dot, Euclidean.

The larger the score, the nearer: <q, g> of unit rows for the cosine, <q, g> for
the inner product, and <q, g> - ||g||^2 / 2 for the Euclidean distance, which it
orders, since ||q - g||^2 = ||q||^2 - 2 (<q, g> - ||g||^2 / 2). The last is one
inner product too: of [q, 1] and [g, -||g||^2 / 2].
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from retrieval_jax.core import tiles

# bfloat16 numbers that add up to a float32: 8 bits each.
_PARTS = 3


class Score(NamedTuple):
  """A way to rank: one row of the registry.

  Attributes:
    queries: (rows [n, D], first_pass) -> [n, D'], the left factor.
    gallery: likewise, the right factor.
    exact: (rows [n, D], rows [n, m, D]) -> [n, m] float32, computed as it is
      written, larger is nearer.
    is_distance: whether it is a distance: moving queries and gallery by the
      same vector changes nothing, and candidates are ranked by `exact`.
    shown: what makes of exact scores what is returned.
  """

  queries: Callable[[np.ndarray, str | None], np.ndarray]
  gallery: Callable[[np.ndarray, str | None], np.ndarray]
  exact: Callable[[np.ndarray, np.ndarray], np.ndarray]
  is_distance: bool = False
  shown: Callable[[np.ndarray], np.ndarray] = np.asarray


def _rounded(rows, first_pass):
  return rows if first_pass is None else rows.astype(jnp.dtype(first_pass))


def _products(queries, gallery):
  # Sums whose order is that of the columns, whatever the rows around.
  return np.sum(queries[:, None, :] * gallery, axis=-1)


def _unit_rows(rows, first_pass):
  return _rounded(tiles.unit_rows(rows), first_pass)


def _unit_products(queries, gallery):
  flat = tiles.unit_rows(gallery.reshape(-1, gallery.shape[-1]))
  return _products(tiles.unit_rows(queries), flat.reshape(gallery.shape))


def _rows(rows, first_pass):
  return _rounded(rows.astype(np.float32, copy=False), first_pass)


def _with_ones(rows, first_pass):
  rows = _rows(rows, first_pass)
  num_parts = 1 if first_pass is None else _PARTS
  return np.concatenate([rows, np.ones((len(rows), num_parts), rows.dtype)], 1)


def _with_half_squares(rows, first_pass):
  full, rows = _rows(rows, None), _rows(rows, first_pass)
  left = -np.sum(full * full, axis=1, keepdims=True) / 2
  parts = []
  for _ in range(1 if first_pass is None else _PARTS):
    parts.append(left.astype(rows.dtype))
    left = left - parts[-1].astype(np.float32)
  return np.concatenate([rows, *parts], axis=1)


def _negative_squares(queries, gallery):
  differences = _rows(queries, None)[:, None, :] - _rows(gallery, None)
  return -np.sum(differences * differences, axis=-1)


def rounding_error(
  query_norms: np.ndarray, largest_norm: float, dim: int
) -> np.ndarray:
  """Returns a bound on how far <q, g> - ||g||^2 / 2 is off in float32.

  A sum of n products is off by at most n u sum_i |x_i y_i|, u = 2 ** -24, in
  any order (Higham, Accuracy and Stability of Numerical Algorithms, section
  3.1), and that sum is at most the product of the norms. What is left over
  holds the rounding of half squares, of the extra term, and of centred rows.

  Args:
    query_norms: [Q] of the queries.
    largest_norm: of the rows of the gallery.
    dim: D.

  Returns:
    [Q] float64.
  """
  return (dim + 8) * 2.0**-24 * (query_norms + largest_norm) * largest_norm


SCORES = {
  'cosine': Score(_unit_rows, _unit_rows, _unit_products),
  'dot': Score(
    _rows, _rows, lambda q, g: _products(_rows(q, None), _rows(g, None))
  ),
  # The squares of norms round away what lies close together.
  'l2': Score(
    _with_ones,
    _with_half_squares,
    _negative_squares,
    is_distance=True,
    shown=lambda scores: np.sqrt(0 - scores),  # And never -0.
  ),
}
