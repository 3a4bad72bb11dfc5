"""Post-processing of embeddings and rankings, chosen by name and chained.

A chain is a sequence of names of `POSTPROCESSING` in four stages, each optional
and in this order:

1. 'whitening', 'queries' and 'gallery' give new embeddings, in any order;
2. at most one 'ranking' gives lists by another score than the cosine;
3. 'threshold' lets lists end early;
4. 'labels' orders lists by what the training set says.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from retrieval_jax.core.errors import InputError, unknown_name
from retrieval_jax.neighbors import options as options_lib
from retrieval_jax.neighbors import search, whitening
from retrieval_jax.neighbors.lists import RankedLists, empty_lists, leave_out
from retrieval_jax.neighbors.options import Sizes
from retrieval_jax.neighbors.registry import POSTPROCESSING, Postprocessing

# What comes after what.
_ORDER = {
  'whitening': 1,
  'queries': 1,
  'gallery': 1,
  'ranking': 2,
  'threshold': 3,
  'labels': 4,
}
# Of these a second one would undo the first.
_ONCE = ('ranking', 'labels')


class Step(NamedTuple):
  """One of a chain: a row of `POSTPROCESSING` with its options."""

  name: str
  row: Postprocessing
  options: Mapping[str, Any]


class Embedded(NamedTuple):
  """What a chain works on.

  Attributes:
    queries: [Q, D] float.
    gallery: [N, D] float, of the queries themselves if `exclude_self`.
    exclude_self: whether row i of the gallery is query i, which may not find
      it. Expansion makes two embeddings of such a row.
    train: [T, D] float, of the training images; None where no step needs them.
    train_labels: [T] int, likewise.
  """

  queries: np.ndarray
  gallery: np.ndarray
  exclude_self: bool = False
  train: np.ndarray | None = None
  train_labels: np.ndarray | None = None


def parse_postprocessing(
  names: Sequence[str],
  options: Mapping[str, Mapping[str, Any]] | None = None,
  *,
  prefix: str = 'postprocessing',
  section: str = '',
) -> tuple[Step, ...]:
  """Returns a chain, everything checked that needs no data to be seen.

  Args:
    names: in the order in which they are applied.
    options: {name: {option: value}}; what is left out has its default.
    prefix: how messages call `names`.
    section: what stands before the names in messages, such as 'eval.'.

  Raises:
    InputError: for an unknown name or option, a value that is not allowed, or
      an order that means nothing.

  Example:
    >>> (step,) = parse_postprocessing(['diffusion'], {'diffusion': {'kq': 5}})
    >>> step.row.stage, step.options['kq'], step.options['kd']
    ('ranking', 5, 50)
    >>> parse_postprocessing(['k_reciprocal', 'pca_whitening'])
    Traceback (most recent call last):
    ...
    retrieval_jax.core.errors.InputError: postprocessing has 'pca_whitening' \
after 'k_reciprocal'; allowed is the order whitening, expansion and \
augmentation, then one re-ranking, then thresholds, then label_aware: move it
  """
  options = options or {}
  steps = []
  for name in names:
    if name not in POSTPROCESSING:
      raise unknown_name(prefix, name, POSTPROCESSING)
    row, given = POSTPROCESSING[name], dict(options.get(name, {}))
    options_lib.check(section + name, given, row.options)
    defaults = row.function.__kwdefaults__
    chosen = {key: defaults[key] for key in row.options} | given
    options_lib.check(section + name, {}, {}, row.limits(Sizes(), **chosen))
    _check_order(steps, name, row, prefix)
    steps.append(Step(name, row, chosen))
  return tuple(steps)


def _check_order(steps, name, row, prefix):
  for earlier in steps:
    stages = earlier.row.stage, row.stage
    if stages[0] == stages[1] and row.stage in _ONCE:
      raise InputError(
        f'{prefix} has {earlier.name!r} and {name!r}; allowed is one of them, '
        'since each makes lists anew: leave one out'
      )
    if _ORDER[stages[0]] > _ORDER[stages[1]]:
      raise InputError(
        f'{prefix} has {name!r} after {earlier.name!r}; allowed is the order '
        'whitening, expansion and augmentation, then one re-ranking, then '
        'thresholds, then label_aware: move it'
      )


def check_sizes(
  steps: Sequence[Step],
  sizes: Sizes,
  *,
  section: str = '',
  list_length_key: str = 'list_length',
) -> None:
  """Raises `InputError` where a chain asks for more rows than there are.

  Args:
    steps: of `parse_postprocessing`.
    sizes: of the data.
    section: as of `parse_postprocessing`.
    list_length_key: how the message calls the length of the lists.

  Example:
    >>> check_sizes(parse_postprocessing(['k_reciprocal']), Sizes(found=9))
    Traceback (most recent call last):
    ...
    retrieval_jax.core.errors.InputError: k_reciprocal.k1 is 20; allowed is at \
