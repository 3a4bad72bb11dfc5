"""UnED: one embedding for several domains, each apart and all merged.

R@1 and mMP@5 (the share of positives among the first min(R, 5) ranks) by
domain, and their mean over the domains. 'Separate': a domain's queries search
in its own index. 'Merged': they search in the indexes of all domains, where a
row of another domain is never relevant.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from retrieval_jax.core import relations, tiles
from retrieval_jax.core.errors import InputError
from retrieval_jax.metrics.results import RetrievalResult
from retrieval_jax.metrics.retrieval import evaluate_retrieval

METRICS = ('precision_at_1', 'mean_modified_precision_at_5')


class Domain(NamedTuple):
  """The evaluation set of a domain.

  Attributes:
    query_embeddings: [Q, D].
    query_labels: [Q] int, of the domain's own numbering.
    gallery_embeddings: [N, D], its index; None: the queries, each excluded from
      its own ranking.
    gallery_labels: [N] int.
  """

  query_embeddings: np.ndarray
  query_labels: np.ndarray
  gallery_embeddings: np.ndarray | None = None
  gallery_labels: np.ndarray | None = None


class UnedResult(NamedTuple):
  """What UnED's tables print.

  Attributes:
    means: name -> mean over the domains.
    domains: the result of each.
  """

  means: dict[str, float]
  domains: dict[str, RetrievalResult]


def evaluate(
  domains: Mapping[str, Domain],
  *,
  merged: bool,
  metrics: tuple[str, ...] = METRICS,
  memory_budget_mb: float = 128,
) -> UnedResult:
  """Returns R@1 and mMP@5 of each domain and their means.

  Args:
    domains: by name.
    merged: whether all search in the indexes of all. These are then copied
      into one array; queries that are rows of it are excluded by their row.
    metrics: names, see `retrieval_metrics`.
    memory_budget_mb: see `retrieval_metrics`; the merged index not counted.

  Raises:
    InputError: without a domain, or for one that cannot be ranked.

  Example:
    Merged, the query of `b` finds a row of `a` that bears the same number.

    >>> x = np.eye(2)
    >>> a = Domain(x[:1], np.array([0]), x, np.array([0, 1]))
    >>> b = Domain(x[:1] + 0.05, np.array([0]), x[::-1] + 0.2, np.array([1, 0]))
    >>> [round(evaluate({'a': a, 'b': b}, merged=m).means['precision_at_1'], 2)
    ...  for m in (False, True)]
    [1.0, 0.5]

  References:
    Ypsilantis et al., "Towards Universal Image Embeddings", ICCV 2023, section
    3.3.
  """
  if not domains:
    raise InputError(
      'domains is empty; allowed is at least one: pass {name: Domain(...)}'
    )
  parts = dict(domains)
  own_rows = dict.fromkeys(domains)
  if merged:
    parts, own_rows = _merge(domains)
  results = {}
  for name, part in parts.items():
    try:
      results[name] = evaluate_retrieval(
        *part,
        metrics=metrics,
        own_rows=own_rows[name],
        memory_budget_mb=memory_budget_mb,
      )
    except InputError as error:
      raise InputError(f'{name}: {error}') from error
  return UnedResult(
    {
      name: float(
        np.mean([result.metrics[name] for result in results.values()])
      )
      for name in metrics
    },
    results,
  )


def _merge(
  domains: Mapping[str, Domain],
) -> tuple[dict[str, Domain], dict[str, np.ndarray | None]]:
  """Returns the domains with one index, and which of its rows queries are."""
  queries, galleries, indexes = {}, [], []
  first_label, width = 0, None
  for name, domain in domains.items():
    embeddings, labels, index, index_labels = domain
    if index is None:
      index, index_labels = embeddings, labels
    index = tiles.check_embeddings(index, f'{name}: gallery_embeddings', width)
    width = index.shape[1]
    labels, index_labels = (
      relations.check_labels(array, f'{name}: labels')
      for array in (labels, index_labels)
    )
    if len(index) != len(index_labels):
      raise InputError(
        f'{name}: {len(index)} embeddings have {len(index_labels)} labels; '
        'allowed is one label a row: check how they were gathered'
      )
    # Numbers that no other domain has.
    classes, both = np.unique(
      np.concatenate([labels, index_labels]), return_inverse=True
    )
    labels, index_labels = np.split(both + first_label, [len(labels)])
    first_label += len(classes)
    queries[name] = embeddings, labels
    galleries.append(index)
    indexes.append(index_labels)
  starts = np.cumsum([0] + [len(index) for index in galleries])
  gallery, gallery_labels = np.concatenate(galleries), np.concatenate(indexes)
  parts, own_rows = {}, {}
  for start, (name, own) in zip(starts.tolist(), queries.items(), strict=False):
    parts[name] = Domain(*own, gallery, gallery_labels)
    is_index = domains[name].gallery_embeddings is None
    own_rows[name] = start + np.arange(len(own[1])) if is_index else None
  return parts, own_rows
