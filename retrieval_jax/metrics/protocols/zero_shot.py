"""R@K as CUB-200-2011, Cars-196, Stanford Online Products and In-Shop count it.

Classes of the test set are not trained on. In the first three all test images
ask each other, each query excluded by its index (not by dropping the nearest
row, which may be a copy). In-Shop has queries and a gallery of its own. R@K is
the share of queries with a row of their class among the K nearest.
"""

from typing import NamedTuple

from retrieval_jax.core.errors import InputError, unknown_name
from retrieval_jax.metrics.results import RetrievalResult
from retrieval_jax.metrics.retrieval import evaluate_retrieval


class Benchmark(NamedTuple):
  """What a benchmark counts.

  Attributes:
    ks: K of R@K, as its tables print.
    num_queries: of the official test set.
    gallery_size: of the official gallery; None: the queries are the gallery.
  """

  ks: tuple[int, ...]
  num_queries: int
  gallery_size: int | None = None

  @property
  def metrics(self) -> tuple[str, ...]:
    """The names of its metrics, for `eval.metrics`."""
    return tuple(f'recall_at_{k}' for k in self.ks)


# By the names of the data sets.
BENCHMARKS = {
  'cub': Benchmark((1, 2, 4, 8), 5_924),
  'cars': Benchmark((1, 2, 4, 8), 8_131),
  'sop': Benchmark((1, 10, 100, 1000), 60_502),
  'in_shop': Benchmark((1, 10, 20, 30, 40, 50), 14_218, 12_612),
}


def evaluate(
  name: str,
  query_embeddings,
  query_labels,
  gallery_embeddings=None,
  gallery_labels=None,
  *,
  memory_budget_mb: float = 128,
) -> RetrievalResult:
  """Returns R@K of a benchmark.

  Where positives and negatives tie, code that counts the negatives strictly
  above the best positive decides for the method; the pessimistic value is the
  lower end of `ranges`.

  Args:
    name: 'cub', 'cars', 'sop' or 'in_shop'.
    query_embeddings: [Q, D] of the test images, or of the queries.
    query_labels: [Q] int.
    gallery_embeddings: [N, D], of In-Shop alone.
    gallery_labels: [N] int.
    memory_budget_mb: see `retrieval_metrics`.

  Returns:
    The result; its protocol also has `benchmark` and whether the number of
    images is the official one, `is_official_size`.

  Raises:
    InputError: for an unknown name, or a gallery where there is none.

  Example:
    >>> import numpy as np
    >>> x = np.array([[1.0, 0.0], [0.8, 0.6], [0.6, 0.8], [0.0, 1.0]])
    >>> result = evaluate('cub', x, np.array([0, 1, 0, 1]))
    >>> result.metrics['recall_at_1'], result.metrics['recall_at_2']
    (0.0, 0.5)

  References:
    Oh Song et al., CVPR 2016, section 5 (the first three); Liu et al.,
    DeepFashion, CVPR 2016 (In-Shop).
  """
  if name not in BENCHMARKS:
    raise unknown_name('name', name, BENCHMARKS)
  benchmark = BENCHMARKS[name]
  if (gallery_embeddings is None) != (benchmark.gallery_size is None):
    given = 'no gallery' if gallery_embeddings is None else 'a gallery'
    allowed = 'one' if benchmark.gallery_size else 'none: all test images ask'
    raise InputError(
      f'{name} got {given}; allowed is {allowed}: pass the test set as its '
      'authors divide it'
    )
  result = evaluate_retrieval(
    query_embeddings,
    query_labels,
    gallery_embeddings,
    gallery_labels,
    metrics=benchmark.metrics,
    memory_budget_mb=memory_budget_mb,
  )
  sizes = result.protocol['num_queries'], result.protocol['gallery_size']
  official = benchmark.num_queries, benchmark.gallery_size
  result.protocol['benchmark'] = name
  result.protocol['is_official_size'] = sizes == (
    official[0],
    official[1] or official[0],
  )
  return result
