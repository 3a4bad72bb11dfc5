"""What a row of the registries says of a loss or a miner."""

import dataclasses
import math
import numbers
from collections.abc import Callable, Mapping
from typing import Any

from retrieval_jax.core.distances import Distance


@dataclasses.dataclass(frozen=True)
class Number:
  """A hyperparameter that is a number within bounds.

  Attributes:
    most: the largest allowed.
    unit: for the message.
    least: the smallest, not allowed itself unless `closed`.
    closed: whether `least` is allowed.
    integer: whether only whole numbers are.
    optional: whether None is allowed too.
    words: what else is allowed, such as 'all'.
  """

  most: float = math.inf
  unit: str = ''
  least: float = 0.0
  closed: bool = False
  integer: bool = False
  optional: bool = False
  words: tuple[str, ...] = ()

  def complaint(self, value: object) -> str | None:
    """Returns what is allowed, if the value is not."""
    if isinstance(value, str) and value in self.words:
      return None
    kind = numbers.Integral if self.integer else numbers.Real
    # A bool is an int to Python, and never meant as one here.
    fits = (
      isinstance(value, kind)
      and not isinstance(value, bool)
      and math.isfinite(value)
      and (value >= self.least if self.closed else value > self.least)
      and value <= self.most
    )
    if fits or (self.optional and value is None):
      return None
    return self._allowed()

  def _allowed(self) -> str:
    words = ['an integer' if self.integer else 'a number']
    if math.isfinite(self.least) and self.integer and not self.closed:
      words.append(f'of at least {math.floor(self.least) + 1}')
    elif math.isfinite(self.least):
      words.append(
        f'{"of at least" if self.closed else "above"} {self.least:g}'
      )
    if math.isfinite(self.most):
      words.append(
        ('and ' if math.isfinite(self.least) else 'of ')
        + f'at most {self.most:g}'
      )
    if self.unit:
      words.append(f'({self.unit})')
    others = [repr(word) for word in self.words]
    others += ['None'] if self.optional else []
    return ' '.join(words) + ''.join(f', or {other}' for other in others)


@dataclasses.dataclass(frozen=True)
class Choice:
  """A hyperparameter that is one of a few values."""

  words: tuple[Any, ...]

  def complaint(self, value: object) -> str | None:
    """Returns what is allowed, if the value is not."""
    if any(value == w and type(value) is type(w) for w in self.words):
      return None
    return 'one of ' + ', '.join(map(str, self.words))


FLAG = Choice((False, True))
"""A hyperparameter that is True or False."""


@dataclasses.dataclass(frozen=True)
class Numbers:
  """A hyperparameter that is a tuple of numbers; `each` is what one may be."""

  each: Number
  optional: bool = False

  def complaint(self, value: object) -> str | None:
    """Returns what is allowed, if the value is not."""
    if self.optional and value is None:
      return None
    if isinstance(value, (tuple, list)) and value:
      if all(self.each.complaint(number) is None for number in value):
        return None
    allowed = f'a tuple, each {self.each.complaint(None)}'
    return allowed + (', or None' if self.optional else '')


Hyperparameter = Number | Choice | Numbers


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
    needs: as of `Loss`.
  """

  function: Callable[..., Any]
  kind: str
  hyperparameters: Mapping[str, Hyperparameter]
  distance: Distance = Distance('lp')
  distances: tuple[str, ...] = ('cosine', 'dot', 'lp', 'snr')
  whole_batch: bool = False
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
