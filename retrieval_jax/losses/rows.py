"""What a row of the registries says of a loss or a miner."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from retrieval_jax.core.distances import Distance
from retrieval_jax.core.hyperparameters import Hyperparameter


@dataclasses.dataclass(frozen=True)
class Loss:
  """A row of `LOSSES`.

  The function of a loss returns terms; one that keeps a state returns (terms,
  next state). What it takes besides its hyperparameters is in `needs`:

    inverted          bool, the matrix holds similarities and not distances
    labels            [B] (or [B, L] label sets) of the anchors
    candidate_labels  [G] (or [G, L]) of the candidates
    ids               [B] int32, rows of the anchors in the whole batch
    candidate_ids     [G] int32, likewise; -1 for rows of no batch
    distance          the `Distance` that the user chose
    relevance         [B, G] float32 of the pairs, 0 at self and padding
    anchors           [B, D] of a pair loss, the embeddings of the anchors
    candidates        [G, D] likewise of the candidates
    row_keys          [B] random keys, a function of the step and the row
    norms             [B] float32, lengths of the embeddings as they came
    class_counts      [B] float32, training images of the row's class
    proxy_norms       [C * K] float32, lengths of the proxies as they are
    shard             how the classes are shared out over devices, or None
    axis_name         of the devices that share the batch, or None

  Attributes:
    function: what computes the terms.
    kind: 'pair', rows of a matrix of pairs; 'batch', all embeddings at once;
      'proxy', cosines with classes.
    hyperparameters: the keyword arguments a user may set.
    reducer: the one that the loss has by itself.
    distance: the one that a pair loss has by itself; None for losses that see
      embeddings or cosines.
    distances: names of those that it may be used with.
    triplets: whether it takes `triplets`, what a triplet miner returns.
    ordered: whether the loss is faster on candidates ordered by class.
    needs: see above.
    params: (hyperparameters, num_classes, embedding_dim, key) -> {name: array},
      what it learns, passed to the function as `params`; None: nothing.
    state: (hyperparameters, num_classes, embedding_dim) -> {name: array}, what
      it keeps between steps, passed as `state`; None: nothing.
    centers: of a proxy loss, the hyperparameter that says how many proxies a
      class has, and how many by default.
    separate_centers: whether the cosines with the centres of a class are passed
      as [B, C, K], instead of the largest of them.
    views: how many views of each image it takes, 0 for any number; with 2 the
      embeddings are of the first and the candidates of the second.
    of_classes: of a proxy loss, whether its values are of classes, dealt out to
      the rows, so that a weight of a row's class means nothing.
    masked: whether the masks say what has a part in it; else miners and
      remembered rows mean nothing.
  """

  function: Callable[..., Any]
  kind: str
  hyperparameters: Mapping[str, Hyperparameter]
  reducer: str = 'mean'
  distance: Distance | None = None
  distances: tuple[str, ...] = ()
  triplets: bool = False
  ordered: bool = False
  needs: tuple[str, ...] = ()
  params: Callable[..., Any] | None = None
  state: Callable[..., Any] | None = None
  centers: tuple[str, int] = ('sub_centers', 1)
  separate_centers: bool = False
  views: int = 0
  of_classes: bool = False
  masked: bool = True

  @property
  def alike(self) -> bool:
    """Whether the terms are alike on every device, and not of its rows."""
    return self.kind == 'batch'

  @property
  def shardable(self) -> bool:
    """Whether the classes may be shared by the devices."""
    return 'shard' in self.needs


@dataclasses.dataclass(frozen=True)
class Miner:
  """A row of `MINERS`.

  Attributes:
    function: what selects.
    kind: 'pair', masks in and masks out; 'triplet', what
      `mining.triplets_to_masks` and the triplet losses take.
    hyperparameters: the keyword arguments a user may set.
    distance: the one it selects by, unless the user names another.
    distances: names of those that it may be used with.
    whole_batch: whether it has to see all anchors at once.
    one_each: hyperparameters -> whether a miner of pairs leaves an anchor one
      positive and one negative at most.
    needs: as of `Loss`.
  """

  function: Callable[..., Any]
  kind: str
  hyperparameters: Mapping[str, Hyperparameter]
  distance: Distance = Distance('lp')
  distances: tuple[str, ...] = ('cosine', 'dot', 'lp', 'snr')
  whole_batch: bool = False
  one_each: Callable[[Mapping[str, Any]], bool] = lambda hyper: False
  needs: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Regularizer:
  """A row of `REGULARIZERS`.

  Attributes:
    function: (rows, *, valid, axis_name, hyperparameters) -> (values, counts)
      of the rows.
    kinds: what it may be of: 'embeddings', 'proxies'.
    hyperparameters: the keyword arguments a user may set.
    needs: 'centers_per_class' of proxies, if it has to know.
  """

  function: Callable[..., Any]
  kinds: tuple[str, ...]
  hyperparameters: Mapping[str, Hyperparameter]
  needs: tuple[str, ...] = ()
