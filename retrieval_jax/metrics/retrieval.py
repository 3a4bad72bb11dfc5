"""Retrieval metrics of embeddings: exact, in bounded memory, in [0, 1].

How they are defined (and where PML's `AccuracyCalculator` differs):

- Similarity is cosine. A zero vector has no direction: its similarity to
  everything is 0, and the protocol counts such rows.
- Rankings are full. A `k` that cuts them makes PML's R-precision too large and
  its mAP@R too small; here there is none.
- A tie is no ranking. Values are expectations over random orders within ties,
  so that row order decides nothing.
- Without a gallery the queries are the gallery, and each query is left out of
  its own ranking by its index; its duplicates stay.
- A lone query (no row of its class to find) has no value, is left out of the
  mean, and is counted in the protocol.
- What is to be found is the query's class; with label sets, every row that has
  a label in common with it; with grades, every row graded above 0; or the rows
  that are listed for it (`listed`). How relevant it is enters nDCG
  alone.
"""

import functools
import warnings
from collections.abc import Iterable, Sequence

import jax
import numpy as np

from retrieval_jax.core import relations, tiles
from retrieval_jax.core.errors import InputError
from retrieval_jax.metrics import (
  averages,
  definitions,
  pairs,
  ranking,
  results,
  set_metrics,
  sorting,
)
from retrieval_jax.metrics.averages import Groups
from retrieval_jax.metrics.ignored import (
  Ignored,
  check_own_rows,
  with_own_rows,
)
from retrieval_jax.metrics.results import RetrievalResult

DEFAULT_METRICS = (
  'precision_at_1',
  'r_precision',
  'mean_average_precision',
  'mean_average_precision_at_r',
  'mean_reciprocal_rank',
  'recall_at_10',
)


def retrieval_metrics(
  query_embeddings,
  query_labels,
  gallery_embeddings=None,
  gallery_labels=None,
  *,
  metrics: Sequence[str] = DEFAULT_METRICS,
  grades=None,
  categories=None,
  ignored: Ignored | None = None,
  memory_budget_mb: float = 128,
  all_processes: bool = False,
) -> dict[str, float]:
  """Returns retrieval metrics; warns if the embeddings have collapsed.

  Args:
    query_embeddings: [Q, D] any float dtype, on the host or one device; or the
      path of an .npy file. The rows of a memory map are read from its file, so
      that it does not take the memory of the process.
    query_labels: [Q] int; or [Q, L] int label sets, padded with -1.
    gallery_embeddings: [N, D]; None: the queries, each excluded from its own
      ranking.
    gallery_labels: [N] int, or [N, M] likewise, with the gallery.
    metrics: names in `METRICS`, or in `METRICS_AT_K` with a number for `<k>`:
      means over queries; with `macro_` before it, the mean over classes of the
      means of their queries; with `category_macro_`, over categories. Or of
      the whole set, see `set_metrics`.
    grades: [C, C] float of int labels, the relevance of each class to each; see
      `core.relations`. None: a class is relevant to itself alone.
    categories: [Q] int, the category of each query, for `category_macro_`;
      negative: none. Where no query with a match has one, such a metric is
      left out with a warning.
    ignored: rows of the gallery that a query is not judged by. Rankings are
      then sorted whole, as with label sets and grades: O(N log N) a query.
    memory_budget_mb: MiB beyond the inputs and the results to stay within. If
      it also holds a float32 copy of the gallery twice, things go faster.
    all_processes: whether all processes of `jax.distributed` call this with
      the same arguments: the devices of each then hold its share of the
      gallery. Only clusters are computed by each from all rows, on the host.

  Returns:
    name -> value, in the order of `metrics`: in [0, 1] of rankings, within the
    bounds that its definition states of the whole set.

  Raises:
    InputError: for arguments that cannot be ranked, in words.

  Example:
    >>> embeddings = np.array([[1.0, 0.0], [0.8, 0.6], [0.6, 0.8], [0.0, 1.0]])
    >>> retrieval_metrics(embeddings, np.array([0, 0, 1, 1]),
    ...                   metrics=('precision_at_1', 'mean_average_precision'))
    {'precision_at_1': 0.5, 'mean_average_precision': 0.75}
    >>> label_sets = np.array([[0, 1], [0, 2], [1, 2], [1, -1]])
    >>> retrieval_metrics(embeddings, label_sets,
    ...                   metrics=('precision_at_1', 'r_precision'))
    {'precision_at_1': 1.0, 'r_precision': 0.875}

  References:
    McSherry and Najork, ECIR 2008 (expectations over ties); Musgrave et al.,
    "A metric learning reality check", ECCV 2020, section 3.2 (mAP@R).
  """
  result = evaluate_retrieval(
    query_embeddings,
    query_labels,
    gallery_embeddings,
    gallery_labels,
    metrics=metrics,
    grades=grades,
    categories=categories,
    ignored=ignored,
    memory_budget_mb=memory_budget_mb,
    all_processes=all_processes,
  )
  for sentence in result.protocol['warnings']:
    warnings.warn(sentence, stacklevel=2)
  return result.metrics