most 9, the gallery rows that a query can find: choose a smaller one
  """
  if steps and sizes.list_length > sizes.found:
    raise InputError(
      f'{list_length_key} is {sizes.list_length}; allowed is at most '
      f'{sizes.found:.0f}, {options_lib.FOUND}: choose a smaller one'
    )
  for step in steps:
    options_lib.check(
      section + step.name,
      {},
      {},
      step.row.limits(sizes, **step.options),
      list_length_key,
    )


def needs(steps: Sequence[Step], what: str) -> bool:
  """Returns whether a step of a chain needs 'train' or 'train_labels'."""
  return any(what in step.row.needs for step in steps)


def transform(
  steps: Sequence[Step], embedded: Embedded, *, memory_budget_mb: float = 128
) -> Embedded:
  """Applies the steps of a chain that give new embeddings.

  Args:
    steps: of `parse_postprocessing`; others are passed over.
    embedded: what to work on.
    memory_budget_mb: MiB of each step, see its function.

  Returns:
    New embeddings, to be measured or searched like any others.

  Raises:
    InputError: of a step, or for training embeddings that are missing.

  Example:
    >>> gallery = np.array([[0.6, 0.8], [0.0, -1.0]])
    >>> options = {'average_query_expansion': {'k': 1}}
    >>> steps = parse_postprocessing(list(options), options)
    >>> embedded = Embedded(np.array([[1.0, 0.0]]), gallery)
    >>> transform(steps, embedded).queries.round(2).tolist()
    [[0.8899999856948853, 0.44999998807907104]]
  """
  for step in steps:
    _check_train(step, embedded)
    rest = {**step.options, 'memory_budget_mb': memory_budget_mb}
    if step.row.stage == 'whitening':
      fitted_on = [embedded.train]
      if 'train_labels' in step.row.needs:
        fitted_on.append(embedded.train_labels)
      embedded = _whiten(
        step.row.function(*fitted_on, **rest), embedded, memory_budget_mb
      )
    elif step.row.stage == 'queries':
      queries = step.row.function(
        embedded.queries,
        embedded.gallery,
        exclude_self=embedded.exclude_self,
        **rest,
      )
      embedded = embedded._replace(queries=queries)
    elif step.row.stage == 'gallery':
      gallery = step.row.function(embedded.gallery, **rest)
      embedded = embedded._replace(gallery=gallery)
  return embedded


def _check_train(step, embedded):
  for what in step.row.needs:
    if getattr(embedded, what) is None:
      raise InputError(
        f'{what} is None; allowed are those of the training images for '
        f'{step.name!r}, which is fitted on them: pass them'
      )


def _whiten(fitted, embedded, memory_budget_mb):
  def apply(rows):
    if rows is None:
      return None
    return whitening.apply_whitening(
      fitted, rows, memory_budget_mb=memory_budget_mb
    )

  gallery = apply(embedded.gallery)
  return embedded._replace(
    gallery=gallery,
    queries=gallery
    if embedded.queries is embedded.gallery
    else apply(embedded.queries),
    train=apply(embedded.train),
  )


def rank(
  steps: Sequence[Step],
  embedded: Embedded,
  k: int,
  *,
  left_out: np.ndarray | None = None,
  memory_budget_mb: float = 128,
) -> RankedLists:
  """Returns the lists of a whole chain; without re-ranking those of `top_k`.

  What is left out of the list of a query is in the gallery all the same:
  expansion, augmentation and re-ranking use it like any other row, since they
  do not know what a query is judged by (as in the evaluation of Revisited
  Oxford, which takes junk out of finished rankings). Rankings are made L
  entries longer, and it is taken out of them before thresholds and labels see
  them; labels do not bring it back. So no list is shorter for it.

  Args:
    steps: of `parse_postprocessing`.
    embedded: what to search in.
    k: length of the lists.
    left_out: [Q, L] int rows of the gallery that are in no list of a query,
      padded with -1; None: none.
    memory_budget_mb: MiB of each step, see its function.

  Raises:
    InputError: of a step, or for training embeddings that are missing.

  Example:
    >>> x = np.array([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]])
    >>> steps = parse_postprocessing(['constant_threshold'])
    >>> rank(steps, Embedded(x, x, exclude_self=True), 2).indices.tolist()
    [[1, -1], [0, 2], [1, -1]]
    >>> rank((), Embedded(x, x), 2, left_out=np.array([[0], [0], [1]])
    ...   ).indices.tolist()
    [[1, 2], [1, 2], [2, 0]]
  """
  embedded = transform(steps, embedded, memory_budget_mb=memory_budget_mb)
  queries, gallery, exclude_self = embedded[:3]
  rankings = [step for step in steps if step.row.stage == 'ranking']
  function, options = (
    (rankings[0].row.function, rankings[0].options)
    if rankings
    else (search.top_k, {})
  )
  longest = k
  if left_out is not None:
    longest = max(k, min(k + left_out.shape[1], len(gallery) - exclude_self))
  lists = RankedLists(
    *function(
      queries,
      gallery,
      longest,
      exclude_self=exclude_self,
      memory_budget_mb=memory_budget_mb,
      **options,
    )
  )
  if left_out is not None:
    lists = leave_out(lists, left_out, k)
  for step in steps:
    if step.row.stage == 'threshold':
      lists = step.row.function(lists, **step.options)
    elif step.row.stage == 'labels':
      lists = step.row.function(
        _widened(lists, longest),
        queries,
        gallery,
        embedded.train,
        embedded.train_labels,
        exclude_self=exclude_self,
        memory_budget_mb=memory_budget_mb,
        **step.options,
      )
      if left_out is not None:
        lists = leave_out(lists, left_out, k)
  return lists


def _widened(lists, width):
  """Returns lists with room at their end."""
  widened = empty_lists(len(lists.indices), width)
  widened.scores[:, : lists.scores.shape[1]] = lists.scores
  widened.indices[:, : lists.indices.shape[1]] = lists.indices
  return widened
