"""Health of an embedding: how many directions it uses, and who its hubs are.

Spectra are of unit rows, as the cosine sees them; a zero row stays zero. What
is said of the pairs (uniformity, alignment) is in `verification`.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from retrieval_jax.core import row_files, tiles
from retrieval_jax.metrics import pairs

_BLOCK_ROWS = 1024
_PAIR_BYTES = 24  # Similarity, level, the candidates that are sorted.


class Spectrum(NamedTuple):
  """Variances of unit rows along their principal directions.

  Attributes:
    second_moments: [D] float64, eigenvalues of X^T X / N, descending: the
      squared singular values of X [N, D], divided by N.
    variances: [D] float64, eigenvalues of the covariance, descending, which the
      mean has no part in.
  """

  second_moments: np.ndarray
  variances: np.ndarray


def spectrum(embeddings: np.ndarray) -> Spectrum:
  """Returns the spectrum of unit rows, in float64.

  Memory is O(D^2), time O(N D^2 + D^3).

  Args:
    embeddings: [N, D] any float dtype, finite.

  Example:
    >>> found = spectrum(np.array([[1.0, 0.0], [0.0, 2.0]]))
    >>> [values.round(3).tolist() for values in found]
    [[0.5, 0.5], [0.5, 0.0]]
  """
  num_rows, dim = embeddings.shape
  reader = row_files.RowReader(embeddings)
  total, moments = np.zeros(dim), np.zeros((dim, dim))
  for block in tiles.blocks(num_rows, _BLOCK_ROWS):
    rows = tiles.unit_rows(reader[block]).astype(np.float64)
    total += rows.sum(axis=0)
    moments += rows.T @ rows
  moments /= num_rows
  mean = total / num_rows
  found = (
    np.linalg.eigvalsh(matrix)[::-1]
    for matrix in (moments, moments - np.outer(mean, mean))
  )
  # What rounding leaves of a direction that is not used is no direction.
  return Spectrum(*(np.where(values > 1e-12, values, 0.0) for values in found))


def effective_rank(values: np.ndarray) -> float:
  """Returns exp(H(p)), p_i = values_i / sum_j values_j, in [1, D].

  H is the entropy in nats. The effective rank of a matrix takes its singular
  values; eigenvalues of a covariance give a smaller number.

  Args:
    values: [D] at least 0.

  Raises:
    UndefinedError: if all are 0.

  Example:
    >>> effective_rank(np.array([1.0, 1.0, 0.0]))
    2.0

  References:
    O. Roy and M. Vetterli, "The effective rank: a measure of effective
    dimensionality", EUSIPCO 2007, definition 1.
  """
  if not values.any():
    raise pairs.UndefinedError('the embeddings do not vary in any direction')
  shares = values[values > 0] / values.sum()
  return float(np.exp(-np.sum(shares * np.log(shares))))


def component_share(variances: np.ndarray, share: float) -> float:
  """Returns PCF: the principal components that hold a share of variance, / D.

    PCF = min {k : sum_{i <= k} v_i >= share * sum_i v_i} / D

  Args:
    variances: [D] descending.
    share: of the variance, in (0, 1].

  Returns:
    A number in [1 / D, 1]; small if few directions hold most of it.

  Raises:
    UndefinedError: if all variances are 0.

  Example:
    >>> component_share(np.array([2.0, 1.0, 1.0, 0.0]), 0.5)
    0.25
    >>> component_share(np.array([2.0, 1.0, 1.0, 0.0]), 0.6)
    0.5
  """
  if not variances.any():
    raise pairs.UndefinedError('the embeddings do not vary in any direction')
  held = np.cumsum(variances) / variances.sum()
  # The slack of the last digit, so that a half is a half.
  number = 1 + int(np.searchsorted(held, share - 1e-12))
  return min(number, len(variances)) / len(variances)


def k_occurrences(task: pairs.Task, k: int = 10) -> np.ndarray:
  """Returns how often each gallery row is among the k nearest of a query.

  Rows that tie for the last places share them equally: row order decides
  nothing.

  Args:
    task: what is measured.
    k: places; all candidates, if they are fewer.

  Returns:
    [N] float64, of the mean k Q / N.

  Raises:
    InputError: if the memory budget is too small.

  Example:
    >>> x, y = np.array([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]]), np.zeros(3, int)
    >>> k_occurrences(pairs.Task(x, y, x, y, self_excluded=True), k=1).tolist()
    [1.0, 2.0, 0.0]
  """
  which = 'others' if task.self_excluded else 'all'
  k = min(k, len(task.gallery) - task.self_excluded)
  occurrences = np.zeros(len(task.gallery))
  if not k:
    return occurrences
  for block in pairs.blocks(task, pair_bytes=_PAIR_BYTES):

    def all_levels(block=block):
      for index in range(len(block.gallery)):
        tile = block.gallery[index]
        yield pairs.levels(block.queries, tile, pairs=which)

    best = _start(block.queries[1][1], k)
    for levels in all_levels():
      best = _merge(best, levels)
    if task.process[1] > 1:
      best = block.gallery.put(_best_of_all(best, task))
    width = block.gallery.tile_rows
    for index, levels in enumerate(all_levels()):
      start = block.gallery.start(index)
      if start >= len(occurrences):
        break  # Nothing but padding.
      found = np.asarray(_occurrences(best, levels), np.float64)
      occurrences[start : start + width] += found[: len(occurrences) - start]
  return task.of_processes(occurrences).sum(axis=0)


def _start(rows, k):
  """Returns (the k highest levels, how many rows tie with the last)."""
  return _no_levels(rows, jnp.full((1, k), pairs.NO_LEVEL)), 0 * rows


@jax.jit
def _no_levels(rows, row_of_levels):
  return 0.0 * rows[:, None] + row_of_levels


@jax.jit
def _merge(best, levels):
  highest, tied = best
  k = highest.shape[1]
  here, _ = lax.top_k(levels, min(k, levels.shape[1]))
  merged, _ = lax.top_k(jnp.concatenate([highest, here], axis=1), k)
  last = merged[:, -1:]
  # If the last place went up, all that tie with it were among the highest.
  before = jnp.where(
    last[:, 0] == highest[:, -1], tied, jnp.sum(highest == last, axis=1)
  )
  return merged, before + jnp.sum(levels == last, axis=1, dtype=jnp.int32)


def _best_of_all(best, task):
  """Returns the best of all processes, likewise."""
  highest, tied = (task.of_processes(np.asarray(part)) for part in best)
  k = highest.shape[2]
  merged = -np.sort(-np.concatenate(highest, axis=1), axis=1)[:, :k]
  last = merged[:, -1:]
  # Who does not end with the last place has all that tie among its highest.
  tied = np.where(
    highest[:, :, -1] == last[:, 0], tied, (highest == last).sum(axis=2)
  )
  return merged, tied.sum(axis=0, dtype=np.int32)


@jax.jit
def _occurrences(best, levels):
  """Returns [T] float32, the places that the rows of a tile have."""
  highest, tied = best
  last = highest[:, -1:]
  left = jnp.sum(highest == last, axis=1) / jnp.maximum(tied, 1)
  places = jnp.where(levels == last, left[:, None], levels > last)
  return jnp.sum(jnp.where(levels > pairs.NO_LEVEL, places, 0.0), axis=0)


def hubness(occurrences: np.ndarray) -> float:
  """Returns the skewness of k-occurrences, E (n - mean)^3 / std^3.

  About 0 without hubs; large where few gallery rows are near to very many
  queries. Its bounds are `hubness_limits`.

  Args:
    occurrences: [N], see `k_occurrences`.

  Returns:
    A float; 0 if all rows occur equally often.

  Example:
    >>> hubness(np.array([1.0, 1.0, 1.0, 5.0])).__round__(4)
    1.1547

  References:
    M. Radovanovic, A. Nanopoulos and M. Ivanovic, "Hubs in space", JMLR 2010,
    equation 1.
  """
  centred = occurrences - occurrences.mean()
  deviation = np.sqrt(np.mean(centred**2))
  # Places that are shared are sums of fractions, equal up to rounding.
  if deviation <= 1e-6 * np.abs(occurrences).max():
    return 0.0
  return float(np.mean((centred / deviation) ** 3))


def hubness_limits(occurrences: np.ndarray) -> tuple[float, float]:
  """Returns the least and the largest skewness of so many numbers.

    |hubness| <= (N - 2) / sqrt(N - 1)

  reached where all numbers but one are equal.

  Args:
    occurrences: [N], N at least 1.

  Example:
    >>> low, high = hubness_limits(np.zeros(4))
    >>> round(low, 4), round(high, 4)
    (-1.1547, 1.1547)
  """
  most = max(len(occurrences) - 2, 0) / math.sqrt(max(len(occurrences) - 1, 1))
  return -most, most


def antihub_share(occurrences: np.ndarray) -> float:
  """Returns the share of gallery rows that are near to no query, in [0, 1].

  Example:
    >>> antihub_share(np.array([0.0, 3.0, 0.0, 1.0]))
    0.5
  """
  return float(np.mean(occurrences == 0))
