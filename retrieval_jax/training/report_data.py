"""What the page of a run is made of."""

import dataclasses
import functools
import importlib.metadata
import platform
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from retrieval_jax import metrics
from retrieval_jax.training import ablation as ablation_lib

_PACKAGES = (
  'retrieval_jax',
  'jax',
  'jaxlib',
  'flax',
  'optax',
  'orbax-checkpoint',
  'numpy',
)


def installed_versions() -> dict[str, str]:
  """Returns the versions of Python and of the packages that make a run."""
  versions = {'python': platform.python_version()}
  for name in _PACKAGES:
    try:
      versions[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      continue  # Run from a checkout that is not installed.
  return versions


@dataclasses.dataclass(frozen=True)
class ReportData:
  """Everything the page shows.

  Attributes:
    title: the heading, such as the name of the run.
    config: nested dictionaries of plain values.
    evaluation: the metrics.
    history: rows in the order of their steps, each {'step': int} and any of
      'train/<loss>' and 'eval/<set>/<metric>'.
    query_embeddings: [Q, D] float.
    gallery_embeddings: [N, D] float.
    query_labels: [Q] int.
    gallery_labels: [N] int.
    class_names: the name of class i at i; None, or shorter, for classes that
      are known by number only.
    query_images: indices [n] -> [n, H, W, C] uint8, C = 1 or 3.
    gallery_images: likewise.
    neighbor_indices: [Q, K] int, gallery rows, nearest first, without the query
      itself and what it is not judged by; -1 where there are no more.
    neighbor_similarities: [Q, K] float.
    relevant: [Q, K] bool, whether a neighbour is what was looked for; None: if
      it is of the query's class.
    selection: why the weights are these, in a sentence.
    watched: the set whose metrics are in the history.
    pairs: what the similarities of pairs say, if that is known.
    pairs_note: which pairs these are, if not all; or why there are none.
    ablation: the ranked lists with and without post-processing; may be empty.
    versions: {package: version}.
  """

  title: str
  config: Mapping[str, Any]
  evaluation: metrics.RetrievalResult
  history: Sequence[Mapping[str, float]]
  query_embeddings: np.ndarray
  gallery_embeddings: np.ndarray
  query_labels: np.ndarray
  gallery_labels: np.ndarray
  class_names: Sequence[str] | None
  query_images: Callable[[np.ndarray], np.ndarray]
  gallery_images: Callable[[np.ndarray], np.ndarray]
  neighbor_indices: np.ndarray
  neighbor_similarities: np.ndarray
  relevant: np.ndarray | None = None
  selection: str = ''
  watched: str = 'test'
  pairs: metrics.Verification | None = None
  pairs_note: str = ''
  ablation: Sequence[ablation_lib.Variant] = ()
  versions: Mapping[str, str] = dataclasses.field(
    default_factory=installed_versions
  )

  def class_name(self, label: int) -> str:
    """Returns the name of a class, or its number where it has no name."""
    names = () if self.class_names is None else self.class_names
    return str(names[label]) if 0 <= label < len(names) else str(label)

  @functools.cached_property
  def lone(self) -> np.ndarray:
    """[Q] bool, the queries without any match in the gallery."""
    lone = self.neighbor_indices[:, 0] < 0
    for scores in self.evaluation.per_query.values():
      lone |= np.isnan(scores)
    return lone

  @functools.cached_property
  def right(self) -> np.ndarray:
    """[Q, K] bool, whether a neighbour is what was looked for."""
    right = self.relevant
    if right is None:
      found = self.gallery_labels[self.neighbor_indices]
      right = found == self.query_labels[:, None]
    return right & (self.neighbor_indices >= 0)