def evaluate_retrieval(
  query_embeddings,
  query_labels,
  gallery_embeddings=None,
  gallery_labels=None,
  *,
  metrics: Sequence[str] = DEFAULT_METRICS,
  grades=None,
  categories=None,
  ignored: Ignored | None = None,
  own_rows=None,
  memory_budget_mb: float = 128,
  all_processes: bool = False,
  curves: bool = False,
) -> RetrievalResult:
  """Returns retrieval metrics with ranges, protocol and values per query.

  The arguments and errors are those of `retrieval_metrics`. Warnings are left
  in the protocol, for the caller to log. With `curves` the result also has the
  CMC and precision against recall. With `own_rows` [Q] int, the gallery row
  that a query itself is, negative for none, queries that are part of a larger
  gallery are excluded from their rankings, at no cost.

  Example:
    Four equal embeddings: everything ties, so nothing is decided.

    >>> result = evaluate_retrieval(np.ones((4, 2)), np.array([0, 0, 1, 1]),
    ...                             metrics=('precision_at_1',))
    >>> round(result.metrics['precision_at_1'], 4)
    0.3333
    >>> result.ranges['precision_at_1'], result.protocol['tie_rate']
    ((0.0, 1.0), 1.0)
  """
  names = check_metrics(metrics, 'metrics')
  budget = tiles.check_memory_budget(memory_budget_mb)
  queries = tiles.check_embeddings(query_embeddings, 'query_embeddings')
  labels = check_row_labels(query_labels, 'query_labels', queries)
  self_excluded = gallery_embeddings is None
  if self_excluded != (gallery_labels is None):
    raise InputError(
      'gallery_embeddings and gallery_labels: one is given and one is not; '
      'allowed are both, or neither: then the queries are the gallery'
    )
  if self_excluded:
    gallery, known_labels = queries, labels
  else:
    gallery = tiles.check_embeddings(
      gallery_embeddings, 'gallery_embeddings', queries.shape[1]
    )
    known_labels = check_row_labels(gallery_labels, 'gallery_labels', gallery)
  grades = check_label_pair(labels, known_labels, grades)
  if categories is not None:
    categories = check_row_labels(categories, 'categories', queries, sets=False)
  if ignored is not None:
    ignored = ignored.checked(len(queries), len(gallery))
  if own_rows is not None and self_excluded:
    raise InputError(
      'own_rows is given without a gallery, where each query is excluded '
      'already; allowed is None: leave it out'
    )
  if own_rows is not None:
    own_rows = check_own_rows(own_rows, labels, known_labels)
  process = tiles.this_process(all_processes)
  result = _evaluate(
    queries,
    labels,
    gallery,
    known_labels,
    metrics=[name for name in names if not set_metrics.find_metric(name)],
    grades=grades,
    categories=categories,
    ignored=ignored,
    own_rows=own_rows,
    self_excluded=self_excluded,
    budget=budget,
    process=process,
    curves=curves,
  )
  task = pairs.Task(
    queries,
    labels,
    gallery,
    known_labels,
    self_excluded,
    grades,
    budget,
    has_ignored=ignored is not None or own_rows is not None,
    process=process,
  )
  found = set_metrics.join(result, set_metrics.measure(names, task), names)
  results.check_not_empty(found)
  return found


