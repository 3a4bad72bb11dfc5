"""Embeds each image once, in however many sets it is."""

from collections.abc import Callable

import numpy as np

from retrieval_jax import data

Embed = Callable[[data.Source, str], tuple[np.ndarray, np.ndarray]]


class EmbeddedOnce:
  """The embeddings of sources that share images.

  Sets of a benchmark share queries and galleries, whole or in parts. A source
  that was asked for before is found as it is; of another one, those rows of its
  store that no source had are embedded.
  """

  def __init__(self, embed: Embed):
    """Embeds nothing yet.

    Args:
      embed: takes a source and how messages call the set, and returns ([N, D]
        embeddings, [N] bool, whether an image could be read).
    """
    self._embed = embed
    # By the place in memory of a source and of a store, which are kept too, so
    # that nothing else comes to lie there.
    self._sources, self._stores = {}, {}

  def __call__(
    self, source: data.Source, name: str
  ) -> tuple[np.ndarray, np.ndarray]:
    """Returns what `embed` says of a source."""
    if id(source) not in self._sources:
      self._sources[id(source)] = source, self._find(source, name)
    return self._sources[id(source)][1]

  def _find(self, source, name):
    rows = source.stored_rows
    _, pieces = self._stores.setdefault(id(source.store), (source.store, []))
    piece, place = np.full((2, len(rows)), -1)
    for number, known in enumerate(pieces):
      found = np.minimum(np.searchsorted(known.rows, rows), len(known.rows) - 1)
      is_here = known.rows[found] == rows
      piece[is_here], place[is_here] = number, known.order[found[is_here]]
    missing = np.flatnonzero(piece < 0)
    if len(missing):
      is_whole = len(missing) == len(rows)
      embedded = self._embed(
        source if is_whole else source.subset(missing), name
      )
      order = np.argsort(rows[missing])
      pieces.append(_Piece(rows[missing][order], order, *embedded))
      if is_whole:
        return embedded
      piece[missing] = len(pieces) - 1
      place[missing] = np.arange(len(missing))
    first = pieces[piece[0]]
    embeddings = np.empty((len(rows), first.embeddings.shape[1]), np.float32)
    readable = np.empty(len(rows), bool)
    for number, known in enumerate(pieces):
      picked = np.flatnonzero(piece == number)
      embeddings[picked] = known.embeddings[place[picked]]
      readable[picked] = known.readable[place[picked]]
    return embeddings, readable


class _Piece:
  """Rows of a store that were embedded together.

  Attributes:
    rows: [n] int64 ascending.
    order: [n], which of the embeddings each is.
    embeddings: [n, D].
    readable: [n] bool.
  """

  def __init__(self, rows, order, embeddings, readable):
    self.rows, self.order = rows, order
    self.embeddings, self.readable = embeddings, readable
