"""Clustering: does k-means find the classes?

Needs scikit-learn, an extra of this package.
"""

import importlib.util
import warnings
from typing import NamedTuple

import numpy as np

from retrieval_jax.core import tiles
from retrieval_jax.core.errors import InputError
from retrieval_jax.metrics import pairs


class Clustering(NamedTuple):
  """How k-means and the classes agree.

  Attributes:
    nmi: normalised mutual information, in [0, 1].
    ami: adjusted mutual information, at most 1, 0 by chance.
  """

  nmi: float
  ami: float


def check_installed(name: str = 'nmi') -> None:
  """Raises `InputError` if scikit-learn is missing.

  Args:
    name: what needs it, for the message.
  """
  if importlib.util.find_spec('sklearn') is None:
    raise InputError(
      f'{name} needs scikit-learn, which is not installed: run '
      "pip install 'retrieval_jax[clustering]', or leave the metric out"
    )


def cluster(task: pairs.Task, *, seed: int = 0) -> Clustering:
  """Clusters the unit rows of the queries, as many clusters as classes.

    NMI = I(c, y) / ((H(c) + H(y)) / 2)
    AMI = (I(c, y) - E I) / ((H(c) + H(y)) / 2 - E I)

  with c the clusters, y the classes, and E I the mutual information that is
  expected of clusters of these sizes by chance. One k-means of scikit-learn,
  begun by k-means++. It takes a float32 copy of the queries, beyond the memory
  budget, and O(Q C D) time an iteration.

  Args:
    task: of which the queries and their labels are read.
    seed: of k-means++.

  Raises:
    UndefinedError: if a row has several labels.
    InputError: if scikit-learn is missing.

  Example:
    >>> x, y = np.eye(3)[[0, 0, 1, 1, 2]], np.array([4, 4, 5, 5, 6])
    >>> cluster(pairs.Task(x, y, x, y, self_excluded=True))
    Clustering(nmi=1.0, ami=1.0)

  References:
    N. X. Vinh, J. Epps and J. Bailey, "Information theoretic measures for
    clusterings comparison", JMLR 2010.
  """
  if task.labels.ndim == 2:
    raise pairs.UndefinedError('clusters need one label a row, not label sets')
  check_installed()
  import sklearn.cluster
  import sklearn.exceptions
  import sklearn.metrics

  num_classes = len(np.unique(task.labels))
  k_means = sklearn.cluster.KMeans(num_classes, n_init=1, random_state=seed)
  with warnings.catch_warnings():
    # Fewer distinct rows than classes: then the clusters are fewer, too.
    warnings.simplefilter('ignore', sklearn.exceptions.ConvergenceWarning)
    clusters = k_means.fit_predict(tiles.unit_rows(task.queries))
  return Clustering(
    float(sklearn.metrics.normalized_mutual_info_score(task.labels, clusters)),
    float(sklearn.metrics.adjusted_mutual_info_score(task.labels, clusters)),
  )