def check_metrics(
  names: Sequence[str], prefix: str = 'eval.metrics'
) -> tuple[str, ...]:
  """Returns metric names as a tuple, each once, or says which is unknown.

  Args:
    names: of metrics, see `retrieval_metrics`; at least one.
    prefix: how the message calls them.

  Raises:
    InputError: for an unknown name (with the nearest known one), or none.

  Example:
    >>> check_metrics(['r_precision', 'recall_at_10'])
    ('r_precision', 'recall_at_10')
  """
  if isinstance(names, str):
    raise InputError(
      f'{prefix} is the string {names!r}; allowed is a list of names: '
      f'pass ({names!r},)'
    )
  names = tuple(dict.fromkeys(names))
  if not names:
    raise InputError(
      f'{prefix} is empty; allowed is at least one name, '
      f'for example {DEFAULT_METRICS[0]!r}'
    )
  for name in names:
    if set_metrics.check_metric(name):
      continue
    over, base = averages.split_name(name)
    if over != 'query' and set_metrics.find_metric(base):
      raise InputError(
        f'{prefix} has {name!r}, but {base!r} is of the whole set, and of no '
        f'single query; allowed is {base!r}: leave out what is before it'
      )
    definitions.get_metric(base, prefix, others=set_metrics.NAMES)
  return names


def check_row_labels(
  labels, name: str, embeddings: np.ndarray, *, sets: bool = True
) -> np.ndarray:
  """Returns `relations.check_labels`, one for each embedding.

  Args:
    labels: [N] int, or [N, L] label sets.
    name: how the message calls them.
    embeddings: [N, D].
    sets: whether label sets may come.
  """
  labels = relations.check_labels(labels, name, label_sets=sets)
  if len(labels) != len(embeddings):
    raise InputError(
      f'{name} has {len(labels)} rows but the embeddings have '
      f'{len(embeddings)}; allowed is one label a row: '
      'check how they were gathered'
    )
  return labels


def check_label_pair(labels: np.ndarray, known_labels: np.ndarray, grades):
  """Returns `relations.check_grades` of the labels of queries and gallery.

  Raises:
    InputError: also if the labels are of two kinds.
  """
  if known_labels.ndim != labels.ndim:
    raise InputError(
      f'gallery_labels has shape {known_labels.shape} and query_labels '
      f'{labels.shape}; allowed are ints (N,) in both, or label sets (N, L) in '
      'both: give each row its set'
    )
  grades = relations.check_grades(grades, labels, 'query_labels')
  relations.check_grades(grades, known_labels, 'gallery_labels')
  return grades


def _evaluate(
  queries: np.ndarray,
  labels: np.ndarray,
  gallery: np.ndarray,
  gallery_labels: np.ndarray,
  *,
  metrics: Iterable[str],
  self_excluded: bool,
  budget: int,
  process: tuple[int, int] = (0, 1),
  curves: bool = False,
  grades: np.ndarray | None = None,
  categories: np.ndarray | None = None,
  ignored: Ignored | None = None,
  own_rows: np.ndarray | None = None,
  counter: str | None = None,
  devices: Sequence[jax.Device] | None = None,
) -> RetrievalResult:
  names = tuple(metrics)
  is_one_class = labels.ndim == 1 and grades is None
  if is_one_class and ignored is None:
    rank = functools.partial(
      ranking.rank_positives,
      queries,
      labels,
      gallery,
      gallery_labels,
      own_rows=own_rows,
      counter=counter,
    )
  else:
    rank = functools.partial(
      sorting.rank_relevant,
      queries,
      gallery,
      sorting.Labels(labels, gallery_labels, grades),
      ignored=with_own_rows(ignored, own_rows),
      with_grades=not is_one_class and _has_graded(names),
    )
  groups = {'class': Groups.of_labels(labels)}
  if categories is not None:
    groups['category'] = Groups.of_categories(categories)
  relevance = (
    'at least one label in common' if grades is None else 'a grade above 0'
  )
  is_relevant = 'of its class' if is_one_class else 'that is relevant'
  return results.summarize(
    rank(
      exclude_self=self_excluded,
      budget=budget,
      devices=devices,
      process=process,
    ),
    names,
    num_queries=len(queries),
    num_candidates=len(gallery) - (self_excluded or own_rows is not None),
    curves=curves,
    groups=groups,
    protocol=results.describe_search(
      queries,
      gallery,
      self_excluded=self_excluded or own_rows is not None,
      ignored=ignored,
      relevance=None if is_one_class else relevance,
    ),
    no_positive=(
      f'query_labels: none of the {len(queries)} queries has another row '
      f'{is_relevant} in the gallery; allowed is at least one that does: check '
      'that both come from the same label map'
    ),
  )


def _has_graded(names):
  bases = (averages.split_name(name)[1] for name in names)
  return any(definitions.get_metric(base).is_graded for base in bases)
