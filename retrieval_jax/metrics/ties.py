"""Sums over the positives of a query, and their expectation over ties.

A positive that is the j-th hit and stands at rank k gives a term; most metrics
are a sum of the terms of all positives, or the term of the best one or of the
worst one. Where positives tie with negatives the rank is not decided, and the
terms of the tie are their expectation over all orders, in closed form.

The expectations follow F. McSherry and M. Najork, "Computing information
retrieval performance measures efficiently in the presence of tied scores",
ECIR 2008: after a items, h of them hits, come n tied items, r of them
positives. The i-th of them is a hit with probability r / n, and then there are
on average h + 1 + (i - 1) (r - 1) / (n - 1) hits up to and including it.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from retrieval_jax.metrics.ranks import Ranks


class Values(NamedTuple):
  """A metric of each query of a block: [B] float64 each.

  Attributes:
    expected: the expectation over random orders of ties.
    lowest: in the worst order, for most metrics the negatives of every tie
      first.
    highest: in the best order.
  """

  expected: np.ndarray
  lowest: np.ndarray
  highest: np.ndarray


class Ties(NamedTuple):
  """Groups of positives and negatives that tie; arrays over groups.

  Attributes:
    rows: [T] int64, the query of the block.
    before: [T] int64, items above the group (a).
    hits_before: [T] int64, positives above the group (h).
    positives: [T] int64, in the group (r), at least 1.
    size: [T] int64, items in the group (n), more than its positives.
    num_positives: [T] int64, R of the query.
  """

  rows: np.ndarray
  before: np.ndarray
  hits_before: np.ndarray
  positives: np.ndarray
  size: np.ndarray
  num_positives: np.ndarray

  def where(self, mask: np.ndarray) -> 'Ties':
    """Returns the groups of a mask [T]."""
    return Ties(*(field[mask] for field in self))

  def places(self, depth) -> np.ndarray:
    """Returns how many places of each group are among the first `depth`."""
    return np.clip(depth - self.before, 0, self.size)


@dataclasses.dataclass(frozen=True)
class Positives:
  """Positives in one order of their ties; arrays over positives.

  Attributes:
    hits: [P] float64, 1 for the query's best positive, R for its worst.
    ranks: [P] float64, from 1; infinite where it was not found.
    num_positives: [P] int64, R of the query.
  """

  hits: np.ndarray
  ranks: np.ndarray
  num_positives: np.ndarray

  @functools.cached_property
  def precisions(self) -> np.ndarray:
    """[P] float64, the share of positives down to the rank."""
    return self.hits / self.ranks

  def take(self, which: np.ndarray) -> 'Positives':
    """Returns some of them."""
    return Positives(
      self.hits[which], self.ranks[which], self.num_positives[which]
    )


@dataclasses.dataclass(frozen=True)
class View:
  """What of the positives of a block has a term.

  Attributes:
    positives: [P], in the best order.
    starts: [B], where those of each query start.
    tied_rows: [T] int64, the query of each that ties with a negative.
    tied_best: [T], these in the best order.
    tied_worst: [T], in the worst one.
    groups: that they form.
  """

  positives: Positives
  starts: np.ndarray
  tied_rows: np.ndarray
  tied_best: Positives
  tied_worst: Positives
  groups: Ties


class Block:
  """The ranks of a block of queries, and what several metrics ask of them."""

  def __init__(self, ranks: Ranks):
    """Computes nothing yet."""
    self.ranks = ranks

  def __len__(self) -> int:
    """Returns B."""
    return len(self.ranks.queries)

  @functools.cached_property
  def every(self) -> View:
    """All positives."""
    ranks = self.ranks
    best = Positives(
      ranks.hits,
      ranks.ranks,
      np.repeat(ranks.num_positives, ranks.num_positives),
    )
    return self._view(best, ranks.starts, np.arange(len(ranks.tied)))

  @functools.cached_property
  def first(self) -> View:
    """The best positive of each query."""
    return self._of_each(self.ranks.starts, lambda groups: groups.hits_before)

  @functools.cached_property
  def last(self) -> View:
    """The worst positive of each query."""
    ends = self.ranks.starts + self.ranks.num_positives - 1

    def after(groups):
      return groups.num_positives - groups.hits_before - groups.positives

    return self._of_each(ends, after)

  @functools.cached_property
  def groups(self) -> Ties:
    """The ties: positives that are adjacent, with as many negatives above."""
    ranks, is_new = self.ranks, self._begins_group
    tied, rows = ranks.tied, ranks.tied_rows
    positives = np.diff(np.append(np.flatnonzero(is_new), len(tied)))
    before = ranks.ranks[tied][is_new].astype(np.int64) - 1
    return Ties(
      rows[is_new],
      before,
      ranks.hits[tied][is_new].astype(np.int64) - 1,
      positives,
      positives + ranks.num_tied[is_new],
      ranks.num_positives[rows[is_new]],
    )

  @functools.cached_property
  def group_of_tied(self) -> np.ndarray:
    """[T] int64, which group a tied positive belongs to."""
    return np.cumsum(self._begins_group) - 1

  def sum(self, rows: np.ndarray, terms: np.ndarray) -> np.ndarray:
    """Returns [B], the sums of the terms of each query."""
    return np.bincount(rows, terms, len(self))

  @functools.cached_property
  def _begins_group(self):
    tied, rows = self.ranks.tied, self.ranks.tied_rows
    above = self.ranks.ranks[tied] - self.ranks.hits[tied]
    is_new = np.ones(len(tied), bool)
    is_new[1:] = (rows[1:] != rows[:-1]) | (above[1:] != above[:-1])
    return is_new

  def _of_each(self, which, apart):
    """Returns the view of one positive a query, `which` of the P.

    `apart` says of groups how many positives are between them and that one.
    """
    is_it = np.zeros(len(self.ranks.hits), bool)
    is_it[which] = True
    tied = np.flatnonzero(is_it[self.ranks.tied])
    positives = self.every.positives.take(which)
    view = self._view(positives, np.arange(len(self)), tied)
    groups = self.groups.where(apart(self.groups) == 0)
    return dataclasses.replace(view, groups=groups)

  def _view(self, positives, starts, tied):
    ranks = self.ranks
    rows, which = ranks.tied_rows[tied], ranks.tied[tied]
    best = Positives(
      ranks.hits[which], ranks.ranks[which], ranks.num_positives[rows]
    )
    worst = dataclasses.replace(best, ranks=best.ranks + ranks.num_tied[tied])
    return View(positives, starts, rows, best, worst, self.groups)


@dataclasses.dataclass(frozen=True)
class Terms:
  """The values of a metric that is a sum of terms; call it with a `Block`.

  Its lowest value must be that with the negatives of every tie first, and its
  highest that with the positives first.

  Attributes:
    term: `Positives` -> [P] float64, the term of each.
    expected: `Ties` -> [T] float64, the sum of a group's terms, averaged over
      its orders.
    of: whose terms: 'every', 'first' or 'last' positive; of the last two,
      `expected` sees only the groups that such a positive is in.
    denominator: [B] R -> [B], what the sum is divided by.
  """

  term: Callable[[Positives], np.ndarray]
  expected: Callable[[Ties], np.ndarray]
  of: str = 'every'
  denominator: Callable[[np.ndarray], np.ndarray] = lambda num_positives: 1

  def __call__(self, block: Block) -> Values:
    """Returns the values of the queries of a block."""
    view = getattr(block, self.of)
    divisor = self.denominator(block.ranks.num_positives)
    highest = self.term(view.positives)
    if self.of == 'every':
      highest = np.add.reduceat(highest, view.starts)
    # Few positives tie, so only what they change is computed.
    changed = self.term(view.tied_best)
    expected = highest - block.sum(view.tied_rows, changed)
    if len(view.groups.rows):
      expected += block.sum(view.groups.rows, self.expected(view.groups))
    lowest = highest - block.sum(
      view.tied_rows, changed - self.term(view.tied_worst)
    )
    return Values(expected / divisor, lowest / divisor, highest / divisor)


# -- expectations -------------------------------------------------------------


def expected_hits(ties: Ties, places: np.ndarray) -> np.ndarray:
  """Returns the expected positives in the first `places` of each group."""
  return ties.positives / ties.size * places


def expected_precisions(ties: Ties, places: np.ndarray) -> np.ndarray:
  """Returns the expected sum of precision at each hit in the first `places`.

  (r / n) sum_{i=1..L} (h + 1 + c (i - 1)) / (a + i), c = (r - 1) / (n - 1)
    = (r / n) (c L + (h + 1 - c - c a) (H(a + L) - H(a))),

  with H the harmonic numbers.
  """
  a, h, r, n = ties.before, ties.hits_before, ties.positives, ties.size
  slope = (r - 1) / (n - 1)
  harmonic = harmonic_numbers(int((a + n).max(initial=0)))
  steps = harmonic[a + places] - harmonic[a]
  return r / n * (slope * places + (h + 1 - slope - slope * a) * steps)


def harmonic_numbers(last: int) -> np.ndarray:
  """Returns [last + 1] float64, H(0) = 0 to H(last)."""
  numbers = np.zeros(last + 1)
  np.cumsum(1 / np.arange(1, last + 1), out=numbers[1:])
  return numbers


def per_distinct(
  function: Callable[..., float], *columns: np.ndarray
) -> np.ndarray:
  """Applies a function to each row of some columns, equal rows once.

  Args:
    function: of a number of each column.
    *columns: [T] int64 each.

  Returns:
    [T] float64.
  """
  rows, which = np.unique(
    np.stack(columns, axis=1), axis=0, return_inverse=True
  )
  values = np.array([function(*row) for row in rows.tolist()])
  return values[which.reshape(-1)]


def all_missed(positives: int, size: int) -> np.ndarray:
  """Returns the probability that the first i tied items are all negatives.

  prod_{u < i} (n - r - u) / (n - u)

  Args:
    positives: r, of the tied items.
    size: n, all of them.

  Returns:
    [n - r + 1] float64, of i = 0 .. n - r.
  """
  drawn = np.arange(size - positives)
  missed = np.cumprod((size - positives - drawn) / (size - drawn))
  return np.concatenate([[1.0], missed])


def hits_in_places(
  positives: int, size: int, places: int
) -> tuple[np.ndarray, np.ndarray]:
  """Returns how many of r positives are in the first L of n tied items.

  Args:
    positives: r, 0 to n.
    size: n.
    places: L, 0 to n.

  Returns:
    [M] int64, the numbers that can be, and [M] float64, how likely each is
    (the hypergeometric distribution).

  Example:
    >>> number, probability = hits_in_places(2, 4, 2)
    >>> number.tolist(), (6 * probability).round(9).tolist()
    ([0, 1, 2], [1.0, 4.0, 1.0])
  """
  negatives = size - positives
  number = np.arange(max(0, places - negatives), min(positives, places) + 1)
  m = number[:-1]
  ratios = (positives - m) * (places - m)
  ratios = ratios / ((m + 1) * (negatives - places + m + 1))
  logarithms = np.concatenate([[0.0], np.cumsum(np.log(ratios))])
  weights = np.exp(logarithms - logarithms.max())
  return number, weights / weights.sum()
